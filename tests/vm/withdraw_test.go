//go:build vm

package vm

import (
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"time"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/vm/lab"
)

// newPatched starts a service and a machine on which version 1 is accepted: it
// answers "one", and returns at boot.
func newPatched(t *testing.T) system {
	t.Helper()
	s := newSystem(t, lab.ServiceOptions{CheckInterval: 10 * time.Second, Soak: time.Second})
	s.publish(build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"}), "1")
	s.enable(s.admin("token", "create"))
	s.wantApplied("1", "one")
	s.wantStatus("patch standing: accepted")
	return s
}

// wantUnpatched ends the test unless no patch is in the kernel.
func (s system) wantUnpatched() {
	s.t.Helper()
	s.wantAnswer(own)
	s.wantLoaded()
}

// TestRevokedPatch is in force and accepted when people take it back.
func TestRevokedPatch(t *testing.T) {
	s := newPatched(t)
	s.admin("rollout", "revoke", "--pause", "10s", "--reason", "hangs under load", "debian", "1")
	t.Run("is withdrawn from a few machines, from more, from all", func(t *testing.T) {
		if got, want := s.shares(), []int64{patch.Everyone / 100, patch.Everyone / 10, patch.Everyone}; !slices.Equal(got, want) {
			t.Errorf("shares that were signed = %v, want %v", got, want)
		}
	})
	t.Run("leaves the running kernel by itself", func(t *testing.T) {
		eventually(t, 2*time.Minute, "the patch is unloaded", func() bool { return len(s.livepatches()) == 0 })
		s.wantUnpatched()
		if boot := s.run("cat /proc/sys/kernel/random/boot_id"); boot != s.BootID() {
			t.Error("the machine has rebooted")
		}
		s.wantStatus("notice: patch 1 is revoked: it was taken out of the kernel and does not come back")
	})
	t.Run("does not come back at boot, where nobody can be asked", func(t *testing.T) {
		if err := s.Network(false); err != nil {
			t.Fatal(err)
		}
		if err := s.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantUnpatched()
	})
	t.Run("does not come back after a power cut, nor when somebody looks for patches", func(t *testing.T) {
		if err := s.PowerCut(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.waitAgent()
		s.run("canonical-livepatch refresh || true")
		s.wantUnpatched()
	})
}

// shares returns in which shares of the machines version 1 is withdrawn, one after the
// other, until it is revoked.
func (o outside) shares() (all []int64) {
	o.t.Helper()
	eventually(o.t, 3*time.Minute, "the service signs that the patch is revoked", func() bool {
		r, err := o.service.Rollout(o.t.Context(), "debian", "1")
		if err != nil {
			o.t.Fatal(err)
		}
		share := withdrawn(r)
		if share > 0 && (len(all) == 0 || all[len(all)-1] != share) {
			all = append(all, share)
		}
		return share == patch.Everyone
	})
	return all
}

// withdrawn returns the share of the machines that a patch is taken back from.
func withdrawn(r patch.Rollout) int64 {
	switch {
	case r.State == patch.Revoked:
		return patch.Everyone
	case r.Withdraw != nil:
		return r.Withdraw.Share
	}
	return 0
}

// TestWithdrawalInShares takes a patch back from one of two machines, and then from
// the other.
func TestWithdrawalInShares(t *testing.T) {
	repo := here.NewRepo()
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	target := repo.Publish(one, "1", 1, nil)
	machines := []guest{boot(t, lab.Setup{Root: repo.Root(), NoAgent: true}), boot(t, lab.Setup{Root: repo.Root(), NoAgent: true})}
	for _, m := range machines {
		agent := lab.AgentOf(m.Machine)
		apply(t, agent, repo.Offer(target), loaderv1.Outcome_OUTCOME_APPLIED)
		if _, err := agent.Accept(t.Context(), one.Name); err != nil {
			t.Fatal(err)
		}
	}
	first, second := machines[0], machines[1]

	withdraw := func(stage patch.Stage) {
		t.Helper()
		repo.AddTarget(patch.RolloutPath("debian", "1"), nil, patch.Rollout{
			State: patch.Halted, Tiers: map[string]patch.Stage{"stable": {Share: patch.Everyone}}, Withdraw: &stage,
		})
		for _, m := range machines {
			metadata, _ := repo.Metadata()
			if _, err := lab.AgentOf(m.Machine).Update(t.Context(), metadata); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("it leaves the machine that is in the share, and no other", func(t *testing.T) {
		withdraw(between(t, first, second))
		first.wantAnswer(own)
		first.wantLoaded()
		second.wantAnswer("one")
	})
	t.Run("each boots as it was", func(t *testing.T) {
		for _, m := range machines {
			if err := m.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		first.wantAnswer(own)
		first.wantLoaded()
		second.wantAnswer("one")
	})
	t.Run("it leaves the other one when the share is everybody", func(t *testing.T) {
		withdraw(patch.Stage{Share: patch.Everyone, Salt: "whatever"})
		second.wantAnswer(own)
		second.wantLoaded()
	})
}

// between returns a stage that half of all loaders are in: that of the one machine
// is, and that of the other is not.
func between(t *testing.T, in, out guest) patch.Stage {
	t.Helper()
	yes, no := in.draws(), out.draws()
	for i := range 1000 {
		s := patch.Stage{Share: patch.Everyone / 2, Salt: strconv.Itoa(i)}
		if s.Admits(yes) && !s.Admits(no) {
			return s
		}
	}
	t.Fatalf("no salt tells %q from %q", yes, no)
	return patch.Stage{}
}

// draws returns by what the loader of a machine draws for the only patch that it
// knows. It tells nobody but root.
func (g guest) draws() string {
	g.t.Helper()
	var journal struct{ Entries []struct{ ID string } }
	text := g.run("cat /var/lib/livepatch-loader/journal.json")
	if err := json.Unmarshal([]byte(text), &journal); err != nil || len(journal.Entries) != 1 || journal.Entries[0].ID == "" {
		g.t.Fatalf("the loader has nothing to draw by: %v\n%s", err, text)
	}
	return journal.Entries[0].ID
}

// TestKillSwitch keeps an accepted patch out of the kernel.
func TestKillSwitch(t *testing.T) {
	s := newPatched(t)
	restart := func(parameters string) {
		t.Helper()
		if err := s.ShutDown(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.SetAppend(parameters)
		if err := s.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.waitAgent()
	}
	wantOff := func() {
		t.Helper()
		s.wantUnpatched()
		s.run("canonical-livepatch refresh || true")
		s.wantUnpatched()
		s.wantStatus(`notice: switched off by mode "no-apply": no patch is applied`)
	}
	t.Run("is a word on the kernel's command line", func(t *testing.T) {
		restart("canonical_livepatch_mode=no-apply")
		wantOff()
	})
	t.Run("is off without the word, and the patch returns", func(t *testing.T) {
		restart("")
		s.wantAnswer("one")
	})
	t.Run("is a word in a file of root's", func(t *testing.T) {
		s.run("echo no-apply > /var/lib/livepatch-loader/mode && sync")
		restart("")
		wantOff()
		s.run("rm /var/lib/livepatch-loader/mode && sync")
		restart("")
		s.wantAnswer("one")
	})
}
