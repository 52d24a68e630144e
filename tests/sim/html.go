package main

import (
	"bytes"
	_ "embed" // for the page
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html
var page string

// A section is text that stands before the scenarios.
type section struct{ Name, Text string }

type cell struct{ Text, Class, Link string }

type header struct {
	Name string
	Base bool
}

type chapter struct {
	Name, About, Story string
	SVG                template.HTML
}

// writeHTML writes a page with the table and a plot for each scenario. It needs no other
// file and no network.
func writeHTML(out io.Writer, intro string, b baseline, sections []section, results []result) error {
	t, err := template.New("report").Parse(page)
	if err != nil {
		return fmt.Errorf("cannot read page: %w", err)
	}
	chapters := make([]chapter, len(results))
	rows := make([][]cell, len(results))
	for i, r := range results {
		rows[i] = cells(r)
		if chapters[i], err = chapterOf(r); err != nil {
			return err
		}
	}
	var heads []header
	for _, c := range columns {
		heads = append(heads, header{c.name, c.isBase()})
	}
	return t.Execute(out, map[string]any{
		"Intro": intro, "Baseline": b.String(), "Columns": heads, "Rows": rows, "Sections": sections, "Scenarios": chapters, "Key": key(),
	})
}

// A keyEntry explains a colour.
type keyEntry struct {
	Name  string
	Color template.CSS
}

func key() (entries []keyEntry) {
	for q, name := range [quantities]string{exposed: "exposed", matured: "lived with it for an hour", failed: "harmed"} {
		c := colors[q]
		entries = append(entries, keyEntry{name, template.CSS(fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B))})
	}
	return entries
}

func (c column) isBase() bool { return strings.HasPrefix(c.csv, "baseline_") }

func cells(r result) (row []cell) {
	for _, c := range columns {
		v := c.of(r)
		x := cell{Text: human(v)}
		_, text := v.(string)
		switch {
		case c.isBase():
			x.Class = "base"
		case c.csv == "scenario":
			x.Link = r.Name
		case v == falseHalt || v == notHalted || v == tooMany:
			x.Class = "text bad"
		case text:
			x.Class = "text"
		}
		row = append(row, x)
	}
	return row
}

func chapterOf(r result) (chapter, error) {
	drawn, err := figure(r)
	if err != nil {
		return chapter{}, err
	}
	// What stands before the picture belongs to a file of its own.
	if i := bytes.Index(drawn, []byte("<svg")); i > 0 {
		drawn = drawn[i:]
	}
	return chapter{r.Name, r.About, r.story(), template.HTML(drawn)}, nil
}

// story says in a sentence or two what happened.
func (r result) story() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s machines, %d kernels. ", grouped(r.ours.machines), r.ours.units)
	switch o := r.ours; {
	case o.halted > 0:
		fmt.Fprintf(&s, "Halted after %v by %s on %d of %d kernels, when %s machines had the patch. ", moment(o.halt), o.reason, o.halted, o.units, grouped(o.exposed))
	case o.covered > 0:
		fmt.Fprintf(&s, "95 %% have the patch after %v. ", moment(o.covered))
	default:
		fmt.Fprintf(&s, "Neither halted nor everywhere: %s machines have the patch. ", grouped(o.exposed))
	}
	if !r.healthy() {
		fmt.Fprintf(&s, "Harmed: %s; under the baseline %s.", grouped(r.ours.harmed), grouped(r.base.harmed))
		if r.ours.harmed > 0 {
			fmt.Fprintf(&s, " That is 1/%d.", r.base.harmed/r.ours.harmed)
		}
	}
	return s.String()
}

// String says what the baseline does.
func (b baseline) String() string {
	var shares []string
	for _, p := range b.phases {
		shares = append(shares, fmt.Sprintf("%.0f", 100*p))
	}
	return fmt.Sprintf("machines poll every hour, phases of %s %% begin %v after one another and then everybody has it, and a person stops a patch that harms after %v.",
		strings.Join(shares, "/"), b.each, b.stop)
}
