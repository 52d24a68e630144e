package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// quiet is a healthy fleet, small enough for thousands of runs. It loses machines, and has a
// night, because nothing else can make a healthy patch look ill.
func quiet(run int) scenario {
	s := scenario{
		Name: "healthy", About: "The patch is well.", Machines: 3000, Kernels: 3, Loss: 0.003, Limit: 60 * time.Hour,
		Tiers: []tier{{"edge", 0.1, 100}, {"stable", 0.9, 500}},
	}
	if run%2 == 1 {
		s.Loss = 0.01
	}
	if run%4 >= 2 {
		s.Night = absence{At: 5 * time.Hour, For: 9 * time.Hour, Share: 0.5}
	}
	return s
}

// countFalseHalts runs healthy fleets under the rule alone and counts those with a
// halted unit. It is a fault if there are more than chance allows of 0.1 %.
func countFalseHalts(ctx context.Context, o options) (section, error, error) {
	var mu sync.Mutex
	halted, covered := 0, 0
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for n := range o.healthy {
		group.Go(func() error {
			r, err := simulate(ctx, quiet(n), o.seed+uint64(n), ruleOnly)
			mu.Lock()
			defer mu.Unlock()
			if r.ours.halted > 0 {
				halted++
			}
			if r.ours.covered > 0 {
				covered++
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return section{}, nil, err
	}
	s := section{"False halts", fmt.Sprintf(
		"%d of %d healthy fleets of 3 000 machines had a halted kernel; with 95 %% confidence that is at most %.2f %%. %d came to 95 %% of their machines within 60 hours.\n"+
			"Half of the fleets lose 0.3 %% of their machines an hour, half 1 %%; half of each are shut down by half for a night. Under the rule alone.\n",
		halted, o.healthy, 100*upperLimit(halted, o.healthy), covered)}
	if lowerLimit(halted, o.healthy) > 0.001 {
		return s, fmt.Errorf("false halts: %d of %d healthy fleets", halted, o.healthy), nil
	}
	return s, nil, nil
}
