//go:build vm

package vm

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/vm/lab"
)

// TestUnitsUnderSystemd runs what packaging/systemd ships under systemd itself: in
// the other tests our own first process reads the units and leaves their sandboxes
// out.
func TestUnitsUnderSystemd(t *testing.T) {
	repo := here.NewRepo()
	dir := t.TempDir()
	booted, err := here.BootSystemd(t.Context(), lab.Setup{Dir: dir, Root: repo.Root()})
	if err != nil {
		t.Fatal(err)
	}
	m := guest{booted, t}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			showLogs(t, booted, dir)
		}
	})
	agent := lab.AgentOf(m.Machine)
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	isActive := func(unit string) string { return m.run("systemctl is-active " + unit + " || true") }

	t.Run("all units start", func(t *testing.T) {
		for _, unit := range []string{"livepatch-loader.socket", "livepatch-loader-boot.service", "canonical-livepatchd.service"} {
			eventually(t, time.Minute, unit+" is active", func() bool { return isActive(unit) == "active" })
		}
		if failed := m.run("systemctl --failed --no-legend --plain"); failed != "" {
			t.Errorf("failed: %s", failed)
		}
		if state := isActive("livepatch-loader.service"); state != "inactive" {
			t.Errorf("loader is %s before anybody has called, want inactive", state)
		}
	})
	t.Run("a call starts the loader, and its sandbox lets it work", func(t *testing.T) {
		apply(t, agent, repo.Offer(repo.Publish(one, "1", 1, nil)), loaderv1.Outcome_OUTCOME_APPLIED)
		m.wantAnswer("one")
		if _, err := agent.Accept(t.Context(), one.Name); err != nil {
			t.Fatal(err)
		}
		if state := isActive("livepatch-loader.service"); state != "active" {
			t.Errorf("loader is %s", state)
		}
	})
	if t.Failed() { // the rest goes on from there
		return
	}
	t.Run("the sandbox is the unit's and the loader's own", func(t *testing.T) { testUnitsSandbox(t, m) })
	t.Run("the agent has no right at all", func(t *testing.T) {
		status := m.run("cat /proc/$(pidof canonical-livepatchd)/status")
		wantFields(t, status, map[string]string{
			"Uid": "997", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
		})
	})
	t.Run("a shutdown is recorded and a boot brings the patch back", func(t *testing.T) {
		m.run("systemctl stop livepatch-loader.service livepatch-loader-boot.service")
		if journal := m.run("cat /var/lib/livepatch-loader/journal.json"); !strings.Contains(journal, `"clean_boot":"`) {
			t.Errorf("journal does not say that the machine went down in order: %s", journal)
		}
		m.run("echo 0 > /sys/kernel/livepatch/" + one.Name + "/enabled; until rmmod " + one.Name + " 2>/dev/null; do sleep 0.2; done")
		m.wantAnswer("console=ttyS0")
		m.run("systemctl start livepatch-loader-boot.service")
		m.wantAnswer("one")
	})
	t.Run("the sandbox lets the loader hear what the kernel says of a patch", func(t *testing.T) {
		bad := build(t, lab.Patch{Source: "oopses", Version: "2", Answer: "oopses"})
		apply(t, agent, repo.Offer(repo.Publish(bad, "2", 2, nil)), loaderv1.Outcome_OUTCOME_APPLIED)
		m.meetOops()
		st, err := agent.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := "NULL pointer dereference/" + bad.Name + "/livepatch_cmdline_proc_show"
		if !slices.ContainsFunc(st.GetComplaints(), func(c *loaderv1.Complaint) bool { return c.GetName() == bad.Name && c.GetSignature() == want }) {
			t.Errorf("complaints = %v, want one with signature %q", st.GetComplaints(), want)
		}
	})
	t.Run("what systemd thinks of the sandboxes", func(t *testing.T) {
		for _, unit := range []string{"livepatch-loader.service", "livepatch-loader-boot.service", "canonical-livepatchd.service"} {
			out := m.run("systemd-analyze security --no-pager " + unit + " | tail -n 1")
			score := regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+) OK`).FindStringSubmatch(out)
			if score == nil {
				t.Errorf("%s: %s, want OK", unit, out)
				continue
			}
			t.Logf("%s: %s", unit, score[1])
		}
	})
}

// testUnitsSandbox looks at the loader that systemd has started.
func testUnitsSandbox(t *testing.T, m guest) {
	status := m.run("cat /proc/$(pidof livepatch-loader)/status")
	want := map[string]string{"CapBnd": confined["CapEff"]}
	for field, value := range confined {
		if field != "Seccomp_filters" { // the unit's come before the loader's own
			want[field] = value
		}
	}
	wantFields(t, status, want)
	if filters := regexp.MustCompile(`Seccomp_filters:\s*([2-9]|\d\d)\b`).FindString(status); filters == "" {
		t.Errorf("the unit has no filter of its own:\n%s", status)
	}
	for _, ns := range []string{"mnt", "net"} {
		if inside, outside := m.run("readlink /proc/$(pidof livepatch-loader)/ns/"+ns), m.run("readlink /proc/1/ns/"+ns); inside == outside {
			t.Errorf("the loader shares %s with everybody", outside)
		}
	}
	mounts := m.run("cat /proc/$(pidof livepatch-loader)/mountinfo")
	if !regexp.MustCompile(`(?m) / / ro[, ]`).MatchString(mounts) {
		t.Errorf("the root of the file system is writable for the loader:\n%s", mounts)
	}
}
