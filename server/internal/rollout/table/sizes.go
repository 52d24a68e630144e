package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"livepatch/server/internal/rollout"
)

// The tiers of a server as it comes.
var defaultTiers = []rollout.Tier{
	{Name: "edge", Auto: true}, {Name: "beta", Auto: true}, {Name: "candidate", Auto: true}, {Name: "stable", Auto: true},
	{Name: "late", Ramp: []int64{50_000, 250_000}},
}

// A shape is how the machines of a fleet are spread over tiers and kernels.
type shape struct {
	name     string
	tiers    []float64 // shares
	accounts int
}

var shapes = []shape{
	{"all in stable, one account", []float64{0, 0, 0, 1, 0}, 1},
	{"all in stable, many accounts", []float64{0, 0, 0, 1, 0}, 1000},
	{"1, 4, 10, 80, 5 % in five tiers", []float64{.01, .04, .10, .80, .05}, 1000},
}

// sized is a healthy fleet of so many machines that check in once an hour.
func sized(s shape, machines int, newcomers bool) scenario {
	n := min(10, max(1, machines/2500)) // kernels
	split := make([]int, len(s.tiers))
	left := machines / n
	for i, share := range s.tiers[:len(split)-1] {
		split[i] = int(share * float64(machines/n))
		left -= split[i]
	}
	if s.tiers[len(split)-1] > 0 {
		split[len(split)-1] = left
	} else {
		split[3] += left
	}
	return scenario{
		name: fmt.Sprint(machines), tiers: defaultTiers, cells: kernels(n, split...), accounts: s.accounts,
		loss: 0.003, limit: 400 * time.Hour, newcomers: newcomers,
	}
}

// late is a kernel of so many machines that comes when others have the patch.
func late(machines, others int) scenario {
	s := sized(shapes[2], others, false)
	s.later = sized(shapes[2], machines, false).cells[:1]
	s.later[0].name = "new"
	return s
}

func printAllSizes(out io.Writer, list string, fleets int, seed uint64) error {
	var sizes []int
	for _, s := range strings.Split(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("cannot read size %q of a fleet", s)
		}
		sizes = append(sizes, n)
	}
	return printSizes(out, sizes, fleets, seed)
}

// printSizes says how long a healthy patch takes.
func printSizes(out io.Writer, sizes []int, fleets int, seed uint64) error {
	fmt.Fprintf(out, "\nHow long a healthy patch takes in fleets that check in hourly and lose 0.3 %% of their machines an hour; means of %d fleets.\n\n", fleets)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fleet\tmachines\tfirst\thalf\t95 %\trule is through\tfalse halts")
	for _, machines := range sizes {
		for _, s := range shapes {
			if err := printSize(w, s.name, sized(s, machines, false), machines, fleets, seed); err != nil {
				return err
			}
		}
		if machines > 1000 {
			continue
		}
		if err := printSize(w, "a kernel that comes when 10 000 have the patch", late(machines, 10_000), machines, fleets, seed); err != nil {
			return err
		}
	}
	return w.Flush()
}

func printSize(w io.Writer, name string, s scenario, machines, fleets int, seed uint64) error {
	var sum outcome
	for i := range fleets {
		o, err := simulate(s, seed+uint64(i))
		if err != nil {
			return err
		}
		sum.first, sum.half, sum.covered, sum.complete = sum.first+o.first, sum.half+o.half, sum.covered+o.covered, sum.complete+o.complete
		sum.halted += o.halted
	}
	fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%d\n", name, machines,
		mean(sum.first, fleets), mean(sum.half, fleets), mean(sum.covered, fleets), mean(sum.complete, fleets), sum.halted)
	return nil
}
