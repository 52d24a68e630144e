package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"livepatch/tests/vm/lab"
)

// Standings of the journal, as its file has them. The empty one means that the
// journal does not know the patch.
const (
	unknown     = ""
	inserting   = "inserting"
	trial       = "trial"
	accepted    = "accepted"
	suspect     = "suspect"
	quarantined = "quarantined"
)

// A patch is one version of the livepatch that the campaign is made with.
type patch struct {
	lab.Module
	version  string
	sequence uint64
	answer   string // what /proc/cmdline says where it is in force
}

// A fate is what the journal may say of a patch.
type fate struct {
	patch *patch
	may   []string // standings
	// revoked tells whether the journal says so; if maybeRevoked is set it may or
	// may not.
	revoked, maybeRevoked bool
}

// add adds standings that the journal may have for a patch.
func (f *fate) add(standings ...string) {
	for _, s := range standings {
		if !slices.Contains(f.may, s) {
			f.may = append(f.may, s)
		}
	}
}

// bounds are what something can be, both ends included.
type bounds struct{ min, max int }

// A model is what the outside knows about a machine's state from what the machine
// has promised: an answer is a promise, and so is a line that the kernel wrote.
// Where the power went before an answer, either outcome is right; the next boot
// shows which it was, and from then on that is the promise.
//
// The zero model is a machine that was never asked for anything.
type model struct {
	fates []*fate   // in the order of their sequence numbers
	floor bounds    // highest sequence number that was let in
	meta  bounds    // version of the signed metadata that is trusted
	clock time.Time // of the last update, as seen
	// bootCuts counts the boots in a row that were cut short.
	bootCuts int
}

func (m *model) fate(name string) *fate {
	for _, f := range m.fates {
		if f.patch.Name == name {
			return f
		}
	}
	return nil
}

// accepted returns the patches that may be accepted, the newest first.
func (m *model) accepted() (list []*fate) {
	for _, f := range slices.Backward(m.fates) {
		if slices.Contains(f.may, accepted) {
			list = append(list, f)
		}
	}
	return list
}

// mayReturn tells whether the kernel may be given a patch at boot.
func (m *model) mayReturn(name string) bool {
	f := m.fate(name)
	return f != nil && slices.Contains(f.may, accepted) && !f.revoked
}

// applying says that a patch newer than all before was sent, in metadata of a
// version.
func (m *model) applying(p *patch, meta int) {
	m.fates = append(m.fates, &fate{patch: p, may: []string{unknown, inserting, trial}})
	m.floor.max, m.meta.max = int(p.sequence), meta
}

// entered says that the kernel had the patch: all that comes before that is on
// the disk.
func (m *model) entered(p *patch) {
	f := m.fate(p.Name)
	f.may = slices.DeleteFunc(f.may, func(s string) bool { return s == unknown })
	m.floor.min, m.meta.min = m.floor.max, m.meta.max
}

// applied says that Apply was answered.
func (m *model) applied(p *patch) {
	m.entered(p)
	for _, f := range m.fates { // what it replaced is unloaded
		if f.patch != p && slices.Contains(f.may, trial) {
			f.add(quarantined)
		}
	}
}

// learning says that metadata of a version was sent, which says of a patch, unless
// that is nil, that it is revoked.
func (m *model) learning(meta int, revoked *patch) {
	m.meta.max = meta
	if revoked == nil {
		return
	}
	f := m.fate(revoked.Name)
	f.maybeRevoked = true
	f.add(quarantined)
}

// learnt says that the loader has answered, be it to refuse what is offered.
func (m *model) learnt(revoked *patch) {
	m.meta.min = m.meta.max
	if revoked == nil {
		return
	}
	f := m.fate(revoked.Name)
	f.may, f.revoked, f.maybeRevoked = []string{quarantined}, true, false
}

// inForce returns the patch that is in force after a boot, nil if there is none,
// as far as the model knows it.
func (m *model) inForce() *patch {
	for _, f := range m.accepted() {
		if !f.revoked {
			return f.patch
		}
	}
	return nil
}

// superseded returns the accepted patches that the loader gives up when it accepts
// p: all but the newest that is not revoked, which it keeps to go back to.
func (m *model) superseded(p *patch) (list []*fate) {
	kept := false
	for _, f := range m.accepted() {
		switch {
		case f.patch == p:
		case f.revoked || kept:
			list = append(list, f)
		default:
			kept = true
		}
	}
	return list
}

// accepting says that a patch in force may be accepted now.
func (m *model) accepting(p *patch) {
	for _, f := range m.superseded(p) {
		f.add(quarantined)
	}
	m.fate(p.Name).add(accepted)
}

// acceptedNow says that Accept was answered.
func (m *model) acceptedNow(p *patch) {
	for _, f := range m.superseded(p) {
		f.may = []string{quarantined}
	}
	m.fate(p.Name).may = []string{accepted}
}

// removing says that a patch may be taken out now, for good: what was accepted
// before does not return in its place either.
func (m *model) removing(p *patch) {
	m.fate(p.Name).add(quarantined)
	for _, f := range m.accepted() {
		f.add(quarantined)
	}
}

// removed says that Remove was answered.
func (m *model) removed(p *patch) {
	m.fate(p.Name).may = []string{quarantined}
	for _, f := range m.accepted() {
		f.may = []string{quarantined}
	}
}

// goneDown says that the machine is off, and what becomes of patches that were on
// trial: they are suspect unless it went down in order, which is not always known.
func (m *model) goneDown(after ...string) {
	for _, f := range m.fates {
		was := f.may
		f.may = nil
		for _, s := range was {
			if s == inserting || s == trial {
				f.add(after...)
			} else {
				f.add(s)
			}
		}
	}
}

// bootCut says that a boot was cut short. One such boot costs nothing. Two in a
// row are what a patch that crashes the machine at every boot looks like, so the
// accepted patches may be suspected from then on.
func (m *model) bootCut() {
	if m.bootCuts++; m.bootCuts < 2 {
		return
	}
	for _, f := range m.accepted() {
		f.add(suspect)
	}
}

// remembered is how many entries the journal keeps for certain. Older ones that
// are out of service may be forgotten; the floor keeps them out.
const remembered = 24

// forget allows for that.
func (m *model) forget() {
	for _, f := range m.fates[:max(0, len(m.fates)-remembered)] {
		if !slices.Contains(f.may, accepted) {
			f.add(unknown)
		}
	}
}

// check compares what is seen after a boot with what was promised, returns every
// broken promise, and takes what is seen as promised from now on.
func (m *model) check(o *observation) (violations []string) {
	broken := func(format string, args ...any) { violations = append(violations, fmt.Sprintf(format, args...)) }
	m.forget()
	if o.floor < m.floor.min || o.floor > m.floor.max {
		broken("floor is %d, promised was %d to %d", o.floor, m.floor.min, m.floor.max)
	}
	if o.meta < m.meta.min || o.meta > m.meta.max {
		broken("trusted metadata has version %d, promised was %d to %d", o.meta, m.meta.min, m.meta.max)
	}
	if o.clock.Before(m.clock) {
		broken("the clock's floor went back from %v to %v", m.clock, o.clock)
	}
	for _, f := range m.fates {
		s, revoked := o.standings[f.patch.Name], o.revoked[f.patch.Name]
		if !slices.Contains(f.may, s) {
			broken("journal says %q of patch %s, promised was one of %q", s, f.patch.version, f.may)
		}
		if s != unknown && revoked != f.revoked && !f.maybeRevoked {
			broken("journal says of patch %s that it is revoked: %t, promised was %t", f.patch.version, revoked, f.revoked)
		}
	}
	for name := range o.standings {
		if m.fate(name) == nil {
			broken("journal knows %s, which nobody sent", name)
		}
	}
	m.settle(o)
	return append(violations, m.checkForce(o)...)
}

// checkForce compares what is in force with the journal: it is the newest patch
// that is accepted and not revoked.
func (m *model) checkForce(o *observation) (violations []string) {
	name, answer := "", unpatched
	if p := m.inForce(); p != nil {
		name, answer = p.Name, p.answer
	}
	if got := strings.Join(o.loaded, " "); got != name {
		violations = append(violations, fmt.Sprintf("in the kernel is %q, accepted is %q", got, name))
	}
	if o.answer != answer && (name != "" || !strings.HasPrefix(o.answer, unpatched)) {
		violations = append(violations, fmt.Sprintf("kernel answers %q, want %q", o.answer, answer))
	}
	return violations
}

// settle takes what was seen as promised.
func (m *model) settle(o *observation) {
	m.floor, m.meta, m.clock = bounds{o.floor, o.floor}, bounds{o.meta, o.meta}, o.clock
	m.bootCuts = 0
	for _, f := range m.fates {
		f.may = []string{o.standings[f.patch.Name]}
		f.revoked, f.maybeRevoked = o.revoked[f.patch.Name], false
	}
}
