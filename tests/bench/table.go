package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// A row is one line of the table.
type row struct {
	What     string  `json:"what"`
	Unit     string  `json:"unit"`
	Measured float64 `json:"measured"`
	// Peer is the same measurement of the program that ours is held against,
	// and PeerName what that is. A row without a peer has no name there.
	Peer     float64 `json:"peer,omitempty"`
	PeerName string  `json:"peer_name,omitempty"`
	// Limit is the target. It bounds Measured, or Measured/Peer if Relative.
	Limit    float64 `json:"limit"`
	Relative bool    `json:"limit_is_ratio,omitempty"`
	// AtLeast makes Limit a lower bound.
	AtLeast bool `json:"limit_is_floor,omitempty"`
	// Informative rows have no target.
	Informative bool `json:"informative,omitempty"`
	// Samples are the numbers that Measured and Peer were made from.
	Samples     []float64 `json:"samples,omitempty"`
	PeerSamples []float64 `json:"peer_samples,omitempty"`
	// Note says how it was measured, where the name does not.
	Note string `json:"note,omitempty"`
	// Err says why there is no measurement; such a row is a miss.
	Err string `json:"error,omitempty"`
}

// met tells whether the row keeps its target.
func (r row) met() bool {
	switch {
	case r.Err != "":
		return false
	case r.Informative:
		return true
	case r.Relative:
		return r.Peer > 0 && r.within(r.Measured/r.Peer)
	default:
		return r.within(r.Measured)
	}
}

// within tells whether v is on the right side of the limit.
func (r row) within(v float64) bool {
	if r.AtLeast {
		return v >= r.Limit
	}
	return v <= r.Limit
}

func (r row) ratio() string {
	if r.Peer == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f×", r.Measured/r.Peer)
}

func (r row) target() string {
	sign := "≤"
	if r.AtLeast {
		sign = "≥"
	}
	switch {
	case r.Informative || r.Err != "":
		return "-"
	case r.Relative:
		return fmt.Sprintf("%s %.1f×", sign, r.Limit)
	default:
		return fmt.Sprintf("%s %s %s", sign, number(r.Limit), r.Unit)
	}
}

func (r row) verdict() string {
	switch {
	case r.Err != "":
		first, _, _ := strings.Cut(r.Err, "\n") // the file has all of it
		return "MISS: " + first
	case r.Informative:
		return ""
	case r.met():
		return "pass"
	default:
		return "MISS"
	}
}

// number prints v with three digits that matter.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%d", int64(v))
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// write prints the table.
func write(w io.Writer, rows []row) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WHAT\tOURS\tPEER\t\tRATIO\tTARGET\t")
	for _, r := range rows {
		peer := "-"
		if r.PeerName != "" {
			peer = number(r.Peer) + " " + r.Unit
		}
		ours := number(r.Measured) + " " + r.Unit
		if r.Err != "" {
			ours = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.What, ours, peer, r.PeerName, r.ratio(), r.target(), r.verdict())
	}
	return tw.Flush()
}

// save writes rows and where they were measured as JSON.
func save(path string, machine map[string]string, rows []row) error {
	b, err := json.MarshalIndent(map[string]any{"machine": machine, "rows": rows}, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot save results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot save results: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("cannot save results: %w", err)
	}
	return nil
}
