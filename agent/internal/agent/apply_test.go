package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/status"
)

// dyingLoader is killed while it applies a patch.
type dyingLoader struct {
	*loadertest.Fake
	before bool          // it is killed before the insertion
	away   time.Duration // how long it is away
	until  time.Time     // of that
}

func (d *dyingLoader) Apply(ctx context.Context, r loader.Request) (loader.Result, error) {
	if !d.before {
		_, _ = d.Fake.Apply(ctx, r)
	}
	d.until = time.Now().Add(d.away)
	return loader.Result{}, loader.ErrAway
}

func (d *dyingLoader) Status(ctx context.Context) (loader.Status, error) {
	if time.Now().Before(d.until) {
		return loader.Status{}, loader.ErrAway
	}
	return d.Fake.Status(ctx)
}

// What is in the kernel counts, and not whether the loader lived to tell.
func TestLoaderThatDiesWhileItApplies(t *testing.T) {
	tests := map[string]struct {
		loader dyingLoader
		slow   bool
		want   []string // events
	}{
		"after the insertion":                             {dyingLoader{}, false, []string{"intent 1.1", "applied 1.1", "heartbeat 1.1"}},
		"after the insertion, in a slow transition":       {dyingLoader{}, true, []string{"intent 1.1", "applied 1.1", "heartbeat 1.1"}},
		"after the insertion, and does not come at once":  {dyingLoader{away: time.Second}, false, []string{"intent 1.1", "applied 1.1", "heartbeat 1.1"}},
		"before the insertion":                            {dyingLoader{before: true}, false, []string{"intent 1.1", "failed 1.1"}},
		"before the insertion, and does not come at once": {dyingLoader{before: true, away: time.Second}, false, []string{"intent 1.1", "intent 1.1"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.longLived()
				w.fake.Do(func(f *loadertest.Fake) { f.Slow = tc.slow })
				l := tc.loader
				l.Fake = w.fake
				w.Agent.loader = &l
				w.enable()
				defer w.run()()
				time.Sleep(5 * time.Second)
				w.fake.Settle()
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if e := w.svc.events(); len(e) < len(tc.want) || !slices.Equal(e[:len(tc.want)], tc.want) {
					t.Errorf("events = %q, want %q", e, tc.want)
				}
				if !l.before {
					w.wantPatch(status.Applied, "1.1")
				}
			})
		})
	}
}

// The agent is stopped after it has asked the service, and before the loader has heard.
func TestStoppedBeforeTheLoaderWasAsked(t *testing.T) {
	known := accepted(module1)
	known.Standing = loader.Quarantined
	tests := map[string]struct {
		known []loader.Livepatch
		want  []string
	}{
		"the loader does not know the patch": {nil, []string{"intent 1.1", "intent 1.1", "applied 1.1"}},
		"it knows it of old":                 {[]loader.Livepatch{known}, []string{"intent 1.1", "intent 1.1", "applied 1.1"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.enable()
			w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = tc.known })
			ctx, cancel := context.WithCancel(t.Context())
			w.Agent.loader = stopping{w.fake, cancel}
			if err := w.check(ctx, false); err != nil && !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			w.restart()
			if w.rec.Pending == nil {
				t.Fatal("it was not stopped in time")
			}
			w.mustCheck()
			w.wantPatch(status.Applied, "1.1")
			if e := w.svc.events(); !slices.Equal(e, tc.want) {
				t.Errorf("events = %q, want %q", e, tc.want)
			}
		})
	}
}

// stopping stops the agent when it is to apply a patch.
type stopping struct {
	*loadertest.Fake
	stop context.CancelFunc
}

func (s stopping) Apply(ctx context.Context, _ loader.Request) (loader.Result, error) {
	s.stop()
	return loader.Result{}, ctx.Err()
}
