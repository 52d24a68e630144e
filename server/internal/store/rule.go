package store

import (
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// This file is what the store keeps for the rule that widens and halts rollouts.

// A Sign is what the rule is told of a check-in.
type Sign struct {
	ID       string    `json:"id,omitempty"`     // by which its answer is found; "" if none is waited for
	Server   string    `json:"server,omitempty"` // that waits for the answer
	At       time.Time `json:"at"`               // when it was received
	Machine  string    `json:"machine"`
	Account  int64     `json:"account"` // ID of the auth token
	Tier     string    `json:"tier"`
	Cell     string    `json:"cell"` // as [patch.Kernel.Cell]
	Enrolled time.Time `json:"enrolled"`
	Version  string    `json:"version,omitempty"` // of the patch in force
	Events   []Event   `json:"events,omitempty"`
}

// Gone is the kind of an [Event] that no machine reports: its enrolment has ended.
const Gone service.Kind = "gone"

// An Event is what the rule has to know of a [service.Event].
type Event struct {
	ID        string       `json:"-"` // of the [service.Event]; "" if a machine did not report it
	Kind      service.Kind `json:"kind"`
	Version   string       `json:"version,omitempty"`
	Reason    string       `json:"reason,omitempty"`
	Signature string       `json:"signature,omitempty"`
}

// An Answer is what the rule lets a machine do.
type Answer struct {
	Go []string `json:"go,omitempty"` // patch versions that it may begin with
	// Wait until the next sign of life, in seconds; 0 if it does not matter.
	Wait int64 `json:"wait,omitempty"`
}

// A Key names a rollout.
type Key struct{ Vendor, Version string }

// A Spread is how far the rule has let a rollout come. The zero Spread is that of
// a rollout that it has not looked at: nobody has it.
type Spread struct {
	Tiers   map[string]int64              `json:"tiers,omitempty"`   // parts per million, for kernels that are not named below
	Kernels []patch.Spread                `json:"kernels,omitempty"` // that differ
	States  map[string]patch.RolloutState `json:"states,omitempty"`  // by kernel, where not running
}

// A Population is how many machines have checked in lately.
type Population struct {
	Cell, Tier         string
	Machines, Accounts int64
	Account            int64 // the one that has them, or the first of several
}

// A Coverage says that there is a version of a vendor's patch for a kernel.
type Coverage struct {
	Key
	Cell string
}

// Reports are [Sign]s that were acknowledged together.
type Reports struct {
	Seq   int64
	Signs []Sign
}

// A Step is what the rule was told of a rollout at one instant.
type Step struct {
	Key
	Step   int64
	At     time.Time
	Events []byte // JSON
}

// A RuleState is the state of the rule about a rollout after a step.
type RuleState struct {
	Key
	Step int64
	Body []byte // compressed JSON
}

// A Verdict is a decision of the rule.
type Verdict struct {
	Key
	Seq    int64
	At     time.Time
	Unit   string
	Action string
	Reason string
	Body   []byte // JSON of the decision with its evidence
}

// A Round is everything that the rule has made of reports, requests and time.
type Round struct {
	Term     int64 // of the leader that made it
	Taken    int64 // highest [Reports.Seq] in it
	At       time.Time
	Steps    []Step
	Verdicts []Verdict
	Spreads  map[Key]Spread
	States   []RuleState
	Answers  map[string]Answer // by [Sign.ID], for other servers
}
