package agent

import (
	"slices"
	"testing"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
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
