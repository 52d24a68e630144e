package rollout

import (
	"math"

	"livepatch/internal/patch"
)

// A unit is what is judged: one kernel, or all small kernels of a source.
type unit struct {
	Name   string `json:"name"`
	Source string `json:"source"`
	Small  bool   `json:"small"`
	Late   bool   `json:"late,omitempty"` // made when its siblings had the patch
	Index  int    `json:"index"`          // of its test A among all processes
	Tier   int    `json:"tier"`           // index; the number of tiers when complete
	Lanes  []lane `json:"lanes"`          // one a tier

	E      EValue `json:"e"`
	Lived  Pair   `json:"lived"`  // evidence that outlived the early window
	Dead   Pair   `json:"dead"`   // counted evidence that fell silent in it, or said at any time that it failed
	Dealt  int64  `json:"dealt"`  // evidence, both arms
	Failed Pair   `json:"failed"` // counted evidence
	Mature Pair   `json:"mature"` // counted evidence
	Soft   int64  `json:"soft,omitempty"`

	Accounts   map[uint32]*share     `json:"accounts"`
	Signatures map[string][]reporter `json:"signatures,omitempty"`
	Crashed    []reporter            `json:"crashed,omitempty"` // of small units
	// Trusting: newcomers are evidence, for a stage has shown that there is no other.
	Trusting bool `json:"trusting,omitempty"`

	Halted   Reason   `json:"halted,omitempty"`
	TripOff  bool     `json:"trip_off,omitempty"`
	Told     bool     `json:"told,omitempty"`
	Released []string `json:"released,omitempty"` // halted siblings that a person has looked at
	Last     Verdict  `json:"last"`
	// Held is when the unit was last said to hold for a reason, since it did anything else, in Unix
	// seconds.
	Held map[Reason]int64 `json:"held,omitempty"`
}

// A share is an account's part in the evidence of a unit.
type share struct {
	Dealt      int64 `json:"dealt"`
	Failed     int64 `json:"failed"`
	Mature     Pair  `json:"mature"`
	Soft       int64 `json:"soft,omitempty"`
	Signatures int   `json:"signatures,omitempty"`
}

// A reporter is a machine that reported an oops or a crash.
type reporter struct {
	Machine Machine `json:"machine"`
	Account uint32  `json:"account"`
}

// A lane is a unit in one tier.
type lane struct {
	Machines int64 `json:"machines"`
	Accounts int64 `json:"accounts"`

	Stage  int32 `json:"stage"`  // 0: not begun
	Began  int64 `json:"began"`  // Unix seconds
	Before int64 `json:"before"` // share of the stage before
	Share  int64 `json:"share"`
	Sham   int64 `json:"sham"`
	Room   int64 `json:"room"`   // N′ of the stage
	Wanted int64 `json:"wanted"` // machines that it may let in
	Came   Pair  `json:"came"`   // machines that have opened a trial in it

	Exposed int64 `json:"exposed"` // treated, from here on all, evidence or not; once in a stage
	Pending int64 `json:"pending"`
	Dark    int64 `json:"dark"` // of them without any sign of life
	Offered int64 `json:"offered"`
	Young   int64 `json:"young"` // offered, or have not outlived the early window and might yet
	Soft    int64 `json:"soft"`
	Left    Pair  `json:"left"`
	// Lived outlived the early window, Dead fell silent in it, or said at any time that they failed.
	Lived int64 `json:"lived,omitempty"`
	Dead  int64 `json:"dead,omitempty"`

	Healthy Pair `json:"healthy"` // counted evidence
	Failed  Pair `json:"failed"`  // counted evidence
	Seen    Pair `json:"seen"`    // evidence, of this stage
	Silent  Pair `json:"silent"`  // counted evidence, of this stage

	Batch       uint32 `json:"batch"`
	BatchOpened int64  `json:"batch_opened"`
}

// A batch is machines that were dealt together: AtRisk are those that have not
// failed and not left.
type batch struct {
	AtRisk  Pair `json:"at_risk"`
	Current bool `json:"current,omitempty"` // more may come
}

func (l *lane) treated() Tally {
	return Tally{Failed: float64(l.Failed.Treated), Of: float64(l.Failed.Treated + l.Healthy.Treated)}
}

func (l *lane) control() Tally {
	return Tally{Failed: float64(l.Failed.Control), Of: float64(l.Failed.Control + l.Healthy.Control)}
}

// tallies are the matured evidence of a tier, and with a weight that of the
// tiers before it.
func (u *unit) tallies(tier int, carry float64) (treated, control Tally) {
	for i := range u.Lanes[:tier] {
		treated = treated.plus(u.Lanes[i].treated(), carry)
		control = control.plus(u.Lanes[i].control(), carry)
	}
	return treated.plus(u.Lanes[tier].treated(), 1), control.plus(u.Lanes[tier].control(), 1)
}

// all is the matured evidence of a unit, undiscounted.
func (u *unit) all() (treated, control Tally) { return u.tallies(len(u.Lanes)-1, 1) }

// current returns the lane that is being widened, or nil when the last tier has
// the patch.
func (u *unit) current() *lane {
	if u.Tier >= len(u.Lanes) {
		return nil
	}
	return &u.Lanes[u.Tier]
}

// latest is the tier that is being widened, or the last one.
func (u *unit) latest() int { return min(u.Tier, len(u.Lanes)-1) }

// tried is on how many machines the patch has been, without those on which it has not stayed.
func (u *unit) tried() (n int64) {
	for i := range u.Lanes {
		l := &u.Lanes[i]
		n += l.Exposed - l.Soft - l.Left.Treated
	}
	return n
}

// few tells whether so few machines cannot be dealt to two arms.
func (p PaceParams) few(machines int64) bool {
	return float64(machines)*min(p.FirstShare, p.Holdback) < 1
}

// capacity is how many of a stage's machines may be without a sign of life at a
// time.
func (p PaceParams) capacity(room int64) int64 {
	return max(1, int64(math.Ceil(float64(room)/p.Dark)))
}

// open returns how many more machines a lane may let in now, where earned is N′ of
// all that is known by now.
func (u *unit) open(l *lane, p PaceParams, earned int64) int64 {
	room, stage := l.Room, l.Wanted-l.Came.Treated
	if l.Share == patch.Everyone { // the lane grows as machines come
		room, stage = max(room, earned), math.MaxInt32
	}
	return min(min(stage, room-l.Pending, p.capacity(room)-l.Dark)-l.Offered, u.bold(l, p))
}

// bold is the limit of open where there are no controls, or few: as many machines at a time
// as have outlived the early window, and at least one. So a patch that kills has
// one machine first, and a fleet of a thousand is through after ten such windows.
func (u *unit) bold(l *lane, p PaceParams) int64 {
	young := l.Young
	switch {
	case u.Small || u.Late:
		young = 0
		for i := range u.Lanes {
			young += u.Lanes[i].Young
		}
	case !p.few(l.Machines):
		return math.MaxInt32
	}
	return max(1, u.Lived.Treated) - young
}

// begin starts the stage of a verdict.
func (l *lane) begin(v Verdict, now int64) {
	l.Stage++
	l.Began = now
	l.Before, l.Share, l.Sham = l.Share, v.Share, v.Sham
	l.Room, l.Wanted = v.Room, v.Wanted
	l.Came, l.Seen, l.Silent = Pair{}, Pair{}, Pair{}
}

// age is that of the stage in seconds, 0 if none has begun.
func (l *lane) age(now int64) int64 {
	if l.Stage == 0 {
		return 0
	}
	return now - l.Began
}

// finish opens the tier to everybody, at the pace of its last stage.
func (l *lane) finish(p PaceParams) {
	l.Share, l.Sham = patch.Everyone, 0
	l.Room = max(l.Room, int64(p.Dead))
}
