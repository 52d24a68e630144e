package cli

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/daemon"
)

func disableCommand(a *app) *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "disable",
		Short: "End this machine's enrolment and stop patching",
		Long: "End this machine's enrolment with the service and stop patching.\n\n" +
			"The livepatch that is in the kernel stays there, and one that was accepted comes\n" +
			"back at boot, unless --remove takes it out. A token after the command is accepted,\n" +
			"as it always was, and not needed.",
		Args:              atMost(1, "at most a token"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, usual := "/disable", 2*time.Minute
			if remove {
				path, usual = "/disable?remove=true", 10*time.Minute // a transition, and a slow task
			}
			ctx, cancel := a.deadline(cmd.Context(), usual)
			defer cancel()
			answer, err := a.call(ctx, "disable this machine", daemon.Private, http.MethodPut, path, nil)
			if err != nil {
				return err
			}
			a.mirror(cmd.Context())
			return a.print(answer)
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "take the livepatch out of the running kernel too")
	return cmd
}
