package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
)

// pinsNewerRoot replaces the agent by one that pins root 3 and has no cache, beside a
// loader that still trusts root 1.
func (w *world) pinsNewerRoot() {
	w.repo.RotateRoot("root")
	w.repo.RotateRoot("timestamp")
	w.repo.Publish()
	if err := os.RemoveAll(filepath.Join(w.dir, cacheDir)); err != nil {
		w.t.Fatal(err)
	}
	w.root = w.repo.Metadata("3.root.json")
	w.restart()
}

func TestLoaderWithAnOlderRootIsLedToThePinnedOne(t *testing.T) {
	t.Run("to apply", func(t *testing.T) {
		w := newWorld(t)
		w.pinsNewerRoot()
		w.enable()
		w.mustCheck()
		w.wantPatch(status.Applied, "1.1")
	})
	t.Run("to revoke", func(t *testing.T) {
		w := enabled(t)
		w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
		w.pinsNewerRoot()
		w.mustCheck()
		if l := w.inKernel(); l.Name != "" {
			t.Errorf("%s is still %s", l.Name, l.State)
		}
	})
}

func TestServiceThatLacksARootIsTold(t *testing.T) {
	w := enabled(t)
	w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
	w.pinsNewerRoot()
	w.repo.SetMetadata("2.root.json", nil)
	_ = w.check(t.Context(), true)
	s, _ := w.Status(false)
	if !strings.Contains(s.CheckError, "cannot learn how root 1 leads to root 3: cannot fetch 2.root.json") || !strings.Contains(s.CheckHint, "serve every version of root.json") {
		t.Errorf("status says %q, hint %q", s.CheckError, s.CheckHint)
	}
}

// A refusing is a loader that finds fault with signed files.
type refusing struct{ *loadertest.Fake }

func (refusing) Apply(context.Context, loader.Request) (loader.Result, error) {
	return loader.Result{}, patch.ErrUntrusted
}

func (refusing) Update(context.Context, loader.Metadata) ([]string, error) {
	return nil, patch.ErrUntrusted
}

// What only the loader can find fault with does not stay in the cache.
func TestRootThatTheLoaderRefusesIsFetchedAnew(t *testing.T) {
	for name, begin := range map[string]func(*testing.T) *world{"with a module": enabledOnly, "with a revocation": enabled} {
		t.Run(name, func(t *testing.T) {
			w := begin(t)
			w.pinsNewerRoot()
			w.Agent.loader = refusing{w.fake}
			w.mustCheck()
			if _, err := w.keeper.Roots(t.Context(), nil, 1); !errors.Is(err, trust.ErrOffline) {
				t.Errorf("roots that were refused are still in the cache: %v", err)
			}
			w.Agent.loader = w.fake
			w.mustCheck()
			w.wantPatch(status.Applied, "1.1")
			w.fake.Do(func(f *loadertest.Fake) {
				if f.RootVersion != 3 {
					t.Errorf("root of the loader is version %d", f.RootVersion)
				}
			})
		})
	}
}

// enabledOnly returns a world that has made no check.
func enabledOnly(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.enable()
	return w
}
