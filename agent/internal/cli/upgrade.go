package cli

import (
	"context"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/daemon"
)

// loginDeadline bounds kernel-upgrade-required. It runs at every login, where a
// second is long and a hanging command keeps people out of a machine in
// trouble. Together with starting and ending the program it stays under 1 s.
const loginDeadline = 700 * time.Millisecond

func kernelUpgradeRequiredCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "kernel-upgrade-required",
		Short: "Tell whether the kernel has to be upgraded and the machine rebooted",
		Long: "Tell whether the kernel has to be upgraded and the machine rebooted.\n\n" +
			"The exit code is 0, with a line of text, if so; it is 1 if not, and also if the\n" +
			"machine is not enabled or the daemon does not answer. It takes less than a second.",
		Args:              atMost(0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Not even --timeout makes it longer.
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), loginDeadline, &daemon.SlowError{After: loginDeadline})
			defer cancel()
			answer, err := a.call(ctx, "ask whether a kernel upgrade is required", daemon.Public,
				http.MethodGet, "/kernel-upgrade-required", nil)
			if err != nil {
				return err
			}
			text := printableLine(string(answer))
			if text == "" {
				return errQuiet
			}
			return a.print([]byte(text))
		},
	}
}
