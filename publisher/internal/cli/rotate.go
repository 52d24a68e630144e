package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
)

var errNoChange = errors.New("nothing was said to change")

// rotateFlags say how the keys of a role change.
type rotateFlags struct {
	add, remove []string
	all         bool
	threshold   int
}

const rotateHelp = `
KEY is the name of a key in the folder of keys. One that is not there is created;
one that lies in a token, in an agent or with somebody else is written down first
with "keys add" or "keys import". --remove takes the first 8 or more digits of a
key ID as well, for keys that are lost. With --all every key is replaced by a new
one, called as the one before with the next number.

Old versions of the root stay in the repository: machines follow from one to the
next, however many they have missed.`

func (f *rotateFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.remove, "remove", nil, "`KEY` that is not trusted any more (can be repeated)")
	flags.StringArrayVar(&f.add, "add", nil, "`KEY` that is trusted from now on (can be repeated)")
	flags.BoolVar(&f.all, "all", false, "replace every key by a new one")
	flags.IntVar(&f.threshold, "threshold", 0, "`number` of keys that have to sign (default: as before)")
	cmd.MarkFlagsMutuallyExclusive("all", "add")
	cmd.MarkFlagsMutuallyExclusive("all", "remove")
}

// rotateCommand returns the command that changes the keys of a role; of the
// vendor that is its argument, if role is empty.
func (a *app) rotateCommand(role, signs string) *cobra.Command {
	var f rotateFlags
	use, example := role+" rotate", role+" rotate --remove "+role+"-1 --add "+role+"-4"
	if role == "" {
		use, example = "vendor rotate NAME", "vendor rotate debian --remove debian-builder --add debian-builder-2"
	}
	cmd := &cobra.Command{
		Use:     strings.TrimPrefix(use[strings.Index(use, " "):], " ") + " {[--remove KEY]… [--add KEY]… | --all} [--threshold N]",
		Short:   "Replace, add or take away keys",
		Long:    "Change which keys may sign, in a new version of what names them.\n" + signs + "\n" + rotateHelp,
		Example: "  livepatch-publish --repo R " + example + "\n  livepatch-publish --repo R " + strings.Fields(use)[0] + " rotate" + argumentOf(role) + " --all",
		Args:    arguments(role, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rotate(cmd.Context(), roleOf(role, args), f)
		},
	}
	f.register(cmd)
	return cmd
}

// thresholdCommand returns the command that changes how many must sign.
func (a *app) thresholdCommand(role string) *cobra.Command {
	use, name := "threshold N", role
	if role == "" {
		use, name = "threshold NAME N", "vendor"
	}
	return &cobra.Command{
		Use:     use,
		Short:   "Change how many keys have to sign",
		Example: "  livepatch-publish --repo R " + name + " threshold" + argumentOf(role) + " 3",
		Args:    arguments(role, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[len(args)-1])
			if err != nil || n < 1 {
				return fmt.Errorf("%w: threshold is %q, want a number from 1", errUsage, args[len(args)-1])
			}
			return a.rotate(cmd.Context(), roleOf(role, args), rotateFlags{threshold: n})
		},
	}
}

func argumentOf(role string) string {
	if role == "" {
		return " debian"
	}
	return ""
}

// arguments takes n arguments, and before them the name of a vendor if the role
// is not known yet.
func arguments(role string, n int) cobra.PositionalArgs {
	if role == "" {
		n++
	}
	return cobra.ExactArgs(n)
}

func roleOf(role string, args []string) string {
	if role == "" {
		return args[0]
	}
	return role
}

func (a *app) rotate(ctx context.Context, role string, f rotateFlags) error {
	if len(f.add)+len(f.remove)+f.threshold == 0 && !f.all {
		return fmt.Errorf("cannot change the keys of %s: %w", role, errNoChange)
	}
	return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
		if err := r.CheckSigners(ctx, ring, role); err != nil {
			return err
		}
		c, err := a.rotation(ctx, r, ring, role, f)
		if err != nil {
			return fmt.Errorf("cannot change the keys of %s: %w", role, err)
		}
		if err := r.Rotate(ctx, ring, role, c); err != nil {
			return err
		}
		return a.printTrusted(r, ring, role)
	})
}

// printTrusted says who may sign a role by now.
func (a *app) printTrusted(r *repo.Repo, ring *keys.Ring, role string) error {
	who, err := r.Keys(role)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(who.IDs))
	for _, id := range who.IDs {
		names = append(names, ring.Name(id))
	}
	fmt.Fprintf(a.Stdout, "Role %s trusts %s from now on; %d of them must sign.\n", role, strings.Join(names, ", "), who.Threshold)
	if who.Threshold == 1 {
		a.note("one key is enough for role %s now: whoever steals one has it all", role)
	}
	return nil
}

// rotation finds, and creates, the keys that the flags name.
func (a *app) rotation(ctx context.Context, r *repo.Repo, ring *keys.Ring, role string, f rotateFlags) (repo.Rotation, error) {
	c := repo.Rotation{Threshold: f.threshold}
	who, err := r.Keys(role)
	if err != nil {
		return c, err
	}
	if f.all {
		c.Remove = who.IDs
		if f.add, err = a.successors(ring, role, who.IDs); err != nil {
			return c, err
		}
	}
	for _, key := range f.remove {
		id, err := findKey(ring, who, key)
		if err != nil {
			return c, err
		}
		c.Remove = append(c.Remove, id)
	}
	// A change that cannot be must not leave keys behind.
	if n, need := len(who.IDs)-len(c.Remove)+len(f.add), cmp.Or(f.threshold, who.Threshold); n < need {
		return c, fmt.Errorf("%w: %d keys have to sign and there would be %d", repo.ErrThreshold, need, n)
	}
	for _, name := range f.add {
		k, err := ring.Ensure(ctx, name)
		if err != nil {
			return c, err
		}
		c.Add = append(c.Add, k.Key)
	}
	return c, nil
}

// findKey returns the ID of a role's key by its name or the beginning of its ID.
func findKey(ring *keys.Ring, who authority.Authority, key string) (string, error) {
	var found []string
	for _, id := range who.IDs {
		if ring.Name(id) == key || len(key) >= 8 && strings.HasPrefix(id, key) {
			found = append(found, id)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%w: %d of the role's keys are called %s", repo.ErrKey, len(found), key)
	}
	return found[0], nil
}

var numbered = regexp.MustCompile(`^(.*?)(?:-([0-9]{1,6}))?$`)

// successors returns names for keys that come in the place of others: root-4
// follows root-1 if there is a root-3, debian-builder-2 follows debian-builder.
// A name that is in use is not taken, for its key may be stolen.
func (a *app) successors(ring *keys.Ring, role string, ids []string) ([]string, error) {
	all, err := a.store().List()
	if err != nil {
		return nil, err
	}
	last := make(map[string]int)
	for _, k := range all {
		m := numbered.FindStringSubmatch(k.Name)
		n, _ := strconv.Atoi(m[2]) // no number: 0
		last[m[1]] = max(last[m[1]], n, 1)
	}
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		base := role
		if name := ring.Name(id); slices.ContainsFunc(all, func(k keys.Public) bool { return k.Name == name }) {
			base = numbered.FindStringSubmatch(name)[1]
		}
		last[base]++
		names = append(names, fmt.Sprintf("%s-%d", base, last[base]))
	}
	return names, nil
}

func (a *app) targetsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "targets", Short: "Manage the keys that name the vendors"}
	cmd.AddCommand(
		a.rotateCommand("targets", "The root, which names the keys of targets, is signed, and targets itself."),
		a.thresholdCommand("targets"),
	)
	return cmd
}

func (a *app) onlineCommand() *cobra.Command {
	var (
		onlineKeys string
		server     serverFlags
	)
	rotate := &cobra.Command{
		Use:   "rotate {--online-keys FILE | --server URL --token-file FILE [--ca FILE]}",
		Short: "Trust new keys of the service",
		Long: `Make root trust the service's new keys of timestamp and snapshot, and targets the
one of rollout. They come from the file that "livepatch-server init" writes, or
from the service itself.`,
		Example: "  livepatch-publish --repo R online rotate --online-keys online-keys.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			online, err := a.onlineKeys(cmd.Context(), onlineKeys, server)
			if err != nil {
				return err
			}
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				changed, err := r.ReplaceOnline(cmd.Context(), ring, online)
				if err != nil {
					return err
				}
				if !changed {
					fmt.Fprintln(a.Stdout, "Nothing to do: these keys of the service are trusted.")
					return nil
				}
				fmt.Fprintln(a.Stdout, "The service's new keys are trusted from now on.")
				return nil
			})
		},
	}
	rotate.Flags().StringVar(&onlineKeys, "online-keys", "", "`file` with the public keys of the service (JSON)")
	server.add(rotate)
	rotate.MarkFlagsOneRequired("online-keys", "server")
	rotate.MarkFlagsMutuallyExclusive("online-keys", "server")
	cmd := &cobra.Command{Use: "online", Short: "Manage the keys of the service"}
	cmd.AddCommand(rotate)
	return cmd
}
