package controller

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"livepatch/internal/service"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// A view is what check-ins need to know of the rule. It is never changed, only
// replaced.
type view struct {
	leads   bool // this process runs the rule
	follows bool // another does, and there are rollouts
	// stages are the assignments of the stages that want controls, by cell and tier.
	stages map[lane][]rollout.Assignment
}

// A lane is a kernel in a tier.
type lane struct{ cell, tier string }

// arm tells in which arm of some stage a machine is under watch, or was lately; a machine
// that is to be made a control is one.
func (c *Controller) arm(v *view, s store.Sign) rollout.Arm {
	m, err := rollout.ParseMachine(s.Machine)
	if err != nil {
		return rollout.Outside
	}
	if slices.ContainsFunc(v.stages[lane{s.Cell, s.Tier}], func(a rollout.Assignment) bool { return a.Arm(m) == rollout.Control }) {
		return rollout.Control
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watched[m]
}

// watch remembers that a machine is under watch, or with [rollout.Outside] that it is not
// any more.
func (c *Controller) watch(m rollout.Machine, arm rollout.Arm) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if arm == rollout.Outside {
		delete(c.watched, m)
	} else {
		c.watched[m] = arm
	}
}

// Sign returns what the rule has to know of a check-in, or nil. What it returns has to be
// acknowledged with the check-in, and [Controller.Await] be called after that.
func (c *Controller) Sign(who store.Identity, r store.Report) *store.Sign {
	v := c.view.Load()
	s := store.Sign{
		At: r.At, Machine: who.Machine, Account: who.AuthToken, Tier: who.Tier, Cell: r.Kernel.Cell(), Enrolled: who.Enrolled,
		Server: c.name,
	}
	if r.Patch != nil {
		s.Version = r.Patch.Version
	}
	asks := false
	for _, e := range r.Events {
		s.Events = append(s.Events, store.Event{ID: e.ID, Kind: e.Kind, Version: e.Version, Reason: e.Reason, Signature: e.Signature})
		asks = asks || e.Kind == service.Intent
	}
	switch arm := c.arm(v, s); {
	case asks || v.follows || arm == rollout.Control:
		s.ID = rand.Text()
		c.expect(s.ID)
	case len(s.Events) == 0 && arm != rollout.Treated:
		return nil
	}
	return &s
}

func (c *Controller) expect(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting[id] = make(chan store.Answer, 1)
}

// Forget says that a sign was not acknowledged.
func (c *Controller) Forget(s *store.Sign) {
	if s != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, s.ID)
	}
}

// Await returns the rule's answer to a sign that was acknowledged. Where there is none
// within some seconds, the machine may do nothing, and has to ask again at once: its
// trial may have begun.
func (c *Controller) Await(ctx context.Context, s *store.Sign) store.Answer {
	if s == nil {
		return store.Answer{}
	}
	c.Poke()
	if s.ID == "" {
		return store.Answer{}
	}
	defer c.Forget(s)
	c.mu.Lock()
	answered := c.waiting[s.ID]
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		select {
		case a := <-answered:
			return a
		case <-ctx.Done():
			return store.Answer{Wait: askAtOnce}
		case <-time.After(c.glance()):
			if a, err := c.DB.Answer(ctx, s.ID); err == nil {
				return a
			}
		}
	}
}

// glance is how often to look for an answer of another process.
func (c *Controller) glance() time.Duration {
	if c.Leads() {
		return patience
	}
	return 50 * time.Millisecond
}

// answer gives the answers of a round to those who wait for them in this process.
func (c *Controller) answer(answers map[string]store.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, a := range answers {
		if w := c.waiting[id]; w != nil {
			w <- a // holds one, and is asked once; who waits takes it out of the map
		}
	}
}

// configured tells whether a failure is the configuration of a machine.
func configured(reason string) bool { return strings.HasPrefix(reason, "CONFIG_") }
