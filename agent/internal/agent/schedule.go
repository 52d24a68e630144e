package agent

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// Bounds on the time between checks.
const (
	firstRetry  = 30 * time.Second
	lastRetry   = time.Hour
	minInterval = 10 * time.Second // what a service may ask for again and again
	maxInterval = 24 * time.Hour
	routine     = time.Hour // what is shorter is an appointment
	maxHasty    = 10        // checks before minInterval in an hour
)

// planCheck decides when to check again after a check that ended with err, and
// returns how long that is; 0 means that there is to be no next one. The caller
// holds a.mu.
func (a *Agent) planCheck(r *round, err error) time.Duration {
	a.live.retries++
	if !r.retrySoon {
		a.live.retries = 0
	}
	wait := a.untilNext(r, err)
	a.live.nextCheck, a.live.nextBeat = time.Time{}, r.rec.nextBeat(interval(r))
	if wait > 0 {
		a.live.nextCheck = time.Now().Add(wait)
		if w := r.opens; !w.at.IsZero() && w.at.Before(a.live.nextCheck) {
			// Those that wait for the same window do not come at the same moment.
			a.live.nextCheck = w.at.Add(rand.N(min(w.length/4, 5*time.Minute)))
		}
		if later := a.live.nextBeat.Sub(a.live.nextCheck); later > 0 && later < routine/6 && wait > routine/2 {
			a.live.nextCheck = a.live.nextBeat // one wakes up for both
		}
	}
	return wait
}

// untilNext returns how long to wait after a check that ended with err; 0 means
// that there is to be no next one.
func (a *Agent) untilNext(r *round, err error) time.Duration {
	interval := interval(r)
	if interval == 0 || a.stopped() {
		return 0
	}
	switch {
	case errors.Is(err, errMode):
		return jitter(r.cfg.CheckInterval, 0.1) // to see whether the file has changed
	case err == nil && !r.retrySoon && interval < routine:
		return a.appointment(interval)
	case err == nil && !r.retrySoon:
		return jitter(interval, 0.1)
	case isTokenProblem(err):
		// Whatever it asked for before, it does not want to hear of this machine.
		return jitter(max(interval, routine), 0.1)
	default:
		n := max(a.live.failures, a.live.retries, 1)
		wait := min(max(jitter(backoff(n), 0.25), firstRetry), lastRetry)
		var ferr *fetch.Error
		if errors.As(err, &ferr) {
			// The service knows best when it can be asked again; all of its
			// clients coming back in the same second would not help it.
			wait = max(wait, ferr.RetryAfter+rand.N(ferr.RetryAfter/10+1))
		}
		return wait
	}
}

// interval returns the time until the next check that the operator wants, or else
// the service; 0 if the operator wants none. When the service expects a sign of life
// sooner than in an hour, it gets it: a machine that is silent then counts as lost.
func interval(r *round) time.Duration {
	asked := min(r.rec.Interval, maxInterval)
	switch {
	case r.cfg.CheckIntervalSet && (r.cfg.CheckInterval == 0 || asked <= 0 || asked >= routine):
		return r.cfg.CheckInterval
	case asked > 0:
		return max(asked, time.Second)
	default:
		return r.cfg.CheckInterval
	}
}

// appointment returns how long to wait for a check that the service has asked for,
// to the second. A service that asks for many in a row does not keep the machine
// awake: the calls of an hour are counted. The caller holds a.mu.
func (a *Agent) appointment(wait time.Duration) time.Duration {
	if wait < minInterval {
		hourAgo := time.Now().Add(-time.Hour)
		a.live.hasty = slices.DeleteFunc(a.live.hasty, func(at time.Time) bool { return at.Before(hourAgo) })
		if len(a.live.hasty) >= maxHasty {
			wait = minInterval
		} else {
			a.live.hasty = append(a.live.hasty, time.Now())
		}
	}
	return jitter(wait, 0.02)
}

// backoff returns the wait after the nth failure in a row: 30 s, 1 min, 2 min, …
// up to an hour.
func backoff(n int) time.Duration {
	wait := firstRetry
	for range n - 1 {
		if wait *= 2; wait >= lastRetry {
			return lastRetry
		}
	}
	return wait
}

// jitter returns d, up to a share of it shorter or longer, so that machines that
// started together do not stay together.
func jitter(d time.Duration, share float64) time.Duration {
	return d + time.Duration(float64(d)*share*(2*rand.Float64()-1))
}

// Bounds on the time between looks at a transition.
const (
	firstLook = 2 * time.Second
	lastLook  = 5 * time.Minute
)

// planLook decides when to ask the loader again: soon while tasks are being
// moved, at the end of the soak for a patch on trial, ever later if the loader does not
// end it then, else never. The caller holds a.mu.
func (a *Agent) planLook(rec *record) {
	a.live.nextLook = time.Time{}
	l := cmp.Or(a.live.current(), a.live.leaving())
	if l == nil {
		return
	}
	moving := l.State == loader.Enabling || l.State == loader.Disabling
	left, ends := a.live.trialLeft(l, rec.Soak)
	over := ends && left <= 0
	switch {
	case moving:
		wait := firstLook
		for range min(a.live.looks, 10) {
			wait *= 2
		}
		a.live.nextLook = time.Now().Add(min(wait, lastLook))
	case over && a.live.looks > 0: // it was not ended
		a.live.nextLook = time.Now().Add(backoff(a.live.looks))
	case ends:
		a.live.nextLook = time.Now().Add(max(left, firstLook))
	}
	if !moving && !over {
		a.live.looks = 0
	}
}

// A begun is the patch that this process has last seen go in, and when; the zero begun
// is none.
type begun struct {
	digest patch.Digest
	at     time.Time // with a reading of the clock that nobody sets
}

// trialLeft returns how long the trial of a patch goes on; not positive if it was long
// enough. It is false if the patch is not on trial, or the trial is not to end.
func (l *live) trialLeft(p *loader.Livepatch, s *soak) (left time.Duration, ends bool) {
	if p.State != loader.Enabled || p.Standing != loader.Trial || s == nil || s.Digest != p.Digest || !s.Running {
		return 0, false
	}
	return s.For - l.age(p), true
}

// age returns how long ago a patch went in. The date of that says less than it seems:
// the clock may have been set since. A process that was there goes by its own time,
// which stands still while the machine is suspended; after a restart only the loader's
// date is left.
func (l *live) age(p *loader.Livepatch) time.Duration {
	if !l.begun.at.IsZero() && l.begun.digest == p.Digest {
		return time.Since(l.begun.at)
	}
	return time.Since(p.Inserted)
}

// current returns the patch of ours that is in force or on the way there, or
// nil.
func (l *live) current() *loader.Livepatch {
	if l.loader == nil {
		return nil
	}
	return current(l.loader)
}

// current returns the newest patch of ours that is in force or on the way there,
// or nil.
func current(s *loader.Status) *loader.Livepatch {
	var newest *loader.Livepatch
	for i, l := range s.Livepatches {
		if l.Ours() && l.Live() && (newest == nil || l.Sequence > newest.Sequence) {
			newest = &s.Livepatches[i]
		}
	}
	return newest
}

// leaving returns the patch of ours that tasks are being moved away from, or nil.
func (l *live) leaving() *loader.Livepatch {
	if l.loader == nil {
		return nil
	}
	return leaving(l.loader)
}

// leaving returns the patch of ours that tasks are being moved away from, with
// nothing of ours in its place, or nil.
func leaving(s *loader.Status) *loader.Livepatch {
	for i, l := range s.Livepatches {
		if l.Ours() && l.State == loader.Disabling && current(s) == nil {
			return &s.Livepatches[i]
		}
	}
	return nil
}

// look asks the loader how the transition or the trial goes, accepts the patch
// when it has proven itself, and tells the service of a transition that has
// ended.
func (a *Agent) look(ctx context.Context) {
	if err := a.begin(ctx); err != nil {
		return
	}
	defer a.end()
	status, err := a.loader.Status(ctx)
	if err == nil {
		a.setMode(ctx, status.Mode)
	}
	a.mu.Lock()
	a.live.looks++
	a.live.nextLook = time.Time{}
	if err != nil {
		// The next check meets the same trouble and reports it.
		a.mu.Unlock()
		a.log.WarnContext(ctx, "Cannot ask the loader", "err", err)
		return
	}
	r := &round{Agent: a, token: a.token, cfg: a.cfg, rec: a.rec.clone(), facts: a.live.facts, kernel: &status}
	a.mu.Unlock()

	defer r.close()
	r.settle(ctx)
	r.describe()
	if r.changed {
		r.report(ctx)
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token != r.token {
		return // disabled meanwhile
	}
	a.tellChange(ctx, r)
	r.rec.Dropped = a.rec.Dropped
	a.live.loader, a.rec = r.kernel, r.rec
	if err := a.saveRecord(); err != nil {
		a.log.ErrorContext(ctx, "Cannot save state", "err", err)
	}
	a.planLook(&r.rec)
}

// settle follows up on the patch in force: a transition that has ended, or does not
// end, is an event to report, a trial that was long enough ends.
func (r *round) settle(ctx context.Context) {
	l := current(r.kernel)
	if r.rec.Pending != nil && (l == nil || l.State == loader.Enabled) {
		r.conclude(l)
	}
	r.noteStall(l)
	if l == nil || !r.provenItself(l) {
		return
	}
	accepted, err := r.loader.Accept(ctx, l.Name)
	if err != nil {
		r.log.WarnContext(ctx, "Cannot end the trial", "patch", l.Name, "err", err)
		return
	}
	r.story(ctx, "Accepted livepatch", "patch", l.Name)
	*l = accepted
}

// conclude reports what has become of the patch that the loader was asked for, now that
// l is in force, or nothing of ours.
func (r *round) conclude(l *loader.Livepatch) {
	e := *r.rec.Pending
	r.rec.Pending = nil
	known := r.find(e.Name)
	switch {
	case l != nil && l.Name == e.Name:
		if r.rec.Watch != nil {
			r.rec.Watch.Seen = true
		}
	case known == nil || known.Inserted.Before(e.At):
		// The agent was stopped before the loader had heard of it: nothing was begun,
		// and nothing has failed.
		r.rec.Watch = nil
		return
	default:
		e.Kind, e.Reason, e.Message = eventFailed, "TRANSITION_FAILED", "the livepatch is not in the kernel"
		r.rec.Watch = nil
	}
	e.At = time.Now().UTC()
	r.note(e)
}

// provenItself tells whether the trial of a patch was long enough.
func (r *round) provenItself(l *loader.Livepatch) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	left, ends := r.live.trialLeft(l, r.rec.Soak)
	return ends && left <= 0
}

// Kinds of events, as package service names them.
const (
	eventIntent    = service.Intent
	eventApplied   = service.Applied
	eventFailed    = service.Failed
	eventRemoved   = service.Removed
	eventHeartbeat = service.Heartbeat
	eventCrashed   = service.Crashed
	eventBooted    = service.Booted
)

// note queues an event, to be reported before the round ends.
func (r *round) note(e service.Event) {
	r.changed = true
	r.rec.addEvent(e)
}

// report sends the events to the service. If that fails they stay for the next
// check-in.
func (r *round) report(ctx context.Context) {
	if err := r.tell(ctx); err != nil {
		r.log.InfoContext(ctx, "Cannot report yet", "events", len(r.rec.Events), "err", err)
	}
}

// checkIn sends the state and the events of the machine, and besides them events
// that are not kept if that fails.
func (r *round) checkIn(ctx context.Context, svc Service, asks ...service.Event) (service.CheckInAnswer, error) {
	answer, err := svc.CheckIn(ctx, r.token, service.CheckIn{
		Version:    r.version,
		Facts:      r.serviceFacts(),
		Generation: r.rec.Generation,
		Patch:      r.patch(),
		Events:     slices.Concat(r.rec.Events, asks),
	})
	if err != nil {
		return answer, err
	}
	r.rec.Events, r.let = nil, answer.Go
	r.rec.Interval = time.Duration(min(max(answer.IntervalSeconds, 0), int64(maxInterval/time.Second))) * time.Second
	if answer.Tier != "" && patch.CheckWord("a tier", answer.Tier) == nil {
		r.rec.Tier = answer.Tier
	}
	return answer, nil
}

// patch returns the patch in force as the service wants to know it.
func (r *round) patch() *service.Patch {
	if r.kernel == nil {
		return nil
	}
	l := current(r.kernel)
	if l == nil {
		return nil
	}
	return &service.Patch{Name: l.Name, Version: l.Version, Sequence: l.Sequence, State: string(l.State), Standing: string(l.Standing)}
}
