package tuf_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// TestWhatWeAcceptGoTufAccepts holds the promise of the package against another
// implementation: over repositories that went wrong in some places, and over
// pairs of updates, whatever we accept go-tuf accepts, and finds the same.
func TestWhatWeAcceptGoTufAccepts(t *testing.T) {
	const shards, rounds = 4, 250 / thin
	var accepted, refused, stricter atomic.Int64
	t.Run("shards", func(t *testing.T) {
		for shard := range shards {
			t.Run(strconv.Itoa(shard), func(t *testing.T) {
				t.Parallel()
				o := newOracle(t)
				for round := range rounds {
					m := newMutator(uint64(shard*rounds + round))
					for range 2 {
						m.step()
						ours, theirs, complaint := m.compare(t, o)
						if complaint != "" {
							t.Errorf("seed %d: %s\nafter: %s", shard*rounds+round, complaint, m.story())
							break
						}
						if ours {
							accepted.Add(1)
						} else {
							refused.Add(1)
						}
						if theirs && !ours {
							stricter.Add(1)
						}
					}
				}
			})
		}
	})
	t.Logf("%d accepted by both, %d refused, %d of them by us only", accepted.Load(), refused.Load(), stricter.Load())
	if accepted.Load() < shards*rounds/2 || refused.Load() < shards*rounds/2 {
		t.Errorf("accepted %d and refused %d of %d: the mutations are too mild or too wild",
			accepted.Load(), refused.Load(), 2*shards*rounds)
	}
}

// A mutator changes a repository at random, in ways that its seed determines,
// and keeps what a client of it has stored.
type mutator struct {
	*rand.Rand
	repo   *tuftest.Repo
	stored tuf.Stored
	at     time.Time
	log    []func() string // what was done
}

func newMutator(seed uint64) *mutator {
	r := newRepo()
	return &mutator{
		Rand: rand.New(rand.NewPCG(seed, 0)), repo: r, at: start,
		stored: tuf.Stored{Root: r.Root().Bytes()},
	}
}

func (m *mutator) did(format string, args ...any) {
	m.log = append(m.log, func() string { return fmt.Sprintf(format, args...) })
}

// story tells what was done.
func (m *mutator) story() string {
	var out []string
	for _, f := range m.log {
		out = append(out, f())
	}
	return strings.Join(out, "; ")
}

// compare makes an update with both implementations, tells who accepts, and
// complains if we accept what go-tuf does not. What we store is where the next
// update begins.
func (m *mutator) compare(t *testing.T, o oracle) (ours, theirs bool, complaint string) {
	t.Helper()
	files := m.repo.Files()
	target := module
	if m.IntN(4) == 0 {
		target = rollout
	}
	want, wantErr := o.find(m.stored, files, m.at, target)
	got, kept, err := find(t, m.stored, files, m.at, target)
	m.stored = kept
	switch {
	case err != nil:
		return false, wantErr == nil, ""
	case wantErr != nil:
		return true, false, fmt.Sprintf("we find %q, go-tuf says: %v", target, wantErr)
	default:
		return true, true, differ(got, want)
	}
}

// step makes the repository go on as it should, most of the time, and then
// breaks it in a few places.
func (m *mutator) step() {
	for _, r := range m.roles() {
		r.Edit, r.Forge = nil, nil
	}
	if m.IntN(8) > 0 {
		m.repo.Publish(m.repo.Bin(module), "rollout")
		m.did("publish")
	}
	for range m.IntN(3) {
		m.mutate()
	}
	if m.IntN(8) == 0 {
		d := time.Duration(m.IntN(40)) * time.Hour
		m.at = m.at.Add(d)
		m.did("%v later", d)
	}
}

// said is what a hook did, which is known when the files are made.
type said string

func (s *said) String() string { return string(*s) }

func (m *mutator) roles() []*tuftest.Role {
	out := slices.Clone(m.repo.Roots)
	for _, name := range slices.Sorted(maps.Keys(m.repo.Roles)) {
		out = append(out, m.repo.Roles[name])
	}
	return out
}

// pick returns a role that matters for the targets that are looked for.
func (m *mutator) pick() (string, *tuftest.Role) {
	names := []string{"root", "timestamp", "snapshot", "targets", "debian", "bin", "rollout"}
	name := names[m.IntN(len(names))]
	return name, role(m.repo, name)
}

func (m *mutator) mutate() {
	switch m.IntN(10) {
	case 0, 1, 2, 3, 4:
		m.editField()
	case 5:
		m.forgeField()
	case 6:
		m.changeSigners()
	case 7:
		m.addRoot()
	case 8:
		m.addDelegation()
	case 9:
		name, r := m.pick()
		r.Signed["version"] = max(1, r.Version()+m.IntN(4)-1)
		m.did("%s is version %d", name, r.Version())
	}
}

// editField changes one field of what is signed.
func (m *mutator) editField() {
	name, r := m.pick()
	before := r.Edit
	seed := m.Uint64()
	what := new(said)
	r.Edit = func(signed tuftest.Object) any {
		if before != nil {
			var ok bool
			if signed, ok = before(signed).(tuftest.Object); !ok {
				return signed
			}
		}
		n := mutator{Rand: rand.New(rand.NewPCG(seed, 1)), repo: m.repo}
		out, did := n.change(signed)
		*what = said(did)
		return out
	}
	m.did("%s: %s", name, what)
}

// forgeField changes one field of a file after it was signed, or writes one in
// another way.
func (m *mutator) forgeField() {
	name, r := m.pick()
	seed, respell := m.Uint64(), m.IntN(2) == 0
	what := new(said)
	r.Forge = func(envelope tuftest.Object) any {
		n := mutator{Rand: rand.New(rand.NewPCG(seed, 1)), repo: m.repo}
		change := n.change
		if respell {
			change = n.respell
		}
		out, did := change(envelope)
		*what = said(did)
		return out
	}
	m.did("%s after signing: %s", name, what)
}

// respell writes one string of v in another way that means the same. See
// TestDeliberateDifferences for the strings that it leaves alone.
func (m *mutator) respell(v any) (any, string) {
	paths := tuftest.Paths(v)
	p := paths[m.IntN(len(paths))]
	out := p.Edit(v, func(old any) any {
		s, ok := old.(string)
		if !ok || s == "" || slices.Contains([]string{"sig", "sha256", "expires"}, p[len(p)-1]) {
			return old
		}
		return tuftest.Literal(fmt.Sprintf(`"\u%04x%s"`, s[0], s[1:]))
	})
	return out, fmt.Sprintf("%s with an escape", strings.Join(p, "/"))
}

// change changes one field of v.
func (m *mutator) change(v any) (any, string) {
	paths := tuftest.Paths(v)
	if len(paths) == 0 {
		return v, "nothing"
	}
	p := paths[m.IntN(len(paths))]
	name := strings.Join(p, "/")
	switch m.IntN(8) {
	case 0:
		return p.Edit(v, func(any) any { return tuftest.Deleted }), name + " deleted"
	case 1: // beside the field, one that looks alike
		last := p[len(p)-1]
		other := []string{strings.ToUpper(last), strings.Title(last), "x-" + last, strings.Replace(last, "s", "ſ", 1), strings.Replace(last, "k", "\u212a", 1)}[m.IntN(5)] //nolint:staticcheck // only a test
		value := m.value(p.Get(v))
		return p[:len(p)-1].Edit(v, func(parent any) any {
			o, ok := parent.(tuftest.Object)
			if !ok {
				return parent
			}
			o = maps.Clone(o)
			o[other] = value
			return o
		}), fmt.Sprintf("%s beside %s is %v", other, name, value)
	case 2: // from elsewhere in the file
		q := paths[m.IntN(len(paths))]
		return p.Edit(v, func(any) any { return tuftest.Copy(q.Get(v)) }), fmt.Sprintf("%s copied from %s", name, strings.Join(q, "/"))
	case 3: // from elsewhere in the repository
		_, r := m.pick()
		all := tuftest.Paths(r.Signed)
		q := all[m.IntN(len(all))]
		return p.Edit(v, func(any) any { return tuftest.Copy(q.Get(r.Signed)) }), fmt.Sprintf("%s copied from another role's %s", name, strings.Join(q, "/"))
	default:
		value := m.value(p.Get(v))
		return p.Edit(v, func(any) any { return value }), fmt.Sprintf("%s is %v", name, value)
	}
}

// value returns something to stand in place of old, most often of its type.
func (m *mutator) value(old any) any {
	anything := []any{
		nil, true, false, 0, 1, 2, 3, -1, 1<<53 - 1, 1 << 53, "", "x", "ed25519", tuftest.Object{}, []any{}, []any{"*"},
		[]any{nil}, tuftest.Object{"x": nil}, tuftest.Object{"x": 1}, tuftest.Literal("1.0"), tuftest.Literal("1e2"), tuftest.Literal("-0"),
	}
	switch old := old.(type) {
	case int:
		numbers := []any{old + 1, old - 1, 2 * old, 0, -old, old}
		if m.IntN(4) > 0 {
			return numbers[m.IntN(len(numbers))]
		}
	case bool:
		if m.IntN(4) > 0 {
			return !old
		}
	case []any:
		if len(old) > 0 && m.IntN(4) > 0 {
			list := slices.Clone(old)
			m.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			return append(list[:m.IntN(len(list))+1:len(list)], list[m.IntN(len(list)):]...)
		}
	case string:
		if m.IntN(6) > 0 {
			return m.text(old)
		}
	case tuftest.Object:
		if m.IntN(4) > 0 {
			o := maps.Clone(old)
			o["x"+strconv.Itoa(m.IntN(3))] = anything[m.IntN(len(anything))]
			return o
		}
	}
	return anything[m.IntN(len(anything))]
}

func (m *mutator) text(old string) any {
	variants := []string{
		strings.ToUpper(old), strings.ToLower(old), old + " ", " " + old, old + "x", old + "é", "../" + old, old + "/..", old + "\x00",
		old + "\n", old + "\u2028", old + "<&>", old + `\"`, old + "\u00e9\u0065\u0301",
		strings.TrimSuffix(old, "Z") + ".5Z", strings.TrimSuffix(old, "Z") + ".50Z", strings.TrimSuffix(old, "Z") + ",5Z",
		strings.TrimSuffix(old, "Z") + "+00:00", strings.Replace(old, "T12", "T9", 1), strings.Replace(old, "-", "", 1), strings.Replace(old, "*", "?*", 1),
		strings.Replace(old, "2026-1", "2027-1", 1), strings.Replace(old, "T", "t", 1), strings.Replace(old, "*", "[a-z]*", 1), "*/*", old,
	}
	if len(old) > 1 {
		variants = append(variants, old[:len(old)-1], old[1:], old+old)
	}
	return variants[m.IntN(len(variants))]
}

func (m *mutator) keys() []tuftest.Key {
	names := []string{
		"root 1", "root 2", "root 3", "targets 1", "targets 2", "targets 3", "snapshot", "timestamp", "rollout",
		"debian builder", "debian approver", "new 1", "new 2",
	}
	m.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return keysOf(names[:1+m.IntN(5)]...)
}

func (m *mutator) changeSigners() {
	name, r := m.pick()
	switch m.IntN(4) {
	case 0:
		r.Signers = m.keys()
	case 1:
		r.Signers = append(r.Signers, m.keys()...)
	case 2:
		if len(r.Signers) > 0 {
			i := m.IntN(len(r.Signers))
			r.Signers = slices.Delete(r.Signers, i, i+1)
		}
	case 3:
		r.Signers = append(r.Signers, tuftest.NewKey("stranger"))
	}
	slices.SortFunc(r.Signers, func(a, b tuftest.Key) int { return strings.Compare(a.ID, b.ID) })
	if m.IntN(8) > 0 {
		r.Signers = slices.CompactFunc(r.Signers, func(a, b tuftest.Key) bool { return a.ID == b.ID })
	}
	m.did("%s has %d other signers", name, len(r.Signers))
}

func (m *mutator) addRoot() {
	next := m.repo.AddRoot()
	name := []string{"root", "root", "timestamp", "snapshot", "targets"}[m.IntN(5)]
	keys := m.keys()
	n := 1 + m.IntN(2)
	switch m.IntN(3) {
	case 0: // nothing but the version changes
		m.did("another root")
		return
	case 1: // and those that sign know of it
		if name == "root" {
			next.Signers = append(next.Signers, keys...)
		} else {
			m.repo.Roles[name].Signers = keys
		}
	}
	tuftest.Grant(next, name, n, keys...)
	m.did("another root gives %s to %d of %d keys", name, n, len(keys))
}

func (m *mutator) addDelegation() {
	name := "role-" + strconv.Itoa(m.IntN(3))
	key := tuftest.NewKey("delegate " + strconv.Itoa(m.IntN(2)))
	if m.repo.Roles[name] == nil {
		m.repo.AddRole(name, key)
		if m.IntN(2) == 0 {
			m.repo.AddTargetTo(name, module, []byte(name), nil)
		}
	}
	paths := []string{"*", "*/*", "debian/*", "rollout/*", "debian/lkp_*", "debian/[a-m]*", "debian/x"}
	parents := []string{"targets", name, "role-0", "rollout"}
	parent := parents[m.IntN(len(parents))]
	if m.repo.Roles[parent] == nil {
		parent = "targets"
	}
	terminating := m.IntN(3) == 0
	p := paths[m.IntN(len(paths))]
	m.repo.Delegate(parent, tuftest.Delegation(name, tuftest.Threshold(1, key), terminating, p), key)
	if list := m.repo.Roles[parent].Signed["delegations"].(tuftest.Object)["roles"].([]any); m.IntN(2) == 0 {
		slices.Reverse(list)
	}
	m.did("%s delegates %s to %s, terminating %v", parent, p, name, terminating)
}

// TestDeliberateDifferences lists where we and go-tuf part on purpose. That we
// refuse more needs no reason beyond the one given; that we accept more does.
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

		// What we accept and go-tuf does not.
		"an escaped digit in a signature": {
			escape("bin", "signatures", "0", "sig"), true, false,
			"go-tuf reads hexadecimal before it resolves escapes; there is one value that the digits can mean",
		},
		"an escaped digit in a hash": {
			escape("timestamp", "signed", "meta", "snapshot.json", "hashes", "sha256"), true, false, "the same",
		},
		"an escaped digit in an expiry": {
			escape("bin", "signed", "expires"), true, false, "the same, for dates",
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
