//go:build !race

package tuf_test

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// The comparison has nothing to tell the race detector and takes long under it;
// "make check-unit" runs the tests of this package without it as well.

var updateGolden = flag.Bool("update", false, "write what lies in testdata instead of comparing with it")

// moreMutations are for the golden file only: they keep the type of a field, so
// that what becomes of them depends on the field.
var moreMutations = map[string]mutation{
	"one more":         onValue(func(n int) any { return n + 1 }),
	"one less":         onValue(func(n int) any { return n - 1 }),
	"2^63":             put(tuftest.Literal("9223372036854775808")),
	"1e400":            put(tuftest.Literal("1e400")),
	"flipped":          onValue(func(b bool) any { return !b }),
	"in capitals":      onValue(func(s string) any { return strings.ToUpper(s) }),
	"space behind":     onValue(func(s string) any { return s + " " }),
	"NUL behind":       onValue(func(s string) any { return s + "\x00" }),
	"composed behind":  onValue(func(s string) any { return s + "\u00e9" }),
	"combining behind": onValue(func(s string) any { return s + "e\u0301" }),
	"right to left":    onValue(func(s string) any { return "\u202e" + s }),
	"zero width":       onValue(func(s string) any { return s + "\u200b" }),
	"astral behind":    onValue(func(s string) any { return s + "\U0001f600" }),
	"up a folder":      onValue(func(s string) any { return "../" + s }),
	"reversed":         onValue(func(l []any) any { l = slices.Clone(l); slices.Reverse(l); return l }),
	"last one gone":    onValue(func(l []any) any { return l[:max(0, len(l)-1)] }),
	"first one again":  onValue(func(l []any) any { return append(slices.Clone(l), l[:min(1, len(l))]...) }),
	"null behind":      onValue(func(l []any) any { return append(slices.Clone(l), nil) }),
	"unknown field":    onValue(func(o tuftest.Object) any { return with(o, "x-unknown", "x") }),
	"unknown null":     onValue(func(o tuftest.Object) any { return with(o, "x-unknown", nil) }),
}

// onValue returns a mutation of fields of one type; it leaves others alone.
func onValue[T any](f func(T) any) mutation {
	return func(parent any, key string) any {
		return tuftest.Path{key}.Edit(parent, func(old any) any {
			if v, ok := old.(T); ok {
				return f(v)
			}
			return old
		})
	}
}

func with(o tuftest.Object, key string, value any) tuftest.Object {
	o = maps.Clone(o)
	o[key] = value
	return o
}

// TestVerdictsAreGolden writes down what we and go-tuf say of every field of
// every role made wrong in every way, and signed. What both refuse is left out. A
// change of mind, ours or theirs, shows in review as a change of the golden file:
//
//	go test ./internal/tuf -run TestVerdictsAreGolden -update
func TestVerdictsAreGolden(t *testing.T) {
	const file = "testdata/verdicts.golden"
	roles := []string{"root", "timestamp", "snapshot", "targets", "debian", "bin", "rollout"}
	sections := make([]string, len(roles))
	t.Run("roles", func(t *testing.T) {
		for i, name := range roles {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				sections[i] = verdictsOfRole(t, name)
			})
		}
	})
	got := strings.Join(sections, "")
	if *updateGolden {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("verdicts have changed (-want +got):\n%s", d)
	}
}

func verdictsOfRole(t *testing.T, name string) string {
	t.Helper()
	o := newOracle(t)
	base := newRepo()
	base.Files() // fills in what snapshot and timestamp list
	kinds := maps.Clone(mutations)
	maps.Copy(kinds, moreMutations)
	out, seen := "", map[string]bool{}
	for _, p := range tuftest.Paths(role(base, name).Signed) {
		field := general(p, base.Bin(module))
		if seen[field] { // the keys, for example, are all alike
			continue
		}
		seen[field] = true
		found := map[string][]string{}
		for _, what := range slices.Sorted(maps.Keys(kinds)) {
			if verdicts := bothVerdicts(t, o, base.Clone(), name, p, kinds[what]); verdicts != "" {
				found[verdicts] = append(found[verdicts], what)
			}
		}
		if len(found) == 0 {
			continue
		}
		out += fmt.Sprintf("%s %s\n", name, field)
		for _, verdicts := range slices.Sorted(maps.Keys(found)) {
			out += fmt.Sprintf("\t%s: %s\n", verdicts, strings.Join(found[verdicts], ", "))
		}
	}
	return out
}

// bothVerdicts returns what we and go-tuf say of a mutation; "" if both refuse
// it, and if it changes nothing.
func bothVerdicts(t *testing.T, o oracle, r *tuftest.Repo, name string, p tuftest.Path, mutate mutation) string {
	t.Helper()
	above, key := p[:len(p)-1], p[len(p)-1]
	parent := above.Get(role(r, name).Signed)
	if string(tuftest.Canonical(mutate(parent, key))) == string(tuftest.Canonical(parent)) {
		return ""
	}
	role(r, name).Edit = func(signed tuftest.Object) any {
		return above.Edit(signed, func(parent any) any { return mutate(parent, key) })
	}
	files, target := r.Files(), module
	if name == "rollout" {
		target = rollout
	}
	stored := tuf.Stored{Root: files.Roots[0]}
	_, _, ours := find(t, stored, files, start, target)
	_, theirs := o.find(stored, files, start, target)
	var panicked *panicError
	switch {
	case ours == nil && theirs == nil:
		return "both accept"
	case ours == nil:
		return "ONLY WE ACCEPT"
	case errors.As(theirs, &panicked):
		return "go-tuf panics, we refuse: " + verdict(ours).Error()
	case theirs == nil:
		return "go-tuf accepts, we refuse: " + verdict(ours).Error()
	}
	return ""
}

const seedDir = "testdata/fuzz/FuzzDifferential"

// TestSeedsShowEveryVerdict looks whether the committed seeds of FuzzDifferential
// show each way in which two implementations can take a file. With -update it
// grows them anew: of random ones, those that show a mutation and a pair of
// verdicts which none before them did.
func TestSeedsShowEveryVerdict(t *testing.T) {
	o := newOracle(t)
	if *updateGolden {
		growSeeds(t, o, 32)
	}
	files, err := filepath.Glob(filepath.Join(seedDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, literal, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
		seed, err := strconv.Unquote(strings.TrimSuffix(strings.TrimPrefix(literal, "[]byte("), ")"))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		_, outs := play(t, o, []byte(seed))
		for _, out := range outs {
			shown[pair(out)] = true
		}
	}
	for _, want := range []string{"both accept", "both refuse", "only we refuse", "go-tuf panics"} {
		if !shown[want] {
			t.Errorf("no seed of %d shows: %s", len(files), want)
		}
	}
}

// pair returns how two implementations take a file.
func pair(out outcome) string {
	var panicked *panicError
	switch {
	case errors.As(out.theirs, &panicked):
		return "go-tuf panics"
	case out.ours == nil && out.theirs == nil:
		return "both accept"
	case out.ours == nil:
		return "only we accept"
	case out.theirs == nil:
		return "only we refuse"
	}
	return "both refuse"
}

// growSeeds writes up to n seeds.
func growSeeds(t *testing.T, o oracle, n int) {
	t.Helper()
	if err := os.RemoveAll(seedDir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(seedDir, 0o755); err != nil {
		t.Fatal(err)
	}
	rng, shown, common := rand.New(rand.NewPCG(0, 3)), map[string]bool{}, map[string]int{}
	for written, tries := 0, 0; written < n && tries < 3000; tries++ {
		seed := make([]byte, 2+rng.IntN(64))
		for i := range seed {
			seed[i] = byte(rng.Uint64())
		}
		m, outs := play(t, o, seed)
		last := outs[len(outs)-1]
		if len(m.deeds) == 0 {
			continue
		}
		// What was done last, and what both said of it.
		key := m.deeds[len(m.deeds)-1].kind + ", " + pair(last)
		if shown[key] {
			continue
		}
		// What there is much of leaves room for the rest.
		if common[pair(last)]++; common[pair(last)] > n/3 {
			continue
		}
		shown[key] = true
		text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", seed)
		name := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:16]
		if err := os.WriteFile(filepath.Join(seedDir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		written++
	}
}
