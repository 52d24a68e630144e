package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// designRuns is how many runs a row of the design's table was made of.
const designRuns = 20_000

// A cellOf is how often a rule halts, and the mean number of machines that had matured
// by then; 0 if that is not given.
type cellOf struct{ rate, mean float64 }

// A row is one of the table: test A with ρ of the design, B, "> 1 % after 50", and
// z > 3.09 at each look.
type row struct {
	name  string
	cells [4]cellOf
}

// design is the table of the design.
var design = []row{
	{"0.003 → 0.003", [4]cellOf{{.0005, 0}, {.004, 0}, {.30, 0}, {.028, 0}}},
	{"0.010 → 0.010", [4]cellOf{{.000, 0}, {.96, 0}, {.96, 0}, {.034, 0}}},
	{"0.003 → 0.053", [4]cellOf{{1, 138}, {1, 81}, {1, 52}, {1, 80}}},
	{"0.003 → 0.200", [4]cellOf{{1, 28}, {1, 20}, {1, 50}, {1, 50}}},
	{"0.003 → 1.000", [4]cellOf{{1, 5}, {1, 3}, {1, 50}, {1, 50}}},
}

// rounding is how far a figure of the design may be from what was simulated.
const rounding = 0.0005

// compareTable makes the table anew with the program that belongs to the rule, and
// compares the two within their error.
func compareTable(ctx context.Context, o options) (section, error, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "run", "./server/internal/rollout/table", "-part", "plain",
		"-runs", strconv.Itoa(o.tableRuns), "-seed", strconv.FormatUint(o.seed, 10))
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return section{}, nil, fmt.Errorf("cannot make the table of the design: %w", err)
	}
	ours, err := parseTable(out.String())
	if err != nil {
		return section{}, nil, err
	}
	fault := sameTable(ours, o.tableRuns)
	s := section{Name: "The table of the design, made anew", Text: out.String()}
	if fault == nil {
		s.Text += "\nEvery figure is that of the design within four standard errors of both.\n"
	} else {
		s.Text += "\nNot as in the design: " + fault.Error() + "\n"
	}
	return s, fault, nil
}

var (
	rowPattern  = regexp.MustCompile(`^(0\.\d{3} → \d\.\d{3})\s`)
	cellPattern = regexp.MustCompile(`(\d\.\d+) ±\d\.\d+ / (\d+)`)
)

// columnsOfDesign are those of the program's that the design has too.
var columnsOfDesign = [4]int{0, 2, 3, 4}

// parseTable reads the rows that the program prints.
func parseTable(text string) (rows []row, err error) {
	for line := range strings.Lines(text) {
		name := rowPattern.FindStringSubmatch(line)
		if name == nil {
			continue
		}
		found := cellPattern.FindAllStringSubmatch(line, -1)
		if len(found) != 5 {
			return nil, fmt.Errorf("cannot read table: %q has %d columns, want 5", line, len(found))
		}
		r := row{name: name[1]}
		for i, c := range columnsOfDesign {
			rate, err1 := strconv.ParseFloat(found[c][1], 64)
			mean, err2 := strconv.ParseFloat(found[c][2], 64)
			if err := errors.Join(err1, err2); err != nil {
				return nil, fmt.Errorf("cannot read table: %w", err)
			}
			r.cells[i] = cellOf{rate, mean}
		}
		rows = append(rows, r)
	}
	if len(rows) != len(design) {
		return nil, fmt.Errorf("cannot read table: %d rows, want %d", len(rows), len(design))
	}
	return rows, nil
}

// sameTable tells where the table differs from the design's by more than chance.
func sameTable(ours []row, runs int) error {
	var wrong []error
	for i, want := range design {
		for c, w := range want.cells {
			got := ours[i].cells[c]
			p := math.Max(w.rate, 0.0005) // a rate of none is one that was rounded
			slack := 4*math.Sqrt(p*(1-p)*(1/float64(runs)+1./designRuns)) + 1/float64(runs) + rounding
			if math.Abs(got.rate-w.rate) > slack {
				wrong = append(wrong, fmt.Errorf("%s, column %d: halts %.4f, want %.4f ± %.4f", want.name, c+1, got.rate, w.rate, slack))
			}
			// The standard deviation of what has matured at a halt is below 0.6 of its mean.
			drift := 4*0.6*w.mean*math.Sqrt(1/float64(runs)+1./designRuns) + 0.5
			if w.mean > 0 && math.Abs(got.mean-w.mean) > drift {
				wrong = append(wrong, fmt.Errorf("%s, column %d: halts after %v, want %v ± %.1f", want.name, c+1, got.mean, w.mean, drift))
			}
		}
	}
	return errors.Join(wrong...)
}
