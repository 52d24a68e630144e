// Command sim simulates rollouts: a fleet of machines that check in, take a patch when
// they may, and live or not, in accelerated time, on the real service: its HTTP
// handlers, its database on a disk, its rule and its signatures. It prints a table of
// what became of each scenario, beside the same fleet under a service that people
// watch, and writes the table as CSV and a page with plots.
//
//	go run ./tests/sim                        all scenarios, in build/sim
//	go run ./tests/sim -only all-die,healthy
//	go run ./tests/sim -machines 1000000      fleets of that size, where the scenario says more or less
//	go run ./tests/sim -world rule            the rule without a server around it, a hundred times faster
//
// It exits with 1 if a result is not as it should be: a healthy patch that is halted, a
// harmful one that is not, or more machines harmed than the scenario expects.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

//go:embed scenarios
var scenarioFiles embed.FS

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "sim: error:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	out, only, world string
	machines         int
	healthy          int
	tableRuns        int
	seed             uint64
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("sim", flag.ContinueOnError)
	f.StringVar(&o.out, "out", "build/sim", "`folder` for what is written")
	f.StringVar(&o.only, "only", "", "`names` of scenarios, with commas; \"\" for all")
	f.StringVar(&o.world, "world", "service", "`what` runs the rollout: service, or rule for the rule alone")
	f.IntVar(&o.machines, "machines", 0, "`number` of machines of each scenario; 0 for its own")
	f.IntVar(&o.healthy, "healthy", 200, "healthy `fleets` to count false halts in, under the rule alone")
	f.IntVar(&o.tableRuns, "table", 20_000, "`runs` of each row of the design's table; 0 leaves it out")
	f.Uint64Var(&o.seed, "seed", 1, "of the random numbers")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.world != "service" && o.world != "rule" {
		return o, fmt.Errorf("cannot simulate on %q: want service or rule", o.world)
	}
	return o, nil
}

// start is when simulations begin.
var start = time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)

// usual is what people do who watch: they see that a patch harms after 90 minutes.
var usual = baseline{phases: []float64{.1, .2, .4, .6}, each: 30 * time.Minute, stop: 90 * time.Minute}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	scenarios, err := loadScenarios(scenarioFiles, "scenarios")
	if err != nil {
		return err
	}
	if scenarios, err = choose(scenarios, o); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return fmt.Errorf("cannot make folder: %w", err)
	}
	results, err := simulateAll(ctx, o, scenarios, progress)
	if err != nil {
		return err
	}
	sections, wrong, err := others(ctx, o, progress)
	if err != nil {
		return err
	}
	if err := report(out, o, sections, results); err != nil {
		return err
	}
	return errors.Join(append(wrong, faults(results)...)...)
}

// choose returns the scenarios that are wanted, at the size that is.
func choose(all []scenario, o options) (chosen []scenario, err error) {
	names := strings.Split(o.only, ",")
	for _, s := range all {
		if o.only != "" && !slices.Contains(names, s.Name) {
			continue
		}
		if o.machines > 0 {
			s.Machines = o.machines
		}
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("cannot use scenario %q with %d machines: %w", s.Name, s.Machines, err)
		}
		chosen = append(chosen, s)
	}
	if o.only != "" && len(chosen) != len(names) {
		return nil, fmt.Errorf("cannot find all of the scenarios %q", o.only)
	}
	return chosen, nil
}

func simulateAll(ctx context.Context, o options, scenarios []scenario, progress io.Writer) (results []result, err error) {
	dir, err := os.MkdirTemp(o.out, "services-")
	if err != nil {
		return nil, fmt.Errorf("cannot make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	log, err := os.Create(filepath.Join(o.out, "service.log"))
	if err != nil {
		return nil, fmt.Errorf("cannot write log of services: %w", err)
	}
	defer log.Close()
	shop := &workshop{dir: dir, log: log}
	for _, s := range scenarios {
		make := shop.service
		if o.world == "rule" {
			make = ruleOnly
		}
		r, err := simulate(ctx, s, o.seed, make)
		if err != nil {
			return nil, err
		}
		r.world = o.world
		fmt.Fprintf(progress, "%-22s %9s machines, %8s requests, %s\n", s.Name, grouped(r.ours.machines), grouped(r.ours.requests), r.took.Round(time.Second))
		results = append(results, r)
	}
	return results, nil
}

// simulate runs a scenario in a world and under the baseline.
func simulate(ctx context.Context, s scenario, seed uint64, make maker) (r result, err error) {
	begin := time.Now()
	f := newFleet(s, seed, start)
	if f.world, err = make(ctx, f); err != nil {
		return r, fmt.Errorf("cannot simulate %q: %w", s.Name, err)
	}
	defer func() { err = errors.Join(err, f.world.Close()) }()
	r = result{scenario: s, seed: seed}
	if r.ours, err = f.run(ctx); err != nil {
		return r, fmt.Errorf("cannot simulate %q: %w", s.Name, err)
	}
	r.base, r.took = usual.run(f), time.Since(begin)
	return r, nil
}

// others is what is reported beside the scenarios, and what of it is wrong.
func others(ctx context.Context, o options, progress io.Writer) (sections []section, wrong []error, err error) {
	if o.healthy > 0 {
		fmt.Fprintf(progress, "counting false halts in %d healthy fleets\n", o.healthy)
		s, fault, err := countFalseHalts(ctx, o)
		if err != nil {
			return nil, nil, err
		}
		sections, wrong = append(sections, s), append(wrong, fault)
	}
	if o.tableRuns > 0 {
		fmt.Fprintf(progress, "making the table of the design, %d runs a row\n", o.tableRuns)
		s, fault, err := compareTable(ctx, o)
		if err != nil {
			return nil, nil, err
		}
		sections, wrong = append(sections, s), append(wrong, fault)
	}
	return sections, wrong, nil
}

// report prints what came out, and writes it to files.
func report(out io.Writer, o options, sections []section, results []result) error {
	if err := printTable(out, results); err != nil {
		return err
	}
	for _, s := range sections {
		fmt.Fprintf(out, "\n%s\n\n%s", s.Name, s.Text)
	}
	table, page := filepath.Join(o.out, "table.csv"), filepath.Join(o.out, "index.html")
	err := errors.Join(
		writeFile(table, func(w io.Writer) error { return writeCSV(w, results) }),
		writeFile(page, func(w io.Writer) error { return writeHTML(w, intro(o), usual, sections, results) }),
	)
	fmt.Fprintf(out, "\nplots: %s   table: %s\n", page, table)
	return err
}

// intro says what the page shows.
func intro(o options) string {
	if o.world == "rule" {
		return "Fleets in accelerated time, under the rule alone: no HTTP, no database, no signatures."
	}
	return "Fleets in accelerated time, on the real service: its HTTP handlers, its database on a disk, its rule, and its signatures, which the loader's verifier checks."
}

func writeFile(name string, write func(io.Writer) error) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return write(f)
}

// faults are the results that are not as they should be.
func faults(results []result) (wrong []error) {
	for _, r := range results {
		if v := r.verdict(); v != asMeant && v != held && v != person {
			wrong = append(wrong, fmt.Errorf("%s: %s", r.Name, v))
		}
	}
	return wrong
}
