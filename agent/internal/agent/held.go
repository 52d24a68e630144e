package agent

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// heldBack returns the key of the configuration that holds an entry of the index
// back, and how to put it for a person; "" if none does. An entry without a date is
// as new as can be.
func (c chooser) heldBack(e patch.IndexEntry, ix patch.Index) (key string, why problem) {
	added, err := time.Parse(time.RFC3339, e.Added)
	if err != nil {
		added = c.now
	}
	by := "is held back by "
	lift := func(key string) string { return "to have it now: sudo canonical-livepatch config " + key + "=" }
	switch {
	case slices.Contains(c.cfg.SkipPatches, e.Version):
		return config.SkipPatches, problem{by + config.SkipPatches, "to have it, take it out of the list: sudo canonical-livepatch config " + config.SkipPatches + "=…"}
	case c.cfg.PinPatch != "" && comesAfter(e, c.cfg.PinPatch, ix):
		return config.PinPatch, problem{by + config.PinPatch + ": this machine stays at " + c.cfg.PinPatch, lift(config.PinPatch)}
	case !c.cfg.CutoffDate.IsZero() && added.After(c.cfg.CutoffDate):
		return config.CutoffDate, problem{by + config.CutoffDate + ": it is younger than " + moment(c.cfg.CutoffDate), lift(config.CutoffDate)}
	case c.now.Sub(added) < c.cfg.PatchDelay:
		return config.PatchDelay, problem{by + config.PatchDelay + " until " + moment(added.Add(c.cfg.PatchDelay)), lift(config.PatchDelay)}
	}
	return "", problem{}
}

// comesAfter tells whether an entry is newer than the version that is pinned: by
// sequence if the index has that for the same build, else by the numbers of the
// versions. One of which that cannot be told is.
func comesAfter(e patch.IndexEntry, pin string, ix patch.Index) bool {
	for _, p := range ix.Patches {
		if p.Version == pin && p.BuildID == e.BuildID {
			return e.Sequence > p.Sequence
		}
	}
	a, aok := numbers(e.Version)
	b, bok := numbers(pin)
	return !aok || !bok || slices.Compare(a, b) > 0
}

// numbers returns the numbers of a version, "113.1".
func numbers(version string) (n []uint64, ok bool) {
	for part := range strings.SplitSeq(version, ".") {
		v, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return nil, false
		}
		n = append(n, v)
	}
	return n, true
}

// notYet says why a rollout does not let this machine in, given the error of admitted.
func (c chooser) notYet(r patch.Rollout, err error) problem {
	wait := byItself(c.cfg, "it comes by itself")
	stage, come := r.Stage(c.kernel, c.tier)
	switch {
	case errors.Is(err, patch.ErrHalted):
		return problem{"is halted: no further machine gets it", "nothing to do: the service lets it go on or offers another one"}
	case errors.Is(err, patch.ErrRevoked):
		return problem{"is revoked: no machine gets it", "nothing to do: the service will offer another one"}
	case !come:
		return problem{fmt.Sprintf("has not come to tier %s yet", c.tier), wait}
	default:
		return problem{fmt.Sprintf("has not come to this machine yet, but to %s of tier %s", percent(stage.Share), c.tier), wait}
	}
}

// byItself says that an operator has nothing to do, and why: that holds if the agent
// checks in of its own accord.
func byItself(cfg config.Config, why string) string {
	if cfg.CheckIntervalSet && cfg.CheckInterval == 0 {
		return "to ask again: sudo canonical-livepatch refresh; " + config.CheckInterval + " is 0, so the agent does not by itself"
	}
	return "nothing to do: " + why
}

// percent words a share in parts per million.
func percent(share int64) string {
	return strconv.FormatFloat(float64(share)/(patch.Everyone/100), 'g', 3, 64) + " %"
}

// moment words a time as the machine's clocks on the wall show it.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04 MST") }

// maxHolds bounds how many patches status explains the absence of.
const maxHolds = 3

// noteHeld writes down which patches that are newer than the one in force are not
// brought in yet, and why.
func (r *round) noteHeld(got choice) {
	r.rec.Holds = nil
	var l *loader.Livepatch
	if r.kernel != nil {
		l = current(r.kernel)
	}
	for _, h := range got.held {
		if (l == nil || h.entry.Sequence > l.Sequence) && len(r.rec.Holds) < maxHolds {
			r.rec.Holds = append(r.rec.Holds, h.words())
		}
	}
}

// words returns what is said of it.
func (h held) words() problem {
	return problem{"patch " + h.entry.Version + " " + h.why.Message, h.why.Hint}
}

// mayInsert tells whether the operator wants patches to be inserted at all, and
// mayInsertNow, whether now. They write down why not.
func (r *round) mayInsert(got choice) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.off(facts.NoApply, "applying")
	if err != nil {
		r.hold(got.entry, problem{"is not applied: " + err.Error(), r.modeHint()})
	}
	return err == nil
}

func (r *round) mayInsertNow(got choice) bool {
	if r.byOperator {
		return true
	}
	open, next, length := r.cfg.Maintenance.Open(time.Now())
	if !open {
		r.opens = window{next, length}
		r.hold(got.entry, problem{
			fmt.Sprintf("waits for the maintenance window (%s), which opens on %s", r.cfg.Maintenance, next.Format("Monday 2006-01-02 15:04 MST")),
			"to have it now: sudo canonical-livepatch refresh",
		})
	}
	return open
}

// A window is when a maintenance window opens, and for how long. The zero window is
// none that is waited for.
type window struct {
	at     time.Time
	length time.Duration
}
