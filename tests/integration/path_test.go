//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The way of a patch, from the publisher to the kernel and out again, with
// everything that a user does on the way.
func TestTheWayOfAPatch(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	s := newService(t)
	m := newMachine(t, s.pinned())
	m.join(s, s.url())

	// enable
	if r := m.cli("status"); r.code != 1 || !strings.Contains(r.stderr, "Machine is not enabled") {
		t.Errorf("status before enabling: %v", r)
	}
	token := s.token()
	if out := m.ok("enable", token); !strings.HasPrefix(out, "Successfully enabled device. Using machine-token: ") {
		t.Errorf("enable printed %q", out)
	}
	if r := m.cli("enable", token); r.code != 1 || !strings.Contains(r.stderr, "Machine-token already exists!") {
		t.Errorf("enabling twice: %v", r)
	}
	m.ok("refresh")
	m.wantInForce(one)
	m.wantStatus(one, "checked", "applied")

	// already applied
	if out := m.ok("refresh"); !strings.Contains(out, "patch is applied") {
		t.Errorf("refresh printed %q", out)
	}
	if got := len(m.kernel.insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
	m.accepts(one)

	// replaced by a newer one
	s.publish(two)
	m.ok("refresh")
	m.wantInForce(two)
	m.wantStatus(two, "checked", "applied")
	if got := m.kernel.modules(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("modules = %q, want the older one unloaded", got)
	}
	m.accepts(two)
	if got := s.admin("machine", "list"); !strings.Contains(got, two.Version) || !strings.Contains(got, "enabled") {
		t.Errorf("the service does not know what is on the machine:\n%s", got)
	}

	// after a reboot, without a network
	must(t, s.server.stop(t))
	m.reboot(true)
	if r := m.oneShot("-boot"); r.code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	m.wantInForce(two)
	m.switchOn()
	if r := m.cli("refresh"); r.code != 1 || !strings.Contains(r.stderr, "refused") {
		t.Errorf("refresh without the service: %v", r)
	}
	m.wantStatus(two, "check-failed", "applied")
	s.start()
	m.ok("refresh")
	m.wantStatus(two, "checked", "applied")
	if got := len(m.kernel.insertions()); got != 3 {
		t.Errorf("insertions = %d, want 3: two patches, and one again after the reboot", got)
	}

	// disabled and removed
	if out := m.ok("disable", "--remove"); !strings.HasPrefix(out, "Successfully disabled device. Removed machine-token: ") || !strings.Contains(out, two.Name) {
		t.Errorf("disable printed %q", out)
	}
	m.wantInForce()
	if got := m.kernel.modules(); len(got) != 0 {
		t.Errorf("modules = %q, want none", got)
	}
	if _, err := os.Stat(m.path("agent/machine-token")); !os.IsNotExist(err) {
		t.Errorf("machine-token is still there: %v", err)
	}
	if r := m.cli("refresh"); r.code != 1 || !strings.Contains(r.stderr, "Machine is not enabled") {
		t.Errorf("refresh after disabling: %v", r)
	}
	m.reboot(true)
	if r := m.oneShot("-boot"); r.code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	m.wantInForce()
}

func TestARevokedPatchLeavesTheKernelAndDoesNotComeBack(t *testing.T) {
	t.Parallel()
	one := newModule(1)
	s := newService(t)
	m := newClient(t, s)
	m.ok("refresh")
	m.wantInForce(one)
	if got := s.admin("rollout", "revoke", vendor, one.Version); got != "decided and signed" {
		t.Errorf("rollout revoke printed %q", got)
	}
	if out := m.ok("refresh"); !strings.Contains(out, "nothing to apply") {
		t.Errorf("refresh printed %q", out)
	}
	m.wantInForce()
	m.reboot(true)
	if r := m.oneShot("-boot"); r.code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	m.wantInForce()
	m.switchOn()
	m.ok("refresh")
	if got := len(m.kernel.insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
}

func TestAHaltedPatchSpreadsNoFurtherAndStaysWhereItIs(t *testing.T) {
	t.Parallel()
	one := newModule(1)
	s := newService(t)
	early, late := newClient(t, s), newMachine(t, s.pinned())
	early.ok("refresh")
	s.admin("rollout", "halt", vendor, one.Version)
	late.join(s, s.url())
	late.enable(s)
	early.ok("refresh")
	if out := late.ok("refresh"); !strings.Contains(out, "nothing to apply") {
		t.Errorf("refresh printed %q", out)
	}
	early.wantInForce(one)
	late.wantInForce()
	s.admin("rollout", "resume", vendor, one.Version)
	late.ok("refresh")
	late.wantInForce(one)
}

// accepts waits until the trial of the patch in force is over. The services of
// these tests make it as short as can be.
func (m *machine) accepts(p module) {
	m.t.Helper()
	m.wantInForce(p)
	eventually(m.t, "patch is accepted", func() bool {
		m.ok("refresh")
		return m.standing(p.Name) == "accepted"
	})
}

// wantInForce fails the test unless exactly these patches are in force, as the
// kernel says.
func (m *machine) wantInForce(want ...module) {
	m.t.Helper()
	names := []string{}
	for _, w := range want {
		names = append(names, w.Name)
	}
	if got := m.inForce(); !slices.Equal(got, names) {
		m.t.Fatalf("in force = %q, want %q", got, names)
	}
}

// wantStatus fails the test unless status says in all of its formats how the
// last check went and what became of a patch.
func (m *machine) wantStatus(p module, check, state string) {
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
	must(m.t, json.Unmarshal([]byte(m.ok("status", "--format", "json")), &asJSON))
	got := asJSON.Status[0]
	if lp := got.Livepatch; got.Kernel != release || !got.Running || lp.CheckState != check || lp.State != state || lp.Version != p.Version {
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
	must(m.t, yaml.Unmarshal([]byte(m.ok("status", "--format", "yaml")), &asYAML))
	if lp := asYAML.Status[0].Livepatch; lp.CheckState != check || lp.PatchState != state || lp.Version != p.Version || !strings.Contains(lp.Fixes, p.Fixes[0]) {
		m.t.Errorf("status as YAML = %+v, want %s, %s, version %s, %s", lp, check, state, p.Version, p.Fixes)
	}
	humane := m.ok("status", "--verbose")
	words := []string{release, strings.ToLower(p.Fixes[0])}
	if state == "applied" {
		words = append(words, "patch version: "+p.Version)
	}
	for _, want := range words {
		if !strings.Contains(humane, want) {
			m.t.Errorf("status does not say %q:\n%s", want, humane)
		}
	}
}
