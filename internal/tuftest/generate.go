package tuftest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// Generate returns a repository of a shape that rng determines: how many bits
// its bins have and how many vendors there are, thresholds, a chain of roots in
// which keys are replaced, delegations to plain roles and from them to others,
// consistent snapshots or not, hashes in the snapshot or not, fields that nobody
// knows, custom blocks, high versions. All of it is signed as it should be and
// fresh for some hours after now.
//
// It lists the given targets, each in the bin or role that is responsible for it;
// a plain role may list one of them too, and stand in front.
func Generate(rng *rand.Rand, now time.Time, targets ...string) *Repo {
	g := &generator{rng, withBits(now, 1+rng.IntN(1+rng.IntN(5)))}
	if g.maybe(0.2) {
		g.repo.AddVendor("ubuntu", 1+g.IntN(2))
	}
	for i, name := range targets {
		g.repo.AddTarget(name, fmt.Appendf(nil, "content %d", i), g.custom())
	}
	g.repo.HashBins = g.maybe(0.3)
	g.repo.Root().Signed["consistent_snapshot"] = g.maybe(0.8)
	if g.maybe(0.4) {
		g.addTeams(targets)
	}
	g.chooseSigners()
	for _, name := range slices.Sorted(maps.Keys(g.repo.Roles)) {
		g.vary(g.repo.Roles[name])
	}
	g.vary(g.repo.Root())
	g.repo.Root().Signed["version"] = 1
	for range g.IntN(4) {
		g.addRoot()
	}
	return g.repo
}

type generator struct {
	*rand.Rand
	repo *Repo
}

func (g *generator) maybe(p float64) bool { return g.Float64() < p }

// someNames are names and notes that an encoder or a parser could get wrong.
var someNames = []string{
	"x", "note", "é", "e\u0301", "\U0001f600", "ſ", "\u212a", "a b", "<&>", "\"\\/", "\u2028", "\x7f", "\t", "0", "signed", "null", "__proto__",
}

// text returns a short string.
func (g *generator) text() string { return someNames[g.IntN(len(someNames))] }

// custom returns a custom block, or nil.
func (g *generator) custom() any {
	if g.maybe(0.3) {
		return nil
	}
	return g.object(3)
}

func (g *generator) object(depth int) Object {
	o := Object{}
	for i := range g.IntN(4) {
		// Keys that differ only in case are refused, so each begins with another digit.
		o[fmt.Sprint(i)+g.text()] = g.value(depth - 1)
	}
	return o
}

// value returns any value that may stand in a metadata file.
func (g *generator) value(depth int) any {
	switch n := g.IntN(8); {
	case n == 0:
		return nil
	case n == 1:
		return g.maybe(0.5)
	case n <= 3:
		return g.Int64N(1<<54-1) - (1<<53 - 1)
	case n <= 5 || depth <= 0:
		return g.text()
	case n == 6:
		return []any{g.value(depth - 1), g.value(depth - 1)}
	default:
		return g.object(depth)
	}
}

// addTeams makes plain roles, each delegated to by targets or by the one before.
func (g *generator) addTeams(targets []string) {
	parent := "targets"
	patterns := []string{"team/*", "*/*", "debian/*", "debian/?*", "*", "rollout/*", "te?m/*", "team/x"}
	for i := range 1 + g.IntN(4) {
		name := fmt.Sprintf("team-%d", i)
		keys := []Key{NewKey(name + " a"), NewKey(name + " b")}
		g.repo.AddRole(name, keys...)
		g.repo.AddTargetTo(name, "team/x", fmt.Append(nil, name), g.custom())
		if len(targets) > 0 && g.maybe(0.3) {
			g.repo.AddTargetTo(name, targets[g.IntN(len(targets))], fmt.Append(nil, name), g.custom())
		}
		paths := slices.Compact([]string{patterns[g.IntN(len(patterns))], patterns[g.IntN(len(patterns))]})
		g.repo.Delegate(parent, Delegation(name, Threshold(1+g.IntN(2), keys...), g.maybe(0.3), paths...), keys...)
		g.shuffleDelegations(parent)
		if g.maybe(0.5) {
			parent = name
		}
	}
}

func (g *generator) shuffleDelegations(parent string) {
	list := Path{"delegations", "roles"}.Get(g.repo.Roles[parent].Signed).([]any)
	g.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// chooseSigners gives the offline roles other thresholds, and has other keys of
// theirs sign.
func (g *generator) chooseSigners() {
	for _, name := range []string{"root", "targets"} {
		keys, threshold := trio(name), 1+g.IntN(3)
		Grant(g.repo.Root(), name, threshold, keys...)
		g.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		keys = keys[:threshold+g.IntN(len(keys)-threshold+1)]
		if name == "root" {
			g.repo.Root().Signers = keys
		} else {
			g.repo.Roles[name].Signers = keys
		}
	}
}

// vary gives a role another version, expiry, and fields that nobody knows.
func (g *generator) vary(r *Role) {
	switch {
	case g.maybe(0.05):
		r.Signed["version"] = 1<<53 - 1 - 100 - g.IntN(100)
	case g.maybe(0.5):
		r.Signed["version"] = 1 + g.IntN(30)
	}
	if g.maybe(0.3) {
		r.Expire(g.repo.now.Add(time.Duration(6+g.IntN(1000)) * time.Hour))
	}
	if g.maybe(0.2) {
		r.Signed["x-"+g.text()] = g.value(3)
	}
	if g.maybe(0.1) {
		r.Signed["spec_version"] = []string{"1.0.0", "1.0.33", "1.99"}[g.IntN(3)]
	}
}

// addRoot appends a root that replaces the keys of one role, or of none. Those
// who sign know of it.
func (g *generator) addRoot() {
	next := g.repo.AddRoot()
	number := len(g.repo.Roots)
	name := []string{"", "root", "timestamp", "snapshot", "targets"}[g.IntN(5)]
	if name == "" {
		return
	}
	var keys []Key
	for i := range 1 + g.IntN(3) {
		keys = append(keys, NewKey(fmt.Sprintf("%s %d of root %d", name, i, number)))
	}
	Grant(next, name, 1+g.IntN(len(keys)), keys...)
	if name == "root" {
		// The old keys stay among the signers: this root needs them, and to the
		// next ones they are strangers.
		next.Signers = append(next.Signers, keys...)
		return
	}
	g.repo.Roles[name].Signers = keys
}
