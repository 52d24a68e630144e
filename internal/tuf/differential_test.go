package tuf_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// TestWhatWeAcceptGoTufAccepts holds the promise of the package against another
// implementation: over generated repositories that went wrong in some places,
// and over series of updates, whatever we accept go-tuf accepts, and finds the
// same.
//
// It runs for a few seconds. For longer, and to run one seed again:
//
//	LIVEPATCH_DIFFERENTIAL=30m go test -run TestWhatWeAcceptGoTufAccepts -v -timeout 0 ./internal/tuf
//	LIVEPATCH_DIFFERENTIAL_SEED=4711 go test -run TestWhatWeAcceptGoTufAccepts -v ./internal/tuf
//
// With both, the seeds begin at the one given. A seed is one repository.
func TestWhatWeAcceptGoTufAccepts(t *testing.T) {
	first, rounds, until := plan(t)
	const workers = 2
	var mu sync.Mutex
	all := tally{refused: map[string]int{}, done: map[string]int{}, printed: time.Now()}
	t.Run("seeds", func(t *testing.T) {
		for w := range uint64(workers) {
			t.Run(strconv.FormatUint(w, 10), func(t *testing.T) {
				t.Parallel()
				o := newOracle(t)
				for seed := first + w; (seed < first+rounds || time.Now().Before(until)) && !t.Failed(); seed += workers {
					one := trySeed(t, o, seed)
					mu.Lock()
					all.add(one, seed)
					mu.Unlock()
				}
			})
		}
	})
	t.Log(all.String())
	if rounds > 500 {
		all.checkBreadth(t)
	}
	if rounds > 1 && (all.both < int(rounds)/4 || all.refused[""] < int(rounds)/4) {
		t.Errorf("both accept %d and both refuse %d of %d updates: the mutations are too mild or too wild", all.both, all.refused[""], all.updates)
	}
}

// checkBreadth fails if some way to break a repository, or some field, was never
// tried.
func (c *tally) checkBreadth(t *testing.T) {
	t.Helper()
	for kind := range fieldKinds {
		if c.done[kind] == 0 {
			t.Errorf("no field was changed like this: %s", kind)
		}
	}
	for _, kind := range repoKinds {
		if c.done[kind.name] == 0 {
			t.Errorf("no repository was broken by: %s", kind.name)
		}
	}
	fields := map[string]string{
		"root":      "_type spec_version version expires consistent_snapshot keys ID keytype scheme keyval public roles root keyids keyids[] threshold",
		"timestamp": "_type spec_version version expires meta FILE length hashes sha256 signatures",
		"snapshot":  "version expires meta FILE",
		"targets":   "version expires targets delegations keys roles roles[] name keyids threshold paths paths[] terminating",
		"debian":    "version succinct_roles bit_length name_prefix keyids threshold",
		"bin":       "version expires targets PATH length hashes sha256 custom",
		"any role":  "signed signatures signatures[] sig keyid delegations EXTRA",
	}
	for role, names := range fields {
		for _, name := range strings.Fields(names) {
			if c.done[role+" "+name] == 0 {
				t.Errorf("no %s has had its %s changed", role, name)
			}
		}
	}
}

// What the generator makes is good before anything is broken: both find what is
// looked for, except where a plain role stands in front that has it not.
func TestGeneratedRepositoriesAreGood(t *testing.T) {
	const seeds = 150 / thin
	o, found := newOracle(t), 0
	for seed := range uint64(seeds) {
		m := newMutator(seed, rand.NewPCG(seed, 1))
		out := m.compare(t, o)
		switch {
		case out.complaint != "":
			t.Errorf("seed %d: %s", seed, out.complaint)
		case out.ours == nil:
			found++
		case verdict(out.ours) != patch.ErrNotFound:
			t.Errorf("seed %d: %v", seed, out.ours)
		case out.theirs == nil:
			t.Errorf("seed %d: go-tuf finds it, we say: %v", seed, out.ours)
		}
	}
	if found < seeds*6/10 {
		t.Errorf("found %d targets in %d repositories", found, seeds)
	}
}

// plan returns the first seed, how many to try at least, and until when to go on.
func plan(t *testing.T) (first, rounds uint64, until time.Time) {
	t.Helper()
	rounds = 600 / (2*thin - 1)
	if s := os.Getenv("LIVEPATCH_DIFFERENTIAL_SEED"); s != "" {
		var err error
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("cannot read LIVEPATCH_DIFFERENTIAL_SEED: %v", err)
		}
		rounds = 1
	}
	if s := os.Getenv("LIVEPATCH_DIFFERENTIAL"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("cannot read LIVEPATCH_DIFFERENTIAL: %v", err)
		}
		until = time.Now().Add(d)
		if end, ok := t.Deadline(); ok && end.Before(until) {
			t.Fatalf("cannot run for %v: go test stops before (use -timeout 0)", d)
		}
	}
	return first, rounds, until
}

// trySeed tries one repository over a few updates, and reports a disagreement.
func trySeed(t *testing.T, o oracle, seed uint64) tally {
	t.Helper()
	m := newMutator(seed, rand.NewPCG(seed, 1))
	one := tally{repositories: 1, refused: map[string]int{}, done: map[string]int{}}
	for range 1 + m.IntN(4) {
		m.step()
		out := m.compare(t, o)
		one.count(out)
		if out.complaint != "" {
			t.Errorf("seed %d: %s\nafter:\n  %s", seed, out.complaint, m.story())
			break
		}
	}
	for _, d := range m.deeds {
		if d.kind != "publish" {
			one.mutations++
			one.done[d.kind]++
			one.done[d.field]++
			if _, name, ok := strings.Cut(d.field, " "); ok {
				one.done["any role "+name]++
			}
		}
	}
	if os.Getenv("LIVEPATCH_DIFFERENTIAL_SEED") != "" && os.Getenv("LIVEPATCH_DIFFERENTIAL") == "" {
		t.Logf("seed %d:\n  %s\n%s", seed, m.story(), one.last)
	}
	return one
}

// A tally counts what came of updates.
type tally struct {
	repositories, mutations, updates int
	both, oursOnly, panics           int
	// refused counts by our reason: "" are those that go-tuf refused as well.
	refused map[string]int
	done    map[string]int // mutations by kind, and by role and field
	last    string
	printed time.Time
}

func (c *tally) count(out outcome) {
	c.updates++
	c.last = fmt.Sprintf("ours: %v\ngo-tuf: %v", out.ours, out.theirs)
	var panicked *panicError
	if errors.As(out.theirs, &panicked) {
		c.panics++
	}
	switch {
	case out.ours == nil && out.theirs == nil:
		c.both++
	case out.ours == nil:
		c.oursOnly++
	case out.theirs == nil:
		c.refused[reason(out.ours)]++
	default:
		c.refused[""]++
	}
}

// particular are the parts of an error that differ from file to file.
var particular = regexp.MustCompile(`"(?:\\.|[^"\\])*"|(\bkey )[^" ]+|-?[0-9]+`)

// reason returns why we refuse: the sentinel, and what was the matter with the
// form of a file, without names and numbers.
func reason(err error) string {
	why := verdict(err).Error()
	if _, detail, ok := strings.Cut(err.Error(), patch.ErrMalformed.Error()); ok {
		why += particular.ReplaceAllString(detail, "${1}…")
	}
	return why
}

// add adds one to c, and prints c once a minute.
func (c *tally) add(one tally, seed uint64) {
	c.repositories += one.repositories
	c.mutations += one.mutations
	c.updates += one.updates
	c.both += one.both
	c.oursOnly += one.oursOnly
	c.panics += one.panics
	for why, n := range one.refused {
		c.refused[why] += n
	}
	for what, n := range one.done {
		c.done[what] += n
	}
	if time.Since(c.printed) > time.Minute {
		c.printed = time.Now()
		fmt.Fprintf(os.Stderr, "%s, at seed %d: %s\n", c.printed.UTC().Format(time.TimeOnly), seed, c.line())
	}
}

func (c *tally) line() string {
	stricter := 0
	for why, n := range c.refused {
		if why != "" {
			stricter += n
		}
	}
	return fmt.Sprintf("%d repositories, %d mutations, %d updates: both accept %d, both refuse %d, only we refuse %d, only we accept %d; go-tuf panics %d",
		c.repositories, c.mutations, c.updates, c.both, c.refused[""], stricter, c.oursOnly, c.panics)
}

// String returns the counts, and why we refuse what go-tuf accepts.
func (c *tally) String() string {
	out := c.line()
	whys := slices.SortedFunc(maps.Keys(c.refused), func(a, b string) int { return cmp.Compare(c.refused[b], c.refused[a]) })
	for _, why := range whys {
		if why != "" {
			out += fmt.Sprintf("\n  only we refuse %6d: %s", c.refused[why], why)
		}
	}
	return out
}

// TestDeliberateDifferences lists where we and go-tuf part on purpose. That we
// accept more is nowhere the case.
func TestDeliberateDifferences(t *testing.T) {
	escape := func(name string, path ...string) func(*tuftest.Repo) {
		return forge(name, func(envelope tuftest.Object) any {
			return tuftest.Path(path).Edit(envelope, func(old any) any {
				s := old.(string)
				return tuftest.Literal(fmt.Sprintf(`"\u%04x%s"`, s[0], s[1:]))
			})
		})
	}
	tests := map[string]struct {
		edit         func(*tuftest.Repo)
		ours, theirs bool
		reason       string
	}{
		"as it is": {asIs, true, true, "nothing to differ about"},

		// What neither accepts, each for its reason: go-tuf reads hexadecimal and dates
		// before it resolves escapes.
		"an escaped digit in a signature": {
			escape("bin", "signatures", "0", "sig"), false, false, "an escape that is needless",
		},
		"an escaped digit in a hash": {
			escape("timestamp", "signed", "meta", "snapshot.json", "hashes", "sha256"), false, false, "the same",
		},
		"an escaped digit in an expiry": {
			escape("bin", "signed", "expires"), false, false, "the same, for dates",
		},

		// What go-tuf accepts and we do not.
		"expiry at this very moment": {
			func(r *tuftest.Repo) { role(r, "bin").Expire(start) }, false, true, "section 5.6.5 wants the expiry to be after the start",
		},
		"another version of the specification": {
			edit("bin", tuftest.Set("2.0.0", "spec_version")), false, true, "section 4.3 has clients refuse another major version",
		},
		"a role beyond the four": {
			func(r *tuftest.Repo) { tuftest.Grant(r.Root(), "mirrors", 1, tuftest.NewKey("mirrors")) }, false, true, "we use no mirrors",
		},
		"delegation by path_hash_prefixes": {
			func(r *tuftest.Repo) {
				d := tuftest.Delegation("hashed", tuftest.Threshold(1, tuftest.NewKey("a")), false)
				delete(d, "paths")
				d["path_hash_prefixes"] = []any{"00"}
				r.Delegate("targets", d, tuftest.NewKey("a"))
			}, false, true, "go-tuf compares prefixes of base64, others of hexadecimal",
		},
		"a name of a role with a slash": {
			func(r *tuftest.Repo) {
				r.Delegate("targets", tuftest.Delegation("a/b", tuftest.Threshold(1, tuftest.NewKey("a")), false, "a/*"), tuftest.NewKey("a"))
			}, false, true, "names of roles become names of files",
		},
		"a role delegated twice by one parent": {
			func(r *tuftest.Repo) {
				r.Delegate("targets", tuftest.Delegation("debian", tuftest.Threshold(1, tuftest.NewKey("a")), false, "a/*"), tuftest.NewKey("a"))
			}, false, true, "go-tuf verifies with the keys of the first, whichever path led to it",
		},
		"a timestamp that lists more": {
			edit("timestamp", tuftest.Set(tuftest.Listing(1, nil), "meta", "targets.json")), false, true, "section 4.6 allows the snapshot alone",
		},
		"no consistent_snapshot": {edit("root", tuftest.Delete("consistent_snapshot")), false, false, "go-tuf signs false where nothing was said"},
		"a replacement character": {
			edit("bin", tuftest.Set("\ufffd", "x-note")), false, true, "it may have been something else before another parser read it",
		},
		"a number of 54 bits": {
			edit("bin", tuftest.Set(tuftest.Literal("9007199254740992"), "x-note")), false, true, "parsers with floating point lose its last bit",
		},
		"two targets whose names differ in case": {
			func(r *tuftest.Repo) {
				r.AddTargetTo(r.Bin(module), "debian/A.ko", nil, nil)
				r.AddTargetTo(r.Bin(module), "debian/a.ko", nil, nil)
			}, false, true, "keys of one object that differ in case are refused throughout",
		},
	}
	o := newOracle(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRepo()
			tc.edit(r)
			files := r.Files()
			stored := tuf.Stored{Root: files.Roots[0]}
			_, _, err := find(t, stored, files, start, module)
			if (err == nil) != tc.ours {
				t.Errorf("we say %v, want %v (%s)", err, tc.ours, tc.reason)
			}
			if _, err := o.find(stored, files, start, module); (err == nil) != tc.theirs {
				t.Errorf("go-tuf says %v, want %v (%s)", err, tc.theirs, tc.reason)
			}
		})
	}
}
