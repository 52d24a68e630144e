// Package inprocess is the service for the simulator in tests/sim: in its process, and
// on its clock. [Service] is all of it; [Rule] is the rule alone, for thousands of
// runs. Production code must not import it.
package inprocess

import (
	"context"
	"fmt"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/controller"
	"livepatch/server/internal/rollout"
)

// What the rule speaks of, for programs outside of the server.
type (
	// A Decision is what the rule decided, with its evidence.
	Decision = rollout.Decision
	// An Assignment deals machines to the arms of a stage.
	Assignment = rollout.Assignment
	// An Arm says what a stage does with a machine.
	Arm = rollout.Arm
	// An ID names a machine.
	ID = rollout.Machine
)

// The arms.
const (
	Outside = rollout.Outside
	Treated = rollout.Treated
	Control = rollout.Control
)

// The actions of a decision.
const (
	Hold     = rollout.Hold
	Advance  = rollout.Advance
	Promote  = rollout.Promote
	Complete = rollout.Complete
	Halt     = rollout.Halt
)

// Failing is why a unit waits for a person: it looks as if the patch did harm.
const Failing = rollout.Failing

// Version is that of the one patch that is rolled out.
const Version = "1.1"

// A Machine is an enrolled machine.
type Machine struct {
	ID      ID
	Kernel  patch.Kernel
	Tier    string
	Account string
	Token   string // of the machine
}

// A Population is how many machines of how many accounts a kernel has in a tier.
type Population struct {
	Kernel             patch.Kernel
	Tier               string
	Machines, Accounts int64
}

// A Rule is the rule behind the words of the service: no HTTP, no database, no
// signatures.
type Rule struct {
	now        func() time.Time
	salt       string
	rule       *rollout.Rollout
	signed     patch.Rollout
	generation int64
	made       []Decision
}

// NewRule begins a rollout to a fleet.
func NewRule(now func() time.Time, salt string, fleet []Population) (*Rule, error) {
	rule, err := rollout.New(rollout.Defaults(), salt, controller.Tiers())
	if err != nil {
		return nil, err
	}
	r := &Rule{now: now, salt: salt, rule: rule}
	var events []rollout.Event
	for _, p := range fleet {
		events = append(events, rollout.Event{
			Kind: rollout.Population, Cell: p.Kernel.Cell(), Source: Version, Tier: p.Tier, Machines: p.Machines, Accounts: p.Accounts,
		})
	}
	return r, r.step(events...)
}

// step tells the rule what happened now.
func (r *Rule) step(events ...rollout.Event) error {
	made, err := r.rule.Step(r.now(), events)
	if err != nil {
		return fmt.Errorf("cannot step rule: %w", err)
	}
	r.made = append(r.made, made...)
	if len(made) > 0 {
		r.sign()
	}
	return nil
}

// sign writes down how far the patch has come, as the service would sign it.
func (r *Rule) sign() {
	r.generation++
	r.signed = patch.Rollout{State: patch.Running, Tiers: map[string]patch.Stage{}, Kernels: map[string]patch.RolloutState{}}
	spreads := map[string]*patch.Spread{}
	for _, s := range r.rule.Stages() {
		r.signed.Tiers[s.Tier] = patch.Stage{Salt: r.salt}
		if spreads[s.Unit] == nil {
			spreads[s.Unit] = &patch.Spread{Kernels: s.Cells, Shares: map[string]int64{}}
		}
		spreads[s.Unit].Shares[s.Tier] = s.Share
		for _, cell := range s.Cells {
			if s.Halted != "" {
				r.signed.Kernels[cell] = patch.Halted
			}
		}
	}
	for _, s := range spreads {
		r.signed.Spreads = append(r.signed.Spreads, *s)
	}
}

// CheckIn takes the reports of some machines, one after the other.
func (r *Rule) CheckIn(_ context.Context, from []Machine, say []service.CheckIn) ([]service.CheckInAnswer, error) {
	answers := make([]service.CheckInAnswer, len(from))
	for i, m := range from {
		var err error
		if answers[i], err = r.checkIn(m, say[i]); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (r *Rule) checkIn(m Machine, c service.CheckIn) (service.CheckInAnswer, error) {
	answer := service.CheckInAnswer{IntervalSeconds: 3600, Tier: m.Tier}
	for _, e := range c.Events {
		if e.Kind == service.Intent {
			continue
		}
		if err := r.step(event(m, e)); err != nil {
			return answer, err
		}
	}
	if err := r.step(rollout.Event{Kind: rollout.Alive, Machine: m.ID}); err != nil {
		return answer, err
	}
	for _, e := range c.Events {
		if err := r.ask(m, e, &answer); err != nil {
			return answer, err
		}
	}
	if err := r.deal(m); err != nil {
		return answer, err
	}
	if wait, ok := r.rule.Next(m.ID, r.now()); ok {
		answer.IntervalSeconds = min(answer.IntervalSeconds, wait)
	}
	answer.Generation = r.generation
	return answer, nil
}

// ask lets a machine begin that wants to, if there is room.
func (r *Rule) ask(m Machine, e service.Event, answer *service.CheckInAnswer) error {
	cell := m.Kernel.Cell()
	switch {
	case e.Kind != service.Intent:
		return nil
	case r.rule.Assignment(cell, m.Tier).Arm(m.ID) != Treated, r.rule.Room(cell, m.Tier) <= 0:
		answer.IntervalSeconds = 60
		return nil
	}
	answer.Go = append(answer.Go, e.Version)
	return r.step(trial(rollout.Intent, m))
}

// deal makes a machine a control if one is wanted.
func (r *Rule) deal(m Machine) error {
	cell := m.Kernel.Cell()
	if r.rule.ShamRoom(cell, m.Tier) <= 0 || r.rule.Assignment(cell, m.Tier).Arm(m.ID) != Control {
		return nil
	}
	return r.step(trial(rollout.Sham, m))
}

func trial(k rollout.Kind, m Machine) rollout.Event {
	return rollout.Event{Kind: k, Machine: m.ID, Cell: m.Kernel.Cell(), Tier: m.Tier, Account: m.Account}
}

// event is what the rule hears of something that happened to a machine.
func event(m Machine, e service.Event) rollout.Event {
	switch e.Kind {
	case service.Failed:
		return rollout.Event{Kind: rollout.Soft, Machine: m.ID}
	case service.Removed:
		return rollout.Event{Kind: rollout.Left, Machine: m.ID}
	case service.Crashed:
		out := trial(rollout.Failed, m)
		out.Failure, out.Signature = rollout.OpenJournal, e.Signature
		if e.Reason == service.ReasonOops {
			out.Failure = rollout.Oops
		}
		return out
	case service.Booted:
		if e.Reason == service.ReasonUnclean {
			out := trial(rollout.Failed, m)
			out.Failure = rollout.UncleanReboot
			return out
		}
		return rollout.Event{Kind: rollout.Left, Machine: m.ID}
	case service.Intent, service.Applied, service.Heartbeat:
	}
	return rollout.Event{Kind: rollout.Alive, Machine: m.ID}
}

// Round lets time pass, and returns what was decided since the last one.
func (r *Rule) Round(context.Context) ([]Decision, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	made := r.made
	r.made = nil
	return made, nil
}

// Signed returns how far the patch may spread.
func (r *Rule) Signed(context.Context) (patch.Rollout, error) { return r.signed, nil }

// Assignment returns how the machines of a kernel and tier are dealt now.
func (r *Rule) Assignment(_ context.Context, k patch.Kernel, tier string) (Assignment, error) {
	return r.rule.Assignment(k.Cell(), tier), nil
}

// Close ends it.
func (r *Rule) Close() error { return nil }
