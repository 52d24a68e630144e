package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/servicetest"
	"livepatch/internal/patch"
)

var (
	kernel  = patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: "00112233445566778899aabbccddeeff00112233"}
	module1 = patch.Module{Kernel: kernel, Flavour: "amd64", Name: "lkp_Debian_6_1_0_53_amd64_1", Version: "1.1", Sequence: 1}
)

// source serves a repository without a network and notes what was asked for.
type source struct {
	repo *servicetest.Repo
	log  []string
	err  error
}

func (s *source) Metadata(_ context.Context, name string, limit int64, etag string) (fetch.File, error) {
	if s.err != nil {
		return fetch.File{}, s.err
	}
	b := s.repo.Metadata(name)
	if b == nil {
		s.log = append(s.log, name+" absent")
		return fetch.File{}, &fetch.Error{Kind: fetch.ErrAbsent, Status: 404, Text: "absent"}
	}
	sum := sha256.Sum256(b)
	tag := hex.EncodeToString(sum[:])
	if tag == etag {
		s.log = append(s.log, name+" unchanged")
		return fetch.File{ETag: tag, NotModified: true}, nil
	}
	s.log = append(s.log, name)
	if int64(len(b)) > limit {
		return fetch.File{}, patch.ErrTooLarge
	}
	return fetch.File{Data: b, ETag: tag}, nil
}

func (s *source) asked() []string {
	log := s.log
	s.log = nil
	return log
}

type fixture struct {
	*Keeper
	src *source
	dir string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	repo := servicetest.NewRepo()
	repo.Add(module1, []byte("module one"), servicetest.Everyone())
	repo.Publish()
	f := &fixture{src: &source{repo: repo}, dir: filepath.Join(t.TempDir(), "cache")}
	f.reopen(t)
	return f
}

func (f *fixture) reopen(t *testing.T) {
	t.Helper()
	var err error
	if f.Keeper, err = Open(f.dir, f.src.repo.Root()); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) refresh(t *testing.T) (*View, error) {
	return f.Refresh(t.Context(), f.src, f.src.repo.Generation())
}

// must refreshes and looks module1 up.
func (f *fixture) must(t *testing.T) *View {
	t.Helper()
	v, err := f.refresh(t)
	if err != nil {
		t.Fatal(err)
	}
	lookUp(t, v)
	return v
}

func lookUp(t *testing.T, v *View) Target {
	t.Helper()
	target, err := v.Target(patch.ModulePath("debian", module1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Target(patch.RolloutPath("debian", module1.Version)); err != nil {
		t.Fatal(err)
	}
	return target
}

func TestTarget(t *testing.T) {
	f := newFixture(t)
	target := lookUp(t, f.must(t))
	if target.Length != int64(len("module one")) || target.Digest != sha256.Sum256([]byte("module one")) {
		t.Errorf("target = %+v", target)
	}
	m, err := patch.ParseModule(target.Custom)
	if err != nil || m.Name != module1.Name {
		t.Errorf("custom = %+v, %v", m, err)
	}
	if b, ok := f.src.repo.Target(target.Remote()); !ok || string(b) != "module one" {
		t.Errorf("remote path %q leads to %q, %v", target.Remote(), b, ok)
	}
}

func TestTargetThatIsNotThere(t *testing.T) {
	v := newFixture(t).must(t)
	for _, name := range []string{"debian/none.ko", "fedora/none.ko", "rollout/none", "none", "debian/a/b"} {
		if _, err := v.Target(name); !errors.Is(err, patch.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnchangedCostsOneConditionalRequest(t *testing.T) {
	f := newFixture(t)
	f.must(t)
	f.src.asked()
	f.reopen(t) // a restart of the agent changes nothing
	f.must(t)
	if got := f.src.asked(); !slices.Equal(got, []string{"timestamp.json unchanged"}) {
		t.Errorf("asked for %q", got)
	}
}

func TestChangeFetchesWhatChanged(t *testing.T) {
	f := newFixture(t)
	f.must(t)
	f.src.asked()
	f.src.repo.Resign()
	f.must(t)
	if got := f.src.asked(); !slices.Equal(got, []string{"timestamp.json", "2.root.json absent"}) {
		t.Errorf("asked for %q", got)
	}
	f.must(t)
	if got := f.src.asked(); !slices.Equal(got, []string{"timestamp.json unchanged"}) {
		t.Errorf("afterwards asked for %q", got)
	}
}

func TestRootAloneIsNoticedByItsGeneration(t *testing.T) {
	f := newFixture(t)
	f.must(t)
	f.src.repo.RotateRoot("")
	v := f.must(t)
	if v.RootVersion() != 2 {
		t.Errorf("root version = %d", v.RootVersion())
	}
}

func TestFilesAreThoseOfTheService(t *testing.T) {
	f := newFixture(t)
	v := f.must(t)
	name := patch.ModulePath("debian", module1)
	files, err := v.Files(name)
	if err != nil {
		t.Fatal(err)
	}
	repo := f.src.repo
	for role, got := range map[string][]byte{"timestamp": files.Timestamp, "snapshot": files.Snapshot, "targets": files.Targets,
		"debian": files.Vendor, "rollout": files.Rollout} {
		if !bytes.Equal(got, repo.Metadata(repo.Current(role))) {
			t.Errorf("%s differs from what was served", role)
		}
	}
	if !bytes.Contains(files.Bin, []byte(name)) {
		t.Error("bin does not list the module")
	}
}

func TestRootsAfterRotation(t *testing.T) {
	f := newFixture(t)
	f.must(t)
	f.src.repo.RotateRoot("timestamp")
	f.src.repo.Publish()
	f.src.repo.RotateRoot("root")
	f.must(t)
	f.reopen(t)
	roots, err := f.Roots(t.Context(), nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 2 || !bytes.Equal(roots[0], f.src.repo.Metadata("2.root.json")) || !bytes.Equal(roots[1], f.src.repo.Metadata("3.root.json")) {
		t.Errorf("%d roots", len(roots))
	}
	if roots, err := f.Roots(t.Context(), nil, 3); err != nil || len(roots) != 0 {
		t.Errorf("above the newest: %d, %v", len(roots), err)
	}
	// The way back to a revoked key is closed: whoever withholds the new roots
	// is not believed.
	f.src.repo.SetMetadata("2.root.json", nil)
	f.src.repo.SetMetadata("3.root.json", nil)
	v := f.must(t)
	if v.RootVersion() != 3 {
		t.Errorf("root version = %d", v.RootVersion())
	}
}

func TestCachedWorksWithoutTheService(t *testing.T) {
	f := newFixture(t)
	f.must(t)
	f.reopen(t)
	v, err := f.Cached(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lookUp(t, v)
	if _, err := v.Files(patch.ModulePath("debian", module1)); err != nil {
		t.Error(err)
	}
}

func TestCachedDoesNotOutliveItsSignatures(t *testing.T) {
	f := newFixture(t)
	f.src.repo.SetLifetime(time.Second)
	f.src.repo.Publish()
	f.must(t)
	time.Sleep(2 * time.Second)
	if _, err := f.Cached(t.Context()); !errors.Is(err, patch.ErrExpired) {
		t.Errorf("Cached = %v", err)
	}
}

func TestCachedWithNothingThere(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Cached(t.Context()); !errors.Is(err, ErrOffline) {
		t.Errorf("Cached = %v", err)
	}
}

// Everything the service can do wrong: nothing of it is believed, what was
// there before stays in force, and afterwards an honest service is believed
// again.
func TestBadRepository(t *testing.T) {
	repoOf := func(f *fixture) *servicetest.Repo { return f.src.repo }
	tests := map[string]struct {
		harm    func(f *fixture)
		want    error
		wantErr string
	}{
		"timestamp expired": {func(f *fixture) {
			repoOf(f).SetLifetime(-time.Hour)
			repoOf(f).Resign()
		}, patch.ErrExpired, "timestamp.json is expired"},
		"everything expired": {func(f *fixture) {
			repoOf(f).SetLifetime(-time.Hour)
			repoOf(f).Publish()
		}, patch.ErrExpired, "expired"},
		"targets signed by too few": {func(f *fixture) {
			repoOf(f).Publish()
			repoOf(f).Edit(repoOf(f).Current("targets"), "targets", 1, false)
		}, patch.ErrUntrusted, "not enough signatures"},
		"targets signed twice by the same key": {func(f *fixture) {
			repoOf(f).Publish()
			repoOf(f).Edit(repoOf(f).Current("targets"), "targets", 1, true)
		}, patch.ErrUntrusted, "multiple signatures"},
		"vendor signed by too few": {func(f *fixture) {
			repoOf(f).Publish()
			repoOf(f).Edit(repoOf(f).Current("debian"), "debian", 1, false)
		}, patch.ErrUntrusted, "not enough signatures"},
		"rollout signed by the vendor": {func(f *fixture) {
			repoOf(f).Publish()
			repoOf(f).Edit(repoOf(f).Current("rollout"), "debian", 1, false)
		}, patch.ErrUntrusted, "not enough signatures"},
		"timestamp truncated": {func(f *fixture) {
			b := repoOf(f).Metadata("timestamp.json")
			repoOf(f).SetMetadata("timestamp.json", b[:len(b)-20])
		}, patch.ErrMalformed, "signed metadata is malformed"},
		"timestamp empty": {func(f *fixture) {
			repoOf(f).SetMetadata("timestamp.json", []byte{})
		}, patch.ErrMalformed, "signed metadata is malformed"},
		"timestamp is another role": {func(f *fixture) {
			repoOf(f).SetMetadata("timestamp.json", repoOf(f).Metadata(repoOf(f).Current("targets")))
		}, patch.ErrMalformed, "expected metadata type timestamp"},
		"snapshot changed": {func(f *fixture) {
			repoOf(f).Publish()
			b := bytes.Replace(repoOf(f).Metadata(repoOf(f).Current("snapshot")), []byte("debian"), []byte("debiax"), 1)
			repoOf(f).SetMetadata(repoOf(f).Current("snapshot"), b)
		}, patch.ErrTampered, "content differs"},
		"snapshot withheld": {func(f *fixture) {
			repoOf(f).Publish()
			repoOf(f).SetMetadata(repoOf(f).Current("snapshot"), nil)
		}, fetch.ErrAbsent, "snapshot.json"},
		"targets is an old version": {func(f *fixture) {
			old := repoOf(f).Metadata(repoOf(f).Current("targets"))
			repoOf(f).Publish()
			repoOf(f).SetMetadata(repoOf(f).Current("targets"), old)
		}, patch.ErrRollback, "expected targets version"},
		"metadata of a null": {func(f *fixture) {
			repoOf(f).SetMetadata("timestamp.json", []byte("null"))
		}, patch.ErrMalformed, "malformed"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.must(t)
			tc.harm(f)

			v, err := f.refresh(t)
			if err == nil {
				_, err = v.Target(patch.ModulePath("debian", module1))
			}
			if err == nil {
				_, err = v.Target(patch.RolloutPath("debian", module1.Version))
			}
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.wantErr)
			}

			// The publisher goes on from what it had, and all is well.
			f.src.repo.SetLifetime(time.Hour)
			f.src.repo.Publish()
			f.reopen(t)
			f.must(t)
		})
	}
}

func TestRollbackIsRefused(t *testing.T) {
	f := newFixture(t)
	f.must(t)
	old := f.src.repo.State()
	f.src.repo.Publish()
	f.must(t)
	f.src.repo.Restore(old)
	f.reopen(t)
	if _, err := f.refresh(t); !errors.Is(err, patch.ErrRollback) {
		t.Errorf("Refresh = %v", err)
	}
	// What was there still is.
	v, err := f.Cached(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lookUp(t, v)
}

func TestEndlessMetadataIsRefused(t *testing.T) {
	f := newFixture(t)
	f.src.repo.SetMetadata("timestamp.json", bytes.Repeat([]byte(" "), 1<<20))
	if _, err := f.refresh(t); !errors.Is(err, patch.ErrTooLarge) {
		t.Errorf("Refresh = %v", err)
	}
}

// Damage to any cached file heals, with the service there.
func TestCacheHeals(t *testing.T) {
	damages := map[string]func(path string, b []byte) error{
		"empty":       func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
		"truncated":   func(path string, b []byte) error { return os.WriteFile(path, b[:len(b)/2], 0o600) },
		"zeros":       func(path string, b []byte) error { return os.WriteFile(path, make([]byte, len(b)), 0o600) },
		"null":        func(path string, _ []byte) error { return os.WriteFile(path, []byte("null"), 0o600) },
		"empty JSON":  func(path string, _ []byte) error { return os.WriteFile(path, []byte("{}"), 0o600) },
		"one bit off": func(path string, b []byte) error { b[len(b)/2] ^= 1; return os.WriteFile(path, b, 0o600) },
		"gone":        func(path string, _ []byte) error { return os.Remove(path) },
		"a folder": func(path string, _ []byte) error {
			return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700))
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.src.repo.RotateRoot("")
			f.must(t)
			var paths []string
			for _, dir := range []string{f.Keeper.dir, f.rootsDir} {
				entries, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					paths = append(paths, filepath.Join(dir, e.Name()))
				}
			}
			if len(paths) < 8 {
				t.Fatalf("only %q in the cache", paths)
			}
			paths = append(paths, f.memo)
			for _, path := range paths {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if name == "a folder" && (path == f.memo || filepath.Dir(path) == f.rootsDir) {
					continue // no interrupted write makes one
				}
				if err := damage(path, b); err != nil {
					t.Fatal(err)
				}
				f.reopen(t)
				v, err := f.refresh(t)
				if err != nil {
					t.Fatalf("%s: %v", filepath.Base(path), err)
				}
				lookUp(t, v)
				// And the refresh after that one is an ordinary one.
				f.must(t)
				if v.RootVersion() != 2 {
					t.Errorf("%s: root version = %d", filepath.Base(path), v.RootVersion())
				}
			}
		})
	}
}

func TestPruneForgetsOtherKernels(t *testing.T) {
	f := newFixture(t)
	v := f.must(t)
	for _, name := range []string{"debian/a", "debian/b", "debian/c", "debian/d", "debian/e", "debian/f"} {
		_, _ = v.Target(name) // loads bins
	}
	v = f.must(t)
	if err := v.Prune(); err != nil {
		t.Fatal(err)
	}
	bins, err := filepath.Glob(filepath.Join(f.Keeper.dir, "debian-*.json"))
	if err != nil || len(bins) != 1 {
		t.Errorf("bins left: %q, %v", bins, err)
	}
	f.src.asked()
	f.must(t)
	if got := f.src.asked(); !slices.Equal(got, []string{"timestamp.json unchanged"}) {
		t.Errorf("after pruning asked for %q", got)
	}
}

func TestOpenNeedsARoot(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "no JSON": []byte("x"), "another role": []byte(`{"signed":{"_type":"targets"}}`)} {
		if _, err := Open(t.TempDir(), b); !errors.Is(err, patch.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What go-tuf is fed from the cache must never make it panic or leave the cache
// unusable.
func FuzzCachedTimestamp(f *testing.F) {
	repo := servicetest.NewRepo()
	f.Add(repo.Metadata("timestamp.json"))
	f.Add([]byte("null"))
	f.Add([]byte(`{"signed":{"_type":"timestamp","meta":{"snapshot.json":null}},"signatures":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		k, err := Open(dir, repo.Root())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(k.path("timestamp"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Refresh(t.Context(), &source{repo: repo}, 1); err != nil {
			t.Errorf("cache does not heal: %v", err)
		}
	})
}
