package main

import (
	"strings"
	"testing"
)

const printed = `Halts, and mean number of treated machines matured at a halt. 20000 runs a row.

control → treated loss  A, ρ of all            A, ρ of batch          B                      > 1 % after 50        z > 3.09 each look
0.003 → 0.003           0.0008 ±0.0005 / 2759  0.0008 ±0.0005 / 2759  0.0056 ±0.0012 / 4845  0.2952 ±0.0066 / 84   0.0330 ±0.0026 / 1739
0.010 → 0.010           0.0010 ±0.0006 / 1489  0.0011 ±0.0006 / 1424  0.9609 ±0.0028 / 2719  0.9597 ±0.0029 / 408  0.0366 ±0.0028 / 1434
0.003 → 0.053           1.0000 ±0.0001 / 137   1.0000 ±0.0001 / 137   1.0000 ±0.0001 / 82    1.0000 ±0.0001 / 51   1.0000 ±0.0001 / 80
0.003 → 0.200           1.0000 ±0.0001 / 28    1.0000 ±0.0001 / 28    1.0000 ±0.0001 / 20    1.0000 ±0.0001 / 50   1.0000 ±0.0001 / 50
0.003 → 1.000           1.0000 ±0.0001 / 5     1.0000 ±0.0001 / 5     1.0000 ±0.0001 / 3     1.0000 ±0.0001 / 50   1.0000 ±0.0001 / 50
`

func TestTableOfTheDesign(t *testing.T) {
	tests := map[string]struct{ from, to, want string }{
		"as it was simulated":         {"", "", ""},
		"a healthy patch is halted":   {"0.0008 ±0.0005 / 2759  0.0008", "0.0058 ±0.0005 / 2759  0.0008", "0.003 → 0.003, column 1: halts 0.0058"},
		"a bad one is halted later":   {"±0.0001 / 137   1.0000", "±0.0001 / 160   1.0000", "0.003 → 0.053, column 1: halts after 160"},
		"the tripwire is not reached": {"0.9609", "0.9000", "0.010 → 0.010, column 2"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rows, err := parseTable(strings.Replace(printed, tc.from, tc.to, 1))
			if err != nil {
				t.Fatal(err)
			}
			err = sameTable(rows, 20_000)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("difference is %v, want %q", err, tc.want)
			}
		})
	}
}

func TestParseTableRefusesHalfATable(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":       "",
		"a row less":    printed[:strings.LastIndex(printed, "0.003 → 1.000")],
		"a column less": strings.Replace(printed, "0.2952 ±0.0066 / 84", "", 1),
	} {
		if _, err := parseTable(text); err == nil {
			t.Errorf("%s was taken for a table", name)
		}
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add(printed)
	f.Add("0.003 → 0.003  0.1 ±0.1 / 99999999999999999999\n")
	f.Fuzz(func(t *testing.T, text string) {
		if rows, err := parseTable(text); err == nil && len(rows) != len(design) {
			t.Errorf("%d rows, and no error", len(rows))
		}
	})
}

func TestLimits(t *testing.T) {
	if u := upperLimit(0, 3000); u < 0.0009 || u > 0.0011 {
		t.Errorf("none of 3000 is at most %.5f, want 3/3000", u)
	}
	if l, u := lowerLimit(5, 100), upperLimit(5, 100); l < 0.015 || l > 0.025 || u < 0.095 || u > 0.11 {
		t.Errorf("5 of 100 is %.3f to %.3f", l, u)
	}
	if lowerLimit(0, 10) != 0 || upperLimit(10, 10) != 1 {
		t.Error("limits of none and of all")
	}
}
