package lab

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// WantRefusal fails the test unless a user was told in one line what could not be
// done and why, in a second line what to do next, and nothing else.
func WantRefusal(t *testing.T, r Result, why, next string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	switch {
	case r.Code != 1 || r.Stdout != "" || len(lines) != 2,
		!strings.HasPrefix(lines[0], "canonical-livepatch: error: cannot "), !strings.Contains(lines[0], why),
		!strings.HasPrefix(lines[1], "canonical-livepatch: hint: "), !strings.Contains(lines[1], next):
		t.Errorf("the user was told\n%v\nwant an error with %q and a hint with %q", r, why, next)
	}
}

// Refuses fails the test unless the command is refused with these words and
// nothing on the machine changes, with or without what is known of signed files.
func (m *Machine) Refuses(t *testing.T, signedFiles bool, why, next string, args ...string) {
	t.Helper()
	before := m.Footprint(signedFiles)
	WantRefusal(t, m.CLI(args...), why, next)
	WantSame(t, before, m.Footprint(signedFiles))
}

// Accepts waits until the trial of the patch in force is over. The services of
// these tests make it as short as can be.
func (m *Machine) Accepts(p Module) {
	m.t.Helper()
	m.WantInForce(p)
	Eventually(m.t, "patch is accepted", func() bool {
		m.OK("refresh")
		return m.Standing(p.Name) == "accepted"
	})
}

// WantInForce fails the test unless exactly these patches are in force, as the
// kernel says.
func (m *Machine) WantInForce(want ...Module) {
	m.t.Helper()
	names := []string{}
	for _, w := range want {
		names = append(names, w.Name)
	}
	if got := m.InForce(); !slices.Equal(got, names) {
		m.t.Fatalf("in force = %q, want %q", got, names)
	}
}

// WantStatus fails the test unless status says in all of its formats how the
// last check went and what became of a patch.
func (m *Machine) WantStatus(p Module, check, state string) {
	m.t.Helper()
	var asJSON struct {
		Status []struct {
			Kernel    string
			Running   bool
			Livepatch struct {
				CheckState, State, Version string
				Fixes                      []struct {
					Name    string
					Patched bool
				}
			}
		}
	}
	Must(m.t, json.Unmarshal([]byte(m.OK("status", "--format", "json")), &asJSON))
	got := asJSON.Status[0]
	if lp := got.Livepatch; got.Kernel != Release || !got.Running || lp.CheckState != check || lp.State != state || lp.Version != p.Version {
		m.t.Errorf("status as JSON = %+v, want %s, %s, version %s", got, check, state, p.Version)
	}
	if f := got.Livepatch.Fixes; len(f) != 1 || !strings.EqualFold(f[0].Name, p.Fixes[0]) || f[0].Patched != (state == "applied") {
		m.t.Errorf("fixes as JSON = %+v, want %s", f, p.Fixes)
	}
	var asYAML struct {
		Status []struct {
			Kernel    string
			Livepatch struct {
				CheckState string `yaml:"checkState"`
				PatchState string `yaml:"patchState"`
				Version    string
				Fixes      string
			}
		}
	}
	Must(m.t, yaml.Unmarshal([]byte(m.OK("status", "--format", "yaml")), &asYAML))
	if lp := asYAML.Status[0].Livepatch; lp.CheckState != check || lp.PatchState != state || lp.Version != p.Version || !strings.Contains(lp.Fixes, p.Fixes[0]) {
		m.t.Errorf("status as YAML = %+v, want %s, %s, version %s, %s", lp, check, state, p.Version, p.Fixes)
	}
	humane := m.OK("status", "--verbose")
	words := []string{Release, strings.ToLower(p.Fixes[0])}
	if state == "applied" {
		words = append(words, "patch version: "+p.Version)
	}
	for _, want := range words {
		if !strings.Contains(humane, want) {
			m.t.Errorf("status does not say %q:\n%s", want, humane)
		}
	}
}
