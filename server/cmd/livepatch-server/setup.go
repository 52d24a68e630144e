package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/version"
	"livepatch/server/internal/certs"
	"livepatch/server/internal/layout"
)

func initCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create database, file folder and online keys where they are missing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return fmt.Errorf("cannot create service: %w", errNoDir)
			}
			parts, err := layout.Dir(dir).Create(cmd.Context())
			for _, p := range parts {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", p.What, p.Path)
			}
			return err
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}

func devCACommand() *cobra.Command {
	var (
		dir   string
		hosts []string
	)
	cmd := &cobra.Command{
		Use:   "dev-ca",
		Short: "Make a certificate signed by a development CA",
		Long: "Make a certificate signed by a development CA, which is made first if there is none.\n" +
			"Agents must be told to trust it. It is no replacement for a real certificate.",
		Example: "  livepatch-server dev-ca -dir /srv/livepatch -host livepatch.example.com,192.0.2.7",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return fmt.Errorf("cannot make certificate: %w", errNoDir)
			}
			d := layout.Dir(dir)
			if err := certs.MakeDev(d.TLS(), hosts, time.Now()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "CA: %s\ncertificate: %s\nkey: %s\n", d.CA(), d.Cert(), d.Key())
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "`names` and addresses of the server, joined by commas")
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), version.String())
		},
	}
}
