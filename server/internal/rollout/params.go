package rollout

import (
	"fmt"
	"math"
	"time"
)

// Params are the constants of the rule. A decision is stored with those it was
// made with.
type Params struct {
	Halt HaltParams `json:"halt"`
	Pace PaceParams `json:"pace"`
	Time TimeParams `json:"time"`
}

// HaltParams are the constants of the tests A, B, C and D.
type HaltParams struct {
	// Alpha is the probability with which test A may halt some unit of a healthy
	// rollout, over all units and tiers. Four fifths of it are shared equally by
	// the first Units processes, four fifths of the rest by the next
	// Units, and so on: how many kernels will come need not be known.
	Alpha float64 `json:"alpha"`
	Units int     `json:"units"`
	// Risks are the odds ratios R that test A mixes.
	Risks [4]float64 `json:"risks"`

	// TripAlpha, TripBeta: errors of test B. It is asked until TripControls
	// controls of the source have matured. TripFloor is the least background,
	// TripFactor is p1/p0.
	TripAlpha    float64 `json:"trip_alpha"`
	TripBeta     float64 `json:"trip_beta"`
	TripFloor    float64 `json:"trip_floor"`
	TripFactor   float64 `json:"trip_factor"`
	TripControls int64   `json:"trip_controls"`
	// Background is the rate of loss that earlier rollouts saw in their
	// controls; 0 if it is not known.
	Background float64 `json:"background"`

	// Test C halts when at least SilentMin and more than SilentShare of the
	// treated machines of the stage are silent early, while less than
	// ControlShare of at least SilentControls controls are.
	SilentMin      int64   `json:"silent_min"`
	SilentShare    float64 `json:"silent_share"`
	SilentControls int64   `json:"silent_controls"`
	ControlShare   float64 `json:"control_share"`
	// Signatures is how many machines, of different accounts where there are
	// several, halt a unit by the same oops.
	Signatures int64 `json:"signatures"`
	// Siblings is how many halted units of a source halt the rest of it.
	Siblings int64 `json:"siblings"`

	// Test D halts a small unit by one crash that is the patch's while it has been
	// tried on CrashOne machines or fewer and they are one account's, and by two
	// while it has been tried on CrashTwo or fewer.
	CrashOne int64 `json:"crash_one"`
	CrashTwo int64 `json:"crash_two"`
}

// PaceParams are the constants of the rule that widens.
type PaceParams struct {
	Dead       float64 `json:"dead"`       // H: how many dead machines a stage may risk
	Confidence float64 `json:"confidence"` // of U
	Pending    float64 `json:"pending"`    // widen only below this share of exposed machines without an outcome
	Excess     float64 `json:"excess"`     // and while it may be that the patch adds no more than this to the rate of failure
	// Carry is the weight of what earlier tiers of the unit have shown, and for
	// small kernels of what their siblings have.
	Carry float64 `json:"carry"`
	// Dark bounds the machines that have had no sign of life since they were
	// let in to one Dark-th of N′.
	Dark float64 `json:"dark"`
	// FirstShare bounds a stage of a tier to this share of its machines until
	// the stage before the last, which leaves out Holdback of them, so that
	// there are always controls.
	FirstShare float64 `json:"first_share"`
	Holdback   float64 `json:"holdback"`
	// Controls are wanted for each treated machine, at most MaxControls a stage.
	Controls    float64 `json:"controls"`
	MaxControls int64   `json:"max_controls"`
	// SmallCell: kernels with fewer machines are judged together.
	SmallCell int64 `json:"small_cell"`
	// AccountShare of the evidence, and of the failures, may be one account's.
	// In a unit with n accounts it is at least 2/n.
	AccountShare float64 `json:"account_share"`
	// SoftShare of soft failures among at least SoftMin outcomes holds a stage.
	SoftShare float64 `json:"soft_share"`
	SoftMin   int64   `json:"soft_min"`
	// AtOnce lets every tier have the patch as soon as there is a machine, with no limit
	// and no controls. Tests B, C and D still halt. It is for laboratories.
	AtOnce bool `json:"at_once,omitempty"`
	// Dwell is the age at which a stage is judged by those who came; Absent
	// that at which one is passed over to which nobody did.
	Dwell  time.Duration `json:"dwell"`
	Absent time.Duration `json:"absent"`
}

// TimeParams are the constants of a trial, in whole seconds.
type TimeParams struct {
	Heartbeats []time.Duration `json:"heartbeats"` // ages at which one is due; then hourly
	Grace      time.Duration   `json:"grace"`      // least time that a heartbeat may be late
	GraceShare float64         `json:"grace_share"`
	// Early is the age up to which silence counts in test C.
	Early time.Duration `json:"early"`
	// Soak is the age at which a sign of life matures a trial, Watch that at
	// which a trial is closed.
	Soak  time.Duration `json:"soak"`
	Watch time.Duration `json:"watch"`
	// Crash is the age up to which a crash on trial counts in test D, Blame how long
	// a machine that fell silent may take to say that it was one.
	Crash time.Duration `json:"crash"`
	Blame time.Duration `json:"blame"`
	// Offer is how long a machine that was let in may take to begin.
	Offer time.Duration `json:"offer"`
	// Batch is how long trials are put into the same batch.
	Batch time.Duration `json:"batch"`
	// Gap between two batches of events means that this program was not
	// running, and what fell silent meanwhile has Patience to report.
	Gap      time.Duration `json:"gap"`
	Patience time.Duration `json:"patience"`
}

// Defaults returns the constants of the rule as it was simulated.
func Defaults() Params {
	return Params{
		Halt: HaltParams{
			Alpha: 0.0005, Units: 21, Risks: [4]float64{2, 5, 20, 100},
			TripAlpha: 0.001, TripBeta: 0.05, TripFloor: 0.003, TripFactor: 10, TripControls: 30,
			SilentMin: 5, SilentShare: 0.2, SilentControls: 20, ControlShare: 0.05,
			Signatures: 2, Siblings: 2, CrashOne: 50, CrashTwo: 1000,
		},
		Pace: PaceParams{
			Dead: 30, Confidence: 0.95, Pending: 0.02, Excess: 0.05, Carry: 0.1, Dark: 6,
			FirstShare: 1. / 3, Holdback: 0.05, Controls: 4, MaxControls: 20_000,
			SmallCell: 150, AccountShare: 0.05, SoftShare: 0.2, SoftMin: 10,
			Dwell: 3 * time.Hour, Absent: 24 * time.Hour,
		},
		Time: TimeParams{
			Heartbeats: []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour},
			Grace:      time.Minute, GraceShare: 0.2, Early: 15 * time.Minute,
			Crash: 5 * time.Minute, Blame: 7 * 24 * time.Hour,
			Soak: time.Hour, Watch: 6 * time.Hour, Offer: 10 * time.Minute, Batch: time.Hour,
			Gap: 2 * time.Minute, Patience: 15 * time.Minute,
		},
	}
}

// Validate returns an error unless every constant is in the range for which the
// rule was written.
func (p Params) Validate() error {
	checks := []struct {
		name string
		ok   bool
	}{
		{"halt.alpha", open(p.Halt.Alpha)}, {"halt.units", p.Halt.Units > 0},
		{"halt.risks", validRisks(p.Halt.Risks)},
		{"halt.trip_alpha", open(p.Halt.TripAlpha)}, {"halt.trip_beta", open(p.Halt.TripBeta)},
		{"halt.trip_floor", open(p.Halt.TripFloor)}, {"halt.trip_factor", p.Halt.TripFactor > 1},
		{"halt.background", p.Halt.Background >= 0 && p.Halt.Background < 1},
		{"halt.silent_min", p.Halt.SilentMin > 0}, {"halt.silent_share", open(p.Halt.SilentShare)},
		{"halt.silent_controls", p.Halt.SilentControls > 0}, {"halt.control_share", open(p.Halt.ControlShare)},
		{"halt.signatures", p.Halt.Signatures > 0}, {"halt.siblings", p.Halt.Siblings > 0},
		{"halt.crash_one", p.Halt.CrashOne >= 0}, {"halt.crash_two", p.Halt.CrashTwo >= p.Halt.CrashOne},
		{"pace.dead", p.Pace.Dead >= 1 && p.Pace.Dead < 1e9}, {"pace.confidence", open(p.Pace.Confidence)},
		{"pace.pending", open(p.Pace.Pending)}, {"pace.excess", open(p.Pace.Excess)}, {"pace.carry", p.Pace.Carry >= 0 && p.Pace.Carry <= 1},
		{"pace.dark", p.Pace.Dark >= 1}, {"pace.first_share", open(p.Pace.FirstShare)},
		{"pace.holdback", p.Pace.Holdback >= 0 && p.Pace.Holdback < 0.5}, {"pace.controls", p.Pace.Controls >= 0 && p.Pace.Controls < 1e6},
		{"pace.max_controls", p.Pace.MaxControls >= 0}, {"pace.small_cell", p.Pace.SmallCell >= 0},
		{"pace.account_share", p.Pace.AccountShare > 0 && p.Pace.AccountShare <= 1},
		{"pace.soft_share", open(p.Pace.SoftShare)}, {"pace.soft_min", p.Pace.SoftMin > 0},
		{"pace.dwell", p.Pace.Dwell >= 0}, {"pace.absent", p.Pace.Absent >= time.Second},
	}
	for _, c := range checks {
		if !c.ok {
			return fmt.Errorf("cannot use the constants of the rule: %s is out of range", c.name)
		}
	}
	return p.Time.validate()
}

// A trial counts its deadlines in a byte.
const (
	maxWatch      = 200 * time.Hour
	maxHeartbeats = 50
)

func (p TimeParams) validate() error {
	last := time.Duration(0)
	for _, h := range p.Heartbeats {
		if h <= last || h%time.Second != 0 || h > 1000*time.Hour {
			return fmt.Errorf("cannot use the constants of the rule: heartbeats are not ascending whole seconds: %v", p.Heartbeats)
		}
		last = h
	}
	if last == 0 || p.Early < p.Heartbeats[0] || p.Soak < p.Heartbeats[0] || p.Watch < p.Soak || p.Watch > maxWatch || len(p.Heartbeats) > maxHeartbeats {
		return fmt.Errorf("cannot use the constants of the rule: want first heartbeat <= soak <= watch, have %v, %v, %v", p.Heartbeats, p.Soak, p.Watch)
	}
	for _, d := range []time.Duration{p.Grace, p.Early, p.Crash, p.Blame, p.Soak, p.Watch, p.Offer, p.Batch, p.Gap, p.Patience} {
		if d < time.Second || d%time.Second != 0 || d > 1000*time.Hour {
			return fmt.Errorf("cannot use the constants of the rule: %v is not a number of whole seconds", d)
		}
	}
	if p.GraceShare < 0 || p.GraceShare > 1 || math.IsNaN(p.GraceShare) {
		return fmt.Errorf("cannot use the constants of the rule: time.grace_share is out of range")
	}
	return nil
}

// open tells whether p is a probability that is neither 0 nor 1.
func open(p float64) bool { return p > 0 && p < 1 }

func validRisks(risks [4]float64) bool {
	for _, r := range risks {
		if !(r > 1 && r <= 1e6) {
			return false
		}
	}
	return true
}

// alpha returns the share of Alpha that the i-th process gets.
func (h HaltParams) alpha(i int) float64 {
	block := float64(i / h.Units)
	return h.Alpha * 0.8 * math.Pow(0.2, block) / float64(h.Units)
}
