//go:build vm

package vm

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/vm/lab"
)

// wantRefused ends the test unless err is the loader's refusal for one of the
// given reasons.
func wantRefused(t *testing.T, err error, reasons ...string) {
	t.Helper()
	var refused *lab.RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("error = %v, want a refusal", err)
	}
	if !slices.Contains(reasons, refused.Reason) {
		t.Fatalf("refused with %v, want reason %q", refused, reasons)
	}
}

// apply sends an offer that must succeed.
func apply(t *testing.T, c lab.Caller, o *lab.Offer, want loaderv1.Outcome) *loaderv1.ApplyResponse {
	t.Helper()
	resp, err := c.Apply(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetOutcome() != want {
		t.Fatalf("outcome = %v, want %v", resp, want)
	}
	return resp
}

// find returns what the loader says of a livepatch.
func find(t *testing.T, c lab.Caller, name string) *loaderv1.Livepatch {
	t.Helper()
	resp, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, lp := range resp.GetLivepatches() {
		if lp.GetName() == name {
			return lp
		}
	}
	return &loaderv1.Livepatch{}
}

// TestLoader brings patches into a running kernel and takes them out again. Its
// parts go on from each other, on one machine without agent and network.
func TestLoader(t *testing.T) {
	repo := here.NewRepo()
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	two := build(t, lab.Patch{Source: "answer", Version: "2", Answer: "two"})
	m := boot(t, lab.Setup{Root: repo.Root(), NoAgent: true})
	agent := lab.AgentOf(m.Machine)
	first := repo.Publish(one, "1", 1, nil)
	older := repo.Offer(first)
	second := repo.Publish(two, "2", 2, nil)

	t.Run("tells which kernel runs", func(t *testing.T) {
		got, err := agent.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		k := got.GetKernel()
		if k.GetRelease() != here.Kernel.Release || k.GetBuildId() != here.Kernel.BuildID {
			t.Errorf("kernel = %v, want %s with build-id %s", k, here.Kernel.Release, here.Kernel.BuildID)
		}
		if !k.GetLivepatchSupported() || !k.GetFtraceEnabled() || k.GetModulesDisabled() {
			t.Errorf("kernel = %v, want one that takes livepatches", k)
		}
		m.wantAnswer(own)
	})
	t.Run("applies a patch", func(t *testing.T) {
		resp := apply(t, agent, older, loaderv1.Outcome_OUTCOME_APPLIED)
		if resp.GetLivepatch().GetState() != loaderv1.State_STATE_ENABLED || resp.GetLivepatch().GetStanding() != loaderv1.Standing_STANDING_TRIAL {
			t.Errorf("livepatch = %v, want enabled and on trial", resp.GetLivepatch())
		}
		m.wantAnswer("one")
		m.wantLoaded(one.Name)
	})
	t.Run("does not insert the same patch again", func(t *testing.T) {
		apply(t, agent, older, loaderv1.Outcome_OUTCOME_ALREADY_APPLIED)
		if n := m.run("dmesg | grep -c 'livepatch: enabling patch'"); n != "1" {
			t.Errorf("the kernel enabled a patch %s times, want once", n)
		}
	})
	t.Run("replaces it by a newer one and unloads it", func(t *testing.T) {
		resp := apply(t, agent, repo.Offer(second), loaderv1.Outcome_OUTCOME_APPLIED)
		if !slices.Equal(resp.GetUnloaded(), []string{one.Name}) {
			t.Errorf("unloaded = %q, want %s", resp.GetUnloaded(), one.Name)
		}
		m.wantAnswer("two")
		m.wantLoaded(two.Name)
	})
	t.Run("does not go back to the older one", func(t *testing.T) {
		_, err := agent.Apply(t.Context(), repo.Offer(first))
		wantRefused(t, err, "ROLLBACK")
		m.wantAnswer("two")
		m.wantLoaded(two.Name)
	})
	t.Run("removes it", func(t *testing.T) {
		resp, err := agent.Remove(t.Context(), two.Name)
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetLivepatch().GetState() != loaderv1.State_STATE_ABSENT {
			t.Errorf("livepatch = %v, want it gone", resp.GetLivepatch())
		}
		m.wantAnswer(own)
		m.wantLoaded()
	})
	t.Run("says why the kernel refused", func(t *testing.T) {
		missing := build(t, lab.Patch{Source: "nosymbol", Version: "6"})
		_, err := agent.Apply(t.Context(), repo.Offer(repo.Publish(missing, "6", 6, nil)))
		wantRefused(t, err, "UNKNOWN_SYMBOL")
		m.wantAnswer(own)
		m.wantLoaded()
	})
	// What the kernel refused has a sequence number, too: it goes on from there.
	eight := repo.Publish(build(t, lab.Patch{Source: "answer", Version: "8", Answer: "eight"}), "8", 8, nil)
	t.Run("says that ftrace is off", func(t *testing.T) { testFtraceOff(t, m, repo, eight) })
	t.Run("cannot journal on a full disk", func(t *testing.T) { testDiskFull(t, m, repo, eight) })
	t.Run("watches a transition that does not end", func(t *testing.T) { testStuck(t, m, repo) })
	t.Run("is gone when idle and comes back when called", func(t *testing.T) {
		eventually(t, 60*time.Second, "loader leaves", func() bool { return m.run("pidof livepatch-loader || true") == "" })
		if _, err := agent.Status(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// testFtraceOff turns off what livepatches are made of.
func testFtraceOff(t *testing.T, m guest, repo *lab.Repo, good string) {
	agent := lab.AgentOf(m.Machine)
	m.run("echo 0 > /proc/sys/kernel/ftrace_enabled")
	t.Cleanup(func() { m.run("echo 1 > /proc/sys/kernel/ftrace_enabled") })
	_, err := agent.Apply(t.Context(), repo.Offer(good))
	wantRefused(t, err, "FTRACE_DISABLED")
	m.wantLoaded()
	m.run("echo 1 > /proc/sys/kernel/ftrace_enabled")
	apply(t, agent, repo.Offer(good), loaderv1.Outcome_OUTCOME_APPLIED)
	m.wantAnswer("eight")
	if _, err := agent.Remove(t.Context(), strings.Join(m.livepatches(), " ")); err != nil {
		t.Fatal(err)
	}
}

// testDiskFull fills the disk: what cannot be journaled must not be inserted.
func testDiskFull(t *testing.T, m guest, repo *lab.Repo, good string) {
	agent := lab.AgentOf(m.Machine)
	m.run("dd if=/dev/zero of=/var/fill bs=64k 2>/dev/null; dd if=/dev/zero of=/var/fill2 bs=1 count=65536 2>/dev/null; sync; true")
	_, err := agent.Apply(t.Context(), repo.Offer(good))
	wantRefused(t, err, "STORAGE")
	m.wantAnswer(own)
	m.wantLoaded()
	m.run("rm /var/fill /var/fill2; sync")
	apply(t, agent, repo.Offer(good), loaderv1.Outcome_OUTCOME_APPLIED)
	m.wantAnswer("eight")
}

// testStuck applies a patch whose transition waits for a kernel thread, kills the
// loader while it waits, and lets the thread go.
func testStuck(t *testing.T, m guest, repo *lab.Repo) {
	agent := lab.AgentOf(m.Machine)
	mod := build(t, lab.Patch{Source: "stuck", Version: "9", Answer: "stuck"})
	target := repo.Publish(mod, "9", 9, nil)
	replaced := m.livepatches()
	m.run("echo always > /sys/kernel/mm/transparent_hugepage/enabled")
	apply(t, agent, repo.Offer(target).Wait(3*time.Second), loaderv1.Outcome_OUTCOME_TRANSITION_PENDING)

	lp := find(t, agent, mod.Name)
	if lp.GetState() != loaderv1.State_STATE_ENABLING || lp.GetBlockerCount() < 1 {
		t.Fatalf("livepatch = %v, want one in transition that names what holds it up", lp)
	}
	if !slices.ContainsFunc(lp.GetBlockers(), func(b *loaderv1.Blocker) bool {
		return b.GetComm() == "khugepaged" && b.GetState() != ""
	}) {
		t.Errorf("blockers = %v, want khugepaged", lp.GetBlockers())
	}
	// Another request meanwhile waits for the same transition.
	apply(t, agent, repo.Offer(target).Wait(time.Second), loaderv1.Outcome_OUTCOME_TRANSITION_PENDING)

	m.run("kill -9 $(pidof livepatch-loader)")
	lp = find(t, agent, mod.Name)
	if lp.GetState() != loaderv1.State_STATE_ENABLING || lp.GetStanding() != loaderv1.Standing_STANDING_INSERTING {
		t.Errorf("after kill -9 livepatch = %v, want one whose insertion was begun", lp)
	}
	m.run("echo never > /sys/kernel/mm/transparent_hugepage/enabled")
	// It may end in the midst of a call, which then says so and leaves the rest to the next.
	eventually(t, 30*time.Second, "transition ends, and the patch is on trial", func() bool {
		lp = find(t, agent, mod.Name)
		return lp.GetState() == loaderv1.State_STATE_ENABLED && lp.GetStanding() == loaderv1.Standing_STANDING_TRIAL
	})
	m.wantAnswer("stuck")
	m.wantLoaded(mod.Name)
	if len(replaced) != 1 || replaced[0] == mod.Name {
		t.Errorf("loaded before was %q, want one other patch", replaced)
	}
}

// TestModulesDisabled needs a machine of its own: the setting holds until reboot.
func TestModulesDisabled(t *testing.T) {
	repo := here.NewRepo()
	m := boot(t, lab.Setup{Root: repo.Root(), NoAgent: true})
	agent := lab.AgentOf(m.Machine)
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	target := repo.Publish(one, "1", 1, nil)
	m.run("echo 1 > /proc/sys/kernel/modules_disabled")
	_, err := agent.Apply(t.Context(), repo.Offer(target))
	wantRefused(t, err, "MODULES_DISABLED")
	m.wantAnswer(own)

	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, agent, repo.Offer(target), loaderv1.Outcome_OUTCOME_APPLIED)
	m.wantAnswer("one")
}

// TestKernelThatWantsSignatures boots kernels that take no module without a
// signature of their own. The test patches have none.
func TestKernelThatWantsSignatures(t *testing.T) {
	repo := here.NewRepo()
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	target := repo.Publish(one, "1", 1, nil)
	tests := map[string]struct {
		parameter, reason string
		says              func(*loaderv1.Kernel) bool
	}{
		"because it enforces them": {"module.sig_enforce=1", "MODULE_SIGNATURE", (*loaderv1.Kernel).GetSignatureEnforced},
		"because it is locked down": {"lockdown=integrity", "NOT_PERMITTED", func(k *loaderv1.Kernel) bool {
			return k.GetLockdown() == "integrity"
		}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			m := boot(t, lab.Setup{Root: repo.Root(), NoAgent: true, Append: tc.parameter})
			agent := lab.AgentOf(m.Machine)
			st, err := agent.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !tc.says(st.GetKernel()) {
				t.Errorf("kernel = %v, want one that was started with %s", st.GetKernel(), tc.parameter)
			}
			_, err = agent.Apply(t.Context(), repo.Offer(target))
			wantRefused(t, err, tc.reason)
			m.wantAnswer(own)
			m.wantLoaded()
		})
	}
}

// TestBoot looks at what returns at boot, without network and without agent.
func TestBoot(t *testing.T) {
	repo := here.NewRepo()
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	two := build(t, lab.Patch{Source: "answer", Version: "2", Answer: "two"})
	first := repo.Publish(one, "1", 1, nil)
	var second string
	m := boot(t, lab.Setup{Root: repo.Root(), NoAgent: true})
	agent := lab.AgentOf(m.Machine)

	t.Run("a patch on trial does not return", func(t *testing.T) {
		apply(t, agent, repo.Offer(first), loaderv1.Outcome_OUTCOME_APPLIED)
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.wantAnswer(own)
		if s := find(t, agent, one.Name).GetStanding(); s == loaderv1.Standing_STANDING_SUSPECT {
			t.Errorf("standing = %v after a shutdown in good order", s)
		}
	})
	t.Run("an accepted patch returns", func(t *testing.T) {
		apply(t, agent, repo.Offer(first), loaderv1.Outcome_OUTCOME_APPLIED)
		if _, err := agent.Accept(t.Context(), one.Name); err != nil {
			t.Fatal(err)
		}
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.wantAnswer("one")
		if s := find(t, agent, one.Name).GetStanding(); s != loaderv1.Standing_STANDING_ACCEPTED {
			t.Errorf("standing = %v, want accepted", s)
		}
	})
	t.Run("and returns after a power cut", func(t *testing.T) {
		if err := m.PowerCut(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.wantAnswer("one")
	})
	t.Run("a newer patch that was on trial when the power went is suspect", func(t *testing.T) {
		second = repo.Publish(two, "2", 2, nil)
		apply(t, agent, repo.Offer(second), loaderv1.Outcome_OUTCOME_APPLIED)
		m.wantAnswer("two")
		if err := m.PowerCut(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := find(t, agent, two.Name).GetStanding(); s != loaderv1.Standing_STANDING_SUSPECT {
			t.Errorf("standing = %v, want suspect", s)
		}
		_, err := agent.Apply(t.Context(), repo.Offer(second))
		wantRefused(t, err, "SUSPECT")
		m.wantAnswer("one") // the last that is known to be good
	})
	t.Run("a removed patch does not return", func(t *testing.T) {
		if _, err := agent.Remove(t.Context(), one.Name); err != nil {
			t.Fatal(err)
		}
		if err := m.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.wantAnswer(own)
		m.wantLoaded()
	})
	t.Run("a suspect patch is tried again when root says so", func(t *testing.T) {
		_, err := agent.Apply(t.Context(), repo.Offer(second))
		wantRefused(t, err, "SUSPECT")
		stop(t, m) // it holds the journal
		m.run("/usr/lib/livepatch/livepatch-loader -state /var/lib/livepatch-loader -root /etc/livepatch/root.json -forgive " + two.Name)
		apply(t, agent, repo.Offer(second), loaderv1.Outcome_OUTCOME_APPLIED)
		m.wantAnswer("two")
	})
}
