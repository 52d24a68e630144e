package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

// waits returns the times between check-ins.
func (s *memService) waits() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var w []time.Duration
	for i := 1; i < len(s.times); i++ {
		w = append(w, s.times[i].Sub(s.times[i-1]))
	}
	return w
}

func TestChecksAtOnceAfterEnableAndThenEveryHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.repo.SetLifetime(30 * 24 * time.Hour)
		w.repo.Publish()
		defer w.run()()
		time.Sleep(3 * time.Hour)
		if n := w.svc.count(); n != 0 {
			t.Errorf("%d check-ins before it was enabled", n)
		}
		w.enable()
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
		time.Sleep(25 * time.Hour)
		w.svc.set(func(s *memService) { s.times = nil }) // without those of the patch
		time.Sleep(20 * time.Hour)
		waits := w.svc.waits()
		if len(waits) < 17 || len(waits) > 22 {
			t.Errorf("%d check-ins in 20 hours", len(waits))
		}
		for _, d := range waits {
			if d < 53*time.Minute || d > 67*time.Minute {
				t.Errorf("a wait of %v", d)
			}
		}
		if slices.Min(waits) == slices.Max(waits) {
			t.Error("no jitter")
		}
	})
}

func TestBacksOffAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.repo.SetLifetime(30 * 24 * time.Hour)
		w.repo.Publish()
		w.enable()
		w.svc.down()
		defer w.run()()
		time.Sleep(12 * time.Hour)
		waits := w.svc.waits()
		for i, d := range waits {
			low, high := min(firstRetry<<i, time.Hour)*3/4, min(firstRetry<<i, time.Hour)*5/4
			if i > 20 {
				low, high = 45*time.Minute, time.Hour
			}
			if d < max(low, firstRetry) || d > min(high, lastRetry) {
				t.Errorf("wait %d is %v, want %v to %v", i, d, low, high)
			}
		}
		if len(waits) < 15 || len(waits) > 25 {
			t.Errorf("%d tries in 12 hours", len(waits)+1)
		}
		w.svc.up()
		time.Sleep(time.Hour)
		w.wantPatch(status.Applied, "1.1")
		if s := w.patch().CheckState; s != status.Checked {
			t.Errorf("check state = %q", s)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		w.svc.set(func(s *memService) {
			s.err = &fetch.Error{Kind: fetch.ErrOverload, Status: 503, Text: "livepatch.test answered with status 503", RetryAfter: 40 * time.Minute}
		})
		defer w.run()()
		time.Sleep(2 * time.Hour)
		for _, d := range w.svc.waits() {
			if d < 40*time.Minute || d > 75*time.Minute {
				t.Errorf("a wait of %v", d)
			}
		}
	})
}

func TestIntervalOfTheOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.repo.SetLifetime(30 * 24 * time.Hour)
		w.repo.Publish()
		w.enable()
		defer w.run()()
		time.Sleep(25 * time.Hour)
		if _, err := w.SetConfig(t.Context(), map[string]string{config.CheckInterval: "0"}); err != nil {
			t.Fatal(err)
		}
		n := w.svc.count()
		time.Sleep(48 * time.Hour)
		if got := w.svc.count(); got != n {
			t.Errorf("%d check-ins while they are switched off", got-n)
		}
		if lines, err := w.Refresh(t.Context()); err != nil || !slices.Contains(lines, "patch state: applied") {
			t.Errorf("Refresh = %q, %v", lines, err)
		}
		if _, err := w.SetConfig(t.Context(), map[string]string{config.CheckInterval: "180"}); err != nil {
			t.Fatal(err)
		}
		n = w.svc.count()
		time.Sleep(31 * time.Hour)
		if got := w.svc.count() - n; got < 9 || got > 12 {
			t.Errorf("%d check-ins in 31 hours, want one every 3 hours", got)
		}
	})
}

func TestNewServerIsAskedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		defer w.run()()
		synctest.Wait()
		n := w.svc.count()
		if _, err := w.SetConfig(t.Context(), map[string]string{config.RemoteServer: "https://other.test"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.svc.count(); got != n+1 {
			t.Errorf("%d check-ins, want one", got-n)
		}
	})
}

// A machine that starts without a network does not cry wolf.
func TestQuietUntilTheNetworkHadAFairChance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		w.restart()
		w.svc.down()
		defer w.run()()
		for time.Since(w.started) < 4*time.Minute {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if s, _ := w.Status(false); s.Kernels[0].Livepatch.CheckState == status.CheckFailed || s.CheckError != "" {
				t.Fatalf("check-failed after %v: %s", time.Since(w.started), s.CheckError)
			}
		}
		if s, _ := w.Status(false); len(s.Notices) == 0 || !strings.Contains(s.Notices[0].Message, "refused") {
			t.Errorf("notices = %+v", s.Notices)
		}
		if strings.Contains(w.log.String(), "level=WARN") {
			t.Errorf("logged a warning: %s", w.log)
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		s, _ := w.Status(false)
		if s.Kernels[0].Livepatch.CheckState != status.CheckFailed || !strings.Contains(s.CheckError, "refused") || s.CheckHint == "" {
			t.Errorf("after 24 minutes: %q %q", s.Kernels[0].Livepatch.CheckState, s.CheckError)
		}
		w.svc.up()
		time.Sleep(time.Hour)
		if s, _ := w.Status(false); s.CheckError != "" || s.Kernels[0].Livepatch.CheckState != status.Checked {
			t.Errorf("after the network came up: %q", s.CheckError)
		}
	})
}

func TestFailureAfterASuccessIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		defer w.run()()
		synctest.Wait()
		before, _ := w.Status(false)
		last := before.LastCheck
		w.svc.down()
		time.Sleep(70 * time.Minute)
		synctest.Wait()
		s, _ := w.Status(false)
		if s.Kernels[0].Livepatch.CheckState != status.CheckFailed {
			t.Errorf("check state = %q", s.Kernels[0].Livepatch.CheckState)
		}
		if !s.LastCheck.Equal(last) {
			t.Errorf("last check = %v, want %v", s.LastCheck, last)
		}
		w.wantPatch(status.Applied, "1.1")
	})
}

func TestTrialEndsWithTheSoak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.fake.Made()
		if p := w.patch(); p.Standing != status.Trial || p.SoakLeft < 59*time.Minute {
			t.Errorf("standing %q, %v left", p.Standing, p.SoakLeft)
		}
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if calls := w.fake.Made(); slices.ContainsFunc(calls, isAccept) {
			t.Errorf("accepted before the soak was over: %q", calls)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if calls := w.fake.Made(); !slices.ContainsFunc(calls, isAccept) {
			t.Errorf("not accepted: %q", calls)
		}
		if p := w.patch(); p.Standing != status.Accepted {
			t.Errorf("standing = %q", p.Standing)
		}
	})
}

func isAccept(call string) bool { return strings.HasPrefix(call, "accept") }

func TestHaltedPatchIsNotAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.enable()
		w.svc.set(func(s *memService) { s.answer.IntervalSeconds = 600 })
		defer w.run()()
		synctest.Wait()
		w.repo.SetRollout("1.1", patch.Rollout{State: patch.Halted, SoakSeconds: 3600})
		w.repo.Publish()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if calls := w.fake.Made(); slices.ContainsFunc(calls, isAccept) {
			t.Errorf("accepted: %q", calls)
		}
		w.wantPatch(status.Applied, "1.1") // halting takes nothing back
	})
}

func TestSlowTransitionIsFollowedToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fake.Do(func(f *loadertest.Fake) { f.Slow = true })
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.wantPatch(status.Applying, "1.1")
		if p := w.patch(); p.Transition == nil || p.Transition.BlockerCount != 3 || p.Transition.Blockers[0].Task != "vhost-812" {
			t.Errorf("transition = %+v", p.Transition)
		}
		wantEvents := func(want ...string) {
			t.Helper()
			if e := w.svc.events(); !slices.Equal(e, want) {
				t.Errorf("events = %q, want %q", e, want)
			}
		}
		time.Sleep(29 * time.Minute)
		synctest.Wait()
		wantEvents("intent 1.1")
		looks := 0
		w.fake.Do(func(f *loadertest.Fake) { looks = len(f.Calls) })
		if looks < 8 || looks > 20 {
			t.Errorf("asked the loader %d times in half an hour", looks)
		}
		time.Sleep(20 * time.Minute) // before a sign of life says that the machine is well with it
		synctest.Wait()
		wantEvents("intent 1.1", "failed 1.1 STALLED")
		w.wantPatch(status.Applying, "1.1")
		w.fake.Settle()
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
		wantEvents("intent 1.1", "failed 1.1 STALLED", "applied 1.1")
	})
}

func TestTransitionThatWasReversed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fake.Do(func(f *loadertest.Fake) { f.Slow = true })
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.fake.Do(func(f *loadertest.Fake) {
			f.Livepatches[0].State, f.Livepatches[0].Standing, f.Slow = loader.Absent, loader.Quarantined, false
		})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if e := w.svc.events(); !slices.Equal(e, []string{"intent 1.1", "failed 1.1 TRANSITION_FAILED"}) {
			t.Errorf("events = %q", e)
		}
		w.wantPatch(status.Unapplied, "1.1")
		time.Sleep(2 * time.Hour) // the next check tries again
		w.wantPatch(status.Applied, "1.1")
	})
}

func TestDisableBreaksOffACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hold := make(chan struct{})
		w.svc.set(func(s *memService) { s.hold = hold })
		w.enable()
		defer w.run()()
		synctest.Wait()
		token, _, err := w.Disable(t.Context(), false)
		if err != nil || !hex32.MatchString(token) {
			t.Fatalf("Disable = %q, %v", token, err)
		}
		if _, enabled := w.Status(false); enabled {
			t.Error("still enabled")
		}
		close(hold)
		time.Sleep(5 * time.Hour)
		if n := w.svc.count(); n != 0 {
			t.Errorf("%d check-ins afterwards", n)
		}
		synctest.Wait()
		if w.svc.forgot != 1 {
			t.Errorf("the service was told %d times", w.svc.forgot)
		}
	})
}

func TestRefreshWaitsForTheResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if _, err := w.Refresh(t.Context()); err != ErrNotEnabled {
			t.Errorf("before enable: %v", err)
		}
		w.enable()
		defer w.run()()
		synctest.Wait()
		w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
		w.repo.Publish()
		lines, err := w.Refresh(t.Context())
		want := []string{"checking for patches", "patch is applied", "kernel: 6.1.0-53-amd64", "patch state: applied", "patch version: 2.1"}
		if err != nil || !slices.Equal(lines, want) {
			t.Errorf("Refresh = %q, %v", lines, err)
		}
		w.svc.down()
		if _, err := w.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "connection to livepatch.test:443 refused") || Hint(err) == "" {
			t.Errorf("service down: %v", err)
		}
		if s := w.patch().CheckState; s != status.CheckFailed {
			t.Errorf("check state = %q", s)
		}
	})
}

func TestLoaderThatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fake.Do(func(f *loadertest.Fake) { f.Err = loader.ErrAway })
		w.enable()
		defer w.run()()
		synctest.Wait()
		p := w.patch()
		if p.CheckState != status.Checked || p.State != status.Unapplied || !strings.Contains(p.PatchError, "livepatch-loader cannot be reached") || p.PatchHint == "" {
			t.Errorf("patch = %+v", p)
		}
		w.fake.Do(func(f *loadertest.Fake) { f.Err = nil })
		time.Sleep(2 * time.Minute) // not an hour
		synctest.Wait()
		w.wantPatch(status.Applied, "1.1")
	})
}

func TestIntervalIsBounded(t *testing.T) {
	tests := map[string]struct {
		rec  time.Duration
		cfg  func(*config.Config)
		want time.Duration
	}{
		"service says nothing":  {0, nil, time.Hour},
		"service is hasty":      {time.Nanosecond, nil, time.Second},
		"service expects us":    {90 * time.Second, func(c *config.Config) { c.CheckInterval, c.CheckIntervalSet = 3*time.Hour, true }, 90 * time.Second},
		"service is lazy":       {1 << 60, nil, maxInterval},
		"operator knows better": {time.Hour, func(c *config.Config) { c.CheckInterval, c.CheckIntervalSet = 3*time.Hour, true }, 3 * time.Hour},
		"operator wants none":   {time.Hour, func(c *config.Config) { c.CheckInterval, c.CheckIntervalSet = 0, true }, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := &round{cfg: config.Default(), rec: record{Interval: tc.rec}}
			if tc.cfg != nil {
				tc.cfg(&r.cfg)
			}
			if got := interval(r); got != tc.want {
				t.Errorf("interval = %v, want %v", got, tc.want)
			}
		})
	}
}
