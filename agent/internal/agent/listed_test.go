package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// withoutApplying reboots into a kernel that takes nothing, with patches that were
// accepted before.
func (w *world) withoutApplying(accepted ...loader.Livepatch) {
	w.t.Helper()
	w.crash()
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches, f.Mode, f.Calls = accepted, facts.NoApply, nil })
	w.mustCheck()
}

// accepted returns a patch that the loader brings back at boot.
func accepted(m patch.Module) loader.Livepatch {
	return loader.Livepatch{Name: m.Name, Version: m.Version, Sequence: m.Sequence, State: loader.Absent, Standing: loader.Accepted,
		Rollout: patch.Running, Inserted: time.Now()}
}

// wantReturning fails the test unless these are the versions that return at boot.
func (w *world) wantReturning(want ...string) {
	w.t.Helper()
	var got []string
	w.fake.Do(func(f *loadertest.Fake) {
		for _, l := range f.Livepatches {
			if l.Returns() {
				got = append(got, l.Version)
			}
		}
	})
	if !slices.Equal(got, want) {
		w.t.Errorf("at boot return %q, want %q", got, want)
	}
}

// The machine does not get up with a patch that was accepted.
func TestSkippedPatchDoesNotReturnAtBoot(t *testing.T) {
	old, other := accepted(module1), accepted(module("3.1", 3))
	other.Name = "lkp_of_another_kernel"
	inForce := func(standing loader.Standing) loader.Livepatch {
		l := accepted(module2)
		l.State, l.Standing = loader.Enabled, standing
		return l
	}
	revoked := accepted(module("0.1", 0)) // which is not in the repository any more
	revoked.Rollout = patch.Revoked
	live := old
	live.State = loader.Enabled
	tests := map[string]struct {
		known []loader.Livepatch
		skip  string
		want  []string // versions that return at boot
		calls []string
	}{
		"the one that returns":                      {[]loader.Livepatch{old}, "1.1", nil, []string{"remove " + module1.Name}},
		"with the one before it":                    {[]loader.Livepatch{old, accepted(module2)}, "2.1", nil, []string{"remove " + module2.Name}},
		"besides one of another kernel":             {[]loader.Livepatch{old, other}, "1.1", nil, []string{"remove " + module1.Name}},
		"besides one on trial":                      {[]loader.Livepatch{old, inForce(loader.Trial)}, "1.1", nil, []string{"remove " + module1.Name}},
		"not one that another comes before":         {[]loader.Livepatch{old, accepted(module2)}, "1.1", []string{"1.1", "2.1"}, nil},
		"not one that another in force was put for": {[]loader.Livepatch{old, inForce(loader.Accepted)}, "1.1", []string{"1.1"}, nil},
		"not one that is in force":                  {[]loader.Livepatch{live}, "1.1", nil, nil},
		"not one that is revoked":                   {[]loader.Livepatch{revoked}, "0.1", nil, nil},
		"not others":                                {[]loader.Livepatch{old}, "2.1", []string{"1.1"}, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
			w.repo.Publish()
			w.withoutApplying(tc.known...)
			w.fake.Made()
			w.set(config.SkipPatches, tc.skip)
			w.mustCheck()
			made := slices.DeleteFunc(w.fake.Made(), func(c string) bool { return c == "update" })
			if !slices.Equal(made, tc.calls) {
				t.Errorf("the loader was asked for %q, want %q", made, tc.calls)
			}
			w.wantReturning(tc.want...)
			if n := w.notice("returns at the next boot"); n.Message != "" {
				t.Errorf("status says %q", n.Message)
			}
		})
	}
}

// The machine may have no network, or not be let into it.
func TestSkippedPatchNeedsNoService(t *testing.T) {
	for name, away := range map[string]func(*world){
		"it is down":         func(w *world) { w.svc.down() },
		"it is not asked":    func(w *world) { w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.Stop }) },
		"nothing is known":   func(w *world) { w.svc.down(); w.rec.Offered = nil },
		"the token is wrong": func(w *world) { w.svc.set(func(s *memService) { s.err = errToken }) },
	} {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			w.withoutApplying(accepted(module1))
			w.set(config.SkipPatches, "1.1")
			away(w)
			if err := w.now(); err == nil {
				t.Error("the check succeeded")
			}
			w.wantReturning()
		})
	}
}

// An operator must not reboot into the patch that he has skipped without being told.
func TestSkippedPatchThatCouldReturnIsShown(t *testing.T) {
	w := enabled(t)
	w.withoutApplying(accepted(module1))
	w.set(config.SkipPatches, "1.1")
	if n := w.notice("patch 1.1 is held back by skip-patches, but returns at the next boot"); !strings.Contains(n.Hint, "refresh") {
		t.Errorf("notice = %+v", n)
	}
	w.fake.Do(func(f *loadertest.Fake) { f.RemoveErr = patch.ErrBusy })
	w.mustCheck()
	if n := w.notice("returns at the next boot"); n.Message == "" {
		t.Error("status does not say that it returns")
	}
	if wait := w.live.nextCheck; wait.After(w.rec.LastAttempt.Add(backoff(2))) {
		t.Errorf("tries again at %v", wait)
	}
	w.fake.Do(func(f *loadertest.Fake) { f.RemoveErr = nil })
	w.mustCheck()
	w.wantReturning()
	if n := w.notice("returns at the next boot"); n.Message != "" {
		t.Errorf("still says %q", n.Message)
	}
}

func TestDisableAndRemoveAPatchThatIsNotInTheKernel(t *testing.T) {
	for _, remove := range []bool{true, false} {
		w := enabled(t)
		w.withoutApplying(accepted(module1))
		_, notes, err := w.Disable(t.Context(), remove)
		if err != nil {
			t.Fatal(err)
		}
		if remove {
			w.wantReturning()
			if want := "Livepatch " + module1.Name + " is not in the kernel, and does not return at boot."; !slices.Equal(notes, []string{want}) {
				t.Errorf("notes = %q", notes)
			}
			continue
		}
		w.wantReturning("1.1")
	}
}

// What cannot be taken off the list is not kept quiet.
func TestDisableAndRemoveThatFails(t *testing.T) {
	w := enabled(t)
	w.withoutApplying(accepted(module1))
	w.fake.Do(func(f *loadertest.Fake) { f.RemoveErr = patch.ErrBusy })
	_, _, err := w.Disable(t.Context(), true)
	if err == nil || !strings.HasPrefix(err.Error(), "cannot keep livepatch "+module1.Name+" from returning at boot: ") {
		t.Errorf("Disable = %v", err)
	}
	if _, on := w.Status(false); !on {
		t.Error("disabled, although the patch returns")
	}
	w.wantPatch(status.Unapplied, "1.1")
}
