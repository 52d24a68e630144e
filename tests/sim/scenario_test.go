package main

import (
	"errors"
	"strings"
	"testing"
)

const aScenario = `about: A test.
machines: 1000
kernels: 2
tiers: [{name: stable, share: 1, accounts: 10}]
loss: 0.01
limit: 6h
`

func TestParseScenario(t *testing.T) {
	tests := map[string]struct{ more, wantErr string }{
		"is whole":                        {"", ""},
		"harms":                           {"patch: {kills: 0.5, after: 2h, how: reboot}\n", ""},
		"has a field that nobody knows":   {"kill: 1\n", "field kill not found"},
		"kills nobody knows how":          {"patch: {kills: 0.5}\n", "patch.how"},
		"has a way to harm, and no harm":  {"patch: {how: oops}\n", "patch.how"},
		"kills more than all":             {"patch: {kills: 2, how: oops}\n", "patch.kills"},
		"harms more kernels than it has":  {"patch: {kills: 1, how: oops, kernels: 3}\n", "patch.kernels"},
		"has a liar who says nonsense":    {"liar: {share: 0.5, says: nothing}\n", "liar"},
		"is absent before the beginning":  {"night: {at: -1h, for: 1h}\n", "night"},
		"expects less than nobody harmed": {"expect: {harmed: -1}\n", "expect"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseScenario("test", []byte(aScenario+tc.more))
			switch {
			case tc.wantErr == "" && err != nil:
				t.Error(err)
			case tc.wantErr != "" && (!errors.Is(err, errScenario) || !strings.Contains(err.Error(), tc.wantErr)):
				t.Errorf("error is %v, want one with %q", err, tc.wantErr)
			}
		})
	}
}

func TestTiersShareTheMachines(t *testing.T) {
	half := strings.Replace(aScenario, "share: 1", "share: 0.5", 1)
	if _, err := parseScenario("test", []byte(half)); !errors.Is(err, errScenario) {
		t.Errorf("error of half a fleet is %v", err)
	}
}

func FuzzParseScenario(f *testing.F) {
	f.Add([]byte(aScenario))
	f.Add([]byte(aScenario + "patch: {kills: 1, after: 10s, within: 1m, how: hang, hardware: 0.1}\nexpect: {of_baseline: 0.01}\n"))
	f.Add([]byte("machines: 1e9\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseScenario("fuzz", b)
		if err == nil && (s.Machines <= 0 || s.Kernels <= 0 || s.Limit <= 0 || len(s.Tiers) == 0) {
			t.Errorf("no error, and %+v", s)
		}
	})
}
