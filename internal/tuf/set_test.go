package tuf_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"livepatch/internal/tuf"
)

func TestCallsOutOfOrderAreRefused(t *testing.T) {
	r := newRepo()
	r.AddRoot() // would be taken at any other time
	files := r.Files()
	stored := tuf.Stored{Root: files.Roots[0]}
	set, err := tuf.New(stored, start)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if v := set.SnapshotVersion(); v != 0 {
		t.Errorf("SnapshotVersion before Timestamp = %d, want 0", v)
	}
	refused("snapshot before timestamp", set.Snapshot(files.Roles["snapshot"]))
	_, err = set.Find(module, files.Load)
	refused("Find before snapshot", err)
	if err := set.Timestamp(files.Roles["timestamp"]); err != nil {
		t.Fatal(err)
	}
	if v := set.SnapshotVersion(); v != 1 {
		t.Errorf("SnapshotVersion = %d, want 1", v)
	}
	refused("root after timestamp", set.Root(files.Roots[1]))
	_, err = set.Find(module, files.Load)
	refused("Find before snapshot", err)
	if err := set.Snapshot(files.Roles["snapshot"]); err != nil {
		t.Fatal(err)
	}
	refused("timestamp after snapshot", set.Timestamp(files.Roles["timestamp"]))
	if _, err := set.Find(module, files.Load); err != nil {
		t.Fatal(err)
	}
	refused("snapshot after targets", set.Snapshot(files.Roles["snapshot"]))
	if want := (tuf.Stored{Root: files.Roots[0], Timestamp: files.Roles["timestamp"], Snapshot: files.Roles["snapshot"]}); !sameStored(set.Stored(), want) {
		t.Errorf("stored = %s, want %s", versions(set.Stored()), versions(want))
	}
}

// An error of the loader of files reaches the caller, and nothing is remembered.
func TestFindReturnsTheErrorOfItsLoader(t *testing.T) {
	files := newRepo().Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	_, err = set.Find(module, func(string, int64) ([]byte, error) { return nil, fs.ErrNotExist })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := set.Find(module, files.Load); err != nil {
		t.Errorf("Find, asked again: %v", err)
	}
}

// Find asks for each role once, in the version that the snapshot lists.
func TestFindAsksForEachRoleOnce(t *testing.T) {
	r := newRepo()
	for range 6 {
		role(r, "bin").Bump()
	}
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]int{}
	load := func(name string, version int64) ([]byte, error) {
		asked[fmt.Sprintf("%d.%s", version, name)]++
		return files.Load(name, version)
	}
	for range 3 {
		for _, target := range []string{module, rollout} {
			if _, err := set.Find(target, load); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]int{"1.targets": 1, "1.debian": 1, "7." + r.Bin(module): 1, "1.rollout": 1}
	if fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}
