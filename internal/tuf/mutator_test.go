package tuf_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// A mutator changes a repository at random, in ways that its source determines,
// and keeps what a client of it has stored.
type mutator struct {
	*rand.Rand
	repo    *tuftest.Repo
	stored  tuf.Stored
	at      time.Time
	targets []string // that a client may look for
	past    []tuftest.Files
	deeds   []*deed
	// serve is what a server makes of the files of this step.
	serve []func(*tuftest.Files)
}

// A deed is what was done to a repository. What exactly is known when the files
// are made.
type deed struct{ kind, field, detail string }

func (d *deed) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s", d.kind, d.field, d.detail))
}

// newMutator returns a mutator of a repository that shape determines, whose
// client trusts one of its roots. What is done to it is up to source.
func newMutator(shape uint64, source rand.Source) *mutator {
	r := tuftest.Generate(rand.New(rand.NewPCG(shape, 0)), start, module, rollout)
	rng := rand.New(source)
	trusted := r.Roots[rng.IntN(len(r.Roots))]
	return &mutator{
		Rand: rng, repo: r, at: start, targets: slices.Sorted(maps.Keys(r.Content)),
		stored: tuf.Stored{Root: trusted.Bytes()},
	}
}

func (m *mutator) did(kind, field, format string, args ...any) *deed {
	d := &deed{kind, field, fmt.Sprintf(format, args...)}
	m.deeds = append(m.deeds, d)
	return d
}

// story tells what was done.
func (m *mutator) story() string {
	var out []string
	for _, d := range m.deeds {
		out = append(out, d.String())
	}
	return strings.Join(out, "\n  ")
}

// step makes the repository go on as it should, most of the time, and then
// breaks it in a few places.
func (m *mutator) step() {
	m.serve = nil
	for _, name := range m.names() {
		r := role(m.repo, name)
		r.Edit, r.Forge, r.Rewrite = nil, nil, nil
	}
	if m.IntN(8) > 0 {
		m.repo.Publish(m.repo.Bin(module), "rollout")
		m.did("publish", "", "")
	}
	for range m.IntN(4) {
		m.mutate()
	}
}

// names lists the roles in a fixed order.
func (m *mutator) names() []string {
	return append(slices.Sorted(maps.Keys(m.repo.Roles)), "root")
}

// pick returns a role, most often one that matters for the module.
func (m *mutator) pick() (string, *tuftest.Role) {
	names := []string{"root", "timestamp", "snapshot", "targets", "debian", "bin", "rollout"}
	if m.IntN(6) == 0 {
		names = m.names()
	}
	name := names[m.IntN(len(names))]
	return name, role(m.repo, name)
}

// target returns a path to look for, which may not be there.
func (m *mutator) target() string {
	switch m.IntN(8) {
	case 0:
		return []string{"debian/missing", "team/missing", "missing", "", "debian/", "../debian/x", "debian/a/b"}[m.IntN(7)]
	case 1, 2:
		return m.targets[m.IntN(len(m.targets))]
	case 3:
		return rollout
	}
	return module
}

// An outcome is what both implementations make of one update.
type outcome struct {
	ours, theirs error
	// complaint says how they disagree where they must not; "" if they agree.
	complaint string
}

// compare makes an update with both implementations. What ours stores is where
// the next update begins.
func (m *mutator) compare(t *testing.T, o oracle) outcome {
	t.Helper()
	files := m.repo.Files()
	m.past = append(m.past, files)
	for _, f := range m.serve {
		f(&files)
	}
	target := m.target()
	theirs, theirErr := o.update(m.stored, files, m.at, target)
	got, kept, err := find(t, m.stored, files, m.at, target)
	m.stored = kept
	out := outcome{ours: err, theirs: theirErr}
	switch {
	case err != nil:
	case theirErr != nil:
		out.complaint = fmt.Sprintf("we find %q, go-tuf says: %v", target, theirErr)
	default:
		if out.complaint = differ(got, theirs.target); out.complaint == "" && versions(kept) != theirs.versions {
			out.complaint = fmt.Sprintf("we trust %s, go-tuf trusts %s", versions(kept), theirs.versions)
		}
	}
	return out
}

// mutate breaks the repository in one place.
func (m *mutator) mutate() {
	if m.IntN(5) < 3 {
		m.breakField()
		return
	}
	kind := repoKinds[m.IntN(len(repoKinds))]
	kind.do(m, kind.name)
}

// breakField breaks one field of one role: before it is signed, most of the
// time, so that it is the field that is looked at and not the signature.
func (m *mutator) breakField() {
	name, r := m.pick()
	name = generalRole(name)
	seed := m.Uint64()
	d := m.did("", name, "")
	// Which fields there are is known when the file is made.
	hook := func(v any) any {
		n := mutator{Rand: rand.New(rand.NewPCG(seed, 1)), repo: m.repo}
		return n.change(v, d, name)
	}
	if m.IntN(5) == 0 {
		r.Forge = func(envelope tuftest.Object) any { return hook(envelope) }
		return
	}
	before := r.Edit
	r.Edit = func(signed tuftest.Object) any {
		if before == nil {
			return hook(signed)
		}
		if o, ok := before(signed).(tuftest.Object); ok {
			return hook(o)
		}
		return before(signed)
	}
}

// change breaks one field of v, and writes into d what it did. Fields are drawn
// by what they are called, so that the many keys do not crowd out the rest.
func (m *mutator) change(v any, d *deed, role string) any {
	groups := map[string][]tuftest.Path{}
	for _, p := range tuftest.Paths(v) {
		groups[fieldName(p)] = append(groups[fieldName(p)], p)
	}
	if len(groups) == 0 {
		return v
	}
	names := slices.Sorted(maps.Keys(groups))
	name := names[m.IntN(len(names))]
	p := groups[name][m.IntN(len(groups[name]))]
	kinds := slices.Sorted(maps.Keys(fieldKinds))
	kind := kinds[m.IntN(len(kinds))]
	d.kind, d.field, d.detail = kind, role+" "+name, "at "+strings.Join(p, "/")
	above, key := p[:len(p)-1], p[len(p)-1]
	return above.Edit(v, func(parent any) any { return fieldKinds[kind](m, v, parent, key) })
}

// fieldName returns what a field is called, without what is particular to a
// repository.
func fieldName(p tuftest.Path) string {
	last := p[len(p)-1]
	switch {
	case len(last) == 64:
		return "ID"
	case strings.Contains(last, "/"):
		return "PATH"
	case strings.HasSuffix(last, ".json"):
		return "FILE"
	case len(p) > 1 && strings.Trim(last, "0123456789") == "":
		return p[len(p)-2] + "[]"
	case slices.Contains(p[:len(p)-1], "custom"), strings.HasPrefix(last, "x-"):
		return "EXTRA"
	}
	return last
}

// generalRole returns the name of a role without what is particular to a
// repository.
func generalRole(name string) string {
	if vendor, _, ok := strings.Cut(name, "-"); ok && vendor != "team" {
		return "bin"
	}
	return name
}
