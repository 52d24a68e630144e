package store

import (
	"context"
	"time"

	"livepatch/server/internal/rollout"
)

// A RequestKind says what a person asks for.
type RequestKind string

// The kinds of requests.
const (
	// RequestPromote: let units that are done with the tier before Tier into Tier.
	RequestPromote RequestKind = "promote"
	// RequestResume: let a unit that the rule has halted go on. It has two people.
	RequestResume RequestKind = "resume"
	// RequestRelease: let a unit go on although a sibling is halted.
	RequestRelease RequestKind = "release"
	// RequestProposal: one person's half of a resumption, of a unit or, where Unit is
	// "", of a rollout that people have halted. It is never handed to the rule.
	RequestProposal RequestKind = "propose-resume"
)

// A Person is who ran livepatch-admin.
type Person struct {
	// Account is how it is shown: "root (uid 0), logged in as alice (uid 1000)".
	Account string
	// ID is whom it counts as, the login whatever it became since: "uid 1000"; or the
	// user, if no login led to the command: "uid 0, no login".
	ID string
}

// A Request is what a person asks the rule for.
type Request struct {
	ID              int64
	At              time.Time
	Kind            RequestKind
	Vendor, Version string
	Unit            string // "" for all that the kind fits
	Tier            string // of RequestPromote
	By              Person
	Reason          string
	// Proposal is the ID of the request that this one seconds, and First who made
	// that; 0 and nobody if it seconds none.
	Proposal int64
	First    Person

	Taken   time.Time // zero: it waits
	Done    bool      // it was granted
	Outcome string    // in words, once it is taken
}

// People returns the IDs of the people who stand behind the request, as an event of
// the rule names them.
func (r Request) People() []string {
	if r.Proposal == 0 {
		return []string{r.By.ID}
	}
	return []string{r.First.ID, r.By.ID}
}

// Who returns the accounts that stand behind the request, for people to read.
func (r Request) Who() string {
	if r.Proposal == 0 {
		return r.By.Account
	}
	return r.First.Account + " and " + r.By.Account
}

// A Withdrawal is the revocation of a halted patch, which goes through shares of
// the machines. The zero Withdrawal is none.
type Withdrawal struct {
	Share int64         // parts per million that give it up; 0: there is no revocation
	Salt  string        // makes each begin with other machines
	Pause time.Duration // from one share to the next
	Began time.Time     // with the first share
	Since time.Time     // when this share began
	// Excused is how many machines may have gone down after they gave the patch up:
	// a person has looked at them.
	Excused int64
	Held    string // why it waits for a person; "" if it does not
}

// Stages are how far the rule has come with a patch.
type Stages struct {
	Vendor  string    `json:"vendor"`
	Version string    `json:"version"`
	At      time.Time `json:"at"` // of the rule's last step
	Stages  []Stage   `json:"stages"`
}

// A Stage is how far a unit has come in one tier.
type Stage struct {
	Unit      string         `json:"unit"`
	Source    string         `json:"source"`
	Tier      string         `json:"tier"`
	Cells     []string       `json:"cells"`
	Halted    rollout.Reason `json:"halted,omitempty"`
	Current   bool           `json:"current"`  // the tier that is being widened
	Everyone  bool           `json:"everyone"` // the tier has it
	Share     int64          `json:"share"`    // parts per million
	Machines  int64          `json:"machines"`
	Exposed   int64          `json:"exposed"`
	Pending   int64          `json:"pending"`
	Soft      int64          `json:"soft"`    // of those exposed: it did not go in, or was taken out
	Treated   rollout.Tally  `json:"treated"` // matured evidence
	Control   rollout.Tally  `json:"control"`
	Action    rollout.Action `json:"action"` // the last verdict on the unit
	Reason    rollout.Reason `json:"reason"`
	VerdictAt time.Time      `json:"verdict_at,omitzero"`
}

// NewStage says in the words of the store what the rule says of a stage. decided is
// when its last verdict was made.
func NewStage(s rollout.Stage, decided time.Time) Stage {
	return Stage{
		Unit: s.Unit, Source: s.Source, Tier: s.Tier, Cells: s.Cells, Halted: s.Halted, Current: s.Current,
		Everyone: s.Everyone, Share: s.Share, Machines: s.Machines, Exposed: s.Exposed, Pending: s.Pending, Soft: s.Soft,
		Treated: s.Treated, Control: s.Control, Action: s.Last.Action, Reason: s.Last.Reason, VerdictAt: decided,
	}
}

// A StoredVerdict is a decision of the rule.
type StoredVerdict struct {
	Vendor, Version string
	rollout.Decision
}

// A Notice is something to be told to the webhook.
type Notice struct {
	ID       string // the same however often it is sent
	At       time.Time
	Kind     string
	Body     []byte // JSON
	Attempts int64
	Next     time.Time // not to be tried before
	Ended    time.Time // zero: it is to be sent
	Sent     bool      // the other side took it
	Failure  string    // of the last attempt
}

// People is the part of a [Tx] that keeps what people ask for and are told.
type People interface {
	// AddRequest keeps a request and returns its ID. A proposal that was seconded
	// before is an error.
	AddRequest(ctx context.Context, r Request) (id int64, err error)
	// Requests returns those that wait for the rule, in their order. Proposals do not.
	Requests(ctx context.Context) ([]Request, error)
	// TakeRequest says, once, what became of a request. It returns [ErrNotFound] if it
	// does not wait.
	TakeRequest(ctx context.Context, id int64, at time.Time, done bool, outcome string) error
	// Request returns a request, or [ErrNotFound].
	Request(ctx context.Context, id int64) (Request, error)
	// RequestLog returns all requests, proposals among them, in their order.
	RequestLog(ctx context.Context) ([]Request, error)
	// Proposals returns those of a rollout that nobody has seconded, newest first.
	Proposals(ctx context.Context, vendor, version, unit string) ([]Request, error)

	// PutStages replaces what is known of how far a rollout has come.
	PutStages(ctx context.Context, s Stages) error
	// Stages returns it, or [ErrNotFound] if the rule has not looked at it yet.
	Stages(ctx context.Context, vendor, version string) (Stages, error)
	// AllVerdicts returns the decisions of the rule about all rollouts, oldest first.
	AllVerdicts(ctx context.Context) ([]StoredVerdict, error)

	// SetWithdrawal replaces the state of a revocation. It counts no epoch: a change of
	// the share comes with a decision, by SetRollout.
	SetWithdrawal(ctx context.Context, vendor, version string, w Withdrawal) error
	// GaveUp counts the machines that said since a time that they gave up a version.
	GaveUp(ctx context.Context, version string, since time.Time) (machines int64, err error)
	// Crashed counts the machines that went down after such a report: a crash, an oops, an
	// unclean boot.
	Crashed(ctx context.Context, version string, since time.Time) (machines int64, err error)

	// AddNotice keeps a notice for the webhook.
	AddNotice(ctx context.Context, n Notice) error
	// Notice returns a notice, or [ErrNotFound].
	Notice(ctx context.Context, id string) (Notice, error)
}
