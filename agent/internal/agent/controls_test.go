package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
)

func (w *world) set(key, value string) {
	w.t.Helper()
	if _, err := w.SetConfig(w.t.Context(), map[string]string{key: value}); err != nil {
		w.t.Fatal(err)
	}
}

// Whatever holds a newer patch back, the one in force stays, and status says why and
// what to do.
func TestWhatHoldsANewerPatchBack(t *testing.T) {
	with := func(r patch.Rollout) func(*world) { return func(w *world) { w.repo.SetRollout("2.1", r) } }
	everyone := servicetest.Everyone()
	tests := map[string]struct {
		change func(*world)
		notice string
		hint   string
	}{
		"it is to be skipped":          {func(w *world) { w.set(config.SkipPatches, "2.1,3.1") }, "patch 2.1 is held back by skip-patches", "skip-patches"},
		"the machine stays at another": {func(w *world) { w.set(config.PinPatch, "1.1") }, "patch 2.1 is held back by pin-patch: this machine stays at 1.1", "pin-patch="},
		"it is too young":              {func(w *world) { w.set(config.PatchDelay, "2d") }, "patch 2.1 is held back by patch-delay until ", "patch-delay="},
		"it is younger than a date":    {func(w *world) { w.set(config.CutoffDate, "2024-02-01T00:00:00Z") }, "patch 2.1 is held back by cutoff-date: ", "cutoff-date="},
		"it is halted":                 {with(patch.Rollout{State: patch.Halted, Tiers: everyone.Tiers}), "patch 2.1 is halted: no further machine gets it", "nothing to do"},
		"it is halted on this kernel":  {with(patch.Rollout{State: patch.Running, Tiers: everyone.Tiers, Kernels: map[string]patch.RolloutState{kernel.Cell(): patch.Halted}}), "patch 2.1 is halted", "nothing to do"},
		"it is revoked":                {with(patch.Rollout{State: patch.Revoked, Tiers: everyone.Tiers}), "patch 2.1 is revoked: no machine gets it", "nothing to do"},
		"it is for an earlier tier":    {with(patch.Rollout{State: patch.Running, Tiers: map[string]patch.Stage{"edge": {Share: patch.Everyone}}}), "patch 2.1 has not come to tier stable yet", "nothing to do"},
		"it is at its first machines":  {with(patch.Rollout{State: patch.Running, Tiers: map[string]patch.Stage{"stable": {Share: 1, Salt: "x"}}}), "patch 2.1 has not come to this machine yet, but to 0.0001 % of tier stable", "nothing to do"},
		"nothing may be applied":       {func(w *world) { w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.NoApply }) }, "patch 2.1 is not applied: applying is switched off", "sudo rm "},
		"the window is closed":         {func(w *world) { w.set(config.Maintenance, closedNow()) }, "patch 2.1 waits for the maintenance window (", "canonical-livepatch refresh"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			w.repo.Add(module2, contentOf("2.1"), everyone)
			tc.change(w)
			w.repo.Publish()
			w.mustCheck()
			w.wantPatch(status.Applied, "1.1")
			n := w.notice("2.1")
			if !strings.HasPrefix(n.Message, tc.notice) || !strings.Contains(n.Hint, tc.hint) {
				t.Errorf("notice = %+v", n)
			}
			w.restart()
			if again := w.notice("2.1"); again != n && !strings.Contains(name, "nothing may be") {
				t.Errorf("after a restart: %+v", again)
			}
			if e := w.svc.events(); slices.Contains(e, "intent 2.1") {
				t.Errorf("events = %q", e)
			}
		})
	}
}

// closedNow returns a maintenance window that is not open now.
func closedNow() string {
	h := time.Now().Add(2 * time.Hour)
	return "daily " + h.Format("15:04") + "-" + h.Add(time.Minute).Format("15:04")
}

func TestPinnedVersion(t *testing.T) {
	ix := patch.Index{Patches: []patch.IndexEntry{
		{Version: "9.1", Sequence: 1, BuildID: "aa"}, {Version: "10.1", Sequence: 2, BuildID: "aa"}, {Version: "2026b", Sequence: 3, BuildID: "aa"},
		{Version: "11.1", Sequence: 4, BuildID: "bb"},
	}}
	tests := map[string]struct {
		pin  string
		want []string // versions of build aa that come after it
	}{
		"one in the index":            {"9.1", []string{"10.1", "2026b"}},
		"the newest":                  {"2026b", nil},
		"one between, by its numbers": {"9.5", []string{"10.1", "2026b"}},
		"one of another build only":   {"11.1", []string{"2026b"}},
		"one that cannot be compared": {"2026a", []string{"9.1", "10.1", "2026b"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, e := range ix.Patches {
				if e.BuildID == "aa" && comesAfter(e, tc.pin, ix) {
					got = append(got, e.Version)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("after %s come %q, want %q", tc.pin, got, tc.want)
			}
		})
	}
}

func TestPatchIsInsertedWhenTheWindowOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is midnight, UTC
		w := newWorld(t)
		w.longLived()
		w.enable()
		h := time.Now().Add(5 * time.Hour)
		w.set(config.Maintenance, "daily "+h.Format("15:04")+"-"+h.Add(time.Hour).Format("15:04"))
		defer w.run()()
		time.Sleep(4*time.Hour + 59*time.Minute)
		synctest.Wait()
		w.wantPatch(status.Unapplied, "1.1")
		if n := w.svc.events(); len(n) != 0 {
			t.Errorf("events before it opens: %q", n)
		}
		time.Sleep(7 * time.Minute)
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
		if n := w.notice("maintenance"); n.Message != "" {
			t.Errorf("still says %q", n.Message)
		}
	})
}

func TestOperatorAppliesOutsideOfTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		w.set(config.Maintenance, closedNow())
		defer w.run()()
		synctest.Wait()
		w.wantPatch(status.Unapplied, "1.1")
		if lines, err := w.Refresh(t.Context()); err != nil || !slices.Contains(lines, "patch is applied") {
			t.Errorf("Refresh = %q, %v", lines, err)
		}
	})
}

// A window is no reason to keep what is revoked.
func TestRevokedPatchLeavesOutsideOfTheWindow(t *testing.T) {
	w := enabled(t)
	w.set(config.Maintenance, closedNow())
	w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
	w.repo.Publish()
	w.mustCheck()
	w.wantPatch(status.NothingToApply, "")
	if n := w.notice("patch 1.1 is revoked: it was taken out"); n.Hint == "" {
		s, _ := w.Status(false)
		t.Errorf("notices = %+v", s.Notices)
	}
}

func TestModes(t *testing.T) {
	tests := map[string]struct {
		cmdline  string
		file     facts.Mode
		applies  bool
		talks    bool
		mode     string // as status names it; "" for none
		hint     string
		checking bool // checks go on, if only of the loader
	}{
		"nothing is switched off":          {"quiet", facts.Normal, true, true, "", "", true},
		"normal, said aloud":               {"canonical_livepatch_mode=normal", facts.Normal, true, true, "", "", true},
		"no-apply by the command line":     {"quiet canonical_livepatch_mode=no-apply", facts.Normal, false, true, "no-apply", "command line and reboot", true},
		"no-apply by the file":             {"", facts.NoApply, false, true, "no-apply", "sudo rm /var/lib/livepatch-loader/mode", true},
		"no-refresh by the command line":   {"canonical_livepatch_mode=no-refresh", facts.Normal, false, false, "no-refresh", "command line", true},
		"stop by the file":                 {"", facts.Stop, false, false, "stop", "sudo rm ", false},
		"stop by the command line":         {"canonical_livepatch_mode=stop", facts.Normal, false, false, "stop", "command line", false},
		"the command line is stricter":     {"canonical_livepatch_mode=stop", facts.NoApply, false, false, "stop", "command line", false},
		"the file is stricter":             {"canonical_livepatch_mode=no-apply", facts.Stop, false, false, "stop", "; and: sudo rm", false},
		"a word that nobody knows":         {"canonical_livepatch_mode=off", facts.Normal, false, true, "no-apply", "command line", true},
		"the last one on the command line": {"canonical_livepatch_mode=stop canonical_livepatch_mode=normal", facts.Normal, true, true, "", "", true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.kernel["proc/cmdline"] = &fstest.MapFile{Data: []byte("BOOT_IMAGE=/vmlinuz " + tc.cmdline + "\n")}
				w.enable()
				w.fake.Do(func(f *loadertest.Fake) { f.Mode = tc.file })
				w.restart()
				defer w.run()()
				synctest.Wait()
				w.fake.Do(func(f *loadertest.Fake) { f.Calls = nil })
				time.Sleep(10 * time.Hour)
				synctest.Wait()
				if l := w.inKernel(); (l.Name != "") != tc.applies {
					t.Errorf("in the kernel: %q", l.Name)
				}
				if n := w.svc.count(); (n > 0) != tc.talks {
					t.Errorf("%d check-ins", n)
				}
				looked := false
				w.fake.Do(func(f *loadertest.Fake) { looked = len(f.Calls) > 0 })
				if looked != tc.checking {
					t.Errorf("looked after the loader: %v", looked)
				}
				n := w.notice("switched off by mode")
				if tc.mode == "" && n.Message != "" || !strings.Contains(n.Message, tc.mode) || !strings.Contains(n.Hint, tc.hint) {
					t.Errorf("notice = %+v", n)
				}
				if !tc.talks {
					if _, err := w.Refresh(t.Context()); err == nil || Hint(err) == "" || !strings.Contains(err.Error(), tc.mode) {
						t.Errorf("Refresh = %v, hint %q", err, Hint(err))
					}
					if c := w.patch().CheckState; c == status.CheckFailed {
						t.Errorf("check state = %q", c)
					}
				}
			})
		})
	}
}

// The way out that status tells.
func TestModeOfTheFileEndsWithARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.Stop })
		w.restart()
		defer w.run()()
		synctest.Wait()
		w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.Normal })
		if _, err := w.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.wantPatch(status.Applied, "1.1")
		if n := w.notice("switched off"); n.Message != "" {
			t.Errorf("still says %q", n.Message)
		}
	})
}

// A machine that nobody has enabled has no use for root's program.
func TestLoaderIsNotStartedForAMachineThatIsNotEnabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.run()()
		time.Sleep(24 * time.Hour)
		w.fake.Do(func(f *loadertest.Fake) {
			if len(f.Calls) > 0 {
				t.Errorf("it was asked for %q", f.Calls)
			}
		})
	})
}

// In a snap whose plugs are not connected the loader cannot start either, and systemd
// closes the socket of a service that fails too often.
func TestLoaderIsNotAskedWhileTheKernelCannotBeSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		delete(w.kernel, "sys/kernel/notes")
		w.longLived()
		w.enable()
		defer w.run()()
		time.Sleep(24 * time.Hour)
		w.fake.Do(func(f *loadertest.Fake) {
			if len(f.Calls) > 0 {
				t.Errorf("it was asked for %q", f.Calls)
			}
		})
	})
}

func TestTokenWaitsWhileTheNetworkIsSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.kernel["proc/cmdline"] = &fstest.MapFile{Data: []byte("canonical_livepatch_mode=no-refresh\n")}
		w.restart()
		defer w.run()()
		synctest.Wait()
		if _, err := w.Enable(t.Context(), servicetest.AuthToken); err == nil || !strings.Contains(err.Error(), "network access is switched off") {
			t.Errorf("Enable = %v", err)
		}
		s, err := w.Configure(t.Context(), config.Change{AuthToken: servicetest.AuthToken})
		if err != nil || !s.Waiting {
			t.Errorf("Configure = %+v, %v", s, err)
		}
	})
}

func TestWhatStatusSaysOfPatches(t *testing.T) {
	tests := map[string]struct {
		change func(*loader.Livepatch)
		state  status.State
		notice string
	}{
		"halted and in force":  {func(l *loader.Livepatch) { l.Rollout = patch.Halted }, status.Applied, "the rollout of patch 1.1 is halted: this machine has it"},
		"revoked and in force": {func(l *loader.Livepatch) { l.Rollout = patch.Revoked }, status.Applied, "patch 1.1 is revoked and still in the kernel"},
		"being taken out":      {func(l *loader.Livepatch) { l.State, l.Rollout = loader.Disabling, patch.Revoked }, status.Applying, "patch 1.1 is being taken out"},
		"withdrawn": {func(l *loader.Livepatch) {
			l.State, l.Standing, l.Rollout = loader.Absent, loader.Quarantined, patch.Revoked
		}, status.NothingToApply, "patch 1.1 is revoked: it was taken out"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			w.svc.set(func(s *memService) { s.full = true })
			w.repo.SetRollout("1.1", patch.Rollout{State: patch.Halted})
			w.repo.Publish()
			w.mustCheck()
			w.fake.Do(func(f *loadertest.Fake) { tc.change(&f.Livepatches[0]) })
			w.look(t.Context())
			w.restart()
			w.look(t.Context())
			if p := w.patch(); p.State != tc.state {
				t.Errorf("state = %q, want %q", p.State, tc.state)
			}
			if n := w.notice(tc.notice); n.Hint == "" {
				s, _ := w.Status(false)
				t.Errorf("notices = %+v", s.Notices)
			}
		})
	}
}

func TestSuspectIsAFailureAlsoWhenItIsHalted(t *testing.T) {
	w := enabled(t)
	suspect := w.inKernel()
	suspect.State, suspect.Standing = loader.Absent, loader.Suspect
	w.crash()
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{suspect} })
	w.repo.SetRollout("1.1", patch.Rollout{State: patch.Halted})
	w.repo.Publish()
	w.mustCheck()
	p := w.patch()
	if p.State != status.ApplyFailed || p.Failure != status.FailureCrash || !strings.Contains(p.PatchError, "went down while this patch was on trial") || p.PatchHint == "" {
		t.Errorf("patch = %+v", p)
	}
	if n := w.notice("patch 1.1 is halted"); n.Hint == "" {
		t.Error("status does not say that it is halted")
	}
	// While another one waits for its turn, that is not forgotten.
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.svc.set(func(s *memService) { s.full = true })
	w.mustCheck()
	w.wantPatch(status.Unapplied, "2.1")
	if n := w.notice("patch 1.1 is suspect"); n.Hint == "" {
		t.Error("status does not say that 1.1 is suspect")
	}
}

func TestComplaintIsShown(t *testing.T) {
	w := enabled(t)
	w.fake.Do(func(f *loadertest.Fake) {
		f.Complaints = []loader.Complaint{
			{Name: module1.Name, Signature: "WARNING/x/y", Message: "WARNING: at y+0x1/0x2", BootID: "another boot"},
			{Name: module1.Name, Signature: "BUG/x/y", Message: "kernel BUG at y.c:1", BootID: bootID},
		}
	})
	w.mustCheck()
	w.wantPatch(status.AppliedWithBug, "1.1")
	if n := w.notice("the kernel complained about patch 1.1: kernel BUG at y.c:1"); n.Hint == "" {
		t.Error("status does not say what it said")
	}
	if n := w.notice("WARNING"); n.Message != "" {
		t.Errorf("status is about an earlier boot: %q", n.Message)
	}
}

// A patch that cannot leave is not "nothing to apply": somebody has to look.
func TestPatchThatCannotLeaveIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.fake.Do(func(f *loadertest.Fake) {
			l := &f.Livepatches[0]
			l.State, l.Standing, l.Rollout = loader.Disabling, loader.Quarantined, patch.Revoked
			l.Blockers, l.BlockerCount = []loader.Blocker{{TID: 140, Comm: "victim", State: "D (disk sleep)"}}, 1
		})
		w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
		w.repo.Publish()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		p := w.patch()
		if p.State != status.Applying || p.Transition == nil || p.Transition.Direction != status.Disabling || len(p.Transition.Blockers) != 1 {
			t.Errorf("patch = %+v", p)
		}
		w.fake.Do(func(f *loadertest.Fake) { f.Livepatches[0].State = loader.Absent })
		time.Sleep(lastLook + time.Second)
		synctest.Wait()
		w.wantPatch(status.NothingToApply, "")
	})
}

func TestForgivenPatchIsTriedAgainWhenTheOperatorAsks(t *testing.T) {
	w := enabled(t)
	suspect := w.inKernel()
	w.crash()
	suspect.State, suspect.Standing = loader.Absent, loader.Suspect
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{suspect} })
	w.mustCheck()
	if p := w.patch(); !strings.Contains(p.PatchHint, "-forgive "+module1.Name) {
		t.Errorf("hint = %q", p.PatchHint)
	}
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches[0].Standing = loader.Quarantined })
	if err := w.check(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	w.wantPatch(status.Applied, "1.1")
}
