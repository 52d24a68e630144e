//go:build integration

package integration

import (
	"os"
	"slices"
	"strings"
	"testing"

	"livepatch/tests/lab"
)

// The way of a patch, from the publisher to the kernel and out again, with
// everything that a user does on the way.
func TestTheWayOfAPatch(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	m.Join(s, s.URL())

	// enable
	if r := m.CLI("status"); r.Code != 1 || !strings.Contains(r.Stderr, "Machine is not enabled") {
		t.Errorf("status before enabling: %v", r)
	}
	token := s.Token()
	if out := m.OK("enable", token); !strings.HasPrefix(out, "Successfully enabled device. Using machine-token: ") {
		t.Errorf("enable printed %q", out)
	}
	if r := m.CLI("enable", token); r.Code != 1 || !strings.Contains(r.Stderr, "Machine-token already exists!") {
		t.Errorf("enabling twice: %v", r)
	}
	m.OK("refresh")
	m.WantInForce(one)
	m.WantStatus(one, "checked", "applied")

	// already applied
	if out := m.OK("refresh"); !strings.Contains(out, "patch is applied") {
		t.Errorf("refresh printed %q", out)
	}
	if got := len(m.Kernel.Insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
	m.Accepts(one)

	// replaced by a newer one
	s.Publish(two)
	m.OK("refresh")
	m.WantInForce(two)
	m.WantStatus(two, "checked", "applied")
	if got := m.Kernel.Modules(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("modules = %q, want the older one unloaded", got)
	}
	m.Accepts(two)
	if got := s.Admin("machine", "list"); !strings.Contains(got, two.Version) || !strings.Contains(got, "enabled") {
		t.Errorf("the service does not know what is on the machine:\n%s", got)
	}

	// after a reboot, without a network
	lab.Must(t, s.Server.Stop(t))
	m.Reboot(true)
	if r := m.OneShot("-boot"); r.Code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	m.WantInForce(two)
	m.SwitchOn()
	if r := m.CLI("refresh"); r.Code != 1 || !strings.Contains(r.Stderr, "refused") {
		t.Errorf("refresh without the service: %v", r)
	}
	m.WantStatus(two, "check-failed", "applied")
	s.Start()
	m.OK("refresh")
	m.WantStatus(two, "checked", "applied")
	if got := len(m.Kernel.Insertions()); got != 3 {
		t.Errorf("insertions = %d, want 3: two patches, and one again after the reboot", got)
	}

	// disabled and removed
	if out := m.OK("disable", "--remove"); !strings.HasPrefix(out, "Successfully disabled device. Removed machine-token: ") || !strings.Contains(out, two.Name) {
		t.Errorf("disable printed %q", out)
	}
	m.WantInForce()
	if got := m.Kernel.Modules(); len(got) != 0 {
		t.Errorf("modules = %q, want none", got)
	}
	if _, err := os.Stat(m.Path("agent/machine-token")); !os.IsNotExist(err) {
		t.Errorf("machine-token is still there: %v", err)
	}
	if r := m.CLI("refresh"); r.Code != 1 || !strings.Contains(r.Stderr, "Machine is not enabled") {
		t.Errorf("refresh after disabling: %v", r)
	}
	m.Reboot(true)
	if r := m.OneShot("-boot"); r.Code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	m.WantInForce()
}

func TestARevokedPatchLeavesTheKernelAndDoesNotComeBack(t *testing.T) {
	t.Parallel()
	one := lab.NewModule(1)
	s := lab.NewService(t)
	m := lab.NewClient(t, s)
	m.OK("refresh")
	m.WantInForce(one)
	if got := s.Admin("rollout", "revoke", "--at-once", lab.Vendor, one.Version); got != "decided and signed" {
		t.Errorf("rollout revoke printed %q", got)
	}
	if out := m.OK("refresh"); !strings.Contains(out, "nothing to apply") {
		t.Errorf("refresh printed %q", out)
	}
	m.WantInForce()
	m.Reboot(true)
	if r := m.OneShot("-boot"); r.Code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	m.WantInForce()
	m.SwitchOn()
	m.OK("refresh")
	if got := len(m.Kernel.Insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
}

func TestAHaltedPatchSpreadsNoFurtherAndStaysWhereItIs(t *testing.T) {
	t.Parallel()
	one := lab.NewModule(1)
	s := lab.NewService(t)
	early, late := lab.NewClient(t, s), lab.NewMachine(t, s.Pinned())
	early.OK("refresh")
	s.Admin("rollout", "halt", lab.Vendor, one.Version)
	late.Join(s, s.URL())
	late.Enable(s)
	early.OK("refresh")
	if out := late.OK("refresh"); !strings.Contains(out, "nothing to apply") {
		t.Errorf("refresh printed %q", out)
	}
	early.WantInForce(one)
	late.WantInForce()
	if got := s.Admin("rollout", "resume", lab.Vendor, one.Version); !strings.HasPrefix(got, "resume proposed by ") {
		t.Errorf("the first administrator's word to resume printed %q", got)
	}
	if out := late.OK("refresh"); !strings.Contains(out, "nothing to apply") {
		t.Errorf("after one administrator's word to resume, refresh printed %q", out)
	}
	if got := s.AdminOther("rollout", "resume", lab.Vendor, one.Version); got != "decided and signed" {
		t.Errorf("the second administrator's word to resume printed %q", got)
	}
	late.OK("refresh")
	late.WantInForce(one)
}
