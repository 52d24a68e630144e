package agent

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"livepatch/agent/internal/loader"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// noteBoot reports how the boot ended that the record is about, once, as soon as the
// loader can be asked: it knows the last one that ended in an orderly way.
func (r *round) noteBoot() {
	if r.kernel == nil || r.rec.Ended == "" {
		return
	}
	e := r.event(eventBooted, patch.IndexEntry{})
	e.Reason = service.ReasonUnclean
	if r.kernel.CleanBoot == r.rec.Ended {
		e.Reason = service.ReasonClean
	}
	r.rec.Ended = ""
	r.rec.addEvent(e)
}

// noteHarm reports, once each, the patches that the loader has come to suspect and
// what the kernel has said against ours.
func (r *round) noteHarm() {
	if r.kernel == nil {
		return
	}
	var known []string
	blame := func(key, when string, e service.Event) {
		known = append(known, key)
		if slices.Contains(r.rec.Blamed, key) {
			return
		}
		// The service takes an event once: this way it does so also from an agent
		// that has lost its record.
		sum := sha256.Sum256([]byte(r.machineID + "\n" + key + when))
		e.ID = hex.EncodeToString(sum[:16])
		r.rec.addEvent(e)
	}
	for _, l := range r.kernel.Livepatches {
		if l.Ours() && l.Standing == loader.Suspect {
			e := r.event(eventCrashed, patch.IndexEntry{Name: l.Name, Version: l.Version})
			e.Reason = service.ReasonOpenJournal
			blame("suspect\n"+l.Digest.String()+"\n"+l.Inserted.String(), "", e)
		}
	}
	for _, c := range r.kernel.Complaints {
		l := r.find(c.Name)
		if l == nil {
			continue
		}
		e := r.event(eventCrashed, patch.IndexEntry{Name: l.Name, Version: l.Version})
		e.Reason, e.Signature, e.Message, e.BootID = service.ReasonOops, c.Signature, c.Message, cmp.Or(c.BootID, e.BootID)
		when := ""
		if c.BootID == "" {
			// A record that survived a crash does not tell of which boot. A patch that has
			// crashed a machine is inserted once more before it can do so again.
			when = "\n" + l.Inserted.String()
		}
		blame("oops\n"+c.BootID+"\n"+c.Name+"\n"+c.Signature, when, e)
	}
	r.rec.Blamed = known
}
