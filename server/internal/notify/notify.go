// Package notify tells people what was decided about rollouts, by a webhook after the
// Standard Webhooks specification (https://www.standardwebhooks.com). A notice is
// written in the transaction of the decision that it tells of, and sent afterwards,
// again and again until the other side takes it: so it is neither lost nor made up, but
// may come twice, under the same ID.
package notify

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/explain"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// A Kind says what a notice is about.
type Kind string

// The kinds of notices.
const (
	Halted      Kind = "rollout.halted"          // no further machine of the unit, or at all, gets the patch
	Waits       Kind = "rollout.waits"           // the rule will not go on without a person
	Entered     Kind = "rollout.promoted"        // a unit begins with its next tier
	Completed   Kind = "rollout.completed"       // the last tier of a unit has it
	Proposed    Kind = "rollout.resume-proposed" // a second person has to say so
	Resumed     Kind = "rollout.resumed"
	Released    Kind = "rollout.released"        // a unit goes on although a sibling is halted
	Withdrawing Kind = "rollout.withdrawing"     // a share of the machines gives the patch up
	HeldBack    Kind = "rollout.withdrawal-held" // machines that gave it up went down
	Revoked     Kind = "rollout.revoked"         // all machines give it up
	Test        Kind = "webhook.test"
)

// A Message is what is sent, as JSON. It is described in docs/reference/webhook.md.
type Message struct {
	Type      Kind      `json:"type"`
	Timestamp time.Time `json:"timestamp"` // of what it tells of, not of the attempt to send it
	Data      Data      `json:"data"`
}

// Data is what happened. What does not apply is left out.
type Data struct {
	Vendor   string   `json:"vendor,omitempty"`
	Version  string   `json:"version,omitempty"`
	Unit     string   `json:"unit,omitempty"` // "" for all of the rollout
	Kernels  []string `json:"kernels,omitempty"`
	Tier     string   `json:"tier,omitempty"`
	By       string   `json:"by,omitempty"`     // accounts; "rule" for the rule
	Reason   string   `json:"reason,omitempty"` // of the rule, for programs; a person's own words
	Share    int64    `json:"share,omitempty"`  // of machines that give the patch up, in parts per million
	Text     string   `json:"text"`             // one sentence for a person
	NextStep string   `json:"next_step,omitempty"`
	// Decision is the rule's own, with its evidence.
	Decision *rollout.Decision `json:"decision,omitempty"`
}

// adder is implemented by [store.Tx].
type adder interface {
	AddNotice(ctx context.Context, n store.Notice) error
}

func add(ctx context.Context, tx adder, kind Kind, at time.Time, d Data) (id string, err error) {
	at = at.UTC().Truncate(time.Second)
	body, err := json.Marshal(Message{Type: kind, Timestamp: at, Data: d})
	if err != nil {
		return "", fmt.Errorf("cannot write notice: %w", err)
	}
	id = "msg_" + rand.Text()
	return id, tx.AddNotice(ctx, store.Notice{ID: id, At: at, Kind: string(kind), Body: body})
}

// Verdict tells of a decision of the rule, if it is one that people should hear of: of
// the stages that go well they need not.
func Verdict(ctx context.Context, tx adder, vendor, version string, d rollout.Decision) error {
	kind := kindOf(d.Verdict)
	if kind == "" {
		return nil
	}
	_, err := add(ctx, tx, kind, time.Unix(d.At, 0), Data{
		Vendor: vendor, Version: version, Unit: d.Unit, Kernels: d.Cells, Tier: d.Tier, By: "rule",
		Reason: string(d.Verdict.Reason), Text: fmt.Sprintf("%s %s on %s: %s", vendor, version, d.Unit, explain.Verdict(d)),
		NextStep: explain.Next(vendor, version, d), Decision: &d,
	})
	return err
}

func kindOf(v rollout.Verdict) Kind {
	if v.Reason == rollout.NoMachines { // nothing becomes of nobody
		return ""
	}
	switch v.Action {
	case rollout.Halt:
		return Halted
	case rollout.Promote:
		return Entered
	case rollout.Complete:
		return Completed
	case rollout.Hold:
		switch v.Reason {
		case rollout.NeedsPerson, rollout.SiblingHalted, rollout.Failing, rollout.SoftFailures, rollout.NobodyCame, rollout.NoEvidence:
			return Waits
		default: // time will tell
		}
	case rollout.Advance:
	}
	return ""
}

// Decided tells of what a person, or the course of a withdrawal, decided about all of
// a rollout.
func Decided(ctx context.Context, tx adder, d store.Decision) error {
	data := Data{Vendor: d.Vendor, Version: d.Version, By: d.By, Reason: d.Reason, Share: d.Withdraw}
	kind, what := Halted, "no further machine gets it"
	switch {
	case d.State == patch.Revoked:
		kind, what = Revoked, "all machines give it up"
	case d.Withdraw > 0:
		kind, what = Withdrawing, explain.Share(d.Withdraw)+" of the machines give it up"
	case d.State == patch.Running:
		kind, what = Resumed, "it goes on"
	}
	data.Text = sentence(d.Vendor, d.Version, what, d.By, d.Reason)
	_, err := add(ctx, tx, kind, d.At, data)
	return err
}

// Requested tells of a proposal that waits for a second person.
func Requested(ctx context.Context, tx adder, r store.Request) error {
	data := dataOf(r)
	data.Text = sentence(r.Vendor, r.Version, strings.TrimSpace("resuming "+r.Unit)+" is proposed, and takes a second person", r.Who(), r.Reason)
	data.NextStep = strings.TrimSpace(fmt.Sprintf("livepatch-admin rollout resume %s %s %s", r.Vendor, r.Version, r.Unit))
	_, err := add(ctx, tx, Proposed, r.At, data)
	return err
}

// Taken tells of a request that the rule has granted. Promotions are not told of here:
// the verdicts that follow are.
func Taken(ctx context.Context, tx adder, r store.Request, at time.Time, outcome string) error {
	kind, what := Resumed, "goes on"
	switch r.Kind {
	case store.RequestRelease:
		kind, what = Released, "goes on although a sibling is halted"
	case store.RequestResume:
	default:
		return nil
	}
	data := dataOf(r)
	if outcome != r.Unit { // there is more to say
		what += " (" + outcome + ")"
	}
	data.Text = sentence(r.Vendor, r.Version, r.Unit+" "+what, r.Who(), r.Reason)
	_, err := add(ctx, tx, kind, at, data)
	return err
}

// Held tells of a withdrawal that waits for a person.
func Held(ctx context.Context, tx adder, r store.Rollout, at time.Time) error {
	_, err := add(ctx, tx, HeldBack, at, Data{
		Vendor: r.Vendor, Version: r.Version, By: "rule", Reason: r.Withdrawal.Held, Share: r.Withdrawal.Share,
		Text: sentence(r.Vendor, r.Version, "its withdrawal stays at "+explain.Share(r.Withdrawal.Share)+" of the machines",
			"rule", r.Withdrawal.Held),
		NextStep: fmt.Sprintf("livepatch-admin rollout revoke --continue %s %s", r.Vendor, r.Version),
	})
	return err
}

// AddTest adds a notice that says nothing, and returns its ID.
func AddTest(ctx context.Context, tx adder, by string, at time.Time) (id string, err error) {
	return add(ctx, tx, Test, at, Data{By: by, Text: "This is a test by " + by + ". Nothing has happened."})
}

func dataOf(r store.Request) Data {
	return Data{Vendor: r.Vendor, Version: r.Version, Unit: r.Unit, Tier: r.Tier, By: r.Who(), Reason: r.Reason}
}

func sentence(vendor, version, what, by, reason string) string {
	s := fmt.Sprintf("%s %s: %s, by %s", vendor, version, what, by)
	if reason != "" {
		s += ": " + reason
	}
	return s
}
