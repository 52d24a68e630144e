package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/internal/patch"
)

// errToken is that of a token that was revoked.
var errToken = &fetch.Error{Kind: fetch.ErrTokenGone, Status: 401, Text: "the token has been revoked"}

// fullDisk is a loader that cannot write down that a trial has ended.
type fullDisk struct {
	*loadertest.Fake
	tries atomic.Int64
}

func (f *fullDisk) Accept(ctx context.Context, name string) (loader.Livepatch, error) {
	if f.tries.Add(1) <= 10 {
		return loader.Livepatch{}, patch.ErrStorage
	}
	return f.Fake.Accept(ctx, name)
}

func TestTrialThatCannotBeEndedIsTriedAgainEverLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		disk := &fullDisk{Fake: w.fake}
		w.Agent.loader = disk
		w.enable()
		defer w.run()()
		time.Sleep(time.Duration(servicetest.Everyone().SoakSeconds)*time.Second + time.Minute)
		synctest.Wait()
		if n := disk.tries.Load(); n < 2 || n > 3 {
			t.Errorf("tried %d times in the first minute", n)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := disk.tries.Load(); n < 6 || n > 12 {
			t.Errorf("tried %d times in two hours", n)
		}
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if l := w.inKernel(); l.Standing != loader.Accepted {
			t.Errorf("12 hours later it is %q", l.Standing)
		}
	})
}

// However often the service wanted to hear of a machine before.
func TestTokenThatIsRefusedIsNotTriedOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.longLived()
		w.svc.set(func(s *memService) { s.full, s.answer.IntervalSeconds = true, 1 })
		w.enable()
		stop := w.run()
		time.Sleep(time.Minute)
		w.svc.set(func(s *memService) { s.times, s.err = nil, errToken })
		time.Sleep(6 * time.Hour)
		stop()
		if n := w.svc.count(); n < 4 || n > 8 {
			t.Errorf("%d check-ins in 6 hours", n)
		}
		w.restart()
		w.svc.set(func(s *memService) { s.times = nil })
		defer w.run()()
		time.Sleep(6 * time.Hour)
		if n := w.svc.count(); n < 4 || n > 8 {
			t.Errorf("%d check-ins in 6 hours after a restart", n)
		}
	})
}

// The clock is set while a patch is on trial: that is no trial.
func TestClockThatIsSetDoesNotEndATrial(t *testing.T) {
	soak := time.Duration(servicetest.Everyone().SoakSeconds) * time.Second
	for name, by := range map[string]time.Duration{"forward": -48 * time.Hour, "back": 48 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.longLived()
				w.enable()
				defer w.run()()
				synctest.Wait()
				// To set the clock, or the date that the loader has taken from it, comes to the same.
				w.fake.Do(func(f *loadertest.Fake) { f.Livepatches[0].Inserted = f.Livepatches[0].Inserted.Add(by) })
				time.Sleep(soak - time.Minute)
				synctest.Wait()
				if l := w.inKernel(); l.Standing != loader.Trial {
					t.Errorf("before the end of the trial it is %q", l.Standing)
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if l := w.inKernel(); l.Standing != loader.Accepted {
					t.Errorf("after the end of the trial it is %q", l.Standing)
				}
			})
		})
	}
}

// countingService counts how many clients are open.
type countingService struct {
	*memService
	open *int
}

func (s countingService) Close() { *s.open-- }

func TestConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		open := 0
		w.connect = func(config.Config) (Service, error) { open++; return countingService{w.svc, &open}, nil }
		w.fake.Do(func(f *loadertest.Fake) { f.Slow = true })
		w.enable()
		stop := w.run()
		synctest.Wait()
		w.fake.Settle() // the next look tells the service
		time.Sleep(time.Minute / 2)
		synctest.Wait()
		if e := w.svc.events(); len(e) != 2 || e[1] != "applied 1.1" {
			t.Errorf("events = %q", e)
		}
		stop()
		if open != 0 {
			t.Errorf("%d clients are left open", open)
		}
	})
}
