package cli

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
)

// The offline keys of the repository itself: any two of three sign.
const (
	ownKeys   = 3
	threshold = 2
)

func (a *app) initCommand() *cobra.Command {
	var (
		onlineKeys string
		server     serverFlags
	)
	cmd := &cobra.Command{
		Use:   "init {--online-keys FILE | --server URL --token-file FILE [--ca FILE]}",
		Short: "Create keys and a signed, empty repository",
		Long: `Create three keys for root and three for targets, two of which must sign, and a
repository that trusts them and the service's online keys. These come from the
file that "livepatch-server init" writes, or from the service itself.

Keys that are in the folder of keys already (root-1, root-2, …) are used.`,
		Example: "  livepatch-publish --repo R init --online-keys online-keys.json\n" +
			"  livepatch-publish --repo R init --server https://livepatch.example.com:8443 --ca ca.crt --token-file token",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			online, err := a.onlineKeys(cmd.Context(), onlineKeys, server)
			if err != nil {
				return err
			}
			return a.init(cmd.Context(), online)
		},
	}
	cmd.Flags().StringVar(&onlineKeys, "online-keys", "", "`file` with the public keys of the service (JSON)")
	server.add(cmd)
	cmd.MarkFlagsOneRequired("online-keys", "server")
	cmd.MarkFlagsMutuallyExclusive("online-keys", "server")
	return cmd
}

func (a *app) onlineKeys(ctx context.Context, file string, server serverFlags) (repo.OnlineKeys, error) {
	if file == "" {
		c, err := a.client(server)
		if err != nil {
			return nil, err
		}
		state, err := c.State(ctx)
		if err != nil {
			return nil, err
		}
		return repo.ParseOnlineKeys(state.OnlineKeys)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read online keys: %w", err)
	}
	var written map[string]string
	if err := json.Unmarshal(b, &written); err != nil {
		return nil, fmt.Errorf("cannot read online keys: %s: %w", file, err)
	}
	online, err := repo.ParseOnlineKeys(written)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return online, nil
}

func (a *app) init(ctx context.Context, online repo.OnlineKeys) error {
	if err := repo.Free(a.repoDir, a.Now()); err != nil {
		return err
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	s := repo.Trust{Threshold: threshold, Online: online}
	if s.Root, err = ensure(ctx, ring, "root"); err != nil {
		return err
	}
	if s.Targets, err = ensure(ctx, ring, "targets"); err != nil {
		return err
	}
	r, err := repo.Create(ctx, a.repoDir, a.Now(), s, ring)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Created repository %s; its keys are in %s.\n", a.repoDir, a.store().Dir)
	return r.Close()
}

// ensure opens or creates the keys role-1, role-2, ….
func ensure(ctx context.Context, ring *keys.Ring, role string) ([]ed25519.PublicKey, error) {
	var all []ed25519.PublicKey
	for i := range ownKeys {
		k, err := ring.Ensure(ctx, fmt.Sprintf("%s-%d", role, i+1))
		if err != nil {
			return nil, err
		}
		all = append(all, k.Key)
	}
	return all, nil
}
