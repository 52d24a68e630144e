//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
)

// A kernel that takes no livepatch at all is found out before anything is tried.
func TestRefreshOnAKernelThatTakesNoLivepatch(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *kernel) { k.write("proc/sys/kernel/ftrace_enabled", "0\n") })
	one := newModule(1)
	tests := []struct {
		name, why, next string
		begin, end      func()
	}{
		{
			"ftrace is disabled", "ftrace is disabled", "sysctl kernel.ftrace_enabled=1",
			func() { m.kernel.write("proc/sys/kernel/ftrace_enabled", "0\n") },
			func() { m.kernel.write("proc/sys/kernel/ftrace_enabled", "1\n") },
		},
		{
			"modules are disabled", "loading of modules is disabled until reboot", "reboot without setting it",
			func() { m.kernel.write("proc/sys/kernel/modules_disabled", "1\n") },
			func() { m.kernel.write("proc/sys/kernel/modules_disabled", "0\n") },
		},
		{
			"there is no livepatch support", "kernel has no livepatch support", "CONFIG_LIVEPATCH",
			func() { m.kernel.remove("sys/kernel/livepatch") },
			func() { m.kernel.mkdir("sys/kernel/livepatch") },
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			tc.begin()
			defer tc.end()
			m.cli("refresh") // it learns which patches there are
			m.refuses(t, true, tc.why, tc.next, "refresh")
			m.wantStatus(one, "checked", "apply-failed")
			if got := m.kernel.calls(); got != 0 {
				t.Errorf("%d calls reached the kernel", got)
			}
		})
	}
	m.ok("refresh")
	m.wantInForce(one)
}

// newClientOn is newClient on a kernel that a test has prepared.
func newClientOn(t *testing.T, prepare func(k *kernel)) *machine {
	t.Helper()
	s := newService(t)
	m := newMachine(t, s.pinned())
	prepare(m.kernel)
	m.join(s, s.url())
	m.enable(s)
	return m
}

// What the kernel answers to the insertion reaches the user as words, and the
// service as an event; the module is out, and nothing of it returns at boot.
func TestRefreshWhenTheKernelRefusesTheModule(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *kernel) { k.set(steering{errno: unix.EPERM}) })
	one := newModule(1)
	tests := []struct {
		errno     unix.Errno
		why, next string
	}{
		{unix.ENOEXEC, "kernel rejected the format of the module", "dmesg"},
		{unix.EINVAL, "kernel rejected the livepatch as incompatible", "dmesg"},
		{unix.ENOENT, "module needs a symbol that this kernel has not", "dmesg"},
		{unix.EEXIST, "another module of that name is loaded", "lsmod"},
		{unix.EBUSY, "already traced by a kprobe or BPF program", "stop the tracing program"},
		{unix.EKEYREJECTED, "kernel does not accept the module's signature", "mokutil"},
		{unix.ENOKEY, "kernel does not accept the module's signature", "mokutil"},
		{unix.EBADMSG, "kernel does not accept the module's signature", "mokutil"},
		{unix.ENOPKG, "kernel does not accept the module's signature", "mokutil"},
		{unix.EPERM, "kernel does not permit loading modules", "dmesg"},
		{unix.ENODEV, "kernel has no livepatch support", "CONFIG_LIVEPATCH"},
		{unix.ENOMEM, "kernel is out of memory", "free some memory"},
		{unix.ENOSYS, "kernel has no livepatch support", "CONFIG_LIVEPATCH"},
		{unix.EIO, "kernel refused the module", "dmesg"},
	}
	m.cli("refresh")
	for _, tc := range tests {
		t.Run(unix.ErrnoName(tc.errno), func(t *testing.T) {
			m.kernel.set(steering{errno: tc.errno})
			before := m.kernel.calls()
			wantRefusal(t, m.cli("refresh"), tc.why, tc.next)
			if got := m.kernel.calls() - before; got != 1 {
				t.Errorf("%d calls reached the kernel, want 1", got)
			}
			m.wantStatus(one, "checked", "apply-failed")
			if got := m.standing(one.Name); got != "quarantined" {
				t.Errorf("standing = %q, want quarantined", got)
			}
		})
	}
	if got := m.kernel.insertions(); len(got) != 0 {
		t.Errorf("insertions = %v", got)
	}
	if r := m.oneShot("-boot"); r.code != 0 || len(m.kernel.insertions()) != 0 {
		t.Errorf("loader -boot: %v; insertions = %v", r, m.kernel.insertions())
	}
	m.kernel.set(steering{})
	m.ok("refresh") // whose cause is gone
	m.wantInForce(one)
}

func TestRefreshWhenSomebodyElseHasTheName(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *kernel) { k.write("sys/module/"+moduleName(1)+"/refcnt", "0\n") })
	m.cli("refresh")
	m.refuses(t, true, "another module of that name is loaded", "lsmod", "refresh")
}

func TestRefreshDuringSomebodyElsesTransition(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *kernel) {
		k.write("sys/kernel/livepatch/other/enabled", "1\n")
		k.write("sys/kernel/livepatch/other/transition", "1\n")
	})
	m.cli("refresh")
	m.refuses(t, true, "another livepatch transition is in progress", "wait for it to end", "refresh")
}

// A transition that does not end is no failure: the user sees that it goes on and
// what holds it up, and a newer patch waits for it.
func TestATransitionThatDoesNotEndIsShown(t *testing.T) {
	t.Parallel()
	s := newService(t)
	m := newMachine(t, s.pinned())
	m.kernel.set(steering{transition: never})
	m.kernel.addTask(4242, "vhost-4200", "vhost_worker")
	m.join(s, s.url())
	m.enable(s)
	start := time.Now()
	if out := m.ok("refresh"); !strings.Contains(out, "patch is being applied") {
		t.Errorf("refresh printed %q", out)
	}
	if took := time.Since(start); took > 50*time.Second {
		t.Errorf("refresh took %v", took)
	}
	m.wantStatus(newModule(1), "checked", "applying")
	if out := m.ok("status", "--verbose"); !strings.Contains(out, "vhost-4200") || !strings.Contains(out, "vhost_worker") {
		t.Errorf("status does not say what holds up the transition:\n%s", out)
	}
	if got := m.standing(newModule(1).Name); got != "inserting" {
		t.Errorf("standing = %q, want inserting", got)
	}
	s.publish(newModule(2))
	m.cli("refresh")
	m.refuses(t, true, "another livepatch transition is in progress", "wait for it to end", "refresh")

	m.kernel.set(steering{})
	eventually(t, "transition ends", func() bool { return len(m.inForce()) == 1 })
	m.ok("refresh")
	m.wantInForce(newModule(2))
}

// A machine runs a kernel that the repository has nothing for.
func TestRefreshOnAKernelWithoutPatches(t *testing.T) {
	t.Parallel()
	s := newService(t)
	t.Run("another release", func(t *testing.T) {
		m := newMachine(t, s.pinned())
		m.kernel.write("proc/sys/kernel/osrelease", "6.1.0-54-amd64\n")
		m.join(s, s.url())
		m.enable(s)
		if out := m.ok("refresh"); !strings.Contains(out, "nothing to apply") {
			t.Errorf("refresh printed %q", out)
		}
		if got := supported(t, m); got != "unsupported" {
			t.Errorf("status says %q, want unsupported", got)
		}
		m.wantInForce()
	})
	t.Run("another build of the same release", func(t *testing.T) {
		m := newMachine(t, s.pinned())
		m.kernel.setBuildID(otherBuildID)
		m.join(s, s.url())
		m.enable(s)
		m.cli("refresh")
		before := m.footprint(true)
		r := m.cli("refresh")
		if want := "the patches for kernel " + release + " are for another build of it"; r.code != 1 || !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, "hint: install the kernel package") {
			t.Errorf("refresh: %v", r)
		}
		wantSame(t, before, m.footprint(true))
		if got := supported(t, m); got != "unsupported" {
			t.Errorf("status says %q, want unsupported", got)
		}
		m.wantInForce()
	})
}

// supported returns what status says of the kernel.
func supported(t *testing.T, m *machine) string {
	t.Helper()
	var s struct{ Status []struct{ Supported string } }
	must(t, json.Unmarshal([]byte(m.ok("status", "--format", "json")), &s))
	return s.Status[0].Supported
}

// What is no livepatch for the kernel that its description names is not signed.
func TestPublishingWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	s := newService(t)
	good := newModule(2)
	tests := map[string]struct {
		content   []byte
		why, next string
	}{
		"a module that is not a livepatch": {elfFile("name="+good.Name, "vermagic="+release+" SMP"), "module is not a livepatch", `MODULE_INFO(livepatch, "Y")`},
		"a module for another release":     {livepatch(good.Name, "6.1.0-54-amd64"), "another kernel", "headers of the kernel"},
		"a module with another name":       {livepatch("lkp_other", release), "", ""},
		"a module that ends early":         {good.content[:len(good.content)-100], "", "copy the file again"},
		"a module of 65 MB":                {make([]byte, 65<<20), "larger than allowed", ""},
		"something that is no module":      {[]byte("#!/bin/sh\n"), "", "the .ko that the build made"},
	}
	must(t, os.WriteFile(s.path("patch.json"), good.description(t), 0o644))
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), good.Name+".ko")
			must(t, os.WriteFile(file, tc.content, 0o644))
			before := s.publisher("list").stdout
			r := s.publisher("add", file, "-vendor", vendor, "-description", s.path("patch.json"), "-build-id", buildID)
			if r.code != 1 || r.stdout != "" || !strings.HasPrefix(r.stderr, "livepatch-publish: error: cannot ") ||
				!strings.Contains(r.stderr, tc.why) || !strings.Contains(r.stderr, tc.next) || !strings.Contains(r.stderr, "livepatch-publish: hint: ") {
				t.Errorf("add: %v\nwant %q and %q", r, tc.why, tc.next)
			}
			if after := s.publisher("list").stdout; after != before {
				t.Errorf("the repository has changed:\n%s", after)
			}
		})
	}
}

// The machine's clock is two days off. The agent can tell by the service's
// answers.
func TestRefreshWithAWrongClock(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := newHonestFront(t, s)
	m := newMachine(t, s.pinned())
	m.join(s, f.url)
	m.ok("enable", s.token())
	m.ok("refresh")
	m.accepts(newModule(1))
	// Another clock in the service is another clock in the machine, seen from here.
	serviceTime := func(ahead time.Duration) func(string, *http.Response) {
		return func(_ string, res *http.Response) {
			res.Header.Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		}
	}
	for name, tc := range map[string]struct {
		ahead time.Duration
		why   string
	}{
		"it is two days behind": {48 * time.Hour, "this machine's clock is 2 days behind the service's"},
		"it is two days ahead":  {-48 * time.Hour, "this machine's clock is 2 days ahead of the service's"},
	} {
		t.Run(name, func(t *testing.T) {
			f.set(serviceTime(tc.ahead))
			defer f.set(nil)
			m.refuses(t, true, tc.why, "set the clock", "refresh")
			m.wantInForce(newModule(1))
		})
	}
	m.ok("refresh")
}

// A clock that was set back does not make the loader believe again what has
// expired: time has passed that it remembers.
func TestAClockThatWasSetBackDoesNotReviveExpiredFiles(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	repo := newRepository(time.Now(), one, two)
	m := newMachine(t, repo.pinned())
	c := m.client()
	mustApply(t, c, repo, one, applied)
	m.loader.kill()
	var trust map[string]any
	b, err := os.ReadFile(m.path("loader/trust.json"))
	must(t, err)
	must(t, json.Unmarshal(b, &trust))
	trust["Time"] = time.Now().Add(48 * time.Hour).UTC().Format(time.RFC3339)
	b, err = json.Marshal(trust)
	must(t, err)
	must(t, os.WriteFile(m.path("loader/trust.json"), b, 0o600))
	before := m.footprint(true)
	if _, err := apply(t, c, repo.opening(two), two.content); !errors.Is(err, patch.ErrExpired) {
		t.Errorf("apply = %v, want %v", err, patch.ErrExpired)
	}
	wantSame(t, before, m.footprint(true))
	if got := len(m.kernel.insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
}
