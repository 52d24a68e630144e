//go:build vm

package vm

import (
	"bytes"
	"context"
	"errors"
	"path"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/attack/report"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// TestAttacksOnTheKernel has the agent's user, who is anybody that has taken over
// the agent, and another user of the machine try what only a real kernel can
// refuse. Each attack is a row of "make attack". Its parts go on from each other:
// a patch called one is accepted and in force, and stays so until the last part.
func TestAttacksOnTheKernel(t *testing.T) {
	strace, files, err := machine.HostProgram(t.Context(), "strace")
	if err != nil {
		t.Fatal(err)
	}
	repo := here.NewRepo()
	m := boot(t, lab.Setup{Root: repo.Root(), NoAgent: true, Files: files})
	v := victim{m, repo, lab.AgentOf(m.Machine)}
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	two := build(t, lab.Patch{Source: "answer", Version: "2", Answer: "two"})

	t.Run("names", v.attackByName)
	first := repo.Publish(one, "1", 1, nil)
	older := repo.Offer(first)
	apply(t, v.agent, repo.Offer(first), loaderv1.Outcome_OUTCOME_APPLIED)
	if _, err := v.agent.Accept(t.Context(), one.Name); err != nil {
		t.Fatal(err)
	}
	second := repo.Publish(two, "2", 2, nil)

	unharmed := func(t *testing.T) {
		t.Helper()
		m.wantAnswer("one")
		m.wantLoaded(one.Name)
	}
	t.Run("offer", func(t *testing.T) {
		for name, o := range v.badOffers(t, second, older) {
			t.Run(name, func(t *testing.T) {
				a := report.Begin(t, report.Agent, "offers the loader "+name)
				refusedAs(t, a, v.agent, o.offer(), o.reason)
				unharmed(t)
			})
		}
		t.Run("a module of 65 MB", func(t *testing.T) {
			a := report.Begin(t, report.Agent, "offers the loader a module of 65 MB")
			_, err := v.agent.ApplyLarge(t.Context(), repo.Offer(second), 65<<20)
			wantRefused(t, err, "TOO_LARGE")
			a.StoppedBy("loader: TOO_LARGE")
			unharmed(t)
		})
	})
	t.Run("alone", func(t *testing.T) {
		if err := m.WriteFile(t.Context(), "/tmp/mine.ko", two.Content); err != nil {
			t.Fatal(err)
		}
		for name, command := range attempts(strace, one.Name) {
			t.Run(name, func(t *testing.T) {
				v.attempt(t, report.Agent, lab.AgentUID, name, command)
				unharmed(t)
			})
		}
	})
	t.Run("user", func(t *testing.T) { v.attackByUser(t, unharmed) })
	t.Run("withdrawn", func(t *testing.T) { v.attackWithdrawal(t, one, two, second) })
}

// A victim is a machine that is attacked, and the repository that it trusts.
type victim struct {
	guest
	repo  *lab.Repo
	agent lab.Caller
}

// refusedAs makes an offer that must be refused for a reason.
func refusedAs(t *testing.T, a *report.Attack, c lab.Caller, o *lab.Offer, reason string) {
	t.Helper()
	_, err := c.Apply(t.Context(), o)
	wantRefused(t, err, reason)
	a.StoppedBy("loader: %s", reason)
	var refused *lab.RefusedError
	if errors.As(err, &refused) {
		a.Sees(refused.Text)
	}
}

// A badOffer is one that the loader must refuse, and why.
type badOffer struct {
	offer  func() *lab.Offer
	reason string
}

// badOffers returns what must not enter the kernel. good is a target that could;
// older is what an agent has kept from before.
func (v victim) badOffers(t *testing.T, good string, older *lab.Offer) map[string]badOffer {
	plain := build(t, lab.Patch{Source: "plain", Version: "5"})
	cloud := build(t, lab.Patch{Source: "answer", Version: "7", Answer: "cloud", Kernel: here.Other})
	three := build(t, lab.Patch{Source: "answer", Version: "3", Answer: "three"})
	stranger := []tuftest.Key{tuftest.NewKey("stranger 1"), tuftest.NewKey("stranger 2")}

	module := func(change func([]byte) []byte) func() *lab.Offer {
		return func() *lab.Offer {
			o := v.repo.Offer(good)
			o.Module = change(bytes.Clone(o.Module))
			return o
		}
	}
	signed := func(mod lab.Module, sequence uint64, change func(*patch.Module)) func() *lab.Offer {
		return func() *lab.Offer {
			r := v.repo.Copy()
			return r.Offer(r.Publish(mod, "3", sequence, change))
		}
	}
	repository := func(change func(r *lab.Repo)) func() *lab.Offer {
		return func() *lab.Offer {
			r := v.repo.Copy()
			change(r)
			return r.Offer(good)
		}
	}
	opening := func(change func(o *loaderv1.Opening)) func() *lab.Offer {
		return func() *lab.Offer {
			o := v.repo.Offer(good)
			change(o.Opening)
			return o
		}
	}
	return map[string]badOffer{
		"a module with one bit changed":       {module(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), "TAMPERED"},
		"a truncated module":                  {module(func(b []byte) []byte { return b[:len(b)-1] }), "TAMPERED"},
		"a module that goes on after its end": {module(func(b []byte) []byte { return append(b, 0) }), "TAMPERED"},
		"another module than was signed":      {module(func([]byte) []byte { return three.Content }), "TAMPERED"},

		"a module for another release":                          {signed(cloud, 3, func(p *patch.Module) { p.Release = here.Other.Release }), "WRONG_KERNEL"},
		"a module for another release, signed as if for this":   {signed(cloud, 3, nil), "WRONG_KERNEL"},
		"a patch for another build of the same release":         {signed(three, 3, func(p *patch.Module) { p.BuildID = "00112233445566778899aabbccddeeff00112233" }), "WRONG_KERNEL"},
		"a module that is not a livepatch":                      {signed(plain, 3, nil), "NOT_LIVEPATCH"},
		"another patch with the sequence number of the present": {signed(three, 1, nil), "ROLLBACK"},

		"a patch that only a stranger has signed": {repository(func(r *lab.Repo) { r.Roles[r.Bin(good)].Signers = stranger }), "UNTRUSTED"},
		"a patch that one of two has signed": {repository(func(r *lab.Repo) {
			bin := r.Roles[r.Bin(good)]
			bin.Signers = bin.Signers[:1]
		}), "UNTRUSTED"},
		"a root that only a stranger has signed": {repository(func(r *lab.Repo) { r.AddRoot().Signers = stranger }), "UNTRUSTED"},
		"metadata that has expired":              {repository(func(r *lab.Repo) { r.Roles["timestamp"].Expire(time.Now().Add(-time.Hour)) }), "EXPIRED"},
		"a patch whose rollout is halted":        {repository(func(r *lab.Repo) { r.SetRollout("2", patch.Halted) }), "HALTED"},
		"a patch that was revoked":               {repository(func(r *lab.Repo) { r.SetRollout("2", patch.Revoked) }), "REVOKED"},

		"metadata of yesterday":             {func() *lab.Offer { return older }, "ROLLBACK"},
		"no signed metadata":                {opening(func(o *loaderv1.Opening) { o.Metadata, o.Vendor, o.Bin = nil, nil, nil }), "MALFORMED"},
		"metadata that says a thing twice":  {opening(func(o *loaderv1.Opening) { o.Bin = []byte(`{"signed":{},"signed":{},"signatures":[]}`) }), "MALFORMED"},
		"a target whose path leads outside": {opening(func(o *loaderv1.Opening) { o.Target = "debian/../../etc/passwd" }), "INVALID"},
	}
}

// attempts are shell commands that must fail for a user without rights, by what
// they try.
func attempts(strace, name string) map[string]string {
	return map[string]string{
		"calls finit_module itself":                   "insmod /tmp/mine.ko",
		"calls finit_module as root of its own world": "unshare -Ur insmod /tmp/mine.ko",
		"unloads the patch itself":                    "rmmod " + name,
		"disables the patch itself":                   "echo 0 > /sys/kernel/livepatch/" + name + "/enabled",
		"turns ftrace off":                            "echo 0 > /proc/sys/kernel/ftrace_enabled",
		"keeps modules out for good":                  "echo 1 > /proc/sys/kernel/modules_disabled",
		"reads the loader's journal":                  "cat /var/lib/livepatch-loader/journal.json",
		"writes into the loader's state":              "touch /var/lib/livepatch-loader/store/mine",
		"replaces the pinned root":                    "echo mine > /etc/livepatch/root.json",
		"replaces the loader":                         "cp /bin/busybox /usr/lib/livepatch/livepatch-loader",
		"takes the loader's socket away":              "rm /run/livepatch/loader.sock",
		"kills the loader":                            "kill -9 $(pidof livepatch-loader)",
		"traces the loader":                           strace + " -qq -p $(pidof livepatch-loader)",
		"reads the loader's memory":                   "head -c 1 /proc/$(pidof livepatch-loader)/mem",
		"reads the loader's open files":               "ls /proc/$(pidof livepatch-loader)/fd",
		"reads the kernel's memory by /dev/mem":       "head -c 1 /dev/mem",
		"reads the kernel's memory by /proc/kcore":    "head -c 1 /proc/kcore",
		"writes to the disk below the file system":    "dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=notrunc",
		"makes a tracing probe in the kernel":         "echo 'p:mine finit_module' > /sys/kernel/tracing/kprobe_events",
		"reboots the machine":                         "busybox reboot -f",
	}
}

// attempt runs a command that must fail for want of a permission.
func (v victim) attempt(t *testing.T, who report.Actor, uid uint32, what, command string) {
	t.Helper()
	if _, err := v.agent.Status(t.Context()); err != nil { // the loader is there to be attacked
		t.Fatal(err)
	}
	a := report.Begin(t, who, what)
	res, err := v.RunAs(t.Context(), uid, uid, command)
	if err != nil {
		t.Fatal(err)
	}
	for _, errno := range []string{"Operation not permitted", "Permission denied"} {
		if res.Code != 0 && strings.Contains(res.Stderr, errno) {
			a.StoppedBy("kernel: %s", errno)
			return
		}
	}
	t.Errorf("%s: %+v, want it refused", command, res)
}

// attackByName uses that the kernel and the loader know modules by their names.
func (v victim) attackByName(t *testing.T) {
	three := build(t, lab.Patch{Source: "answer", Version: "3", Answer: "three"})
	if err := v.WriteFile(t.Context(), "/tmp/foreign.ko", three.Content); err != nil {
		t.Fatal(err)
	}
	v.run("insmod /tmp/foreign.ko; until [ $(cat /sys/kernel/livepatch/*/transition) = 0 ]; do sleep 0.2; done")
	t.Run("takes out what the loader did not insert", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "has the loader remove somebody else's livepatch")
		_, err := v.agent.Remove(t.Context(), three.Name)
		wantRefused(t, err, "NOT_OURS")
		a.StoppedBy("loader: NOT_OURS")
		v.wantAnswer("three")
	})
	t.Run("has it adopted", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "has the loader accept somebody else's livepatch")
		_, err := v.agent.Accept(t.Context(), three.Name)
		wantRefused(t, err, "NOT_OURS")
		a.StoppedBy("loader: NOT_OURS")
	})
	t.Run("brings a signed one of the same name", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "offers a signed patch whose name is that of a module which somebody else has loaded")
		r := v.repo.Copy()
		// Signed is another module of that name: only a name speaks for the one that is loaded.
		other := lab.Module{Name: three.Name, Content: bytes.ReplaceAll(three.Content, []byte("three"), []byte("THREE"))}
		refusedAs(t, a, v.agent, r.Offer(r.Publish(other, "3", 3, nil)), "NAME_TAKEN")
		v.wantAnswer("three")
		if s := find(t, v.agent, three.Name).GetStanding(); s != loaderv1.Standing_STANDING_UNSPECIFIED {
			t.Errorf("standing = %v, want none: it is not the loader's", s)
		}
	})
	v.run("echo 0 > /sys/kernel/livepatch/" + three.Name + "/enabled; until rmmod " + three.Name + " 2>/dev/null; do sleep 0.2; done")
	v.wantLoaded()
}

// attackByUser is for somebody who is not even the agent.
func (v victim) attackByUser(t *testing.T, unharmed func(*testing.T)) {
	callers := map[string]lab.Caller{
		"calls the loader":                        {Machine: v.Machine, UID: lab.UserUID, GID: lab.UserUID},
		"calls the loader with the agent's group": {Machine: v.Machine, UID: lab.UserUID, GID: lab.AgentUID},
	}
	for name, c := range callers {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.User, name)
			_, err := c.Status(t.Context())
			var refused *lab.RefusedError
			if !errors.As(err, &refused) || refused.Code != "Unavailable" {
				t.Fatalf("Status = %v, want no connection", err)
			}
			if c.GID == lab.UserUID && !strings.Contains(refused.Text, "permission denied") {
				t.Errorf("Status = %v, want the kernel's refusal", err)
			}
			if c.GID == lab.AgentUID {
				log, err := v.Console()
				if err != nil || !bytes.Contains(log, []byte(`msg="Refused connection" peer_uid=1000`)) {
					t.Errorf("the loader's log does not say that it refused a connection: %v", err)
				}
				a.StoppedBy("loader: peer's uid (SO_PEERCRED)")
			} else {
				a.StoppedBy("kernel: mode of the socket")
				a.Sees(refused.Text)
			}
			unharmed(t)
		})
	}
	for what, command := range map[string]string{
		"loads a module":              "insmod /tmp/mine.ko",
		"reads the loader's journal":  "cat /var/lib/livepatch-loader/journal.json",
		"puts itself in its place":    "mv /run/livepatch/loader.sock /tmp/",
		"reads what the agent caches": "ls /var/lib/canonical-livepatch",
	} {
		t.Run(what, func(t *testing.T) {
			v.attempt(t, report.User, lab.UserUID, what, command)
			unharmed(t)
		})
	}
}

// attackWithdrawal brings in a patch, revokes it, and has an agent that does not
// like that try to get it back.
func (v victim) attackWithdrawal(t *testing.T, one, two lab.Module, second string) {
	ctx := context.WithoutCancel(t.Context())
	before := v.repo.Offer(second)
	apply(t, v.agent, before, loaderv1.Outcome_OUTCOME_APPLIED)
	if _, err := v.agent.Accept(ctx, two.Name); err != nil {
		t.Fatal(err)
	}
	v.repo.SetRollout("2", patch.Revoked)
	t.Run("keeps a revoked patch in the kernel", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "hands on a revocation and goes on as if nothing had happened")
		metadata, _ := v.repo.Metadata()
		resp, err := v.agent.Update(ctx, metadata)
		if err != nil || strings.Join(resp.GetWithdrawn(), " ") != two.Name {
			t.Fatalf("Update = %v, %v, want %s withdrawn", resp, err, two.Name)
		}
		v.wantAnswer("one")
		v.wantLoaded(one.Name)
		a.StoppedBy("loader: withdrew %s and went back to %s", "2", "1")
	})
	again := func(when string) {
		for what, c := range map[string]struct {
			offer  *lab.Offer
			reason string
		}{
			"with the metadata of before": {before, "ROLLBACK"},
			"with newer metadata":         {v.repo.Offer(second), "REVOKED"},
		} {
			t.Run("brings it back "+what+when, func(t *testing.T) {
				a := report.Begin(t, report.Agent, "brings a revoked patch back "+what+when)
				refusedAs(t, a, v.agent, c.offer, c.reason)
				v.wantAnswer("one")
			})
		}
	}
	again("")
	t.Run("accepts it", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "accepts a revoked patch, for it to return at boot")
		_, err := v.agent.Accept(ctx, two.Name)
		var refused *lab.RefusedError
		if !errors.As(err, &refused) {
			t.Fatalf("Accept = %v, want it refused", err)
		}
		a.StoppedBy("loader: %s", refused.Reason)
	})
	t.Run("waits for a boot", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "cuts the power, for a revoked patch to return at boot")
		if err := v.PowerCut(ctx); err != nil {
			t.Fatal(err)
		}
		v.wantAnswer("one")
		v.wantLoaded(one.Name)
		a.StoppedBy("loader: at boot the newest patch that is accepted and not revoked came back")
	})
	again(", after a boot")
	t.Run("brings back what crashed the machine", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "brings back the patch during whose trial the machine went down")
		crashing := v.repo.Publish(build(t, lab.Patch{Source: "answer", Version: "4", Answer: "four"}), "4", 4, nil)
		apply(t, v.agent, v.repo.Offer(crashing), loaderv1.Outcome_OUTCOME_APPLIED)
		if err := v.PowerCut(ctx); err != nil {
			t.Fatal(err)
		}
		refusedAs(t, a, v.agent, v.repo.Offer(crashing), "SUSPECT")
		// Nor does it after it was removed, which the agent may ask for.
		name, _, _ := strings.Cut(path.Base(crashing), ".")
		if _, err := v.agent.Remove(ctx, name); err != nil {
			t.Logf("Remove of the suspect %s: %v", name, err)
		}
		refusedAs(t, a, v.agent, v.repo.Offer(crashing), "SUSPECT")
		v.wantAnswer("one")
		v.wantLoaded(one.Name)
	})
}
