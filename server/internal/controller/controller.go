package controller

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/ops"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
)

const (
	// beat is how long a leader waits for something to happen.
	beat = time.Second
	// pause between two rounds lets more reports come together in one.
	pause = 20 * time.Millisecond
	// retry is how long to wait after a round has failed.
	retry = time.Second
	// maxReports bounds the commits of reports that a round takes.
	maxReports = 64
	// patience is how long a check-in waits for its answer.
	patience = 3 * time.Second
	// lately is how long ago a machine may have checked in that counts as one of the
	// fleet.
	lately = 25 * time.Hour
)

// database is implemented by package sqlite.
type database interface {
	Lead(ctx context.Context, name string) (term int64, err error)
	Counters(ctx context.Context) (store.State, error)
	Rollouts(ctx context.Context) ([]store.Rollout, error)
	Coverage(ctx context.Context) ([]store.Coverage, error)
	Population(ctx context.Context, since time.Time) ([]store.Population, error)
	Taken(ctx context.Context) (int64, error)
	Reports(ctx context.Context, seq int64, limit int) ([]store.Reports, error)
	RuleState(ctx context.Context, k store.Key) (store.RuleState, []store.Step, error)
	Update(ctx context.Context, fn func(store.Tx) error) error
	View(ctx context.Context, fn func(store.Tx) error) error
	Answer(ctx context.Context, id string) (store.Answer, error)
}

// Config is what a controller is made of. All fields are needed.
type Config struct {
	Log    *slog.Logger
	DB     database
	Params rollout.Params
	Tiers  []rollout.Tier
	// SignFiles signs what a round has decided; it is called after each that has let a
	// rollout come further, or has stopped it.
	SignFiles func(context.Context) error
	Now       func() time.Time
	Metrics   *ops.Metrics
}

// Tiers returns the tiers of a service as the rule takes them: a patch that has done no
// harm in one goes on to the next, and machines that are not to be canaries get it in
// three steps.
func Tiers() []rollout.Tier {
	var tiers []rollout.Tier
	for _, name := range signer.Tiers {
		t := rollout.Tier{Name: name, Auto: true}
		if name == signer.Late {
			t.Ramp = []int64{50_000, 250_000, patch.Everyone}
		}
		tiers = append(tiers, t)
	}
	return tiers
}

// A Controller is safe for concurrent use.
type Controller struct {
	Config
	name string // of this process among those that may lead
	poke chan struct{}
	view atomic.Pointer[view]

	mu      sync.Mutex // guards what follows
	waiting map[string]chan store.Answer
	// watched are machines that may still be under watch, and their arms: each of their
	// check-ins is a sign of life, whatever it says.
	watched map[rollout.Machine]rollout.Arm
	enrols  int64         // machines that enrolled or left since the start
	rounds  chan struct{} // closed at the end of the round that runs, or of the next one

	running sync.Mutex // held by Round; guards what follows
	lead    *lead      // nil: somebody else leads, or nobody
	counted int64      // enrols when the fleet was counted last
}

// New returns a controller.
func New(c Config) (*Controller, error) {
	if err := c.Params.Validate(); err != nil {
		return nil, err
	}
	ctl := &Controller{
		Config: c, name: rand.Text(), poke: make(chan struct{}, 1),
		waiting: map[string]chan store.Answer{}, watched: map[rollout.Machine]rollout.Arm{}, rounds: make(chan struct{}),
	}
	ctl.view.Store(&view{})
	return ctl, nil
}

// Run makes rounds until ctx is done: at once when something was reported, and each
// second.
func (c *Controller) Run(ctx context.Context) {
	for {
		wait := beat
		if err := c.Round(ctx); err != nil && ctx.Err() == nil {
			c.Log.ErrorContext(ctx, "Cannot run the rule", "retry_in", retry, "err", err)
			wait = retry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return
		case <-c.poke:
		case <-time.After(wait):
		}
	}
}

// Poke asks for a round soon.
func (c *Controller) Poke() {
	select {
	case c.poke <- struct{}{}:
	default: // there will be one
	}
}

// Stages returns how far the rollouts have come, nothing if another process knows. It
// waits for the round that runs.
func (c *Controller) Stages() (stages []ops.RolloutStage) {
	c.running.Lock()
	defer c.running.Unlock()
	if c.lead == nil {
		return nil
	}
	for _, k := range c.lead.order {
		for _, s := range c.lead.processes[k].stages() {
			stages = append(stages, ops.RolloutStage{Vendor: k.Vendor, Version: k.Version, Stage: s})
		}
	}
	return stages
}

// Leads tells whether this process runs the rule.
func (c *Controller) Leads() bool { return c.view.Load().leads }

// Round takes everything that there is to take. It does nothing while another process
// leads.
func (c *Controller) Round(ctx context.Context) error {
	c.running.Lock()
	defer c.running.Unlock()
	defer c.ended()
	if c.lead == nil {
		if err := c.takeLead(ctx); err != nil {
			return err
		}
	}
	if c.lead == nil {
		return c.follow(ctx)
	}
	spread, err := c.lead.round(ctx)
	if err != nil {
		// What is in memory may be ahead of the database: begin from there again.
		c.lead = nil
		c.view.Store(&view{})
		return err
	}
	if !spread {
		return nil
	}
	return c.SignFiles(ctx)
}

// takeLead becomes the leader if nobody is.
func (c *Controller) takeLead(ctx context.Context) error {
	term, err := c.DB.Lead(ctx, c.name)
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := newLead(ctx, c, term)
	if err != nil {
		return err
	}
	c.Log.InfoContext(ctx, "Running the rule of rollouts", "term", term, "rollouts", len(l.processes))
	c.lead = l
	c.view.Store(l.look()) // the first round may find nothing to do
	return nil
}

// follow looks whether there is anything to report to the process that leads.
func (c *Controller) follow(ctx context.Context) error {
	rollouts, err := c.DB.Rollouts(ctx)
	if err != nil {
		return err
	}
	c.view.Store(&view{follows: len(rollouts) > 0})
	return nil
}

// ended wakes those who wait for a round.
func (c *Controller) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.rounds)
	c.rounds = make(chan struct{})
}

// Enrolled says that a machine has enrolled or left, and waits a little for the rule to
// know: a machine that has just enrolled is to find its patch at once.
func (c *Controller) Enrolled(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.mu.Lock()
	c.enrols++
	c.mu.Unlock()
	// The round that runs may have counted already; the one after it has not.
	for range 2 {
		c.mu.Lock()
		ended := c.rounds
		c.mu.Unlock()
		c.Poke()
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}
