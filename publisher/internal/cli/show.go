package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/provenance"
	"livepatch/publisher/internal/repo"
)

// A shown is a module with what the index of its kernel says.
type shown struct {
	repo.Published
	KernelVersion string      `json:"kernel_version"`
	From          string      `json:"from"`
	Until         string      `json:"until"`
	Added         string      `json:"added"`
	Fixes         []patch.Fix `json:"fixes"`

	Provenance *provenance.Summary `json:"provenance,omitempty"`
}

func (a *app) showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show MODULE",
		Short:   "Show what is signed about a livepatch",
		Example: "  livepatch-publish --repo R show lkp_Debian_6_1_0_53_amd64_113",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.open()
			if err != nil {
				return err
			}
			s, err := find(cmd.Context(), r, args[0])
			if err := errors.Join(err, r.Close()); err != nil {
				return fmt.Errorf("cannot show %q: %w", args[0], err)
			}
			if asJSON {
				return json.NewEncoder(a.Stdout).Encode(s)
			}
			return a.printShown(s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// find looks for a module by its name or its target.
func find(ctx context.Context, r *repo.Repo, name string) (shown, error) {
	all, err := publishedBy(r, "")
	if err != nil {
		return shown{}, err
	}
	for _, p := range all {
		if p.Module.Name != name && p.Target != name {
			continue
		}
		vendor, err := patch.VendorOf(p.Target)
		if err != nil {
			return shown{}, err
		}
		ix, err := r.Index(vendor, p.Module.Release, p.Module.Arch)
		if err != nil {
			return shown{}, err
		}
		s := describe(p, ix)
		built, err := r.Provenance(ctx, p.Target)
		if err == nil {
			s.Provenance = &built
		} else if !errors.Is(err, repo.ErrNotFound) {
			return shown{}, err
		}
		return s, nil
	}
	return shown{}, repo.ErrNotFound
}

func describe(p repo.Published, ix patch.Index) shown {
	s := shown{Published: p, KernelVersion: ix.KernelVersion, From: ix.From, Until: ix.Until}
	for _, e := range ix.Patches {
		if e.Target == p.Target {
			s.Added, s.Fixes = e.Added, e.Fixes
		}
	}
	return s
}

func (a *app) printShown(s shown) error {
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	m := s.Module
	for _, row := range [][2]string{
		{"target", s.Target},
		{"sha256", s.Digest.String()},
		{"length", fmt.Sprint(s.Length)},
		{"role", s.Role},
		{"kernel", fmt.Sprintf("%s (%s), %s", m.Release, m.Arch, s.KernelVersion)},
		{"flavour", m.Flavour},
		{"build-id", string(m.BuildID)},
		{"supported", fmt.Sprintf("%s to %s", s.From, s.Until)},
		{"version", m.Version},
		{"sequence", fmt.Sprint(m.Sequence)},
		{"notice", m.Notice},
		{"kernel's key", cmp.Or(m.SigningKey, "none: it is not signed for kernels")},
		{"added", s.Added},
	} {
		fmt.Fprintf(w, "%s:\t%s\n", row[0], row[1])
	}
	for _, f := range s.Fixes {
		fmt.Fprintf(w, "fixes:\t%s (%s) %s\n", f.Name, f.Priority, f.Summary)
	}
	a.printBuilt(w, s.Provenance)
	return w.Flush()
}

// printBuilt says who built a module, from what, and who vouches for that.
func (a *app) printBuilt(w io.Writer, p *provenance.Summary) {
	if p == nil {
		fmt.Fprintln(w, "provenance:\tnone")
		return
	}
	names, err := a.keyNames()
	if err != nil {
		a.note("%v", err)
	}
	fmt.Fprintf(w, "built by:\t%s (%s)\n", plain(p.Builder), plain(p.BuildType))
	for _, s := range p.Sources {
		fmt.Fprintf(w, "built from:\t%s %s\n", plain(s.URI), plain(s.Digest))
	}
	signed := "no key that the vendor has now"
	if len(p.Signed) > 0 {
		signed = names.join(p.Signed)
	}
	fmt.Fprintf(w, "vouched for by:\t%s\n", signed)
}

// plain shows control characters of what others have written as question marks.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
