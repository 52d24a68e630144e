package cli

import (
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/daemon"

	"livepatch/internal/version"
)

// addVersionFlag gives the command --version.
func addVersionFlag(root *cobra.Command) {
	root.Version = version.String()
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Show the versions of the command and of the daemon",
		Args:              atMost(0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.print([]byte("canonical-livepatch " + version.String())); err != nil {
				return err
			}
			ctx, cancel := a.deadline(cmd.Context(), 5*time.Second)
			defer cancel()
			answer, err := a.call(ctx, "ask the daemon for its version", daemon.Public, http.MethodGet, "/version", nil)
			if err != nil {
				return err
			}
			v := strings.TrimPrefix(printableLine(string(answer)), "canonical-livepatchd ")
			return a.print([]byte("canonical-livepatchd " + v))
		},
	}
}
