package repo

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"livepatch/publisher/internal/request"
	"livepatch/publisher/internal/sign"
)

// without returns the keys of the first person.
func (r testRing) without(names ...testKey) testRing {
	return slices.DeleteFunc(slices.Clone(r), func(k testKey) bool { return slices.Contains(names, k) })
}

// pending makes a change that waits for approver: patch 2 is added.
func pending(t *testing.T, dir string) request.Request {
	t.Helper()
	r := testOpen(t, dir)
	defer r.Close()
	r.Defer = true
	if _, err := r.Add(t.Context(), testKeys.without("approver"), "debian", []Addition{testAddition(2)}); !errors.Is(err, ErrDeferred) {
		t.Fatalf("Add = %v, want ErrDeferred", err)
	}
	got, err := r.Pending()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func testOpen(t *testing.T, dir string) *Repo {
	t.Helper()
	r, err := Open(dir, testNow)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answer is what somebody signs of a request.
func answer(t *testing.T, r request.Request, keys ...testKey) request.Answer {
	t.Helper()
	v, err := request.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	a, err := v.Sign(t.Context(), testRing(keys))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// modules counts what is published, and fails the test unless all verifies.
func modules(t *testing.T, dir string) int {
	t.Helper()
	r := testOpen(t, dir)
	defer r.Close()
	rep, err := r.Verify(t.Context())
	if err != nil || len(rep.Problems) > 0 {
		t.Fatalf("Verify = %v, %v", rep.Problems, err)
	}
	return rep.Modules
}

func TestAChangeWaitsForTheSecondSignature(t *testing.T) {
	dir := testRepo(t)
	wanted := pending(t, dir)
	if got := modules(t, dir); got != 0 {
		t.Errorf("%d modules before the second signature, want none", got)
	}
	r := testOpen(t, dir)
	defer r.Close()
	if _, err := r.Add(t.Context(), testKeys, "debian", []Addition{testAddition(3)}); !errors.Is(err, ErrPending) {
		t.Errorf("another change meanwhile: %v, want ErrPending", err)
	}
	if err := r.Complete(t.Context(), testKeys, answer(t, wanted, "builder")); !errors.Is(err, ErrDeferred) || !errors.Is(err, sign.ErrMissing) {
		t.Errorf("Complete with a signature that was there = %v, want ErrDeferred and ErrMissing", err)
	}
	if err := r.Complete(t.Context(), testKeys, answer(t, wanted, "approver")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Pending(); !errors.Is(err, ErrNoChange) {
		t.Errorf("Pending afterwards = %v, want ErrNoChange", err)
	}
	if _, err := r.Add(t.Context(), testKeys, "debian", []Addition{testAddition(3)}); err != nil {
		t.Errorf("the next change: %v", err)
	}
	r.Close()
	if got := modules(t, dir); got != 2 {
		t.Errorf("%d modules, want 2", got)
	}
}

func TestSignaturesComeOneByOne(t *testing.T) {
	dir := testRepo(t)
	r := testOpen(t, dir)
	r.Defer = true
	err := r.Rotate(t.Context(), testRing{}, "root", Rotation{Add: []ed25519.PublicKey{testKey("root-3").Public()}, Threshold: 3})
	if !errors.Is(err, ErrDeferred) {
		t.Fatalf("Rotate without any key = %v, want ErrDeferred", err)
	}
	for i, name := range []testKey{"root-1", "root-3", "root-2"} {
		wanted, err := r.Pending()
		if err != nil {
			t.Fatal(err)
		}
		err = r.Complete(t.Context(), testKeys, answer(t, wanted, name))
		if last := i == 2; last != (err == nil) || !last && !errors.Is(err, ErrDeferred) {
			t.Errorf("Complete with %s = %v", name, err)
		}
		r.Close()
		r = testOpen(t, dir) // each time another day
	}
	defer r.Close()
	root, err := r.Root()
	if err != nil || root.Signed.Version != 2 || len(root.Signatures) != 3 {
		t.Errorf("root = %+v, %v", root, err)
	}
}

func TestDiscardLeavesNothing(t *testing.T) {
	dir := testRepo(t)
	pending(t, dir)
	r := testOpen(t, dir)
	defer r.Close()
	if err := r.Discard(); err != nil {
		t.Fatal(err)
	}
	if err := r.Discard(); !errors.Is(err, ErrNoChange) {
		t.Errorf("second Discard = %v, want ErrNoChange", err)
	}
	for _, name := range []string{pendingDir, stagedDir, commitDir} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if _, err := r.Add(t.Context(), testKeys, "debian", []Addition{testAddition(2)}); err != nil {
		t.Errorf("the next change: %v", err)
	}
}

// completeUntil completes the change that waits, and loses power before the step
// of that number. It returns the name of that step, "" if it came to the end.
func completeUntil(t *testing.T, dir string, a request.Answer, step int) (name string) {
	t.Helper()
	r := testOpen(t, dir)
	defer r.Close()
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
	if err := r.Complete(t.Context(), testKeys, a); err != nil {
		t.Fatal(err)
	}
	return ""
}

// A power cut leaves a change that still waits, or one that was made; both can go
// on from there.
func TestCrashWhileAChangeIsCompleted(t *testing.T) {
	origin := testRepo(t)
	a := answer(t, pending(t, origin), "approver")
	waited, done := 0, 0
	for step := 0; ; step++ {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
			t.Fatal(err)
		}
		name := completeUntil(t, dir, a, step)
		r := testOpen(t, dir)
		if r.isPending() {
			waited++
			if err := r.Complete(t.Context(), testKeys, a); err != nil {
				t.Errorf("power cut before %q: Complete = %v", name, err)
			}
		} else {
			done++
		}
		r.Close()
		if got := modules(t, dir); got != 1 {
			t.Errorf("power cut before %q: %d modules, want 1", name, got)
		}
		if name == "" {
			break
		}
	}
	if waited == 0 || done == 0 {
		t.Errorf("the change waited %d times and was made %d times: nothing was tested", waited, done)
	}
}

func TestWhatWasTamperedWithIsNotCompleted(t *testing.T) {
	dir := testRepo(t)
	a := answer(t, pending(t, dir), "approver")
	names, err := filepath.Glob(filepath.Join(dir, pendingDir, "metadata", "*.json"))
	if err != nil || len(names) == 0 {
		t.Fatalf("pending files: %q, %v", names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(names[0], b, 0o644); err != nil {
		t.Fatal(err)
	}
	r := testOpen(t, dir)
	defer r.Close()
	if err := r.Complete(t.Context(), testKeys, a); err == nil {
		t.Error("Complete of a change that was tampered with: no error")
	}
	r.Close()
	if got := modules(t, dir); got != 0 {
		t.Errorf("%d modules, want none", got)
	}
}
