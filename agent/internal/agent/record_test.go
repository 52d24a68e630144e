package agent

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/internal/service"
)

func TestWhatIsDroppedWhenTooMuchWaitsToBeReported(t *testing.T) {
	outage := func(first, then service.Kind) []service.Kind {
		kinds := []service.Kind{first}
		for range 3 * maxEvents {
			kinds = append(kinds, then)
		}
		return kinds
	}
	tests := map[string]struct {
		kinds []service.Kind // as they came
		kept  service.Kind   // that came first and is there at the end; "" if it is not
	}{
		"a crash outlives heartbeats":            {outage(eventCrashed, eventHeartbeat), eventCrashed},
		"a failure outlives heartbeats":          {outage(eventFailed, eventHeartbeat), eventFailed},
		"a success outlives heartbeats":          {outage(eventApplied, eventHeartbeat), eventApplied},
		"an intent outlives heartbeats":          {outage(eventIntent, eventHeartbeat), eventIntent},
		"a crash outlives reboots":               {outage(eventCrashed, eventBooted), eventCrashed},
		"a heartbeat makes room for a crash":     {outage(eventHeartbeat, eventCrashed), ""},
		"among those that are alike, the oldest": {outage(eventCrashed, eventFailed), ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var r record
			for i, kind := range tc.kinds {
				r.addEvent(service.Event{ID: strconv.Itoa(i), Kind: kind})
			}
			if len(r.Events) != maxEvents {
				t.Fatalf("%d events wait, want %d", len(r.Events), maxEvents)
			}
			var kept service.Kind
			if r.Events[0].ID == "0" {
				kept = r.Events[0].Kind
			}
			if last := r.Events[maxEvents-1]; kept != tc.kept || tc.kept == "" && last.ID != strconv.Itoa(len(tc.kinds)-1) {
				t.Errorf("kept of the first %q, want %q; the last is %+v", kept, tc.kept, last)
			}
		})
	}
}

func TestComplaintOutlivesAnOutageOfDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		w.enable()
		defer w.run()()
		time.Sleep(2 * time.Minute)
		w.svc.down()
		w.fake.Do(func(f *loadertest.Fake) {
			f.Complaints = []loader.Complaint{{Name: module1.Name, Signature: "BUG/x/y", Message: "kernel BUG", BootID: bootID}}
		})
		time.Sleep(4 * 24 * time.Hour)
		w.svc.up()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if e := w.svc.made(eventCrashed); len(e) != 1 {
			t.Errorf("reported %+v, and %d heartbeats", e, len(w.svc.made(eventHeartbeat)))
		}
	})
}

// What a check that is broken off believed in its midst, the next one does not inherit.
func TestCheckThatIsBrokenOffLeavesWhatIsPendingAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fake.Do(func(f *loadertest.Fake) { f.Slow = true })
		w.enable()
		w.mustCheck()

		w.fake.Do(func(f *loadertest.Fake) { f.Livepatches[0].State = loader.Absent })
		w.svc.set(func(s *memService) { s.hold = make(chan struct{}) })
		ctx, cancel := context.WithCancel(t.Context())
		broken := make(chan error)
		go func() { broken <- w.check(ctx, true) }()
		synctest.Wait() // until it asks the service
		cancel()
		if err := <-broken; !errors.Is(err, context.Canceled) {
			t.Fatalf("check = %v", err)
		}
		w.svc.set(func(s *memService) { s.hold = nil })

		w.fake.Do(func(f *loadertest.Fake) { f.Livepatches[0].State = loader.Enabled })
		w.mustCheck()
		if e := w.svc.events(); !slices.Equal(e, []string{"intent 1.1", "applied 1.1"}) {
			t.Errorf("events = %q", e)
		}
	})
}

func TestCloneSharesNothingThatChanges(t *testing.T) {
	r := record{
		Pending: &service.Event{Kind: eventApplied}, Watch: &watch{Version: "1.1"}, Events: []service.Event{{Kind: eventIntent}},
	}
	c := r.clone()
	c.Pending.Kind, c.Watch.Version, c.Events[0].Kind = eventFailed, "2.1", eventFailed
	if r.Pending.Kind != eventApplied || r.Watch.Version != "1.1" || r.Events[0].Kind != eventIntent {
		t.Errorf("the original has changed to %+v, %+v, %+v", r.Pending, r.Watch, r.Events)
	}
}
