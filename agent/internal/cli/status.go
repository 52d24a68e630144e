package cli

import (
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/daemon"
	"livepatch/agent/internal/status"
)

func statusCommand(a *app) *cobra.Command {
	var (
		format           string
		verbose, summary bool
		secrets          bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the running kernel is patched",
		Long: "Show how the running kernel is patched.\n\n" +
			"The humane format is for people and its wording may change; programs use json.\n" +
			"The exit code is 0 if the machine is enabled, whatever its state.",
		Example: "  canonical-livepatch status --verbose\n" +
			"  canonical-livepatch status --format json | jq '.Status[0].Livepatch.State'",
		Args:              atMost(0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := status.ParseFormat(format)
			if err != nil {
				return usage(cmd, "%w", err)
			}
			if verbose && summary {
				return usage(cmd, "cannot show a verbose summary: --verbose and --summary exclude each other")
			}
			query := url.Values{"format": {string(f)}}
			for name, set := range map[string]bool{"verbose": verbose, "summary": summary, "show-secrets": secrets} {
				if set {
					query.Set(name, "true")
				}
			}
			socket := daemon.Public
			if secrets {
				socket = daemon.Private
			}
			ctx, cancel := a.deadline(cmd.Context(), 20*time.Second)
			defer cancel()
			answer, err := a.call(ctx, "get status", socket, http.MethodGet, "/status?"+query.Encode(), nil)
			if err != nil {
				return err
			}
			return a.print(answer)
		},
	}
	cmd.Flags().StringVar(&format, "format", string(status.FormatHumane), "humane, json or yaml")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "show all that is known")
	cmd.Flags().BoolVar(&summary, "summary", false, "show one line")
	cmd.Flags().BoolVar(&secrets, "show-secrets", false, "show the machine token too; needs root")
	completeWords(cmd, "format", "humane", "json", "yaml")
	return cmd
}

// completeWords lets the shell complete the values of a flag.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	// It fails only for a flag that does not exist or is registered twice.
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}
