package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"
)

var benchSizes = []int{10_000, 100_000, 1_000_000}

// grown returns a rollout with so many live trials in some kernels, and a heartbeat of each.
func grown(b *testing.B, kernels, trials int) (*Rollout, []Event) {
	b.Helper()
	r, err := New(Defaults(), "salt", []Tier{{Name: "edge", Auto: true}, {Name: "stable", Auto: true}, {Name: "late"}})
	if err != nil {
		b.Fatal(err)
	}
	var fleet []Event
	for i := range kernels {
		fleet = append(fleet, population(fmt.Sprint("k", i), "stable", int64(max(1000, trials/kernels))))
	}
	if _, err := r.Step(testStart, fleet); err != nil {
		b.Fatal(err)
	}
	beats := make([]Event, 0, trials)
	for i := range trials {
		e := Event{Kind: Intent, Machine: id(i), Cell: fmt.Sprint("k", i%kernels), Tier: "stable", Account: fmt.Sprint(i % 10_000)}
		beats = append(beats, e)
	}
	for _, batch := range slices.Collect(slices.Chunk(beats, 1000)) {
		if _, err := r.Step(testStart, batch); err != nil {
			b.Fatal(err)
		}
	}
	if len(r.trials) != trials {
		b.Fatalf("%d trials", len(r.trials))
	}
	for i := range beats {
		beats[i] = Event{Kind: Alive, Machine: beats[i].Machine}
	}
	return r, beats
}

// BenchmarkStep takes signs of life, five hundred at an instant.
func BenchmarkStep(b *testing.B) {
	for _, kernels := range []int{10, 200} {
		for _, n := range benchSizes {
			b.Run(fmt.Sprintf("kernels=%d/trials=%d", kernels, n), func(b *testing.B) {
				r, beats := grown(b, kernels, n)
				at := testStart.Add(time.Minute)
				i := 0
				for b.Loop() {
					k := i * 500 % n
					i++
					if _, err := r.Step(at, beats[k:k+500]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkQuestions asks what a server asks at each check-in and each second.
func BenchmarkQuestions(b *testing.B) {
	r, beats := grown(b, 200, 100_000)
	at := testStart.Add(time.Minute)
	for name, ask := range map[string]func(i int){
		"Assignment": func(i int) { r.Assignment("k7", "stable").Arm(beats[i%len(beats)].Machine) },
		"Room":       func(int) { r.Room("k7", "stable") },
		"ShamRoom":   func(int) { r.ShamRoom("k7", "stable") },
		"Next":       func(i int) { r.Next(beats[i%len(beats)].Machine, at) },
		"Overdue":    func(int) { r.Overdue(at) },
		"Live":       func(int) { r.Live() },
		"Stages":     func(int) { r.Stages() },
	} {
		b.Run(name, func(b *testing.B) {
			i := 0
			for b.Loop() {
				ask(i)
				i++
			}
		})
	}
}

// BenchmarkStore stores and restores the state, with the trials.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{10_000, 200_000} {
		r, _ := grown(b, 200, n)
		stored, err := json.Marshal(r.State())
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint("State/", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := json.Marshal(r.State()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(stored)), "B")
		})
		b.Run(fmt.Sprint("Restore/", n), func(b *testing.B) {
			for b.Loop() {
				var s State
				if err := json.Unmarshal(stored, &s); err != nil {
					b.Fatal(err)
				}
				if _, err := Restore(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSweep forgets the controls of a stage that is over.
func BenchmarkSweep(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, _ := grown(b, 10, n)
			for b.Loop() {
				r.sweep(r.s.Units[0])
			}
		})
	}
}
