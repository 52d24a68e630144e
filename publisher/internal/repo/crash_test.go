package repo

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/sign"
)

// A testKey is a key made of its name.
type testKey string

func (k testKey) private() ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(k))
	return ed25519.NewKeyFromSeed(seed[:])
}
func (k testKey) Name() string              { return string(k) }
func (k testKey) Public() ed25519.PublicKey { return k.private().Public().(ed25519.PublicKey) }
func (k testKey) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(k.private(), message), nil
}

type testRing []testKey

func (r testRing) Held(_ context.Context, ids []string) ([]string, error) {
	var held []string
	for _, k := range r {
		if slices.Contains(ids, k.id()) {
			held = append(held, k.id())
		}
	}
	return held, nil
}

func (r testRing) Signer(_ context.Context, id string) (sign.Signer, error) {
	for _, k := range r {
		if k.id() == id {
			return k, nil
		}
	}
	return nil, errors.New("no such key")
}

func (r testRing) Name(id string) string { return id[:12] }

func (k testKey) id() string {
	id, err := sign.KeyID(k.Public())
	if err != nil {
		panic(err) // the key has the right length
	}
	return id
}

var (
	testKeys = testRing{"root-1", "root-2", "targets-1", "targets-2", "builder", "approver"}
	testNow  = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
)

// testRepo makes a repository with one vendor.
func testRepo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	online := OnlineKeys{"snapshot": testKey("s").Public(), "timestamp": testKey("t").Public(), "rollout": testKey("r").Public()}
	r, err := Create(t.Context(), dir, testNow, Trust{
		Root: []ed25519.PublicKey{testKeys[0].Public(), testKeys[1].Public()}, Targets: []ed25519.PublicKey{testKeys[2].Public(), testKeys[3].Public()},
		Threshold: 2, Online: online,
	}, testKeys)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddVendor(t.Context(), testKeys, "debian", MinBits, testKeys[4].Public(), testKeys[5].Public()); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func testAddition(n uint64) Addition {
	return Addition{
		Module: patch.Module{
			Kernel:  patch.Kernel{Arch: "x86_64", Release: "6.1.0", BuildID: "00112233445566778899aabbccddeeff00112233"},
			Flavour: "amd64", Name: fmt.Sprint("lp_", n), Version: fmt.Sprint(n), Sequence: n,
		},
		Content: fmt.Append(nil, "content ", n),
		Kernel:  KernelFacts{From: "2026-01-01", Until: "2027-01-01"},
	}
}

// errPowerCut is what a simulated crash panics with.
var errPowerCut = errors.New("power cut")

// addUntil adds patch 2 and loses power before the step of that number. It
// returns the name of that step, "" if the change was made before.
func addUntil(t *testing.T, dir string, step int) (name string) {
	t.Helper()
	r, err := Open(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() // the lock of a process that died is free
	defer func() {
		if p := recover(); p != nil && p != any(errPowerCut) {
			panic(p)
		}
	}()
	n := 0
	r.crash = func(what string) {
		if n == step {
			name = what
			panic(errPowerCut)
		}
		n++
	}
	if _, err := r.Add(t.Context(), testKeys, "debian", []Addition{testAddition(2)}); err != nil {
		t.Fatal(err)
	}
	return ""
}

func TestCrashLeavesTheOldRepositoryOrTheNew(t *testing.T) {
	origin := testRepo(t)
	r, err := Open(origin, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(t.Context(), testKeys, "debian", []Addition{testAddition(1)}); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	committed := false
	for step := 0; ; step++ {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
			t.Fatal(err)
		}
		name := addUntil(t, dir, step)
		patches := patchesAfterCrash(t, dir, step%2 == 0)
		want := 1
		if committed {
			want = 2
		}
		if name == "" {
			want = 2
		}
		if patches != want {
			t.Errorf("power cut before step %d, %q: %d patches, want %d", step, name, patches, want)
		}
		if name == "commit" {
			committed = true
		}
		if name == "" {
			break
		}
	}
	if !committed {
		t.Error("no step was called commit")
	}
}

// patchesAfterCrash opens the repository, twice if asked to lose power while it
// recovers, and counts the patches in what must be a repository that verifies.
func patchesAfterCrash(t *testing.T, dir string, again bool) int {
	t.Helper()
	if again {
		recoverUntilHalf(t, dir)
	}
	r, err := Open(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rep, err := r.Verify(t.Context())
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("after a crash: %v, %q", err, rep.Problems)
	}
	for _, name := range []string{stagedDir, commitDir} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	// The repository can go on.
	added, err := r.Add(t.Context(), testKeys, "debian", []Addition{testAddition(uint64(rep.Modules) + 1)})
	if err != nil || added[0].Unchanged {
		t.Errorf("adding after a crash: %+v, %v", added, err)
	}
	return rep.Modules
}

// recoverUntilHalf loses power again after one file was moved to its place.
func recoverUntilHalf(t *testing.T, dir string) {
	t.Helper()
	r := &Repo{dir: dir}
	moved := 0
	r.crash = func(string) {
		if moved == 1 {
			panic(errPowerCut)
		}
		moved++
	}
	defer func() {
		if p := recover(); p != nil && p != any(errPowerCut) {
			panic(p)
		}
	}()
	if err := r.recoverStage(); err != nil {
		t.Fatal(err)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	dir := testRepo(t)
	r, err := Open(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, testNow); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open = %v, want ErrLocked", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r, err = Open(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := map[string]struct {
		config string
		want   error
	}{
		"a folder without a repository": {"", ErrNone},
		"a format of the future":        {`{"format":2,"lifetime_days":{"root":1,"targets":1,"vendor":1,"bin":1}}`, nil},
		"a lifetime of nothing":         {`{"format":1,"lifetime_days":{"root":1,"targets":1,"vendor":1,"bin":0}}`, nil},
		"a setting that does not exist": {`{"format":1,"bins":3}`, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.config != "" {
				if err := os.WriteFile(filepath.Join(dir, configFile), []byte(tc.config), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Open(dir, testNow); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("Open = %v, want %v", err, tc.want)
			}
		})
	}
}

func TestCreateRefusesAFolderThatIsInUse(t *testing.T) {
	dir := testRepo(t)
	if err := Free(dir, testNow); !errors.Is(err, ErrExists) {
		t.Errorf("Free = %v, want ErrExists", err)
	}
	if _, err := Create(t.Context(), dir, testNow, Trust{}, testKeys); !errors.Is(err, ErrExists) {
		t.Errorf("Create = %v, want ErrExists", err)
	}
	if err := Free(filepath.Join(dir, "new"), testNow); err != nil {
		t.Errorf("Free of a folder that is not there = %v", err)
	}
}

func TestVendorNames(t *testing.T) {
	for _, name := range []string{"debian", "ubuntu", "suse15"} {
		if err := CheckVendorName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "Debian", "debian-lts", "root", "targets", "rollout", "snapshot", "timestamp", "../x", "1st"} {
		if err := CheckVendorName(name); !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", name, err)
		}
	}
}
