package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/push"
)

// maxCA bounds the file of CAs, in bytes.
const maxCA = 1 << 20

// serverFlags say how to reach the service.
type serverFlags struct {
	server, ca, tokenFile string
}

func (f *serverFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.server, "server", "", "`URL` of the service, https://HOST[:PORT]")
	flags.StringVar(&f.ca, "ca", "", "`file` of a CA to trust besides the system's (PEM)")
	flags.StringVar(&f.tokenFile, "token-file", "", "`file` with the publisher token")
	cmd.MarkFlagsRequiredTogether("server", "token-file")
}

func (a *app) client(f serverFlags) (*push.Client, error) {
	token, err := readSecret(f.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read token: %w", err)
	}
	var ca []byte
	if f.ca != "" {
		if ca, err = readFile(f.ca, maxCA); err != nil {
			return nil, fmt.Errorf("cannot read CA: %w", err)
		}
	}
	return push.NewClient(push.Options{Server: f.server, CA: ca, Token: string(token), Proxy: a.Proxy})
}

func (a *app) pushCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:     "push --server URL --token-file FILE [--ca FILE]",
		Short:   "Bring what is new to a livepatch service",
		Example: "  livepatch-publish --repo R push --server https://livepatch.example.com:8443 --ca ca.crt --token-file token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(f)
			if err != nil {
				return err
			}
			r, err := a.open()
			if err != nil {
				return err
			}
			start := time.Now()
			done, err := c.Push(cmd.Context(), r)
			if err := errors.Join(err, r.Close()); err != nil {
				return fmt.Errorf("cannot push to %s: %w", f.server, err)
			}
			if done.Roles == 0 {
				fmt.Fprintln(a.Stdout, "Nothing to do: the service has everything.")
				return nil
			}
			fmt.Fprintf(a.Stdout, "Published %d roles and uploaded %d targets; snapshot %d.\n", done.Roles, done.Uploaded, done.SnapshotVersion)
			a.note("took %v", time.Since(start).Round(time.Millisecond))
			return nil
		},
	}
	f.add(cmd)
	cobra.CheckErr(cmd.MarkFlagRequired("server"))
	return cmd
}
