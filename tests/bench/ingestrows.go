package main

import (
	"fmt"
	"strconv"
	"time"
)

// The limits on growth from the smallest fleet to the largest are ours: a hundred times the
// machines may cost half of the reports a second, and five times the wait of the slowest
// hundredth.
const (
	latencyGrowth = 5
	rateGrowth    = 0.5
)

// haltLimit is within which time a halt has to be signed, in ms.
const haltLimit = 1000

// count writes a number as people say it: 10 k, 1 M.
func count(n int) string {
	switch {
	case n >= 1_000_000 && n%100_000 == 0:
		return number(float64(n)/1e6) + " M"
	case n >= 1000 && n%100 == 0:
		return number(float64(n)/1e3) + " k"
	default:
		return strconv.Itoa(n)
	}
}

// A figure is one thing that is measured with every fleet.
type figure struct {
	what, unit string
	of         func(ingested) float64
	note       func(ingested) string
	peer       func(ingested) float64 // nil: none
	peerName   string
	limit      float64 // 0: only told
	growth     float64 // that the largest fleet may have over the smallest; 0: only told
	floor      bool    // growth is the least that must be left
}

// figures are in the order of the table.
func figures() []figure {
	all := append(ofFlow("check-ins", func(i ingested) flow { return i.checkIns }, "nothing to report, any machine"),
		ofFlow("heartbeats", func(i ingested) flow { return i.heartbeats }, "of machines under watch; kept with fsync, taken by the rule after the answer")...)
	all = append(all,
		ofFlow("intents", func(i ingested) flow { return i.intents }, "each of another machine, answered when the rule's decision is on the disk")...)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return append(all,
		figure{what: "decisions while heartbeats come: p99", unit: "ms", growth: latencyGrowth,
			of: func(i ingested) float64 { return i.asked.percentile(0.99) },
			note: func(i ingested) string {
				return fmt.Sprintf("one machine at a time asks whether it may begin; p50 %s ms, max %s ms, %d questions",
					number(i.asked.percentile(0.5)), number(i.asked.percentile(1)), i.asked.reports)
			}},
		figure{what: "decisions: the rule is behind after the last heartbeat", unit: "ms", of: func(i ingested) float64 { return ms(i.behind) }},
		figure{what: "decisions: halt, from the report to signed files", unit: "ms", limit: haltLimit,
			of: func(i ingested) float64 { return ms(i.halted) },
			note: func(i ingested) string {
				return fmt.Sprintf("second of two like oopses, while heartbeats come; livepatch_decision_lag_seconds was at most %v", i.lag)
			}},
		figure{what: "decisions a second, of what waited for the server", unit: "/s", growth: rateGrowth, floor: true,
			of: func(i ingested) float64 { return float64(i.queued) / i.caughtUp.Seconds() },
			note: func(i ingested) string {
				return fmt.Sprintf("%d intents that stood in the database; %d let in; with the start of the server", i.queued, i.watched)
			}},
		figure{what: "server start", unit: "s", of: func(i ingested) float64 { return i.tookUp.Seconds() },
			note: func(i ingested) string { return fmt.Sprintf("%d machines under watch", i.watched) }},
		figure{what: "server RSS after all this", unit: "MB", of: func(i ingested) float64 { return i.resident },
			note: func(i ingested) string { return fmt.Sprintf("VmRSS; VmHWM %s MB", number(i.peak)) }},
	)
}

// ofFlow are the figures of one kind of check-ins.
func ofFlow(name string, of func(ingested) flow, note string) []figure {
	return []figure{
		{what: name + " a second", unit: "/s", growth: rateGrowth, floor: true,
			of: func(i ingested) float64 { return of(i).rate() },
			note: func(i ingested) string {
				return fmt.Sprintf("%s; %d over %d connections that stay open, TLS 1.3, client on the same CPUs", note, of(i).reports, streams)
			},
			peer: func(i ingested) float64 { return i.naive }, peerName: "SQLite, a transaction each"},
		{what: name + ": p99", unit: "ms", growth: latencyGrowth,
			of: func(i ingested) float64 { return of(i).percentile(0.99) },
			note: func(i ingested) string {
				return fmt.Sprintf("p50 %s ms, max %s ms, client's view", number(of(i).percentile(0.5)), number(of(i).percentile(1)))
			}},
		{what: name + ": server CPU", unit: "µs", of: func(i ingested) float64 { return of(i).cpu }},
	}
}

// ingestRows are the rows of all fleets: each figure for one after the other, and how it
// has grown.
func ingestRows(all []ingested) (rows []row) {
	if len(all) == 0 {
		return nil
	}
	for _, f := range figures() {
		for _, i := range all {
			rows = append(rows, f.row(i))
		}
		if len(all) > 1 && f.growth > 0 {
			rows = append(rows, f.grown(all[0], all[len(all)-1]))
		}
	}
	return rows
}

// row is a figure of one fleet.
func (f figure) row(i ingested) row {
	r := row{What: f.what + ", " + count(i.machines), Unit: f.unit, Measured: f.of(i), Limit: f.limit, Informative: f.limit == 0}
	if f.peer != nil {
		r.Peer, r.PeerName = f.peer(i), f.peerName
	}
	if f.note != nil {
		r.Note = f.note(i)
	}
	return r
}

// grown is the figure of the largest fleet over that of the smallest.
func (f figure) grown(small, large ingested) row {
	return row{
		What: fmt.Sprintf("%s, growth to %s", f.what, count(large.machines)), Unit: f.unit, Measured: f.of(large),
		Peer: f.of(small), PeerName: "at " + count(small.machines), Limit: f.growth, Relative: true, AtLeast: f.floor,
	}
}
