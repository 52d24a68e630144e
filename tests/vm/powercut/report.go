package main

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

// A report counts what several machines went through.
type report struct {
	note io.Writer // told of cuts and violations at once

	mu         sync.Mutex
	cuts       map[operation]map[string]int // by how far the operation came
	byDisk     map[operation]int
	boots      int
	bootTime   time.Duration
	kept, lost int // sectors
	refusals   map[string]int
	violations []string
}

func newReport(note io.Writer) *report {
	return &report{note: note, cuts: map[operation]map[string]int{}, byDisk: map[operation]int{}, refusals: map[string]int{}}
}

// cut counts a cut.
func (r *report) cut(w wound, reached string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cuts[w.of] == nil {
		r.cuts[w.of] = map[string]int{}
	}
	r.cuts[w.of][reached]++
	if w.at.changes > 0 {
		r.byDisk[w.of]++
	}
	fmt.Fprintf(r.note, "powercut: during %s, %v: reached %s\n", w.of, w.at, reached)
}

// booted counts a boot.
func (r *report) booted(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.boots++
	r.bootTime += took
}

// unflushed counts sectors that a cut found unflushed.
func (r *report) unflushed(kept, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept += kept
	r.lost += lost
}

// refused counts something older that was kept out.
func (r *report) refused(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusals[reason]++
}

// violation notes a broken promise.
func (r *report) violation(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	r.violations = append(r.violations, text)
	fmt.Fprintln(r.note, "powercut: violation:", text)
}

// total returns how many cuts there were.
func (r *report) total() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range r.cuts {
		for _, c := range row {
			n += c
		}
	}
	return n
}

// print writes the table.
func (r *report) print(w io.Writer) {
	columns := []string{reachedNothing, reachedMetadata, reachedJournal, reachedKernel, reachedAnswer}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "power cut during\tcuts\tat a change\treached nothing\tmetadata\tjournal\tkernel\tanswer\t")
	total := map[string]int{}
	line := func(name string, all, byDisk int, reached map[string]int) {
		fmt.Fprintf(t, "%s\t%d\t%d\t", name, all, byDisk)
		for _, c := range columns {
			fmt.Fprintf(t, "%d\t", reached[c])
		}
		fmt.Fprintln(t)
	}
	sum, sumByDisk := 0, 0
	for _, o := range operations {
		all := 0
		for reached, n := range r.cuts[o.name] {
			all += n
			total[reached] += n
		}
		line(string(o.name), all, r.byDisk[o.name], r.cuts[o.name])
		sum, sumByDisk = sum+all, sumByDisk+r.byDisk[o.name]
	}
	line("all", sum, sumByDisk, total)
	_ = t.Flush()
	fmt.Fprintf(w, "\nboots: %d, %.1f s each\n", r.boots, r.bootTime.Seconds()/float64(max(1, r.boots)))
	fmt.Fprintf(w, "unflushed sectors when the power went: %d lost, %d written nevertheless\n", r.lost, r.kept)
	fmt.Fprintf(w, "older patches offered: %d refused as rollback, %d as suspect\n", r.refusals["ROLLBACK"], r.refusals["SUSPECT"])
	fmt.Fprintf(w, "violations: %d\n", len(r.violations))
	for _, text := range slices.Compact(slices.Sorted(slices.Values(r.violations))) {
		fmt.Fprintln(w, " ", text)
	}
}
