package inprocess

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"livepatch/server/internal/api"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// maxCrowd is how many machines check in at once.
const maxCrowd = 128

// A crowd is machines that check in at one moment. It tells when each of them either
// has its answer or waits for the rule: then a round is made for all, and what comes
// out does not depend on who was faster.
type crowd struct {
	mu       sync.Mutex
	changed  *sync.Cond
	of, done int
	waiting  int
}

func (c *crowd) gather(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = sync.NewCond(&c.mu)
	}
	c.of, c.done, c.waiting = n, 0, 0
}

// waits says that one more waits for the rule.
func (c *crowd) waits() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting++; c.changed != nil {
		c.changed.Signal()
	}
}

// answered says that nobody waits any more.
func (c *crowd) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = 0
}

// served says that one more has its answer.
func (c *crowd) served() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	c.changed.Signal()
}

// settled waits until everybody has an answer, and returns true, or some wait for
// the rule.
func (c *crowd) settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.done+c.waiting < c.of {
		c.changed.Wait()
	}
	return c.done == c.of
}

// attentive tells a crowd who waits for the rule.
type attentive struct {
	api.Rule
	crowd *crowd
}

// Await implements [api.Rule].
func (a attentive) Await(ctx context.Context, s *store.Sign) store.Answer {
	if s != nil && s.ID != "" {
		a.crowd.waits()
	}
	return a.Rule.Await(ctx, s)
}

// unhurried is a database that hands reports to the rule in the order of their machines,
// for those of one moment have none of their own; and that counts the fleet once in some
// hours, for a minute of the simulation is over soon, and nobody enrols in it.
type unhurried struct {
	*sqlite.DB
	counted *count
}

// A count is what the fleet was at a time.
type count struct {
	since time.Time
	fleet []store.Population
}

// Reports returns all that there are, as one.
func (u unhurried) Reports(ctx context.Context, seq int64, _ int) ([]store.Reports, error) {
	const all = 1 << 20
	reports, err := u.DB.Reports(ctx, seq, all)
	if err != nil || len(reports) == 0 {
		return nil, err
	}
	one := store.Reports{Seq: reports[len(reports)-1].Seq}
	for _, r := range reports {
		one.Signs = append(one.Signs, r.Signs...)
	}
	slices.SortStableFunc(one.Signs, func(a, b store.Sign) int { return cmp.Compare(a.Machine, b.Machine) })
	return []store.Reports{one}, nil
}

// Population returns how large the fleet was not long ago.
func (u unhurried) Population(ctx context.Context, since time.Time) (fleet []store.Population, err error) {
	if since.Sub(u.counted.since) < often {
		return u.counted.fleet, nil
	}
	fleet, err = u.DB.Population(ctx, since)
	if err == nil {
		*u.counted = count{since, fleet}
	}
	return fleet, err
}
