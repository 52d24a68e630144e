package main

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"
	"time"
)

// seen is a result as a run could give it.
func seen(change func(*result)) result {
	r := result{scenario: scenario{Name: "seen", About: "A patch that kills.", Patch: harm{Kills: 1, How: silent}}, seed: 1, world: "rule"}
	r.ours = outcome{series: newSeries(2 * time.Hour), machines: 20_000, exposed: 4, harmed: 4, halted: 1, units: 10, halt: 630, reason: "test-b", requests: 874}
	r.base = outcome{series: newSeries(2 * time.Hour), machines: 20_000, exposed: 6000, harmed: 6000, halted: 1, units: 1, halt: 5400}
	for i := range 4 {
		r.ours.add(exposed, int64(60*i))
		r.ours.add(failed, int64(60*i+10))
	}
	change(&r)
	return r
}

func TestVerdict(t *testing.T) {
	tests := map[string]struct {
		change func(*result)
		want   string
	}{
		"a harmful patch was halted":     {func(*result) {}, asMeant},
		"a harmful patch was not halted": {func(r *result) { r.ours.halted = 0 }, notHalted},
		"more died than is expected":     {func(r *result) { r.Expect.Harmed = 3 }, tooMany},
		"as many died as is expected":    {func(r *result) { r.Expect.Harmed = 4 }, asMeant},
		"a share of the baseline's died": {func(r *result) { r.Expect.OfBaseline = 0.001 }, asMeant},
		"more than a share of them":      {func(r *result) { r.Expect.OfBaseline = 0.0001 }, tooMany},
		"a healthy patch was halted":     {func(r *result) { r.Patch = harm{} }, falseHalt},
		"a healthy patch came to all":    {func(r *result) { r.Patch, r.ours.halted, r.ours.covered = harm{}, 0, 3600 }, asMeant},
		"a healthy patch did not":        {func(r *result) { r.Patch, r.ours.halted = harm{}, 0 }, notCovered},
		"a person has to let it go on": {func(r *result) {
			r.Patch, r.ours.halted, r.ours.waits, r.Expect = harm{}, 0, "failing", bounds{Person: true}
		}, person},
		"nobody thought that one would":     {func(r *result) { r.Patch, r.ours.halted, r.ours.waits = harm{}, 0, "failing" }, notCovered},
		"it stands for no reason":           {func(r *result) { r.Patch, r.ours.halted, r.Expect = harm{}, 0, bounds{Person: true} }, notCovered},
		"a patch that stalls was held back": {func(r *result) { r.Patch, r.ours.halted = harm{Stalls: 0.3}, 0 }, held},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := seen(tc.change)
			if got := r.verdict(); got != tc.want {
				t.Errorf("verdict is %q, want %q", got, tc.want)
			}
			wrong := len(faults([]result{r})) > 0
			if wrong == (tc.want == asMeant || tc.want == held || tc.want == person) {
				t.Errorf("verdict %q is a fault: %v", tc.want, wrong)
			}
		})
	}
}

func TestMoment(t *testing.T) {
	for at, want := range map[moment]string{0: "–", 59: "0 min 59 s", 630: "10 min 30 s", 3600: "1 h 00 min", 90_000: "25 h 00 min"} {
		if got := at.String(); got != want {
			t.Errorf("%d s is %q, want %q", int64(at), got, want)
		}
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1\u202f000", 1_234_567: "1\u202f234\u202f567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestCSVHasPlainNumbers(t *testing.T) {
	var out bytes.Buffer
	if err := writeCSV(&out, []result{seen(func(*result) {})}); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(lines) != 2 {
		t.Fatalf("%d lines: %v", len(lines), err)
	}
	got := map[string]string{}
	for i, name := range lines[0] {
		got[name] = lines[1][i]
	}
	want := map[string]string{
		"scenario": "seen", "machines": "20000", "harmed": "4", "baseline_harmed": "6000", "halt_seconds": "630",
		"halt_reason": "test-b", "covered_seconds": "", "verdict": asMeant, "requests": "874",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestPage(t *testing.T) {
	var out bytes.Buffer
	sections := []section{{"False halts", "none <b>"}}
	bad := seen(func(r *result) { r.Name, r.ours.halted = "bad", 0 })
	if err := writeHTML(&out, "An introduction.", usual, sections, []result{seen(func(*result) {}), bad}); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, want := range []string{
		"An introduction.", "10/20/40/60 %", "none &lt;b&gt;", `<h2 id="seen">`, `<td class="text bad">NOT HALTED</td>`,
		"Halted after 10 min 30 s by test-b on 1 of 10 kernels", "That is 1/1500.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Count(page, "<svg") != 2 || strings.Contains(page, "NaN") || strings.Contains(page, "<?xml") {
		t.Error("plots are missing or broken")
	}
	if strings.Contains(page, "<script") || strings.Contains(page, "src=") || strings.Contains(page, "<link") {
		t.Error("the page needs other files")
	}
}

func TestFigureOfNothing(t *testing.T) {
	empty := result{ours: outcome{series: newSeries(time.Hour), machines: 10}, base: outcome{series: newSeries(time.Hour)}}
	if svg, err := figure(empty); err != nil || bytes.Contains(svg, []byte("NaN")) {
		t.Errorf("plot of nothing: %v", err)
	}
}

func TestCumulated(t *testing.T) {
	counts := make([]int32, 61)
	counts[10], counts[20] = 3, 4
	xys := cumulated(counts, time.Hour)
	if len(xys) == 0 || xys[0].X != 10./60 || xys[0].Y != 3 || xys[len(xys)-1].Y != 7 {
		t.Errorf("cumulated %v", xys)
	}
}
