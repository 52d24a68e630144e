package main

import (
	"time"

	"livepatch/server/inprocess"
)

// A quantity is what is counted over time.
type quantity int

const (
	exposed quantity = iota // machines that inserted the patch
	matured                 // that lived for an hour with it
	failed                  // that it harmed
	quantities
)

// A series counts by the minute.
type series [quantities][]int32

func newSeries(limit time.Duration) (s series) {
	for q := range s {
		s[q] = make([]int32, limit/time.Minute+1)
	}
	return s
}

// add counts one at a second. What comes after the end is not counted.
func (s *series) add(q quantity, at int64) {
	if minute := at / 60; minute < int64(len(s[q])) {
		s[q][minute]++
	}
}

// total is how many there were in the end.
func (s *series) total(q quantity) (n int) {
	for _, c := range s[q] {
		n += int(c)
	}
	return n
}

// A record is what becomes of a fleet.
type record struct {
	series
	machines int // that take a patch that they may have
	have     int // that have taken it
	covered  int64
	requests int
	made     int // decisions
	units    map[string]inprocess.Decision
	halts    []halt
}

// A halt is that of one unit.
type halt struct {
	unit   string
	at     int64
	reason string
}

func newRecord(limit time.Duration, machines int) record {
	return record{series: newSeries(limit), machines: machines, units: map[string]inprocess.Decision{}}
}

// add counts, and notes when nearly all have the patch.
func (r *record) add(q quantity, at int64) {
	r.series.add(q, at)
	if q != exposed {
		return
	}
	if r.have++; r.covered == 0 && float64(r.have) >= coverage*float64(r.machines) {
		r.covered = at
	}
}

// coverage is the share of machines with which a patch has arrived.
const coverage = 0.95

// decided notes a decision.
func (r *record) decided(d inprocess.Decision, at int64) {
	r.made++
	r.units[d.Unit] = d
	if d.Verdict.Action == inprocess.Halt {
		r.halts = append(r.halts, halt{d.Unit, at, string(d.Verdict.Reason)})
	}
}

// over tells whether nothing more will happen: every unit is halted, or has the
// patch.
func (r *record) over() bool {
	for _, d := range r.units {
		if d.Verdict.Action != inprocess.Halt && d.Verdict.Action != inprocess.Complete {
			return false
		}
	}
	return len(r.units) > 0 && (len(r.halts) > 0 || r.covered > 0)
}

// An outcome is what became of a fleet. Times count in seconds from the start; 0 is
// never.
type outcome struct {
	series
	machines          int
	exposed, harmed   int
	halted, completed int // units
	units             int
	halt              int64 // the first
	reason            string
	waits             string // why a unit waits for a person, "" if none does
	covered           int64
	requests, made    int
	trials            trials
}

// trials are what the rule has counted as evidence when it decided last, over all
// units.
type trials struct{ treated, control, treatedFailed, controlFailed float64 }

func (f *fleet) outcome() outcome {
	r := &f.record
	o := outcome{
		series: r.series, machines: len(f.machines), exposed: r.total(exposed), harmed: r.total(failed), halted: len(r.halts), units: len(r.units),
		covered: r.covered, requests: r.requests, made: r.made,
	}
	for _, d := range r.units {
		o.trials.treated += d.Evidence.Trip.Of
		o.trials.control += d.Evidence.TripControl.Of
		o.trials.treatedFailed += d.Evidence.Trip.Failed
		o.trials.controlFailed += d.Evidence.TripControl.Failed
		switch {
		case d.Verdict.Action == inprocess.Complete:
			o.completed++
		case d.Verdict.Action == inprocess.Hold && d.Verdict.Reason == inprocess.Failing:
			o.waits = string(d.Verdict.Reason)
		}
	}
	if len(r.halts) > 0 {
		o.halt, o.reason = r.halts[0].at, r.halts[0].reason
	}
	return o
}
