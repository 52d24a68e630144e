//go:build vm

package vm

import (
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// A fleet is two machines of one owner, and a bad patch that only the first of them
// gets.
type fleet struct {
	outside
	bad           lab.Module
	first, second system
}

// harmed is what the kernel calls the programs that the bad patches harm.
const harmed = "victim"

// newFleet publishes a bad patch as version 1 and lets the first machine have it. The
// second one asks for it once the first has begun. Both ask every ten seconds, so that
// nothing here needs a person.
func newFleet(t *testing.T, source string) fleet {
	t.Helper()
	f := fleet{
		outside: newOutside(t, lab.ServiceOptions{CheckInterval: 10 * time.Second, Soak: time.Hour}),
		bad:     build(t, lab.Patch{Source: source, Version: "1", Answer: source}),
	}
	f.publish(f.bad, "1")
	token := f.admin("token", "create")
	f.first, f.second = f.join(lab.Setup{Files: workload(t), Store: true}), f.join(lab.Setup{})
	f.first.enable(token)
	f.wantBegun()
	f.second.enable(token)
	return f
}

// wantBegun waits until the service knows that the only machine it has has begun. It
// does not ask the machine, which may be about to go down.
func (f fleet) wantBegun() {
	f.t.Helper()
	id := regexp.MustCompile(`(?m)^[0-9a-f]{32}\b`).FindString(f.admin("machine", "list"))
	eventually(f.t, 2*time.Minute, "the first machine begins", func() bool {
		return strings.Contains(f.admin("machine", "events", id), " intent ")
	})
}

// workload returns a program that calls madvise, under two names.
func workload(t *testing.T) []machine.File {
	t.Helper()
	dir := t.TempDir()
	if err := machine.Build(t.Context(), dir, "livepatch/tests/vm/cmd/madvise"); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "madvise")
	return []machine.File{
		{Path: "/root/" + harmed, Mode: 0o755, Source: source},
		{Path: "/root/bystander", Mode: 0o755, Source: source},
	}
}

// wantHalted waits until the service has signed that no further machine gets version
// 1. Nobody told it to: the rule has halted the patch, on what the first machine said
// and what matches an expression.
func (f fleet) wantHalted(said string) {
	f.t.Helper()
	f.first.wantEvent(said)
	kernel := patch.Kernel{Arch: "x86_64", Release: here.Kernel.Release}
	eventually(f.t, 2*time.Minute, "the service signs that the patch is halted", func() bool {
		r, err := f.service.Rollout(f.t.Context(), "debian", "1")
		if err != nil {
			f.t.Fatal(err)
		}
		return r.At(kernel) == patch.Halted
	})
	if list := f.admin("rollout", "list"); !strings.Contains(list, "halted") {
		f.t.Errorf("rollout list does not say that it is halted:\n%s", list)
	}
	if log := f.admin("rollout", "log"); !regexp.MustCompile(` halt .* rule `).MatchString(log) {
		f.t.Errorf("rollout log does not say that the rule has halted it:\n%s", log)
	}
}

// wantEvent waits until the service has been told something by the machine that
// matches an expression.
func (s system) wantEvent(said string) {
	s.t.Helper()
	wanted := regexp.MustCompile(said)
	var events string
	s.t.Cleanup(func() { s.t.Logf("the machine has told the service:\n%s", events) })
	eventually(s.t, 2*time.Minute, "the machine tells the service of "+said, func() bool {
		events = s.admin("machine", "events", s.machineID())
		return wanted.MatchString(events)
	})
}

// machineID returns what the machine is called by the service.
func (s system) machineID() string {
	s.t.Helper()
	var got struct {
		ID string `json:"Machine-Id"`
	}
	out := s.run("canonical-livepatch status --format json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.ID == "" {
		s.t.Fatalf("cannot read status: %v\n%s", err, out)
	}
	return got.ID
}

// wantSpared ends the test unless the second machine never got the patch, although it
// looks again, and says why.
func (f fleet) wantSpared() {
	f.t.Helper()
	f.second.run("canonical-livepatch refresh || true")
	f.second.wantUnpatched()
	if out := f.second.run("dmesg | grep 'livepatch: enabling patch' || true"); out != "" {
		f.t.Fatalf("the second machine had a patch: %s", out)
	}
	f.second.wantStatus("notice: patch 1 is halted: no further machine gets it\nhint: nothing to do")
}

// wantStatus waits until the machine's status matches an expression.
func (s system) wantStatus(expression string) {
	s.t.Helper()
	var out string
	wanted := regexp.MustCompile(expression)
	s.t.Cleanup(func() {
		if !wanted.MatchString(out) {
			s.t.Logf("no %q in status:\n%s", expression, out)
		}
	})
	eventually(s.t, 2*time.Minute, "status says "+expression, func() bool {
		out = s.run("canonical-livepatch status --verbose")
		return wanted.MatchString(out)
	})
}

// meetOops runs a program that the patch "oopses" harms.
func (g guest) meetOops() {
	g.t.Helper()
	out := g.run("sh -c 'printf " + harmed + " > /proc/$$/comm; read line < /proc/cmdline; echo survived' 2>&1 || true")
	if strings.Contains(out, "survived") {
		g.t.Fatal("the patch has done no harm")
	}
}

// complainSoon lets the machine's kernel complain about tasks that hang for some
// seconds; it would wait for two minutes.
func (s system) complainSoon() { s.run("echo 5 > /proc/sys/kernel/hung_task_timeout_secs") }

// wantLeft ends the test unless the machine's kernel has kept a record of an earlier
// boot, and the loader complains of a module by it: an earlier boot has no name.
func (s system) wantLeft(module, signature string) {
	s.t.Helper()
	got, err := lab.AgentOf(s.Machine).Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if c := got.GetComplaints(); len(c) != 1 || c[0].GetName() != module || c[0].GetSignature() != signature || c[0].GetBootId() != "" {
		s.t.Errorf("complaints = %v, want one of %s by what is in the store:\n%s", c, signature, s.run("ls -l /sys/fs/pstore"))
	}
}

// wantNamed ends the test unless the rule has counted one machine that crashed in a
// certain way when it halted: of two machines that say the same, it would need no other
// evidence.
func (f fleet) wantNamed(signature string) {
	f.t.Helper()
	verdicts := f.show("1").Verdicts
	if len(verdicts) != 1 {
		f.t.Fatalf("verdicts = %+v, want one", verdicts)
	}
	v := verdicts[0]
	if v.Verdict.Action != "halt" || v.Evidence.Signature != signature || v.Evidence.Hits != 1 {
		f.t.Errorf("verdict = %+v, want that it is halted and one machine had %s", v, signature)
	}
}

// A shown is what people are shown of a rollout.
type shown struct {
	State    string
	Stages   []stage
	Verdicts []struct {
		Verdict  struct{ Action string }
		Evidence struct {
			Signature string
			Hits      int
		}
	}
}

// A stage is how far a tier has come.
type stage struct {
	Halted                 string
	Exposed, Pending, Soft int
}

// show returns what people are shown of a version.
func (o outside) show(version string) (s shown) {
	o.t.Helper()
	out := o.admin("rollout", "show", "--json", "debian", version)
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		o.t.Fatalf("cannot read the rollout: %v\n%s", err, out)
	}
	return s
}

// TestPatchThatPanics takes the machine down half a minute after it came. It does so
// once.
func TestPatchThatPanics(t *testing.T) {
	f := newFleet(t, "panics")
	before := f.first.BootID()
	if err := f.first.WaitBoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.first.BootID() == before {
		t.Fatal("the machine did not go down")
	}
	t.Run("is not applied again", func(t *testing.T) {
		f.first.wantUnpatched()
		f.first.waitAgent()
		f.first.run("canonical-livepatch refresh || true")
		f.first.wantUnpatched()
	})
	t.Run("is halted on what the machine says", func(t *testing.T) { f.wantHalted("crashed +" + f.bad.Name + " +1 +OPEN_JOURNAL") })
	panicked := "panic/" + f.bad.Name + "/livepatch_panic"
	t.Run("is named by what the kernel has left in its store", func(t *testing.T) { f.first.wantLeft(f.bad.Name, panicked) })
	t.Run("is told to the service by that name", func(t *testing.T) {
		f.first.wantEvent("crashed +" + f.bad.Name + " +1 +OOPS +" + panicked + " ")
		f.wantNamed(panicked)
	})
	t.Run("is explained where it did harm", func(t *testing.T) {
		f.first.wantStatus("patch state: ✗ detected a crash last time the Livepatch kernel module was applied")
		f.first.wantStatus("patch error: cannot apply patch 1: machine went down while this patch was on trial\n" +
			"patch hint: it waits for a newer one; see what happened with: journalctl -k -b -1\n")
	})
	t.Run("does not get to another machine", func(t *testing.T) { f.wantSpared() })
	t.Run("does so nowhere after another boot", func(t *testing.T) {
		for _, s := range []system{f.first, f.second} {
			if err := s.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.waitAgent()
			s.run("canonical-livepatch refresh || true")
			s.wantUnpatched()
		}
		f.first.wantStatus("machine went down while this patch was on trial")
	})
	t.Run("is told once, although the store keeps it", func(t *testing.T) {
		f.first.wantLeft(f.bad.Name, panicked)
		if events := f.admin("machine", "events", f.first.machineID()); strings.Count(events, panicked) != 1 {
			t.Errorf("events name it more than once:\n%s", events)
		}
	})
	console, err := f.first.Console()
	if err != nil {
		t.Fatal(err)
	}
	for _, once := range []string{"livepatch: enabling patch", "Kernel panic"} {
		if n := strings.Count(string(console), once); n != 1 {
			t.Errorf("the kernel said %q %d times, want once", once, n)
		}
	}
}

// TestPatchThatOopses kills one program and lets the machine go on.
func TestPatchThatOopses(t *testing.T) {
	f := newFleet(t, "oopses")
	f.first.wantApplied("1", "oopses")
	f.first.meetOops()
	t.Run("is halted on what the kernel says", func(t *testing.T) {
		f.wantHalted("crashed +" + f.bad.Name + " +1 +OOPS +NULL pointer dereference/" + f.bad.Name + "/livepatch_cmdline_proc_show ")
	})
	t.Run("does not get to another machine", func(t *testing.T) { f.wantSpared() })
	t.Run("is explained where it did harm", func(t *testing.T) {
		f.first.wantStatus("patch state: ✗ Livepatch kernel module inserted but kernel bug detected")
		f.first.wantStatus("notice: the kernel complained about patch 1: .*\nhint: it was reported; .*disable --remove")
		f.first.wantStatus("notice: the rollout of patch 1 is halted: this machine has it and keeps it, unless it is revoked")
	})
}

// TestPatchThatHangs lets one system call of one program never return.
func TestPatchThatHangs(t *testing.T) {
	f := newFleet(t, "hangs")
	f.first.wantApplied("1", "hangs")
	f.first.complainSoon()
	f.first.run("/root/" + harmed + " </dev/null >/dev/null 2>&1 &")
	if out := f.first.run("/root/bystander"); out != "advised" {
		t.Fatalf("another program = %q, want it unharmed", out)
	}
	t.Run("is halted on what the kernel says", func(t *testing.T) {
		f.wantHalted("crashed +" + f.bad.Name + " +1 +OOPS +hung task/" + f.bad.Name + "/livepatch_sys_madvise ")
	})
	t.Run("does not get to another machine", func(t *testing.T) { f.wantSpared() })
	t.Run("cannot be taken out from under the program, which is named", func(t *testing.T) {
		f.admin("rollout", "revoke", "--at-once", "debian", "1")
		f.first.wantStatus("notice: patch 1 is being taken out: it stays until every task has left it")
		f.first.wantStatus(`transition: moving tasks back, to take the patch out.*\n  \* ` + harmed + ` \(tid \d+\), D`)
	})
	t.Run("is gone with the next boot", func(t *testing.T) {
		if err := f.first.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.first.waitAgent()
		f.first.wantUnpatched()
		if out := f.first.run("/root/" + harmed); out != "advised" {
			t.Errorf("the program = %q, want it unharmed", out)
		}
	})
}
