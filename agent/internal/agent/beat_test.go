package agent

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/internal/service"
)

// since returns how long after the intent each event of a kind was made.
func (s *memService) since(kind service.Kind) (ages []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var intent time.Time
	for _, c := range s.checkIns {
		for _, e := range c.Events {
			if e.Kind == eventIntent {
				intent = e.At
			}
			if e.Kind == kind {
				ages = append(ages, e.At.Sub(intent))
			}
		}
	}
	return ages
}

// longLived makes the signed files outlive a test.
func (w *world) longLived() {
	w.repo.SetLifetime(90 * 24 * time.Hour)
	w.repo.Publish()
}

func TestHeartbeatsComeWhenTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		w.enable()
		defer w.run()()
		time.Sleep(40 * time.Hour)
		got := w.svc.since(eventHeartbeat)
		want := []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour}
		for h := 2; h <= 24; h++ {
			want = append(want, time.Duration(h)*time.Hour)
		}
		if len(got) < len(want) {
			t.Fatalf("heartbeats at %v", got)
		}
		for i, age := range want {
			if off := got[i] - age; off < -age/10 || off > time.Second {
				t.Errorf("heartbeat %d came at %v, want %v", i, got[i], age)
			}
		}
		// Later they come with the check-ins.
		if late := len(got) - len(want); late < 12 || late > 18 {
			t.Errorf("%d heartbeats in the 16 hours after a day", late)
		}
		if n := w.svc.count(); n > 50 {
			t.Errorf("%d check-ins in 40 hours", n)
		}
	})
}

func TestHeartbeatsGoOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		stop := w.run()
		time.Sleep(2 * time.Minute)
		stop()
		time.Sleep(5 * time.Minute) // the one of the fifth minute is late
		w.restart()
		defer w.run()()
		time.Sleep(time.Hour)
		got := w.svc.since(eventHeartbeat)
		for i := range got {
			got[i] = got[i].Round(time.Minute)
		}
		if want := []time.Duration{time.Minute, 7 * time.Minute, 15 * time.Minute, time.Hour}; !slices.Equal(got, want) {
			t.Errorf("heartbeats at %v, want %v", got, want)
		}
	})
}

// A patch that is still on its way is alive, but not well yet.
func TestNoHeartbeatBeforeThePatchIsInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fake.Do(func(f *loadertest.Fake) { f.Slow = true })
		w.enable()
		defer w.run()()
		time.Sleep(16 * time.Minute)
		synctest.Wait()
		if got := w.svc.since(eventHeartbeat); len(got) != 0 {
			t.Errorf("heartbeats at %v", got)
		}
		if n := w.svc.count(); n != 2+3 { // the first check, the intent, and signs of life
			t.Errorf("%d check-ins", n)
		}
		w.fake.Settle()
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if got := w.svc.since(eventHeartbeat); len(got) != 1 {
			t.Errorf("heartbeats at %v", got)
		}
	})
}

func TestPatchThatIsGoneIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		w.repo.SetRollout("1.1", servicetest.Everyone())
		defer w.run()()
		time.Sleep(2 * time.Minute)
		w.svc.set(func(s *memService) { s.full = true }) // it is not brought in again
		w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = nil })
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		got := slices.DeleteFunc(w.svc.events(), func(e string) bool { return e == "intent 1.1" })
		if want := []string{"applied 1.1", "heartbeat 1.1", "removed 1.1"}; !slices.Equal(got, want) {
			t.Errorf("events = %q, want %q", got, want)
		}
	})
}

// Heartbeats that could not be sent are not lost.
func TestHeartbeatsSurviveAServiceThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.svc.down()
		time.Sleep(16 * time.Minute)
		w.svc.up()
		if _, err := w.Refresh(t.Context()); err != nil { // by itself it would come within the hour
			t.Fatal(err)
		}
		if got := w.svc.since(eventHeartbeat); len(got) != 3 {
			t.Errorf("heartbeats at %v", got)
		}
	})
}

// Of an operator who wants no check-ins, the service hears what it needs to tell that
// the patch did no harm, and nothing later.
func TestHeartbeatsWithoutCheckIns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		w.enable()
		if _, err := w.SetConfig(t.Context(), map[string]string{config.CheckInterval: "0"}); err != nil {
			t.Fatal(err)
		}
		defer w.run()()
		time.Sleep(48 * time.Hour)
		got := w.svc.since(eventHeartbeat)
		if want := beats; len(got) != len(want) || w.svc.count() > 3+len(want) {
			t.Errorf("heartbeats at %v in %d check-ins", got, w.svc.count())
		}
	})
}

// Controls are asked to come when a heartbeat would be due.
func TestAppointmentsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		w.enable()
		w.svc.set(func(s *memService) { s.full = true })
		for _, seconds := range []int64{60, 240, 600, 2700, 3} {
			w.svc.set(func(s *memService) { s.answer.IntervalSeconds, s.times = seconds, nil })
			stop := w.run()
			time.Sleep(time.Duration(seconds) * 5 * time.Second)
			stop()
			// Each check has two: the second asks whether it may begin.
			for _, wait := range w.svc.waits() {
				want := time.Duration(seconds) * time.Second
				if wait != 0 && (wait < want*98/100 || wait > want*102/100) {
					t.Errorf("asked to come in %v, it came in %v", want, wait)
				}
			}
			if n := w.svc.count(); n < 10 {
				t.Errorf("%d check-ins at %d seconds", n, seconds)
			}
		}
	})
}

func TestHastyServiceDoesNotKeepTheMachineAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		w.enable()
		w.svc.set(func(s *memService) { s.answer.IntervalSeconds = 1 })
		defer w.run()()
		time.Sleep(20 * time.Minute)
		if n := w.svc.count(); n < 120 || n > maxHasty+120+20 {
			t.Errorf("%d check-ins in 20 minutes", n)
		}
	})
}

func TestWatchAfter(t *testing.T) {
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &watch{Since: since}
	tests := []struct{ at, from, due time.Duration }{
		{-time.Hour, 54 * time.Second, time.Minute},
		{0, 54 * time.Second, time.Minute},
		{54 * time.Second, 4*time.Minute + 30*time.Second, 5 * time.Minute},
		{5 * time.Minute, 13*time.Minute + 30*time.Second, 15 * time.Minute},
		{20 * time.Minute, 54 * time.Minute, time.Hour},
		{54 * time.Minute, 114 * time.Minute, 2 * time.Hour},
		{114 * time.Minute, 174 * time.Minute, 3 * time.Hour},
		{100*time.Hour + time.Minute, 101*time.Hour - 6*time.Minute, 101 * time.Hour},
	}
	for _, tc := range tests {
		t.Run(fmt.Sprint(tc.at), func(t *testing.T) {
			from, due := w.after(since.Add(tc.at))
			if from.Sub(since) != tc.from || due.Sub(since) != tc.due {
				t.Errorf("due at %v, from %v on; want %v, %v", due.Sub(since), from.Sub(since), tc.due, tc.from)
			}
		})
	}
}

// A record that was damaged, or written while the clock was wrong, keeps nobody awake.
func TestWatchThatMakesNoSenseIsNotWaitedFor(t *testing.T) {
	now := time.Now()
	for _, since := range []time.Time{{}, now.AddDate(-300, 0, 0), now.AddDate(-2, 0, 0), now.AddDate(300, 0, 0)} {
		r := &record{Watch: &watch{Since: since}}
		if at := r.nextBeat(time.Hour); !at.IsZero() && at.Before(now) {
			t.Errorf("since %v: woken up at %v", since, at)
		}
	}
}
