package agent

import (
	"cmp"
	"crypto/sha256"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// made returns the events of a kind.
func (s *memService) made(kind service.Kind) (events []service.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.checkIns {
		for _, e := range c.Events {
			if e.Kind == kind {
				events = append(events, e)
			}
		}
	}
	return events
}

func TestRebootsAreReported(t *testing.T) {
	tests := map[string]struct {
		how  func(*world)
		want []string // reasons
	}{
		"after a shutdown":                           {(*world).reboot, []string{service.ReasonClean}},
		"after a crash":                              {(*world).crash, []string{service.ReasonUnclean}},
		"not after a restart":                        {(*world).restart, nil},
		"a crash after a shutdown":                   {func(w *world) { w.reboot(); w.mustCheck(); w.crash() }, []string{service.ReasonClean, service.ReasonUnclean}},
		"of two that nobody could be told, the last": {func(w *world) { w.crash(); w.reboot() }, []string{service.ReasonClean}},
		"once the loader answers": {func(w *world) {
			w.crash()
			w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
			w.mustCheck()
			if e := w.svc.made(eventBooted); len(e) != 0 {
				w.t.Errorf("reported %+v without having asked the loader", e)
			}
			w.fake.Do(func(f *loadertest.Fake) { f.Err = nil })
		}, []string{service.ReasonUnclean}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			tc.how(w)
			for range 3 {
				w.mustCheck()
				w.restart()
			}
			var got []string
			for _, e := range w.svc.made(eventBooted) {
				got = append(got, e.Reason)
				if e.Version != "" || e.Name != "" || e.BootID == bootID {
					t.Errorf("event = %+v", e)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("reported %q, want %q", got, tc.want)
			}
		})
	}
}

// What was not acknowledged is told again.
func TestRebootIsReportedWhenTheServiceIsThere(t *testing.T) {
	w := enabled(t)
	w.svc.down()
	w.crash()
	_ = w.now()
	w.restart()
	_ = w.now()
	w.svc.up()
	w.mustCheck()
	if e := w.svc.made(eventBooted); len(e) != 1 || e[0].Reason != service.ReasonUnclean {
		t.Errorf("reported %+v", e)
	}
}

// A machine that goes down twice for one reason says so twice, each time once, also if
// its record is lost.
func TestSamePanicAfterThePatchWasForgivenIsAnotherEvent(t *testing.T) {
	w := enabled(t)
	suspect := w.inKernel()
	down := func(inserted time.Time) {
		suspect.State, suspect.Standing, suspect.Inserted = loader.Absent, loader.Suspect, inserted
		w.crash()
		w.fake.Do(func(f *loadertest.Fake) {
			f.Livepatches = []loader.Livepatch{suspect}
			f.Complaints = []loader.Complaint{{Name: module1.Name, Signature: "panic/lkp/foo", Message: "Kernel panic"}}
		})
		w.mustCheck()
		w.rec.Blamed = nil
		w.mustCheck()
	}
	down(suspect.Inserted)
	w.fake.Do(func(f *loadertest.Fake) { f.Complaints, f.Livepatches[0].Standing = nil, loader.Quarantined })
	w.mustCheck()
	down(suspect.Inserted.Add(time.Hour))
	ids := map[string]int{}
	for _, e := range w.svc.made(eventCrashed) {
		if e.Reason == service.ReasonOops {
			ids[e.ID]++
		}
	}
	if len(ids) != 2 {
		t.Errorf("events and how often they were sent: %v, want 2", ids)
	}
	for id, n := range ids {
		if n != 2 {
			t.Errorf("event %s was sent %d times, want 2", id, n)
		}
	}
}

// To forgive a patch that the service does not offer would change nothing.
func TestSuspectThatIsNotOfferedIsNotHintedToBeForgiven(t *testing.T) {
	tests := map[string]struct {
		rollout patch.RolloutState
		older   bool // is in force
		forgive bool
	}{
		"running":                     {patch.Running, false, true},
		"halted":                      {patch.Halted, false, false},
		"revoked":                     {patch.Revoked, false, false},
		"halted, with an older one":   {patch.Halted, true, false},
		"revoked, with an older one":  {patch.Revoked, true, false},
		"running, with an older one":  {patch.Running, true, true},
		"unheard of, with no network": {"", false, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			inForce := w.inKernel()
			suspect := loader.Livepatch{Name: module2.Name, Version: "2.1", Sequence: 2, State: loader.Absent, Standing: loader.Suspect, Rollout: tc.rollout}
			suspect.Digest = sha256.Sum256(contentOf("2.1"))
			w.crash()
			w.fake.Do(func(f *loadertest.Fake) {
				f.Livepatches = []loader.Livepatch{suspect}
				if tc.older {
					f.Livepatches = append(f.Livepatches, inForce)
				}
			})
			rollout := servicetest.Everyone()
			rollout.State = cmp.Or(tc.rollout, patch.Running)
			w.repo.Add(module2, contentOf("2.1"), rollout)
			if !tc.older {
				w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
			}
			w.repo.Publish()
			if tc.rollout == "" {
				w.svc.set(func(s *memService) { s.err = &fetch.Error{Kind: fetch.ErrTLSUnknown} })
				w.rec.Offered = nil
			}
			_ = w.check(t.Context(), true)
			hint := w.notice("patch 2.1 is suspect").Hint
			if p := w.patch(); p.Version == "2.1" && p.PatchHint != "" {
				hint = p.PatchHint
			}
			if !strings.Contains(hint, "journalctl -k -b -1") || strings.Contains(hint, "-forgive "+module2.Name) != tc.forgive {
				t.Errorf("hint = %q", hint)
			}
		})
	}
}

// Who looks after a machine that has crashed must not depend on the service, which the
// crash may have taken away.
func TestSuspectIsShownBeforeACheckHasSucceeded(t *testing.T) {
	noCheck := map[string]func(*world){
		"no-refresh by the file":         func(w *world) { w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.NoRefresh }) },
		"stop by the file":               func(w *world) { w.fake.Do(func(f *loadertest.Fake) { f.Mode = facts.Stop }) },
		"the certificate is not trusted": func(w *world) { w.svc.set(func(s *memService) { s.err = &fetch.Error{Kind: fetch.ErrTLSUnknown} }) },
		"away, and the cache is gone":    func(w *world) { w.svc.down(); w.loseCache() },
		"the record is gone as well":     func(w *world) { w.svc.down(); w.loseCache(); w.rec = record{} },
		"another kernel runs":            func(w *world) { w.svc.down(); w.loseCache(); w.rec.Release = "another"; w.rec.BootID = "another" },
	}
	for name, change := range noCheck {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			suspect := w.inKernel()
			suspect.State, suspect.Standing = loader.Absent, loader.Suspect
			w.crash()
			w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{suspect} })
			change(w)
			if err := w.check(t.Context(), true); err == nil {
				t.Fatal("the check has succeeded")
			}
			if n := w.notice("patch 1.1 is suspect"); n.Hint == "" {
				s, _ := w.Status(false)
				t.Errorf("notices = %+v", s.Notices)
			}
		})
	}
}

// Once it is known which patches there are for the kernel, those for others are not
// worth a word, after a restart neither.
func TestSuspectOfAnotherKernelIsNotShown(t *testing.T) {
	tests := map[string]func(*world){
		"there are others for this one": func(*world) {},
		"there are none for this one": func(w *world) {
			w.repo.SetIndex(patch.Index{Arch: kernel.Arch, Release: kernel.Release, Until: "2999-01-01"})
			w.repo.Publish()
		},
		"this one is of nobody": func(w *world) { w.kernel["etc/os-release"] = &fstest.MapFile{Data: []byte("ID=other\n")} },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			w := enabled(t)
			suspect := w.inKernel()
			suspect.Name, suspect.State, suspect.Standing = "lkp_Debian_6_1_0_52_amd64_1", loader.Absent, loader.Suspect
			w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{suspect} })
			change(w)
			w.mustCheck()
			for range 2 {
				if n := w.notice("is suspect"); n.Message != "" {
					t.Errorf("status says %q", n.Message)
				}
				w.restart()
				w.look(t.Context())
			}
		})
	}
}

func TestWhatIsKnownOfAPatchIsShownBeforeACheckHasSucceeded(t *testing.T) {
	w := enabled(t)
	back := w.inKernel()
	back.Rollout = patch.Halted
	w.svc.down()
	w.crash()
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{back} })
	w.loseCache()
	_ = w.now()
	if n := w.notice("the rollout of patch 1.1 is halted"); n.Hint == "" {
		s, _ := w.Status(false)
		t.Errorf("notices = %+v", s.Notices)
	}
}

func TestSuspectsBesidesTheOneThatIsTheFailureAreShown(t *testing.T) {
	w := enabled(t)
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	one := w.inKernel()
	one.State, one.Standing = loader.Absent, loader.Suspect
	two := one
	two.Name, two.Version, two.Sequence, two.Digest = module2.Name, "2.1", 2, sha256.Sum256(contentOf("2.1"))
	w.crash()
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{one, two} })
	w.mustCheck()
	if p := w.patch(); p.Version != "2.1" || p.Failure != status.FailureCrash {
		t.Errorf("patch = %+v", p)
	}
	if n := w.notice("patch 2.1 is suspect"); n.Message != "" {
		t.Error("status says twice that 2.1 is suspect")
	}
	if n := w.notice("patch 1.1 is suspect"); n.Hint == "" {
		t.Error("status does not say that 1.1 is suspect")
	}
}

// loseCache removes the signed files that were fetched.
func (w *world) loseCache() {
	if err := os.RemoveAll(w.path(cacheDir)); err != nil {
		w.t.Fatal(err)
	}
	w.restart()
}

func TestSuspectIsReportedOnce(t *testing.T) {
	w := enabled(t)
	suspect := w.inKernel()
	suspect.State, suspect.Standing = loader.Absent, loader.Suspect
	w.crash()
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{suspect} })
	for range 3 {
		w.mustCheck()
		w.restart()
	}
	got := w.svc.made(eventCrashed)
	if len(got) != 1 || got[0].Reason != service.ReasonOpenJournal || got[0].Version != "1.1" || got[0].Name != module1.Name {
		t.Fatalf("reported %+v", got)
	}
	if !slices.Equal(w.svc.events()[2:], []string{"booted UNCLEAN", "crashed 1.1 OPEN_JOURNAL"}) {
		t.Errorf("events = %q", w.svc.events())
	}
	// An agent that has lost its record says it again, in the same words.
	w.rec.Blamed = nil
	w.mustCheck()
	if got := w.svc.made(eventCrashed); len(got) != 2 || got[0].ID != got[1].ID {
		t.Errorf("reported %+v", got)
	}
}

func TestComplaintsAreReportedOnce(t *testing.T) {
	w := enabled(t)
	here := loader.Complaint{Name: module1.Name, Signature: "BUG/lkp/foo", Message: "kernel BUG at foo.c:1", BootID: bootID}
	earlier := loader.Complaint{Name: module1.Name, Signature: "BUG/lkp/foo", Message: "kernel BUG at foo.c:1"}
	stranger := loader.Complaint{Name: "nvidia", Signature: "BUG/nvidia/foo", BootID: bootID}
	w.fake.Do(func(f *loadertest.Fake) { f.Complaints = []loader.Complaint{here, stranger} })
	w.mustCheck()
	w.restart()
	w.mustCheck()
	w.fake.Do(func(f *loadertest.Fake) { f.Complaints = []loader.Complaint{earlier, here} })
	w.mustCheck()
	w.mustCheck()
	got := w.svc.made(eventCrashed)
	if len(got) != 2 {
		t.Fatalf("reported %+v", got)
	}
	if e := got[0]; e.Reason != service.ReasonOops || e.Signature != here.Signature || e.Message != here.Message || e.BootID != bootID || e.Version != "1.1" {
		t.Errorf("reported %+v", e)
	}
	if got[0].ID == got[1].ID {
		t.Error("two complaints have one id")
	}
}
