package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/withdraw"
)

// This file brings what people ask for to the rule, and what the rule decides to people.

// An outcome is what became of a request.
type outcome struct {
	store.Request
	done bool
	text string
}

// hear takes the requests that wait.
func (r *round) hear(ctx context.Context) error {
	var requests []store.Request
	err := r.DB.View(ctx, func(tx store.Tx) (err error) {
		requests, err = tx.Requests(ctx)
		return err
	})
	for _, q := range requests {
		done, text := r.grant(q)
		r.outcomes = append(r.outcomes, outcome{q, done, text})
	}
	return err
}

// grant tells the rule of a request, and says what that does.
func (r *round) grant(q store.Request) (done bool, text string) {
	p := r.processes[store.Key{Vendor: q.Vendor, Version: q.Version}]
	if p == nil {
		return false, fmt.Sprintf("there is no rollout of %s %s", q.Vendor, q.Version)
	}
	var units, others []string
	for _, u := range p.units() {
		if q.Unit != "" && u.name != q.Unit {
			continue
		}
		if why := u.refuses(q, r.Tiers); why != "" {
			others = append(others, u.name+" "+why)
			continue
		}
		units = append(units, u.name)
		r.add(p, rollout.Event{Kind: kinds[q.Kind], Unit: u.name, By: q.People()})
	}
	switch {
	case len(units) == 0 && len(others) == 0:
		return false, "no machine that has checked in runs such a kernel"
	case len(units) == 0:
		return false, strings.Join(others, "; ")
	}
	return true, strings.Join(append([]string{strings.Join(units, ", ")}, others...), "; but ")
}

var kinds = map[store.RequestKind]rollout.Kind{
	store.RequestPromote: rollout.Promoted, store.RequestResume: rollout.Resumed, store.RequestRelease: rollout.Released,
}

// A unit is what the rule judges, and where it stands.
type unit struct {
	name   string
	tier   string // the one that is being widened; "" when it has gone through all
	halted bool
}

func (p *process) units() (units []unit) {
	for _, s := range p.rule.Stages() {
		i := slices.IndexFunc(units, func(u unit) bool { return u.name == s.Unit })
		if i < 0 {
			i = len(units)
			units = append(units, unit{name: s.Unit, halted: s.Halted != ""})
		}
		if s.Current {
			units[i].tier = s.Tier
		}
	}
	return units
}

// refuses returns why a request is not for the unit, or "".
func (u unit) refuses(q store.Request, tiers []rollout.Tier) string {
	switch {
	case q.Kind == store.RequestResume && !u.halted:
		return "is not halted"
	case q.Kind != store.RequestResume && u.halted:
		return "is halted: it has to be resumed first"
	case q.Kind != store.RequestPromote:
		return ""
	}
	at := slices.IndexFunc(tiers, func(t rollout.Tier) bool { return t.Name == u.tier })
	want := slices.IndexFunc(tiers, func(t rollout.Tier) bool { return t.Name == q.Tier })
	switch {
	case u.tier == "" || at >= want:
		return "has come there already"
	case at < want-1:
		return "is still in " + u.tier
	}
	return ""
}

// commit keeps everything of a round, and tells whether something has to be signed.
func (r *round) commit(ctx context.Context, out store.Round) (sign bool, err error) {
	err = r.DB.Update(ctx, func(tx store.Tx) error {
		sign = len(out.Spreads) > 0
		if err := tx.PutRound(ctx, out); err != nil {
			return err
		}
		for _, o := range r.outcomes {
			if err := tx.TakeRequest(ctx, o.ID, r.now, o.done, o.text); err != nil {
				return err
			}
			if !o.done {
				continue
			}
			if err := notify.Taken(ctx, tx, o.Request, r.now, o.text); err != nil {
				return err
			}
		}
		if err := r.tellPeople(ctx, tx); err != nil {
			return err
		}
		withdrawn, err := r.withdraw(ctx, tx)
		sign = sign || withdrawn
		return err
	})
	return sign, err
}

// tellPeople keeps what people want to know.
func (r *round) tellPeople(ctx context.Context, tx store.Tx) error {
	for _, d := range r.decisions {
		if err := notify.Verdict(ctx, tx, d.Vendor, d.Version, d.Decision); err != nil {
			return err
		}
	}
	for _, p := range r.stepped {
		if !p.shows(r.now, len(r.decisions) > 0) {
			continue
		}
		if err := tx.PutStages(ctx, store.Stages{
			Vendor: p.key.Vendor, Version: p.key.Version, At: r.now, Stages: p.stages(),
		}); err != nil {
			return err
		}
	}
	return nil
}

// shows tells whether it is time for people to see how far the rollout has come: of many
// kernels that is some megabytes.
func (p *process) shows(now time.Time, decided bool) bool {
	if !decided && !lapsed(now, p.shown, showEvery) {
		return false
	}
	p.shown = now
	return true
}

// stages returns how far the rollout has come.
func (p *process) stages() (stages []store.Stage) {
	for _, s := range p.rule.Stages() {
		stages = append(stages, store.NewStage(s, p.decided[s.Unit]))
	}
	return stages
}

// tellOutcomes logs what became of requests.
func (r *round) tellOutcomes(ctx context.Context) {
	for _, o := range r.outcomes {
		r.Log.InfoContext(ctx, "Took request about a rollout", "request", o.ID, "kind", string(o.Kind), "vendor", o.Vendor,
			"version", o.Version, "unit", o.Unit, "tier", o.Tier, "asked_by", o.Who(), "reason", o.Reason,
			"granted", o.done, "outcome", o.text)
	}
}

// measure counts what the round has done.
func (r *round) measure() {
	for _, d := range r.decisions {
		r.Metrics.Verdict(d.Verdict.Action)
	}
	if len(r.decisions) > 0 && !r.oldest.IsZero() {
		r.Metrics.Decided(r.Now().Sub(r.oldest))
	}
}

// withdraw brings revocations that go in stages a stage further.
func (r *round) withdraw(ctx context.Context, tx store.Tx) (decided bool, err error) {
	if !r.withdraws {
		return false, nil
	}
	rollouts, err := tx.Rollouts(ctx)
	for _, ro := range rollouts {
		var one bool
		if one, err = withdraw.Advance(ctx, tx, ro, r.now); err != nil {
			return false, err
		}
		decided = decided || one
	}
	return decided, err
}

// withdrawing tells whether a revocation goes on that it is time to look at.
func (r *round) withdrawing() bool {
	if !lapsed(r.now, r.withdrew, time.Second) {
		return false
	}
	for _, p := range r.processes {
		if p.withdraws && p.state == patch.Halted {
			r.withdrew = r.now
			return true
		}
	}
	return false
}
