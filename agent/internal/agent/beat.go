package agent

import (
	"slices"
	"time"

	"livepatch/agent/internal/loader"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/service"
)

// A watch is a patch whose heartbeats the service waits for, since the machine has
// said that it inserts it.
type watch struct {
	Version string    `json:"version"`
	Name    string    `json:"name"` // of the module
	Since   time.Time `json:"since"`
	Beat    time.Time `json:"beat"`              // of the last heartbeat; zero: there was none
	Seen    bool      `json:"seen,omitempty"`    // it has been in force
	Stalled bool      `json:"stalled,omitempty"` // the service was told that it is not
}

// beats are the ages at which a heartbeat is due, and after the last of them it is
// each hour.
var beats = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour}

// watching is how long the agent wakes up for heartbeats. Later they come with the
// check-ins that are made anyway, where they are an hour apart.
const watching = 24 * time.Hour

// after returns when the first heartbeat is due that cannot have been given at t, and
// from when on a check-in that comes earlier may carry it.
func (w *watch) after(t time.Time) (from, due time.Time) {
	hours := max(0, t.Sub(w.Since)).Truncate(time.Hour)
	for _, age := range slices.Concat(beats, []time.Duration{hours + time.Hour, hours + 2*time.Hour}) {
		due = w.Since.Add(age)
		if from = due.Add(-min(age, time.Hour) / 10); from.After(t) {
			break
		}
	}
	return from, due
}

// nextBeat returns when the agent has to wake up for a heartbeat; zero: it need not.
// An operator who wants no check-ins gets those of the first hour nevertheless, for
// without them the machine would count as lost.
func (r *record) nextBeat(interval time.Duration) time.Time {
	if r.Watch == nil {
		return time.Time{}
	}
	now := time.Now()
	_, due := r.Watch.after(now)
	if age := due.Sub(r.Watch.Since); age > watching || age > time.Hour && interval == 0 || !due.After(now) {
		return time.Time{}
	}
	return due
}

// beat adds a heartbeat to what is reported, if one is due and the patch is in force
// for every task; and says so, once, if it is gone.
func (r *round) beat() {
	w := r.rec.Watch
	if w == nil || r.kernel == nil || r.rec.Pending != nil {
		return
	}
	about := patch.IndexEntry{Name: w.Name, Version: w.Version}
	switch l := r.find(w.Name); {
	case l != nil && l.State == loader.Enabled:
		w.Seen = true
	case l != nil && l.State == loader.Enabling:
	case l != nil && l.State == loader.Disabling:
		return // the end of it decides
	default:
		r.rec.Watch = nil
		r.note(r.gone(w, about))
		return
	}
	if from, _ := w.after(w.Beat); time.Now().Before(from) {
		return
	}
	w.Beat = time.Now()
	if w.Seen {
		r.rec.addEvent(r.event(eventHeartbeat, about))
	}
}

// stallTime is how long a transition may take before the service hears that the patch
// is not in force. That is well before the hour after which a sign of life counts in the
// patch's favour.
const stallTime = 30 * time.Minute

// noteStall reports, once, a transition that does not end. It goes on nevertheless, and
// how it ends is reported too.
func (r *round) noteStall(l *loader.Livepatch) {
	w := r.rec.Watch
	if l == nil || w == nil || w.Stalled || w.Name != l.Name || l.State != loader.Enabling {
		return
	}
	r.mu.Lock()
	age := r.live.age(l)
	r.mu.Unlock()
	if age < stallTime {
		return
	}
	w.Stalled = true
	e := r.event(eventFailed, patch.IndexEntry{Name: w.Name, Version: w.Version})
	e.Reason, e.Message = rpcerr.Reason(patch.ErrStalled), patch.ErrStalled.Error()
	r.note(e)
}

// gone returns the event of a patch under watch that is not in the kernel any more.
func (r *round) gone(w *watch, about patch.IndexEntry) service.Event {
	if w.Seen {
		return r.event(eventRemoved, about)
	}
	e := r.event(eventFailed, about)
	e.Reason, e.Message = "TRANSITION_FAILED", "the livepatch is not in the kernel"
	return e
}

// find returns the livepatch of ours with that name, or nil.
func (r *round) find(name string) *loader.Livepatch {
	for i, l := range r.kernel.Livepatches {
		if l.Name == name && l.Ours() {
			return &r.kernel.Livepatches[i]
		}
	}
	return nil
}
