package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

// notice returns the notice that holds a text, or the zero one.
func (w *world) notice(text string) status.Notice {
	s, _ := w.Status(false)
	for _, n := range s.Notices {
		if strings.Contains(n.Message, text) {
			return n
		}
	}
	return status.Notice{}
}

func TestWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.svc.set(func(s *memService) { s.full, s.answer.IntervalSeconds = true, 30 })
		w.enable()
		defer w.run()()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		w.wantPatch(status.Unapplied, "1.1")
		if p := w.patch(); p.PatchError != "" {
			t.Errorf("an error: %q", p.PatchError)
		}
		if n := w.notice("patch 1.1 waits for its turn"); n.Hint == "" {
			t.Errorf("status does not say why: %+v", n)
		}
		asks := len(w.svc.events())
		if asks < 18 || asks > 22 {
			t.Errorf("asked %d times in 10 minutes, want every 30 seconds", asks)
		}
		if made := w.fake.Made(); len(made) != 0 {
			t.Errorf("loader was asked for %q", made)
		}
		if events := w.rec.Events; len(events) != 0 {
			t.Errorf("kept %v", events)
		}
		w.svc.set(func(s *memService) { s.full = false })
		time.Sleep(31 * time.Second)
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
		if n := w.notice("waits"); n.Message != "" {
			t.Errorf("still says %q", n.Message)
		}
		if e := w.svc.events(); e[len(e)-1] != "applied 1.1" || e[len(e)-2] != "intent 1.1" {
			t.Errorf("events = %q", e)
		}
	})
}

// Where the operator wants no check-ins, nothing comes by itself, and status does not
// say so.
func TestWaitsWithoutCheckIns(t *testing.T) {
	tests := map[string]struct {
		change func(*world)
		notice string
	}{
		"for its turn": {func(w *world) { w.svc.set(func(s *memService) { s.full, s.answer.IntervalSeconds = true, 30 }) }, "patch 1.1 waits for its turn"},
		"for the rollout": {func(w *world) {
			w.repo.SetRollout("1.1", patch.Rollout{State: patch.Running, Tiers: map[string]patch.Stage{"edge": {Share: patch.Everyone}}})
			w.repo.Publish()
		}, "patch 1.1 has not come to tier stable yet"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.longLived()
				w.enable()
				tc.change(w)
				w.set(config.CheckInterval, "0")
				defer w.run()()
				synctest.Wait()
				asked := w.svc.count()
				if n := w.notice(tc.notice); !strings.HasPrefix(n.Hint, "to ask again: sudo canonical-livepatch refresh") {
					t.Errorf("notice = %+v", n)
				}
				time.Sleep(20 * 24 * time.Hour)
				synctest.Wait()
				if n := w.svc.count(); n != asked {
					t.Errorf("%d check-ins that nobody wanted", n-asked)
				}
				w.svc.set(func(s *memService) { s.full = false })
				w.repo.SetRollout("1.1", servicetest.Everyone())
				w.repo.Publish()
				if _, err := w.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
				w.wantPatch(status.Applied, "1.1")
			})
		})
	}
}

// While a newer patch waits, the one in force is what status is about.
func TestOlderPatchIsShownWhileTheNewerWaits(t *testing.T) {
	w := enabled(t)
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.svc.set(func(s *memService) { s.full = true })
	w.mustCheck()
	w.wantPatch(status.Applied, "1.1")
	if p := w.patch(); len(p.Fixes) != 1 || p.Fixes[0].Name != "CVE-2026-1.1" || !p.Fixes[0].Patched {
		t.Errorf("fixes = %+v", p.Fixes)
	}
	if w.notice("patch 2.1 waits for its turn").Hint == "" {
		t.Error("status does not say that 2.1 waits")
	}
}

// A service that goes away between check-in and ask.
func TestServiceThatIsAwayWhenItIsAsked(t *testing.T) {
	half := servicetest.Everyone()
	half.Tiers = map[string]patch.Stage{"stable": {Share: patch.Everyone - 1, Salt: "x"}}
	tests := map[string]struct {
		rollout patch.Rollout
		want    status.State
		events  []string
	}{
		"a patch for everyone goes on":  {servicetest.Everyone(), status.Applied, []string{"intent 1.1", "applied 1.1"}},
		"one that spreads waits":        {half, status.Unapplied, nil},
		"one that spreads on a kernel":  {spread(half, patch.Everyone), status.Applied, []string{"intent 1.1", "applied 1.1"}},
		"one that is small on a kernel": {spread(servicetest.Everyone(), patch.Everyone-1), status.Unapplied, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.repo.SetRollout("1.1", tc.rollout)
			w.repo.Publish()
			w.svc.set(func(s *memService) { s.full = true })
			w.enable()
			w.mustCheck() // all files are in the cache
			w.svc.set(func(s *memService) { s.full, s.checkIns = false, nil })
			w.svc.down()
			if err := w.now(); err == nil {
				t.Error("no error")
			}
			w.wantPatch(tc.want, "1.1")
			if n := w.notice("waits until the service can be asked"); (n.Message == "") != (tc.want == status.Applied) {
				t.Errorf("notice = %+v", n)
			}
			var kept []string
			for _, e := range w.rec.Events {
				kept = append(kept, string(e.Kind)+" "+e.Version)
			}
			if !slices.Equal(kept, tc.events) {
				t.Errorf("kept %q, want %q", kept, tc.events)
			}
			w.svc.up()
			w.mustCheck()
			w.wantPatch(status.Applied, "1.1")
		})
	}
}

// spread gives the kernel of these tests a share of its own.
func spread(r patch.Rollout, share int64) patch.Rollout {
	r.Spreads = []patch.Spread{{Kernels: []string{kernel.Cell()}, Shares: map[string]int64{"stable": share}}}
	return r
}
