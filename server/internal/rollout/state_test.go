package rollout

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"
)

// busy returns a rollout in which much has happened.
func busy(t testing.TB) *bed {
	b := newBed(t, nil, Tier{Name: "edge", Auto: true}, Tier{Name: "late", Ramp: []int64{50_000}})
	b.step(population("k", "edge", 2000), population("k", "late", 2000), population("tiny", "edge", 5))
	b.stage("k", "edge")
	treated := b.of(6, Treated, "k", "edge")
	treated[5].Kind = Offered
	b.step(treated...)
	b.step(b.of(20, Control, "k", "edge")...)
	b.now = b.now.Add(time.Second)
	reports := failures(Oops, treated[:1])
	reports[0].Signature = "s"
	b.step(reports...)
	return b
}

func TestRestoreRefusesWhatDoesNotFit(t *testing.T) {
	tests := map[string]func(*State){
		"another version":               func(s *State) { s.Version++ },
		"impossible constants":          func(s *State) { s.Params.Halt.Alpha = 2 },
		"no tiers":                      func(s *State) { s.Tiers = nil },
		"another number of tiers":       func(s *State) { s.Tiers = s.Tiers[:1] },
		"a missing unit":                func(s *State) { s.Units = s.Units[:1] },
		"a unit that is null":           func(s *State) { s.Units[0] = nil },
		"a unit without its source":     func(s *State) { delete(s.Sources, "src") },
		"a unit before the first tier":  func(s *State) { s.Units[0].Tier = -1 },
		"a unit without accounts":       func(s *State) { s.Units[0].Accounts = nil },
		"an account that is null":       func(s *State) { s.Units[0].Accounts[0] = nil },
		"a missing batch":               func(s *State) { clear(s.Batches) },
		"a batch that is null":          func(s *State) { s.Batches[s.LastBatch] = nil },
		"a source that is null":         func(s *State) { s.Sources["x"] = nil },
		"a cell that is null":           func(s *State) { s.Cells["k"] = nil },
		"a cell of no unit":             func(s *State) { s.Cells["k"].Unit = 7 },
		"a cell with fewer tiers":       func(s *State) { s.Cells["k"].Machines = nil },
		"missing accounts":              func(s *State) { s.Accounts = nil },
		"a machine twice":               func(s *State) { s.Trials = append(s.Trials, s.Trials[0]) },
		"a trial of no arm":             func(s *State) { s.Trials[0].Arm = Outside },
		"a trial of an unknown unit":    func(s *State) { s.Trials[0].Unit = 99 },
		"a trial of an unknown tier":    func(s *State) { s.Trials[0].Tier = 9 },
		"a trial with an unknown flag":  func(s *State) { s.Trials[0].Flags = 1 << 15 },
		"a negative number of its test": func(s *State) { s.Units[0].Index = -1 },
	}
	stored, err := json.Marshal(busy(t).r.State())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			var s State
			if err := json.Unmarshal(stored, &s); err != nil {
				t.Fatal(err)
			}
			change(&s)
			if _, err := Restore(s); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// Whatever a state says, a rollout that accepts it must not panic at what happens next.
func FuzzRestore(f *testing.F) {
	b := newBed(f, nil)
	for _, what := range []func() []Event{
		func() []Event { return []Event{population("k", "stable", 500)} },
		func() []Event { return b.of(2, Treated, "k", "stable") },
		func() []Event { return b.of(2, Control, "k", "stable") },
	} {
		b.step(what()...)
		stored, err := json.Marshal(b.r.State())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(stored) // short ones: long seeds take minutes to minimize
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var s State
		if json.Unmarshal(in, &s) != nil {
			return
		}
		r, err := Restore(s)
		if err != nil {
			return
		}
		events := []Event{}
		for m := range r.trials {
			events = append(events, Event{Kind: Alive, Machine: m}, Event{Kind: Failed, Failure: Oops, Machine: m})
		}
		for cell := range r.s.Cells {
			for _, tier := range r.s.Tiers {
				r.Room(cell, tier.Name)
				r.ShamRoom(cell, tier.Name)
				for i := range 3 {
					events = append(events, Event{Kind: Intent, Machine: id(i), Cell: cell, Tier: tier.Name})
				}
			}
		}
		for i := range 3 {
			at := time.Unix(max(r.s.Now, 0), 0).Add(time.Duration(i) * time.Hour)
			if _, err := r.Step(at, events); err != nil {
				return
			}
		}
		r.Stages()
	})
}

// fleetOf opens trials of n machines in one kernel.
func fleetOf(b *testing.B, n int) (*Rollout, []Event) {
	b.Helper()
	r, err := New(Defaults(), "salt", []Tier{{Name: "stable", Auto: true}})
	if err != nil {
		b.Fatal(err)
	}
	events := make([]Event, n)
	for i := range events {
		m := Machine{}
		binary.BigEndian.PutUint64(m[:], uint64(i)*0x9E3779B97F4A7C15+1)
		events[i] = Event{Kind: Intent, Machine: m, Cell: "k", Tier: "stable", Account: fmt.Sprint(i % 10_000)}
	}
	if _, err := r.Step(testStart, []Event{population("k", "stable", int64(n))}); err != nil {
		b.Fatal(err)
	}
	for i := 0; i < n; i += 1000 {
		if _, err := r.Step(testStart, events[i:min(n, i+1000)]); err != nil {
			b.Fatal(err)
		}
	}
	if len(r.trials) != n {
		b.Fatalf("%d trials of %d machines", len(r.trials), n)
	}
	return r, events
}

// BenchmarkHeartbeats takes signs of life in batches of a hundred, with a number of machines under
// watch, and says what one of these costs in memory.
func BenchmarkHeartbeats(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.GC() // the second one frees what finalizers held
			runtime.ReadMemStats(&before)
			r, events := fleetOf(b, n)
			for i := range events {
				events[i] = Event{Kind: Alive, Machine: events[i].Machine}
			}
			at := testStart.Add(time.Minute) // the first heartbeat of each, and repetitions
			b.ResetTimer()
			for i := range b.N {
				k := i * 100 % n
				if _, err := r.Step(at, events[k:k+100]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
			b.StopTimer()
			clear(events)
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/machine")
			runtime.KeepAlive(r)
		})
	}
}
