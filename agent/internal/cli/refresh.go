package cli

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/daemon"
)

func refreshCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "refresh",
		Short:             "Check with the service now and apply what it has",
		Args:              atMost(0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// A download over a slow line, and the transition after it.
			ctx, cancel := a.deadline(cmd.Context(), 10*time.Minute)
			defer cancel()
			answer, err := a.call(ctx, "refresh", daemon.Private, http.MethodPut, "/refresh", nil)
			if err != nil {
				return err
			}
			return a.print(answer)
		},
	}
}
