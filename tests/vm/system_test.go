//go:build vm

package vm

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
)

// An outside is a service, and a publisher with a repository. Machines are put to
// it with join.
type outside struct {
	t         *testing.T
	service   *lab.Service
	publisher *lab.Publisher
}

// newOutside starts a service with a publisher's empty repository.
func newOutside(t *testing.T, o lab.ServiceOptions) outside {
	t.Helper()
	service, err := here.NewService(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the service:\n%s", service.Log())
		}
	})
	publisher, err := here.NewPublisher(t.Context(), t.TempDir(), service)
	if err != nil {
		t.Fatal(err)
	}
	return outside{t, service, publisher}
}

// A system is a machine, and what is outside of it.
type system struct {
	guest
	outside
	t *testing.T
}

// join boots a machine that knows where the service is but is not enabled.
func (o outside) join(setup lab.Setup) system {
	o.t.Helper()
	setup.Root, setup.Service = o.publisher.Root, o.service.Address
	m := boot(o.t, setup)
	if err := m.WriteFile(o.t.Context(), "/root/ca.crt", readFile(o.t, o.service.CA)); err != nil {
		o.t.Fatal(err)
	}
	s := system{m, o, o.t}
	s.waitAgent()
	return s
}

// newSystem starts a service and a machine.
func newSystem(t *testing.T, o lab.ServiceOptions) system {
	t.Helper()
	return newOutside(t, o).join(lab.Setup{})
}

// waitAgent waits until the agent answers after a start.
func (s system) waitAgent() {
	s.t.Helper()
	eventually(s.t, time.Minute, "agent answers", func() bool {
		return !strings.Contains(s.run("canonical-livepatch status 2>&1 || true"), "Connection to the daemon failed")
	})
}

// publish signs a patch and pushes it.
func (o outside) publish(mod lab.Module, version string) {
	o.t.Helper()
	if err := o.publisher.Sign(o.t.Context(), mod, version, "CVE-2026-1000"+version); err != nil {
		o.t.Fatal(err)
	}
	if err := o.publisher.Push(o.t.Context()); err != nil {
		o.t.Fatal(err)
	}
}

// admin runs livepatch-admin and returns what it printed.
func (o outside) admin(args ...string) string {
	o.t.Helper()
	out, err := o.service.Admin(o.t.Context(), args...)
	if err != nil {
		o.t.Fatal(err)
	}
	return out
}

// enable enables the machine with a token.
func (s system) enable(token string) {
	s.t.Helper()
	s.run("canonical-livepatch config ca-certs=@stdin < /root/ca.crt")
	s.run("canonical-livepatch config remote-server=https://" + lab.ServiceName + ":8443")
	s.run("canonical-livepatch enable " + token)
}

// state returns the state and version of the patch as status says in JSON.
func (s system) state() (state, version string) {
	s.t.Helper()
	var got struct {
		Status []struct {
			Livepatch struct{ State, Version string }
		}
	}
	out := s.run("canonical-livepatch status --format json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Status) == 0 {
		s.t.Fatalf("cannot read status: %v\n%s", err, out)
	}
	return got.Status[0].Livepatch.State, got.Status[0].Livepatch.Version
}

// wantApplied waits until status says that a version is applied, and asks the
// kernel.
func (s system) wantApplied(version, answer string) {
	s.t.Helper()
	eventually(s.t, 90*time.Second, "status says that version "+version+" is applied", func() bool {
		state, v := s.state()
		return state == "applied" && v == version
	})
	s.wantAnswer(answer)
}

// fails runs a command that must fail and returns what it printed, which must be
// an error and a hint.
func (s system) fails(command string) string {
	s.t.Helper()
	res, err := s.Run(s.t.Context(), command)
	if err != nil {
		s.t.Fatal(err)
	}
	if res.Code == 0 || !strings.Contains(res.Stderr, "error:") || !strings.Contains(res.Stderr, "hint:") {
		s.t.Errorf("%s: exit status %d, want an error and a hint\n%s%s", command, res.Code, res.Stdout, res.Stderr)
	}
	return res.Stderr
}

// TestSystem is the life of a machine: enabled, patched, patched anew, in trouble,
// rebooted, disabled. Its parts go on from each other.
func TestSystem(t *testing.T) {
	s := newSystem(t, lab.ServiceOptions{Soak: 5 * time.Second})
	answer := func(version, says string) lab.Module {
		return build(t, lab.Patch{Source: "answer", Version: version, Answer: says})
	}
	s.publish(answer("1", "one"), "1")
	second, third, fourth := answer("2", "two"), answer("3", "three"), answer("4", "four")

	t.Run("cannot be enabled with a wrong token or without the CA", func(t *testing.T) {
		s.run("canonical-livepatch config remote-server=https://" + lab.ServiceName + ":8443")
		s.fails("canonical-livepatch enable 00000000000000000000000000000000") // CA not known
		s.run("canonical-livepatch config ca-certs=@stdin < /root/ca.crt")
		s.fails("canonical-livepatch enable 00000000000000000000000000000000")
		s.wantAnswer(own)
		s.wantLoaded()
	})
	t.Run("is patched when it is enabled", func(t *testing.T) {
		s.enable(s.admin("token", "create"))
		s.wantApplied("1", "one")
	})
	t.Run("gets a newer patch, and the older one is unloaded", func(t *testing.T) {
		s.publish(second, "2")
		s.run("canonical-livepatch refresh")
		s.wantApplied("2", "two")
		s.wantLoaded(second.Name)
	})
	t.Run("refuses a module that was changed on the server", func(t *testing.T) {
		s.publish(third, "3")
		undo := s.tamper(third)
		res, err := s.Run(t.Context(), "canonical-livepatch refresh")
		if err != nil {
			t.Fatal(err)
		}
		if res.Code == 0 {
			t.Errorf("refresh succeeded:\n%s", res.Stdout)
		}
		s.wantAnswer("two")
		s.wantLoaded(second.Name)
		undo()
		s.run("canonical-livepatch refresh")
		s.wantApplied("3", "three")
	})
	t.Run("stays patched while the service is away", func(t *testing.T) {
		if err := s.service.Stop(); err != nil {
			t.Fatal(err)
		}
		s.fails("canonical-livepatch refresh")
		s.wantApplied("3", "three")
		if err := s.service.Start(s.service.Address); err != nil {
			t.Fatal(err)
		}
		s.run("canonical-livepatch refresh")
	})
	t.Run("survives kill -9 of the agent", func(t *testing.T) {
		s.run("kill -9 $(pidof canonical-livepatchd)")
		eventually(t, time.Minute, "agent is back", func() bool { return s.run("pidof canonical-livepatchd || true") != "" })
		s.waitAgent()
		s.wantApplied("3", "three")
	})
	t.Run("changes nothing when the disk is full", func(t *testing.T) {
		s.publish(fourth, "4")
		s.run("dd if=/dev/zero of=/var/fill bs=64k 2>/dev/null; dd if=/dev/zero of=/var/fill2 bs=1 count=65536 2>/dev/null; sync; true")
		res, err := s.Run(t.Context(), "canonical-livepatch refresh")
		s.run("rm /var/fill /var/fill2; sync")
		if err != nil {
			t.Fatal(err)
		}
		if res.Code == 0 {
			t.Errorf("refresh succeeded:\n%s", res.Stdout)
		}
		s.wantAnswer("three")
		s.wantLoaded(third.Name)
		s.run("canonical-livepatch refresh")
		s.wantApplied("4", "four")
	})
	t.Run("has no root process of ours and a small agent at rest", func(t *testing.T) { testRest(t, s) })
	t.Run("is patched after a reboot without network", func(t *testing.T) {
		if err := s.Network(false); err != nil {
			t.Fatal(err)
		}
		if err := s.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantAnswer("four")
		s.waitAgent()
		s.wantApplied("4", "four")
		if err := s.Network(true); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("gives up a patch that was revoked", func(t *testing.T) {
		if _, err := s.service.Admin(t.Context(), "rollout", "revoke", "--at-once", "debian", "4"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 2*time.Minute, "the patch accepted before takes its place", func() bool {
			_, err := s.Run(t.Context(), "canonical-livepatch refresh")
			return err == nil && strings.HasPrefix(s.answer(), "three")
		})
		s.wantApplied("3", "three")
		s.wantLoaded(third.Name)
	})
	t.Run("tells of a transition that does not end, which halts nothing", func(t *testing.T) { testStall(t, s) })
	t.Run("can be disabled", func(t *testing.T) {
		s.run("canonical-livepatch disable --remove")
		if out := s.run("canonical-livepatch status 2>&1 || true"); !strings.Contains(out, "Machine is not enabled") {
			t.Errorf("status = %q, want that the machine is not enabled", out)
		}
		s.wantAnswer(own)
		s.wantLoaded()
	})
}

// testStall publishes a patch that waits for a kernel thread, kills the agent while it
// waits too, and lets the thread go once the service knows of it.
func testStall(t *testing.T, s system) {
	stuck := build(t, lab.Patch{Source: "stuck", Version: "5", Answer: "stuck"})
	s.publish(stuck, "5")
	s.run("echo always > /sys/kernel/mm/transparent_hugepage/enabled")
	s.run("canonical-livepatch refresh >/dev/null 2>&1 &")
	eventually(t, time.Minute, "the transition begins", func() bool {
		return s.run("cat /sys/kernel/livepatch/"+stuck.Name+"/transition || true") == "1"
	})
	s.run("kill -9 $(pidof canonical-livepatchd)")
	s.waitAgent()

	s.run("date -s @$(($(date +%s) + 31 * 60))") // it tells after half an hour
	s.run("canonical-livepatch refresh || true")
	s.wantEvent("failed +" + stuck.Name + " +5 +STALLED ")
	var seen shown
	eventually(t, 2*time.Minute, "it is counted as a soft failure", func() bool {
		seen = s.show("5")
		return slices.ContainsFunc(seen.Stages, func(g stage) bool { return g.Exposed == 1 && g.Pending == 0 && g.Soft == 1 })
	})
	if seen.State != "running" || slices.ContainsFunc(seen.Stages, func(g stage) bool { return g.Halted != "" }) {
		t.Errorf("rollout = %+v, want it to run", seen)
	}

	s.run("echo never > /sys/kernel/mm/transparent_hugepage/enabled")
	eventually(t, 2*time.Minute, "the transition ends", func() bool {
		s.run("canonical-livepatch refresh || true")
		state, version := s.state()
		return state == "applied" && version == "5"
	})
	s.wantAnswer("stuck")
	s.wantEvent("applied +" + stuck.Name + " +5 ")
}

// tamper changes one bit of a module in the service's store.
func (s system) tamper(mod lab.Module) (undo func()) {
	s.t.Helper()
	undo, err := s.service.Tamper(mod.Content)
	if err != nil {
		s.t.Fatal(err)
	}
	return undo
}

// maxRSS bounds the agent's memory at rest, in KiB.
const maxRSS = 20 << 10

// testRest waits until the loader has left, and looks at who is there.
func testRest(t *testing.T, s system) {
	eventually(t, 90*time.Second, "loader leaves", func() bool { return s.run("pidof livepatch-loader || true") == "" })
	if uid := s.run("stat -c %u /proc/$(pidof canonical-livepatchd)"); uid != "997" {
		t.Errorf("agent runs as uid %s, want 997", uid)
	}
	for line := range strings.Lines(s.run("for p in /proc/[0-9]*; do echo $(stat -c %u $p) $(readlink $p/exe); done 2>/dev/null")) {
		if uid, exe, _ := strings.Cut(strings.TrimSpace(line), " "); uid == "0" && strings.Contains(exe, "livepatch") {
			t.Errorf("%s runs as root", exe)
		}
	}
	rss, err := strconv.Atoi(s.run("awk '/^VmRSS/ { print $2 }' /proc/$(pidof canonical-livepatchd)/status"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("agent's RSS at rest: %d KiB", rss)
	if rss > maxRSS {
		t.Errorf("agent's RSS = %d KiB, want at most %d", rss, maxRSS)
	}
}
