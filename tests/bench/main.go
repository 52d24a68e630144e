// Command bench measures the system's speed and size beside its peers, prints
// one table and keeps the raw numbers:
//
//	go run ./tests/bench [-only insert,fetch,rest,checkin,ingest,rule] [-machines 10000,1000000] [-out build/bench.json]
//
// It exits with 1 if something could not be measured, and with -strict also if a
// target is missed. Traffic is to the loopback interface
// only, and nothing is loaded into the kernel of this machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"livepatch/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	bin, out, only             string
	machines                   string
	requests, kernels, patches int
	insertions                 int
	rest, stream               time.Duration
	strict                     bool
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.bin, "bin", "build/bin", "`folder` of the programs")
	f.StringVar(&o.out, "out", "build/bench.json", "`file` for the raw numbers")
	f.StringVar(&o.only, "only", "insert,fetch,rest,checkin,ingest,rule", "`parts` to run")
	f.IntVar(&o.insertions, "insertions", 20, "insertions each way in the virtual machine")
	f.IntVar(&o.requests, "requests", 3000, "requests of each round")
	f.IntVar(&o.kernels, "kernels", 5000, "kernels in the repository")
	f.IntVar(&o.patches, "patches", 3, "patches for each kernel")
	f.DurationVar(&o.rest, "rest", time.Minute, "how long the agent is watched at rest")
	f.StringVar(&o.machines, "machines", "10000,100000,1000000", "`sizes` of the fleets whose reports are taken, in ascending order")
	f.DurationVar(&o.stream, "stream", 70*time.Second, "how long check-ins are sent, of each kind; the server counts the fleet once a minute")
	f.BoolVar(&o.strict, "strict", false, "fail if a target is missed")
	return o, f.Parse(args)
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	machine := host()
	rows := measure(ctx, o)
	if err := write(os.Stdout, rows); err != nil {
		return fmt.Errorf("cannot print table: %w", err)
	}
	if err := save(o.out, machine, rows); err != nil {
		return err
	}
	if slices.ContainsFunc(rows, func(r row) bool { return r.Err != "" }) {
		return errors.New("cannot measure everything")
	}
	if o.strict && slices.ContainsFunc(rows, func(r row) bool { return !r.met() }) {
		return errors.New("a target is missed")
	}
	return nil
}

// measure runs the parts. A part that fails is a row that says so, and the rest
// is measured all the same.
func measure(ctx context.Context, o options) []row {
	m := measurement{only: strings.Split(o.only, ",")}
	m.part("insert", "insertion in a virtual machine", func() ([]row, error) { return insertion(ctx, o.insertions) })
	if m.wants("fetch") || m.wants("rest") || m.wants("checkin") {
		m.onSite(ctx, o)
	}
	m.part("ingest", "what machines report", func() ([]row, error) { return ingestion(ctx, o) })
	m.part("rule", "the rule alone", func() ([]row, error) { return ruleAlone(ctx) })
	return m.rows
}

// A measurement is the parts that are wanted, and what was measured so far.
type measurement struct {
	only []string
	rows []row
}

func (m *measurement) wants(name string) bool { return slices.Contains(m.only, name) }

// part runs one part if it is wanted.
func (m *measurement) part(name, what string, do func() ([]row, error)) {
	if !m.wants(name) {
		return
	}
	begin := time.Now()
	fmt.Fprintf(os.Stderr, "measuring %s\n", what)
	got, err := do()
	if err != nil {
		got = append(got, row{What: what, Err: err.Error()})
	}
	m.rows = append(m.rows, got...)
	fmt.Fprintf(os.Stderr, "measured %s in %.0fs\n", what, time.Since(begin).Seconds())
}

// onSite runs the parts that share a service with a large repository.
func (m *measurement) onSite(ctx context.Context, o options) {
	dir, err := os.MkdirTemp("", "livepatch-bench-")
	if err != nil {
		m.rows = append(m.rows, row{What: "service", Err: err.Error()})
		return
	}
	defer os.RemoveAll(dir)
	fmt.Fprintf(os.Stderr, "publishing %d kernels × %d patches\n", o.kernels, o.patches)
	s, err := newSite(ctx, dir, o.bin, o.kernels, o.patches)
	if err != nil {
		m.rows = append(m.rows, row{What: "service", Err: err.Error()})
		return
	}
	defer s.server.stop()
	m.part("fetch", "first fetch", func() ([]row, error) { return firstFetch(ctx, s, o.kernels, o.patches) })
	m.part("rest", "agent at rest", func() ([]row, error) { return atRest(ctx, s, o.rest) })
	m.part("checkin", "check-ins", func() ([]row, error) { return checkIns(ctx, s, o.requests) })
}

// host says what the numbers were measured on.
func host() map[string]string {
	model := "unknown"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
			}
		}
	}
	load, err := os.ReadFile("/proc/loadavg") // of others, if the benchmark has only begun
	if err != nil {
		load = []byte("unknown")
	}
	return map[string]string{
		"load": strings.TrimSpace(string(load)), "cpu": model, "cpus": strconv.Itoa(runtime.NumCPU()), "go": runtime.Version(),
		"version": version.String(), "at": time.Now().UTC().Format(time.RFC3339),
	}
}
