package request

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
)

// A Passage says in words what becomes of a role, or of several bins to which
// the same happens.
type Passage struct {
	Title string
	Lines []string
}

// Describe says what the change is, so that a person can decide whether to sign
// it. Name is what people call a key; now is the time from which lives count.
func (v *Review) Describe(name func(id string) string, now time.Time) ([]Passage, error) {
	d := describer{v: v, name: name, now: now}
	var all []Passage
	quiet := make(map[string][]*file) // bins in which nothing changes, by vendor
	for _, f := range v.change {
		lines := d.differences(f)
		if vendor := authority.Parent(f.role); len(lines) == 0 && authority.Depth(f.role) == 3 {
			quiet[vendor] = append(quiet[vendor], f)
			continue
		}
		if len(lines) == 0 {
			lines = []string{"nothing changes but version and expiry"}
		}
		signed, err := d.signatures(f)
		if err != nil {
			return nil, err
		}
		all = append(all, Passage{Title: d.title(f), Lines: append(lines, signed...)})
	}
	for _, vendor := range slices.Sorted(maps.Keys(quiet)) {
		p, err := d.quiet(vendor, quiet[vendor])
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	for i := range all {
		for j, line := range all[i].Lines {
			all[i].Lines[j] = printable(line)
		}
	}
	return all, nil
}

type describer struct {
	v    *Review
	name func(id string) string
	now  time.Time
}

func (d describer) title(f *file) string {
	return fmt.Sprintf("role %s, version %d%s, valid until %s", f.role, f.version, d.after(f), d.until(f.expires()))
}

func (d describer) after(f *file) string {
	if before := d.v.before[f.role]; before != nil {
		return fmt.Sprintf(" after %d", before.version)
	}
	return " (new)"
}

func (d describer) until(t time.Time) string {
	days := int(t.Sub(d.now) / (24 * time.Hour))
	return fmt.Sprintf("%s (%d days from now)", t.UTC().Format(time.RFC3339), days)
}

func (f *file) expires() time.Time {
	if f.root != nil {
		return f.root.Signed.Expires
	}
	return f.targets.Signed.Expires
}

// quiet tells of the bins of a vendor in which nothing changes.
func (d describer) quiet(vendor string, bins []*file) (Passage, error) {
	first, last := bins[0].expires(), bins[0].expires()
	fresh := 0
	for _, f := range bins {
		if e := f.expires(); e.Before(first) {
			first = e
		} else if e.After(last) {
			last = e
		}
		if d.v.before[f.role] == nil {
			fresh++
		}
	}
	p := Passage{Title: fmt.Sprintf("%d bins of %s, valid until %s", len(bins), vendor, d.until(first))}
	if !first.Equal(last) {
		p.Title = fmt.Sprintf("%d bins of %s, valid until %s at first, %s at last", len(bins), vendor, d.until(first), d.until(last))
	}
	if fresh > 0 {
		p.Lines = append(p.Lines, fmt.Sprintf("%d of them are new and empty", fresh))
	}
	if fresh < len(bins) {
		p.Lines = append(p.Lines, fmt.Sprintf("in %d of them nothing changes but version and expiry", len(bins)-fresh))
	}
	signed, err := d.signatures(bins[0])
	p.Lines = append(p.Lines, signed...)
	return p, err
}

// signatures says who has signed a role and whose signatures it needs.
func (d describer) signatures(f *file) ([]string, error) {
	demands, err := d.v.demands(f)
	if err != nil {
		return nil, err
	}
	var lines []string
	for i, demand := range demands {
		whose := "signatures"
		if len(demands) == 2 {
			whose = [...]string{"signatures of the root before", "signatures of the new root"}[i]
		}
		signed := "nobody yet"
		if ids := demand.Signed(f.payload, f.signatures); len(ids) > 0 {
			signed = d.names(ids)
		}
		lines = append(lines, fmt.Sprintf("%s: %d of %s; signed by %s", whose, demand.Threshold, d.names(demand.IDs), signed))
	}
	return lines, nil
}

// names lists keys by name and the beginning of their ID: a name is what a file
// says, the ID is what is signed.
func (d describer) names(ids []string) string {
	words := make([]string, 0, len(ids))
	for _, id := range ids {
		word := d.name(id)
		if short := authority.Short(id); word != short {
			word += " (" + short + ")"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// differences compares a role with the version before; with an empty one if
// there is none.
func (d describer) differences(f *file) []string {
	before := d.v.before[f.role]
	if f.root != nil {
		old := metadata.Root()
		if before != nil {
			old = before.root
		}
		return d.roots(old.Signed, f.root.Signed, before == nil)
	}
	old := metadata.Targets()
	if before != nil {
		old = before.targets
	}
	lines := d.targets(old.Signed.Targets, f.targets.Signed.Targets)
	if was, is := old.Signed.SpecVersion, f.targets.Signed.SpecVersion; was != is {
		lines = append(lines, fmt.Sprintf("specification version: %s, was %s", is, was))
	}
	return append(lines, d.delegations(old.Signed.Delegations, f.targets.Signed.Delegations)...)
}

func (d describer) roots(old, next metadata.RootType, isNew bool) []string {
	var lines []string
	if old.SpecVersion != next.SpecVersion {
		lines = append(lines, fmt.Sprintf("specification version: %s, was %s", next.SpecVersion, old.SpecVersion))
	}
	if !isNew && old.ConsistentSnapshot != next.ConsistentSnapshot {
		lines = append(lines, fmt.Sprintf("consistent snapshots: %v, was %v", next.ConsistentSnapshot, old.ConsistentSnapshot))
	}
	names := maps.Clone(old.Roles)
	maps.Copy(names, next.Roles)
	for _, role := range slices.Sorted(maps.Keys(names)) {
		var was, is grant
		if r := old.Roles[role]; r != nil {
			was = grant{r.KeyIDs, r.Threshold}
		}
		if r := next.Roles[role]; r != nil {
			is = grant{r.KeyIDs, r.Threshold}
		}
		lines = append(lines, d.grants("role "+role, was, is)...)
	}
	return lines
}

// A grant is what a role's delegator says of its keys.
type grant struct {
	ids       []string
	threshold int
}

func (d describer) grants(what string, was, is grant) []string {
	var lines []string
	gone := without(was.ids, is.ids)
	come := without(is.ids, was.ids)
	if len(gone) > 0 {
		lines = append(lines, what+": no longer trusts "+d.names(gone))
	}
	if len(come) > 0 {
		lines = append(lines, what+": trusts now "+d.names(come))
	}
	switch {
	case was.threshold == is.threshold:
	case was.threshold == 0:
		lines = append(lines, fmt.Sprintf("%s: needs %d of %d keys", what, is.threshold, len(is.ids)))
	default:
		lines = append(lines, fmt.Sprintf("%s: needs %d of %d keys, before %d of %d", what, is.threshold, len(is.ids), was.threshold, len(was.ids)))
	}
	return lines
}

func without(ids, others []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(others, id) })
}

func (d describer) delegations(old, next *metadata.Delegations) []string {
	if old == nil {
		old = &metadata.Delegations{}
	}
	if next == nil {
		next = &metadata.Delegations{}
	}
	var lines []string
	for _, was := range old.Roles {
		if !slices.ContainsFunc(next.Roles, func(r metadata.DelegatedRole) bool { return r.Name == was.Name }) {
			lines = append(lines, "no longer delegates to "+was.Name)
		}
	}
	for _, is := range next.Roles {
		lines = append(lines, d.delegation(old.Roles, is)...)
	}
	if order(old.Roles, next.Roles) != order(next.Roles, old.Roles) {
		lines = append(lines, "the order of delegations changes")
	}
	return append(lines, d.bins(old.SuccinctRoles, next.SuccinctRoles)...)
}

// order returns the names of the roles that are also among others, in order.
func order(roles, others []metadata.DelegatedRole) string {
	var names []string
	for _, r := range roles {
		if slices.ContainsFunc(others, func(o metadata.DelegatedRole) bool { return o.Name == r.Name }) {
			names = append(names, r.Name)
		}
	}
	return strings.Join(names, " ")
}

func (d describer) delegation(old []metadata.DelegatedRole, is metadata.DelegatedRole) []string {
	what := "delegation to " + is.Name
	i := slices.IndexFunc(old, func(r metadata.DelegatedRole) bool { return r.Name == is.Name })
	if i < 0 {
		end := "others may be asked after it"
		if is.Terminating {
			end = "nobody else may answer for them"
		}
		line := fmt.Sprintf("%s is new: responsible for %s, %s", what, strings.Join(is.Paths, " "), end)
		return append([]string{line}, d.grants(what, grant{}, grant{is.KeyIDs, is.Threshold})...)
	}
	was := old[i]
	lines := d.grants(what, grant{was.KeyIDs, was.Threshold}, grant{is.KeyIDs, is.Threshold})
	if !slices.Equal(was.Paths, is.Paths) {
		lines = append(lines, fmt.Sprintf("%s: responsible for %s, before for %s", what, strings.Join(is.Paths, " "), strings.Join(was.Paths, " ")))
	}
	if was.Terminating != is.Terminating {
		lines = append(lines, fmt.Sprintf("%s: terminating is %v, was %v", what, is.Terminating, was.Terminating))
	}
	return lines
}

func (d describer) bins(was, is *metadata.SuccinctRoles) []string {
	if was == nil && is == nil {
		return nil
	}
	if is == nil {
		return []string{"no longer delegates to bins"}
	}
	if was == nil {
		line := fmt.Sprintf("bins are new: 2^%d called %s-…", is.BitLength, is.NamePrefix)
		return append([]string{line}, d.grants("bins", grant{}, grant{is.KeyIDs, is.Threshold})...)
	}
	var lines []string
	if was.BitLength != is.BitLength || was.NamePrefix != is.NamePrefix {
		lines = append(lines, fmt.Sprintf("bins: 2^%d called %s-…, before 2^%d called %s-…", is.BitLength, is.NamePrefix, was.BitLength, was.NamePrefix))
	}
	return append(lines, d.grants("bins", grant{was.KeyIDs, was.Threshold}, grant{is.KeyIDs, is.Threshold})...)
}

// targets compares what two versions of a role vouch for.
func (d describer) targets(old, next map[string]*metadata.TargetFiles) []string {
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(old)) {
		if next[path] == nil {
			lines = append(lines, "removes "+path+" ("+target(old[path])+")")
		}
	}
	for _, path := range slices.Sorted(maps.Keys(next)) {
		is := target(next[path])
		switch was := old[path]; {
		case was == nil:
			lines = append(lines, "adds "+path+" ("+is+")")
		case target(was) != is:
			lines = append(lines, "changes "+path+" ("+is+"; before "+target(was)+")")
		}
	}
	return lines
}

// target says all that is signed of a target.
func target(t *metadata.TargetFiles) string {
	var hashes []string
	for _, name := range slices.Sorted(maps.Keys(t.Hashes)) {
		hashes = append(hashes, fmt.Sprintf("%s %x", name, []byte(t.Hashes[name])))
	}
	s := fmt.Sprintf("%d bytes, %s", t.Length, strings.Join(hashes, ", "))
	if t.Custom == nil {
		return s
	}
	m, err := patch.ParseModule(*t.Custom)
	if err != nil || !sameJSON(m, *t.Custom) {
		return s + ", custom " + string(*t.Custom)
	}
	s += fmt.Sprintf(", module %s version %s sequence %d for kernel %s %s %s build-id %s, notice %q, fixes %s",
		m.Name, m.Version, m.Sequence, m.Release, m.Arch, m.Flavour, m.BuildID, m.Notice, strings.Join(m.Fixes, " "))
	if m.SigningKey != "" {
		s += ", signed for kernels with key " + m.SigningKey
	}
	return s
}

// sameJSON tells whether a custom block says no more than the module that was
// read from it.
func sameJSON(m patch.Module, custom json.RawMessage) bool {
	var said any
	if err := json.Unmarshal(custom, &said); err != nil {
		return false
	}
	a, err := cjson.EncodeCanonical(m)
	if err != nil {
		return false
	}
	b, err := cjson.EncodeCanonical(said)
	return err == nil && bytes.Equal(a, b)
}

// printable shows control characters as escapes: what is signed may come from
// somebody who wants to write over what was shown before.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
