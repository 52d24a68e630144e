package rollout

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Kind says what happened.
type Kind string

// The kinds of events.
const (
	Population Kind = "population" // how many machines a cell has in a tier
	Offered    Kind = "offered"    // a machine was told that it may have the patch
	Intent     Kind = "intent"     // a machine is about to insert the module
	Sham       Kind = "sham"       // a control machine checked in
	Alive      Kind = "alive"      // applied, heartbeat, check-in
	Failed     Kind = "failed"     // see Failure
	Soft       Kind = "soft"       // the patch did not go in, or was taken out: no harm, no use
	Left       Kind = "left"       // clean shutdown, other kernel or patch, enrolment ended
	Suspended  Kind = "suspended"  // people have halted the rollout as a whole
	Continued  Kind = "continued"  // and let it go on
	Promoted   Kind = "promoted"   // a person lets a unit into its next tier
	Resumed    Kind = "resumed"    // two people let a halted unit go on
	Released   Kind = "released"   // a person lets a unit go on although a sibling is halted
)

// A Failure says how a machine failed. Silence is not reported, it is noticed.
type Failure string

// The failures that are reported.
const (
	UncleanReboot Failure = "unclean-reboot" // another boot, and no shutdown before it
	OpenJournal   Failure = "open-journal"   // the loader found a trial open at boot
	Oops          Failure = "oops"           // oops, warning or pstore record that names our module
)

// An Event is something that happened. Which fields count depends on the kind.
type Event struct {
	Kind Kind `json:"kind"`

	// Of Offered, Intent, Sham, Alive, Failed, Soft and Left.
	Machine Machine `json:"machine,omitzero"`

	// Of Offered, Intent and Sham; of a Failed by Oops; of Population, where the account is the
	// one that has all these machines, if there is one and it is known.
	Cell    string `json:"cell,omitempty"` // "<release>/<arch>"
	Tier    string `json:"tier,omitempty"`
	Account string `json:"account,omitempty"`
	// Newcomer: the machine enrolled after the salt was drawn.
	Newcomer bool `json:"newcomer,omitempty"`

	Failure   Failure `json:"failure,omitempty"`
	Signature string  `json:"signature,omitempty"` // of an Oops: what makes two of them the same

	// Of Population. Source names the source patch that the cell's module was built from.
	Source   string `json:"source,omitempty"`
	Machines int64  `json:"machines,omitempty"`
	Accounts int64  `json:"accounts,omitempty"` // that have these machines

	// Of Promoted, Resumed and Released.
	Unit string   `json:"unit,omitempty"`
	By   []string `json:"by,omitempty"` // people
}

// Limits on what an event may say. They bound what is kept of it.
const (
	maxName     = 300 // a cell is a release and an architecture, of 128 bytes each
	maxMachines = 1_000_000_000
)

var errEvent = errors.New("malformed event")

// Check refuses an event that no Step takes. It has no effect.
func (r *Rollout) Check(e Event) error {
	for _, s := range []string{e.Cell, e.Tier, e.Account, e.Signature, e.Source, e.Unit} {
		if len(s) > maxName {
			return fmt.Errorf("%w: %.40q is too long", errEvent, s)
		}
	}
	switch e.Kind {
	case Population:
		return r.checkPopulation(e)
	case Offered, Intent, Sham:
		return r.checkTrial(e)
	case Failed:
		return r.checkFailure(e)
	case Alive, Soft, Left:
		return checkMachine(e)
	case Promoted, Resumed, Released:
		return r.checkPerson(e)
	case Suspended, Continued:
		return nil
	}
	return fmt.Errorf("%w: kind %.40q is not known", errEvent, e.Kind)
}

func (r *Rollout) checkPopulation(e Event) error {
	if e.Cell == "" || e.Source == "" || r.tier(e.Tier) < 0 {
		return fmt.Errorf("%w: population of cell %q, source %q, tier %q", errEvent, e.Cell, e.Source, e.Tier)
	}
	if e.Machines < 0 || e.Machines > maxMachines || e.Accounts < 0 || e.Accounts > e.Machines {
		return fmt.Errorf("%w: %d machines of %d accounts", errEvent, e.Machines, e.Accounts)
	}
	if c := r.s.Cells[e.Cell]; c != nil && c.Source != e.Source {
		return fmt.Errorf("%w: source of cell %q was %q and is now %q", errEvent, e.Cell, c.Source, e.Source)
	}
	return nil
}

func (r *Rollout) checkTrial(e Event) error {
	if e.Cell == "" || r.tier(e.Tier) < 0 {
		return fmt.Errorf("%w: %s in cell %q, tier %q", errEvent, e.Kind, e.Cell, e.Tier)
	}
	return checkMachine(e)
}

func (r *Rollout) checkFailure(e Event) error {
	switch e.Failure {
	case UncleanReboot, OpenJournal, Oops:
		return checkMachine(e)
	case silence:
	}
	return fmt.Errorf("%w: failure %.40q is not known", errEvent, e.Failure)
}

func checkMachine(e Event) error {
	if e.Machine == (Machine{}) {
		return fmt.Errorf("%w: %s of no machine", errEvent, e.Kind)
	}
	return nil
}

func (r *Rollout) checkPerson(e Event) error {
	people := slices.Compact(slices.Sorted(slices.Values(e.By)))
	people = slices.DeleteFunc(people, func(s string) bool { return s == "" || len(s) > maxName })
	need := 1
	if e.Kind == Resumed {
		need = 2
	}
	if len(people) < need {
		return fmt.Errorf("%w: %s by %d people, want %d", errEvent, e.Kind, len(people), need)
	}
	if r.unit(e.Unit) == nil {
		return fmt.Errorf("%w: unit %.40q is not known", errEvent, e.Unit)
	}
	return nil
}

// order is the order in which the events of one instant count, so that it does
// not matter in which they came: first what is known of the fleet and what people
// decided, then who begins, who lives, who leaves, and at last who failed.
var order = map[Kind]int{
	Population: 1, Suspended: 2, Continued: 3, Resumed: 4, Released: 5, Promoted: 6,
	Offered: 7, Sham: 8, Intent: 9, Alive: 10, Soft: 11, Left: 12, Failed: 13,
}

func sorted(events []Event) []Event {
	return slices.SortedStableFunc(slices.Values(events), func(a, b Event) int {
		return cmp.Or(
			cmp.Compare(order[a.Kind], order[b.Kind]),
			bytes.Compare(a.Machine[:], b.Machine[:]),
			cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Unit, b.Unit),
			cmp.Compare(a.Failure, b.Failure), cmp.Compare(a.Signature, b.Signature),
			cmp.Compare(a.Account, b.Account), cmp.Compare(a.Machines, b.Machines),
		)
	})
}

// seconds is a duration in the whole seconds that a Rollout reckons in.
func seconds(d time.Duration) int64 { return int64(d / time.Second) }
