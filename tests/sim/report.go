package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"
)

// A result is what became of a scenario, under our service and under the baseline.
type result struct {
	scenario
	seed       uint64
	world      string // that it was run in
	ours, base outcome
	took       time.Duration
}

// A moment is seconds from the start; 0 is never.
type moment int64

// String writes a moment for people.
func (m moment) String() string {
	switch {
	case m == 0:
		return "–"
	case m < 3600:
		return fmt.Sprintf("%d min %02d s", m/60, m%60)
	default:
		return fmt.Sprintf("%d h %02d min", m/3600, m/60%60)
	}
}

// A column is one figure of a result: an int, a moment or a string.
type column struct {
	name, csv string
	of        func(r result) any
}

// columns are those of the table, ours beside the baseline's.
var columns = []column{
	{"scenario", "scenario", func(r result) any { return r.Name }},
	{"machines", "machines", func(r result) any { return r.ours.machines }},
	{"exposed", "exposed", func(r result) any { return r.ours.exposed }},
	{"baseline", "baseline_exposed", func(r result) any { return r.base.exposed }},
	{"harmed", "harmed", func(r result) any { return r.ours.harmed }},
	{"baseline", "baseline_harmed", func(r result) any { return r.base.harmed }},
	{"halt after", "halt_seconds", func(r result) any { return moment(r.ours.halt) }},
	{"baseline", "baseline_halt_seconds", func(r result) any { return moment(r.base.halt) }},
	{"by", "halt_reason", func(r result) any { return r.ours.reason }},
	{"95 % have it after", "covered_seconds", func(r result) any { return r.covered(r.ours) }},
	{"baseline", "baseline_covered_seconds", func(r result) any { return r.covered(r.base) }},
	{"verdict", "verdict", func(r result) any { return r.verdict() }},
}

// details are the columns of the CSV file that the table does without.
var details = []column{
	{"", "world", func(r result) any { return r.world }},
	{"", "seed", func(r result) any { return strconv.FormatUint(r.seed, 10) }},
	{"", "units", func(r result) any { return r.ours.units }},
	{"", "halted_units", func(r result) any { return r.ours.halted }},
	{"", "completed_units", func(r result) any { return r.ours.completed }},
	{"", "requests", func(r result) any { return r.ours.requests }},
	{"", "decisions", func(r result) any { return r.ours.made }},
	{"", "treated_trials", func(r result) any { return int(r.ours.trials.treated) }},
	{"", "treated_failed", func(r result) any { return int(r.ours.trials.treatedFailed) }},
	{"", "control_trials", func(r result) any { return int(r.ours.trials.control) }},
	{"", "control_failed", func(r result) any { return int(r.ours.trials.controlFailed) }},
	{"", "took_seconds", func(r result) any { return int(r.took.Seconds()) }},
}

// covered is when nearly all machines had a patch that is well.
func (r result) covered(o outcome) moment {
	if !r.healthy() {
		return 0
	}
	return moment(o.covered)
}

// What a result is called.
const (
	falseHalt  = "FALSE HALT"
	notHalted  = "NOT HALTED"
	held       = "held"
	tooMany    = "TOO MANY HARMED"
	notCovered = "not everywhere yet"
	person     = "waits for a person"
	asMeant    = "ok"
)

// verdict says whether a result is as it should be.
func (r result) verdict() string {
	switch o := r.ours; {
	case r.healthy() && o.halted > 0:
		return falseHalt
	case !r.healthy() && o.halted == 0:
		return notHalted
	case !r.Expect.hold(o.harmed, r.base.harmed):
		return tooMany
	case r.Patch.Stalls > 0 && o.covered == 0:
		return held
	case r.healthy() && o.covered == 0 && r.Expect.Person && o.waits != "":
		return person
	case r.healthy() && o.covered == 0:
		return notCovered
	default:
		return asMeant
	}
}

// hold tells whether no more machines were harmed than is expected.
func (b bounds) hold(harmed, baseline int) bool {
	return (b.Harmed == 0 || harmed <= b.Harmed) && (b.OfBaseline == 0 || float64(harmed) <= b.OfBaseline*float64(baseline))
}

// human writes a value for people.
func human(v any) string {
	switch v := v.(type) {
	case int:
		return grouped(v)
	case string:
		if v == "" {
			return "–"
		}
		return v
	default:
		return fmt.Sprint(v)
	}
}

// machine writes a value for programs.
func (c column) machine(r result) string {
	switch v := c.of(r).(type) {
	case moment:
		if v == 0 {
			return ""
		}
		return strconv.FormatInt(int64(v), 10)
	default:
		return fmt.Sprint(v)
	}
}

// printTable writes results for people.
func printTable(out io.Writer, results []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range columns {
		fmt.Fprintf(w, "%s\t", c.name)
	}
	fmt.Fprintln(w)
	for _, r := range results {
		for _, c := range columns {
			fmt.Fprintf(w, "%s\t", human(c.of(r)))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// writeCSV writes one line for a scenario.
func writeCSV(out io.Writer, results []result) error {
	w := csv.NewWriter(out)
	all := append(columns[:len(columns):len(columns)], details...)
	line := make([]string, len(all))
	for i, c := range all {
		line[i] = c.csv
	}
	if err := w.Write(line); err != nil {
		return err
	}
	for _, r := range results {
		for i, c := range all {
			line[i] = c.machine(r)
		}
		if err := w.Write(line); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}
