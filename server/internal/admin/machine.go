package admin

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

func (a *admin) machineCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the enrolled machines and what they reported last",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				machines, err := db.Machines(cmd.Context())
				if err != nil {
					return fmt.Errorf("cannot list machines: %w", err)
				}
				return table(cmd.OutOrStdout(), machineRows(machines))
			})
		},
	}
	events := &cobra.Command{
		Use:   "events ID",
		Short: "List what a machine reported of its patches, oldest first",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(db *sqlite.DB) error {
				events, err := db.Events(cmd.Context(), args[0])
				if err != nil {
					return fmt.Errorf("cannot list events: %w", err)
				}
				rows := [][]string{{"TIME", "EVENT", "PATCH", "VERSION", "REASON", "SIGNATURE", "MESSAGE"}}
				for _, e := range events {
					rows = append(rows, []string{
						e.At.Format(time.RFC3339), string(e.Kind), orDash(e.Name), orDash(e.Version), orDash(e.Reason), orDash(e.Signature), orDash(e.Message),
					})
				}
				return table(cmd.OutOrStdout(), rows)
			})
		},
	}
	return group("machine", "Enrolled machines", list, events)
}

func machineRows(machines []store.Machine) [][]string {
	rows := [][]string{{"ID", "HOST", "TIER", "LAST SEEN", "KERNEL", "ARCH", "PATCH", "STATE", "AGENT"}}
	for _, m := range machines {
		state := m.Patch.State
		if m.Revoked {
			state = "token revoked"
		}
		rows = append(rows, []string{
			m.ID, orDash(m.Hostname), m.Tier, when(m.LastSeen, "never"), orDash(m.Facts.Release), orDash(m.Facts.Arch),
			orDash(m.Patch.Version), orDash(state), orDash(m.Version),
		})
	}
	return rows
}
