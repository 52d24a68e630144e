package rollout

import (
	"math"

	"livepatch/internal/patch"
)

// A Pair is a number of treated and of control machines.
type Pair struct {
	Treated int64 `json:"treated"`
	Control int64 `json:"control"`
}

func (p *Pair) add(a Arm, n int64) {
	switch a {
	case Treated:
		p.Treated += n
	case Control:
		p.Control += n
	case Outside:
	}
}

// Evidence is everything that a decision about a unit is made from, apart from
// [Params]. [Params.Judge] is a function of the two.
type Evidence struct {
	// What test A asks: the products for the unit and for its source, with
	// their shares of [HaltParams.Alpha].
	E           EValue  `json:"e"`
	Alpha       float64 `json:"alpha"`
	SourceE     EValue  `json:"source_e"`
	SourceAlpha float64 `json:"source_alpha"`

	// What test B asks: failures among trials that failed or outlived
	// [TimeParams.Early].
	Trip        Tally  `json:"trip"`
	TripControl Tally  `json:"trip_control"`
	Controls    int64  `json:"controls"`  // of the source that matured
	TripOff     bool   `json:"trip_off"`  // a person resumed this unit
	Signature   string `json:"signature"` // the commonest oops, if there is any
	Hits        int64  `json:"hits"`      // machines that had it, of different accounts
	Seen        Pair   `json:"seen"`      // in this stage: outlived the first deadline, or failed
	Silent      Pair   `json:"silent"`    // in this stage: fell silent early
	Siblings    int64  `json:"siblings"`  // of the same source that are halted, and no person has looked
	Crashes     int64  `json:"crashes"`   // of a small unit: machines that it crashed, of different accounts if there are several
	Alone       bool   `json:"alone"`     // all machines are one account's
	Tried       int64  `json:"tried"`     // machines that have had the patch, in all tiers

	// What widening asks.
	Lone      Tally   `json:"lone,omitzero"`       // as Trip, of a tier that is one account's among others, evidence or not
	Suspended bool    `json:"suspended,omitempty"` // people have halted the rollout as a whole
	Waits     string  `json:"waits"`               // for whom, or ""
	Machines  int64   `json:"machines"`            // of the unit in the tier
	Tier      string  `json:"tier"`
	Last      bool    `json:"last"` // there is no tier after it
	Auto      bool    `json:"auto"` // the next tier begins without a person
	Told      bool    `json:"told"` // a person promoted it
	Late      bool    `json:"late"` // its siblings had the patch when it came
	Done      bool    `json:"done"` // all tiers have the patch
	Ramp      []int64 `json:"ramp"`
	Stage     int64   `json:"stage"` // 0: none yet
	Age       int64   `json:"age"`   // of the stage, in seconds
	Share     int64   `json:"share"`
	Wanted    int64   `json:"wanted"`  // machines that the stage was to let in
	Came      int64   `json:"came"`    // that it let in
	Exposed   int64   `json:"exposed"` // in this tier so far
	Pending   int64   `json:"pending"` // of them without an outcome, or only offered
	Soft      int64   `json:"soft"`    // of them that ended in a soft failure
	Left      Pair    `json:"left"`    // trials that ended without an outcome: not judged, but worth a look
	Treated   Tally   `json:"treated"` // matured evidence, with the share of earlier tiers and of siblings
	Control   Tally   `json:"control"`
}

// An Action is what is decided.
type Action string

// The actions.
const (
	Hold     Action = "hold"     // stay at this stage
	Advance  Action = "advance"  // begin the stage of the verdict
	Promote  Action = "promote"  // begin with the next tier
	Complete Action = "complete" // the last tier has it
	Halt     Action = "halt"     // let no further machine of the unit have it
)

// A Reason says why, for programs; the evidence is in the numbers.
type Reason string

// The reasons of a halt.
const (
	TestA        Reason = "test-a"          // fails more than its controls
	TestASource  Reason = "test-a-source"   // all units of the source together do
	TestB        Reason = "test-b"          // too many early failures
	TestCOops    Reason = "test-c-oops"     // the same oops on several machines
	TestCSilence Reason = "test-c-silence"  // many silent at once, controls not
	TestDCrash   Reason = "test-d-crash"    // it crashes machines of a small unit
	TestSiblings Reason = "siblings-halted" // several units of the source are halted
)

// The reasons of everything else.
const (
	WaitsForLead     Reason = "waits-for-lead"     // the first stage of one unit goes before all others
	WaitsForSiblings Reason = "waits-for-siblings" // small kernels come last
	SiblingHalted    Reason = "sibling-halted"     // a person has to look and to release it
	SoftFailures     Reason = "soft-failures"
	Failing          Reason = "failing" // too often to go on, and not surely enough to halt; a person has to look
	PendingOutcomes  Reason = "pending"
	NobodyCame       Reason = "nobody-came"
	NoEvidence       Reason = "no-evidence" // no machine that came counts
	Paused           Reason = "paused"      // people have halted the rollout as a whole
	NeedsPerson      Reason = "needs-person"
	NoMachines       Reason = "no-machines"
	FirstStage       Reason = "first-stage"
	Healthy          Reason = "healthy"
	ByPerson         Reason = "by-person" // who overrides the pace, and no halt
	Through          Reason = "through"   // all tiers have it
	AtOnce           Reason = "at-once"   // see [PaceParams.AtOnce]
)

// A Verdict is what follows from Params and Evidence.
type Verdict struct {
	Action Action `json:"action"`
	Reason Reason `json:"reason"`

	// Of Advance: the shares of the new stage, N′, and how many of N′ machines
	// the stage lets in.
	Share  int64 `json:"share,omitempty"`
	Sham   int64 `json:"sham,omitempty"`
	Room   int64 `json:"room,omitempty"`
	Wanted int64 `json:"wanted,omitempty"`

	// The statistics as they were computed, for people.
	LogE       float64 `json:"log_e"`        // of test A; halts at −log alpha
	SourceLogE float64 `json:"source_log_e"` // the same for the source
	LLR        float64 `json:"llr"`          // of test B; 0 when it is not asked
	P0         float64 `json:"p0"`
	Upper      float64 `json:"upper,omitempty"` // U
}

// Judge decides about a unit that is not halted. Every decision can be made again
// from what is stored with it.
func (p Params) Judge(e Evidence) Verdict {
	v := Verdict{LogE: e.E.Log(), SourceLogE: e.SourceE.Log()}
	if !e.TripOff && e.Controls < p.Halt.TripControls {
		v.LLR, v.P0 = p.Halt.tripwire(e.Trip, e.TripControl)
	}
	if v.Reason = p.Halt.harm(e, v.LLR); v.Reason != "" {
		v.Action = Halt
		return v
	}
	switch {
	case e.Done:
		v.Action, v.Reason = Hold, Through
	case e.Suspended:
		v.Action, v.Reason = Hold, Paused
	case e.Told:
		v.Action, v.Reason = next(e), ByPerson
	case p.Pace.AtOnce:
		v.Action, v.Reason = next(e), AtOnce
	default:
		if v.Action, v.Reason = Hold, p.holds(e); v.Reason == "" {
			return p.widen(e, v)
		}
	}
	return v
}

// harm returns the first test that says that the patch does harm, or "".
func (h HaltParams) harm(e Evidence, llr float64) Reason {
	switch {
	case e.Hits >= h.Signatures:
		return TestCOops
	case h.crash(e):
		return TestDCrash
	case h.silence(e):
		return TestCSilence
	case e.E.Exceeds(e.Alpha):
		return TestA
	case e.SourceE.Exceeds(e.SourceAlpha):
		return TestASource
	case h.tripped(llr):
		return TestB
	case e.Siblings >= h.Siblings:
		return TestSiblings
	}
	return ""
}

func (h HaltParams) silence(e Evidence) bool {
	return e.Silent.Treated >= h.SilentMin &&
		float64(e.Silent.Treated) > h.SilentShare*float64(e.Seen.Treated) &&
		e.Seen.Control >= h.SilentControls &&
		float64(e.Silent.Control) < h.ControlShare*float64(e.Seen.Control) &&
		chance(e.Silent, e.Seen) < h.TripAlpha
}

// crash is test D.
func (h HaltParams) crash(e Evidence) bool {
	if e.Alone && e.Tried <= h.CrashOne {
		return e.Crashes >= 1
	}
	return e.Tried <= h.CrashTwo && e.Crashes >= 2
}

// holds returns why a unit stays as it is, or "".
func (p Params) holds(e Evidence) Reason {
	switch {
	case e.Siblings > 0:
		return SiblingHalted
	case e.Machines == 0:
		return asks(e)
	case e.Stage == 0:
		return Reason(e.Waits)
	case e.Soft >= p.Pace.SoftMin && float64(e.Soft) > p.Pace.SoftShare*float64(e.Exposed-e.Pending):
		return SoftFailures
	case p.Pace.failing(e.Treated, e.Control), p.Halt.lonely(e.Lone):
		return Failing
	case e.Came == 0 && e.Age >= seconds(p.Pace.Dwell) && e.Age < seconds(p.Pace.Absent):
		return NobodyCame
	case !p.Pace.ripe(e):
		return PendingOutcomes
	case unknown(e) && e.Age < seconds(p.Pace.Absent):
		return NoEvidence
	case e.Share == patch.Everyone:
		return asks(e)
	}
	return ""
}

// unknown tells whether nothing is known of those who came.
func unknown(e Evidence) bool { return e.Came > 0 && e.Treated.Of == 0 }

// asks returns NeedsPerson if a person has to let the patch into the next tier.
func asks(e Evidence) Reason {
	if e.Auto || e.Last {
		return ""
	}
	return NeedsPerson
}

// ripe tells whether the machines of a stage have come and have outcomes. Some
// are switched off and will not come: after a while those who came are enough.
func (p PaceParams) ripe(e Evidence) bool {
	if e.Pending > 0 && float64(e.Pending) >= p.Pending*float64(e.Exposed) {
		return false
	}
	return float64(e.Came) >= 0.9*float64(e.Wanted) || e.Age >= seconds(p.Dwell)
}

// widen returns what comes after a stage that went well.
func (p Params) widen(e Evidence, v Verdict) Verdict {
	v.Reason = Healthy
	if unknown(e) {
		v.Reason = NoEvidence
	}
	switch {
	case e.Machines == 0:
		v.Action, v.Reason = next(e), NoMachines
	case e.Share == patch.Everyone:
		v.Action = next(e)
	default:
		if e.Stage == 0 {
			v.Reason = FirstStage
		}
		v.Action = Advance
		v.Room, v.Upper = p.Pace.room(e.Treated, e.Control)
		v.Share, v.Wanted = p.Pace.share(e, v.Room)
		v.Sham = p.Pace.sham(e, v.Share)
	}
	return v
}

// next is what follows when a tier has the patch.
func next(e Evidence) Action {
	if e.Last {
		return Complete
	}
	return Promote
}

// share returns the share of the next stage, and how many machines it adds:
// room of them at most, and no more than leave enough controls.
func (p PaceParams) share(e Evidence, room int64) (share, wanted int64) {
	machines := float64(e.Machines)
	next := float64(e.Share)/patch.Everyone + float64(room)/machines
	next = min(next, p.ceiling(e))
	share = min(patch.Everyone, int64(math.Ceil(next*patch.Everyone-1e-6)))
	wanted = int64(math.Ceil(machines*float64(share-e.Share)/patch.Everyone - 1e-6))
	return max(share, e.Share+1), max(1, min(wanted, room))
}

// leastStep is how many machines a step of a ramp has to add. To a smaller one the hash may
// well have dealt none, and nobody would come.
const leastStep = 3

// ceiling is how far the next stage may go at most.
func (p PaceParams) ceiling(e Evidence) float64 {
	for _, step := range e.Ramp {
		if adds := float64(step-e.Share) / patch.Everyone * float64(e.Machines); adds >= leastStep {
			return float64(step) / patch.Everyone
		}
	}
	share, held := float64(e.Share)/patch.Everyone, 1-p.Holdback
	switch {
	case len(e.Ramp) > 0 || p.few(e.Machines) || share >= held:
		return 1
	case share < p.FirstShare && !e.Late:
		return p.FirstShare
	case float64(e.Machines)*p.Holdback < leastStep:
		return 1
	default:
		return held
	}
}

// sham returns the share of the rest that are controls.
func (p PaceParams) sham(e Evidence, share int64) int64 {
	rest := float64(patch.Everyone-share) / patch.Everyone
	if rest <= 0 {
		return 0
	}
	added := float64(share-e.Share) / patch.Everyone
	sham := min(p.Controls*added/rest, float64(p.MaxControls)/(rest*float64(e.Machines)), 1)
	return int64(sham * patch.Everyone)
}
