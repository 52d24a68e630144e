package tuf_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// start is the time of every first update.
var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// The targets of every repository made by newRepo.
const (
	module  = "debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.ko"
	rollout = "rollout/debian_113.1"
)

const day = 24 * time.Hour

// newRepo returns a repository with one module and its rollout.
func newRepo() *tuftest.Repo { return repository().Clone() }

var repository = sync.OnceValue(func() *tuftest.Repo {
	r := tuftest.New(start)
	r.AddTarget(module, []byte("ELF"), tuftest.Object{"name": "lkp_Debian_6_1_0_53_amd64_1", "sequence": 7})
	r.AddTarget(rollout, nil, tuftest.Object{"state": "running"})
	return r
})

// sentinels are all that errors of the package may match.
var sentinels = []error{
	patch.ErrUntrusted, patch.ErrExpired, patch.ErrRollback, patch.ErrMalformed,
	patch.ErrTampered, patch.ErrTooLarge, patch.ErrNotFound,
}

// verdict returns the one sentinel that err matches, or err if it matches none
// or several.
func verdict(err error) error {
	var found []error
	for _, s := range sentinels {
		if errors.Is(err, s) {
			found = append(found, s)
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return err
}

// update makes one update as the loader does, from all files of a repository.
// Along the way it holds Set to its promise about Stored.
func update(t testing.TB, stored tuf.Stored, files tuftest.Files, at time.Time) (*tuf.Set, error) {
	t.Helper()
	set, err := tuf.New(stored, at)
	if err != nil {
		return nil, err
	}
	if !sameStored(set.Stored(), stored) {
		t.Errorf("New changed what is stored")
	}
	step := func(call func([]byte) error, b []byte, took func(*tuf.Stored)) error {
		want := set.Stored()
		err := call(b)
		if err == nil {
			took(&want)
		}
		if !sameStored(set.Stored(), want) {
			t.Errorf("after %v, stored is %s, want %s", err, versions(set.Stored()), versions(want))
		}
		return err
	}
	for _, b := range files.Roots[min(int(set.RootVersion()), len(files.Roots)):] {
		if err := step(set.Root, b, func(s *tuf.Stored) { s.Root = b }); err != nil {
			return set, err
		}
	}
	// Of two timestamps of one version, the one that was seen first stays, unless
	// the root no longer vouches for it.
	timestamp := files.Roles["timestamp"]
	err = step(set.Timestamp, timestamp, func(s *tuf.Stored) {
		first := version(s.Timestamp) == version(timestamp) && bytes.Equal(set.Stored().Timestamp, s.Timestamp)
		if !first {
			s.Timestamp = timestamp
		}
	})
	if err != nil {
		return set, err
	}
	snapshot := files.Roles["snapshot"]
	return set, step(set.Snapshot, snapshot, func(s *tuf.Stored) { s.Snapshot = snapshot })
}

// find makes an update and looks for a target.
func find(t testing.TB, stored tuf.Stored, files tuftest.Files, at time.Time, target string) (*tuf.Target, tuf.Stored, error) {
	t.Helper()
	set, err := update(t, stored, files, at)
	if set == nil {
		return nil, stored, err
	}
	if err != nil {
		return nil, set.Stored(), err
	}
	before := set.Stored()
	found, err := set.Find(target, files.Load)
	if !sameStored(set.Stored(), before) {
		t.Errorf("Find changed what is stored")
	}
	if (found == nil) == (err == nil) {
		t.Errorf("Find = %v, %v", found, err)
	}
	return found, before, err
}

func sameStored(a, b tuf.Stored) bool {
	return bytes.Equal(a.Root, b.Root) && bytes.Equal(a.Timestamp, b.Timestamp) && bytes.Equal(a.Snapshot, b.Snapshot)
}

// version reads the version of a metadata file that may be anything.
func version(b []byte) int64 {
	var m struct {
		Signed struct {
			Version int64 `json:"version"`
		} `json:"signed"`
	}
	if json.Unmarshal(b, &m) != nil {
		return -1
	}
	return m.Signed.Version
}

// versions describes what is stored: "root 1, timestamp 2, snapshot none".
func versions(s tuf.Stored) string {
	number := func(b []byte) string {
		if b == nil {
			return "none"
		}
		return fmt.Sprint(version(b))
	}
	return fmt.Sprintf("root %s, timestamp %s, snapshot %s", number(s.Root), number(s.Timestamp), number(s.Snapshot))
}

// What is stored after a first update, by how far it came.
const (
	nothing     = "root 1, timestamp none, snapshot none"
	timestamped = "root 1, timestamp 1, snapshot none"
	all         = "root 1, timestamp 1, snapshot 1"
)

// A scenario is an update and its verdict.
type scenario struct {
	// past shapes the repository for an update that succeeds, before the one
	// that is looked at. Without it, the client knows nothing but root 1.
	past func(*tuftest.Repo)
	// edit shapes the repository.
	edit func(*tuftest.Repo)
	// files changes the signed files.
	files func(*tuftest.Files)
	// after is the time since start.
	after time.Duration
	// target is what is looked for; the module if it is empty.
	target string

	want error
	kept string // what is stored in the end; see versions
}

func (sc scenario) run(t *testing.T) {
	t.Helper()
	r := newRepo()
	stored := tuf.Stored{Root: r.Files().Roots[0]}
	if sc.past != nil {
		sc.past(r)
		set, err := update(t, stored, r.Files(), start)
		if err != nil {
			t.Fatalf("first update: %v", err)
		}
		stored = set.Stored()
	}
	if sc.edit != nil {
		sc.edit(r)
	}
	files := r.Files()
	if sc.past == nil {
		stored.Root = files.Roots[0]
	}
	if sc.files != nil {
		sc.files(&files)
	}
	target := module
	if sc.target != "" {
		target = sc.target
	}
	found, kept, err := find(t, stored, files, start.Add(sc.after), target)
	if verdict(err) != sc.want {
		t.Errorf("verdict = %v, want %v\nfrom: %v", verdict(err), sc.want, err)
	}
	if got := versions(kept); got != sc.kept {
		t.Errorf("stored = %s, want %s", got, sc.kept)
	}
	if err == nil && found.Check(files.Content[target]) != nil {
		t.Errorf("the target does not describe its file")
	}
}

func runAll(t *testing.T, scenarios map[string]scenario) {
	t.Helper()
	for name, sc := range scenarios {
		t.Run(name, sc.run)
	}
}

// asIs leaves a repository as it is.
func asIs(*tuftest.Repo) {}

// edit returns a scenario's edit that changes what one role signs.
func edit(name string, f func(tuftest.Object) any) func(*tuftest.Repo) {
	return func(r *tuftest.Repo) { role(r, name).Edit = f }
}

// role returns a role of the repository: "root" is the newest, "bin" the one
// that is responsible for the module.
func role(r *tuftest.Repo, name string) *tuftest.Role {
	switch name {
	case "root":
		return r.Root()
	case "bin":
		return r.Roles[r.Bin(module)]
	}
	return r.Roles[name]
}

// publish raises the versions of the bin of the module and of what lists it.
func publish(r *tuftest.Repo) { r.Publish(r.Bin(module)) }

// then joins edits.
func then(edits ...func(*tuftest.Repo)) func(*tuftest.Repo) {
	return func(r *tuftest.Repo) {
		for _, e := range edits {
			e(r)
		}
	}
}

// signers returns an edit that has a role signed by other keys.
func signers(name string, keys ...string) func(*tuftest.Repo) {
	return func(r *tuftest.Repo) { role(r, name).Signers = keysOf(keys...) }
}

func keysOf(names ...string) []tuftest.Key {
	var keys []tuftest.Key
	for _, n := range names {
		keys = append(keys, tuftest.NewKey(n))
	}
	return slices.Clip(keys)
}
