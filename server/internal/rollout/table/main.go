// Command table runs the rollout rule against simulated fleets and prints what it
// did, with the error of each figure: how often it halts patches that are healthy,
// and how many machines it takes to halt those that are not.
//
//	go run ./server/internal/rollout/table                 everything
//	go run ./server/internal/rollout/table -part plain     the table of the design
//	go run ./server/internal/rollout/table -runs 500 …     with fewer runs a row than 20 000
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"text/tabwriter"

	"livepatch/server/internal/rollout"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

var errPart = errors.New("parts are plain, ratio, whole, fleet, sizes")

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("table", flag.ContinueOnError)
	parts := flags.String("part", "plain,ratio,whole,fleet,sizes", "what to run")
	runs := flags.Int("runs", 20_000, "runs of each row")
	fleets := flags.Int("fleets", 10, "fleets of each scenario")
	sizes := flags.String("sizes", "1,3,10,30,140,1000,10000", "of the fleets of part sizes")
	seed := flags.Uint64("seed", 1, "of the random numbers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(*seed, 0))
	for _, part := range strings.Split(*parts, ",") {
		var err error
		switch part {
		case "plain":
			err = printPlain(out, rng, *runs)
		case "ratio":
			err = printRatio(out, rng, *runs)
		case "whole":
			err = printWhole(out, rng, *runs)
		case "fleet":
			err = printFleets(out, *fleets, *seed)
		case "sizes":
			err = printAllSizes(out, *sizes, *fleets, *seed)
		default:
			err = errPart
		}
		if err != nil {
			return fmt.Errorf("cannot run %q: %w", part, err)
		}
	}
	return nil
}

var rows = []row{{.003, .003}, {.010, .010}, {.003, .053}, {.003, .20}, {.003, 1.0}}

func printPlain(out io.Writer, rng *rand.Rand, runs int) error {
	fmt.Fprintf(out, "Halts, and mean number of treated machines matured at a halt. %d runs a row, α = %v, %d controls each, canary to %d; ± two standard errors.\n\n",
		runs, alpha, controls, canaries)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "control → treated loss\tA, ρ of all\tA, ρ of batch\tB\t> 1 % after 50\tz > 3.09 each look")
	for _, r := range rows {
		fmt.Fprintf(w, "%.3f → %.3f", r.control, r.treated)
		for _, res := range plain(rng, r, runs) {
			rate := res.rate(runs)
			fmt.Fprintf(w, "\t%.4f ±%.4f / %.0f", rate, margin(rate, runs), res.mean())
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func printRatio(out io.Writer, rng *rand.Rand, runs int) error {
	fmt.Fprintf(out, "\nHalts of a healthy patch at α = %v when the second stage has one control for each treated machine and the first had fifty; %d runs.\n\n", alpha, runs)
	all, batch := ratio(rng, 0.01, runs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range []struct {
		name string
		rate float64
	}{{"ρ of all that matured so far", all}, {"ρ of batch", batch}} {
		fmt.Fprintf(w, "%s\t%.4f ±%.4f\n", r.name, r.rate, margin(r.rate, runs))
	}
	return w.Flush()
}

func printWhole(out io.Writer, rng *rand.Rand, runs int) error {
	fmt.Fprintf(out, "\nFalse halts by A of a whole healthy rollout, 20 cells and 4 tiers, by α of each process; %d rollouts a row.\n\n", runs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "failures a cell\tα\tone process a cell\tone a cell and tier\tone for all cells")
	for _, failures := range []int{40, 200, 1000} {
		sups := whole{cells: 20, tiers: 4, failures: failures, atRisk: rollout.Pair{Treated: 1000, Control: 4000}}.wholes(rng, runs)
		for _, a := range []float64{1e-3, 1e-4, 5e-5, rollout.Defaults().Halt.Alpha * 0.8 / 21} {
			fmt.Fprintf(w, "%d\t%.2g", failures, a)
			for _, of := range processes {
				rate := falseHalts(sups, a, of)
				fmt.Fprintf(w, "\t%.5f ±%.5f", rate, margin(rate, runs))
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%d\tfor 0.1 %%", failures)
		for _, of := range processes {
			fmt.Fprintf(w, "\tα = %.1g", needed(sups, 0.001, of))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func printFleets(out io.Writer, runs int, seed uint64) error {
	fmt.Fprintf(out, "\nThe rule as built, on whole fleets; %d of each. Harmed: killed by the patch until all units are halted or have it; doomed: in the end, if it is not taken back.\n\n", runs)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tmachines\thalted\tby\tafter\texposed\tharmed, mean\tmost\tdoomed\tcomplete\t95 % covered after")
	for _, s := range scenarios() {
		r, err := summarize(s, runs, seed)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%d\t%d/%d\t%v\t%s\t%d\t%.1f\t%d\t%.1f\t%d/%d\t%s\n", s.name, r.machines, r.halted, runs, r.reasons, mean(r.halt, r.halted),
			r.exposed/runs, float64(r.harmed)/float64(runs), r.mostHarm, float64(r.doomed)/float64(runs), r.complete, runs, mean(r.covered, r.coveredRuns))
	}
	return w.Flush()
}
