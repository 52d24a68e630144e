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

	"livepatch/tests/lab"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
)

// A kernel that takes no livepatch at all is found out before anything is tried.
func TestRefreshOnAKernelThatTakesNoLivepatch(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *lab.Kernel) { k.Write("proc/sys/kernel/ftrace_enabled", "0\n") })
	one := lab.NewModule(1)
	tests := []struct {
		name, why, next string
		begin, end      func()
	}{
		{
			"ftrace is disabled", "ftrace is disabled", "sysctl kernel.ftrace_enabled=1",
			func() { m.Kernel.Write("proc/sys/kernel/ftrace_enabled", "0\n") },
			func() { m.Kernel.Write("proc/sys/kernel/ftrace_enabled", "1\n") },
		},
		{
			"modules are disabled", "loading of modules is disabled until reboot", "reboot without setting it",
			func() { m.Kernel.Write("proc/sys/kernel/modules_disabled", "1\n") },
			func() { m.Kernel.Write("proc/sys/kernel/modules_disabled", "0\n") },
		},
		{
			"there is no livepatch support", "kernel has no livepatch support", "CONFIG_LIVEPATCH",
			func() { m.Kernel.Remove("sys/kernel/livepatch") },
			func() { m.Kernel.Mkdir("sys/kernel/livepatch") },
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			tc.begin()
			defer tc.end()
			m.CLI("refresh") // it learns which patches there are
			m.Refuses(t, true, tc.why, tc.next, "refresh")
			m.WantStatus(one, "checked", "apply-failed")
			if got := m.Kernel.Calls(); got != 0 {
				t.Errorf("%d calls reached the kernel", got)
			}
		})
	}
	m.OK("refresh")
	m.WantInForce(one)
}

// newClientOn is newClient on a kernel that a test has prepared.
func newClientOn(t *testing.T, prepare func(k *lab.Kernel)) *lab.Machine {
	t.Helper()
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	prepare(m.Kernel)
	m.Join(s, s.URL())
	m.Enable(s)
	return m
}

// What the kernel answers to the insertion reaches the user as words, and the
// service as an event; the module is out, and nothing of it returns at boot.
func TestRefreshWhenTheKernelRefusesTheModule(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *lab.Kernel) { k.Set(lab.Steering{Errno: unix.EPERM}) })
	one := lab.NewModule(1)
	tests := []struct {
		errno     unix.Errno
		why, next string
	}{
		{unix.ENOEXEC, "kernel rejected the format of the module", "dmesg"},
		{unix.EINVAL, "kernel rejected the livepatch as incompatible", "dmesg"},
		{unix.ENOENT, "module needs a symbol that this kernel has not", "dmesg"},
		{unix.EEXIST, "another module of that name is loaded", "lsmod"},
		{unix.EBUSY, "already traced by a kprobe or BPF program", "stop the tracing program"},
		{unix.EKEYREJECTED, "kernel does not accept the module's signature", "tell the vendor"},
		{unix.ENOKEY, "kernel does not accept the module's signature", "tell the vendor"},
		{unix.EBADMSG, "kernel does not accept the module's signature", "tell the vendor"},
		{unix.ENOPKG, "kernel does not accept the module's signature", "tell the vendor"},
		{unix.EPERM, "kernel does not permit loading modules", "dmesg"},
		{unix.ENODEV, "kernel has no livepatch support", "CONFIG_LIVEPATCH"},
		{unix.ENOMEM, "kernel is out of memory", "free some memory"},
		{unix.ENOSYS, "kernel has no livepatch support", "CONFIG_LIVEPATCH"},
		{unix.EIO, "kernel refused the module", "dmesg"},
	}
	m.CLI("refresh")
	for _, tc := range tests {
		t.Run(unix.ErrnoName(tc.errno), func(t *testing.T) {
			m.Kernel.Set(lab.Steering{Errno: tc.errno})
			before := m.Kernel.Calls()
			lab.WantRefusal(t, m.CLI("refresh"), tc.why, tc.next)
			if got := m.Kernel.Calls() - before; got != 1 {
				t.Errorf("%d calls reached the kernel, want 1", got)
			}
			m.WantStatus(one, "checked", "apply-failed")
			if got := m.Standing(one.Name); got != "quarantined" {
				t.Errorf("standing = %q, want quarantined", got)
			}
		})
	}
	if got := m.Kernel.Insertions(); len(got) != 0 {
		t.Errorf("insertions = %v", got)
	}
	if r := m.OneShot("-boot"); r.Code != 0 || len(m.Kernel.Insertions()) != 0 {
		t.Errorf("loader -boot: %v; insertions = %v", r, m.Kernel.Insertions())
	}
	m.Kernel.Set(lab.Steering{})
	m.OK("refresh") // whose cause is gone
	m.WantInForce(one)
}

func TestRefreshWhenSomebodyElseHasTheName(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *lab.Kernel) { k.Write("sys/module/"+lab.ModuleName(1)+"/refcnt", "0\n") })
	m.CLI("refresh")
	m.Refuses(t, true, "another module of that name is loaded", "lsmod", "refresh")
}

func TestRefreshDuringSomebodyElsesTransition(t *testing.T) {
	t.Parallel()
	m := newClientOn(t, func(k *lab.Kernel) {
		k.Write("sys/kernel/livepatch/other/enabled", "1\n")
		k.Write("sys/kernel/livepatch/other/transition", "1\n")
	})
	m.CLI("refresh")
	m.Refuses(t, true, "another livepatch transition is in progress", "wait for it to end", "refresh")
}

// A transition that does not end is no failure: the user sees that it goes on and
// what holds it up, and a newer patch waits for it.
func TestATransitionThatDoesNotEndIsShown(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	m.Kernel.Set(lab.Steering{Transition: lab.Never})
	m.Kernel.AddTask(4242, "vhost-4200", "S (sleeping)")
	m.Join(s, s.URL())
	m.Enable(s)
	start := time.Now()
	if out := m.OK("refresh"); !strings.Contains(out, "patch is being applied") {
		t.Errorf("refresh printed %q", out)
	}
	if took := time.Since(start); took > 50*time.Second {
		t.Errorf("refresh took %v", took)
	}
	m.WantStatus(lab.NewModule(1), "checked", "applying")
	if out := m.OK("status", "--verbose"); !strings.Contains(out, "vhost-4200") || !strings.Contains(out, "S (sleeping)") {
		t.Errorf("status does not say what holds up the transition:\n%s", out)
	}
	if got := m.Standing(lab.NewModule(1).Name); got != "inserting" {
		t.Errorf("standing = %q, want inserting", got)
	}
	s.Publish(lab.NewModule(2))
	m.CLI("refresh")
	m.Refuses(t, true, "another livepatch transition is in progress", "wait for it to end", "refresh")

	m.Kernel.Set(lab.Steering{})
	lab.Eventually(t, "transition ends", func() bool { return len(m.InForce()) == 1 })
	m.OK("refresh")
	m.WantInForce(lab.NewModule(2))
}

// A machine runs a kernel that the repository has nothing for.
func TestRefreshOnAKernelWithoutPatches(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	t.Run("another release", func(t *testing.T) {
		m := lab.NewMachine(t, s.Pinned())
		m.Kernel.Write("proc/sys/kernel/osrelease", "6.1.0-54-amd64\n")
		m.Join(s, s.URL())
		m.Enable(s)
		if out := m.OK("refresh"); !strings.Contains(out, "nothing to apply") {
			t.Errorf("refresh printed %q", out)
		}
		if got := supported(t, m); got != "unsupported" {
			t.Errorf("status says %q, want unsupported", got)
		}
		m.WantInForce()
	})
	t.Run("another build of the same release", func(t *testing.T) {
		m := lab.NewMachine(t, s.Pinned())
		m.Kernel.SetBuildID(lab.OtherBuildID)
		m.Join(s, s.URL())
		m.Enable(s)
		m.CLI("refresh")
		before := m.Footprint(true)
		r := m.CLI("refresh")
		if want := "the patches for kernel " + lab.Release + " are for another build of it"; r.Code != 1 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, "hint: install the kernel package") {
			t.Errorf("refresh: %v", r)
		}
		lab.WantSame(t, before, m.Footprint(true))
		if got := supported(t, m); got != "unsupported" {
			t.Errorf("status says %q, want unsupported", got)
		}
		m.WantInForce()
	})
}

// supported returns what status says of the kernel.
func supported(t *testing.T, m *lab.Machine) string {
	t.Helper()
	var s struct{ Status []struct{ Supported string } }
	lab.Must(t, json.Unmarshal([]byte(m.OK("status", "--format", "json")), &s))
	return s.Status[0].Supported
}

// What is no livepatch for the kernel that its description names is not signed.
func TestPublishingWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	good := lab.NewModule(2)
	tests := map[string]struct {
		content   []byte
		why, next string
	}{
		"a module that is not a livepatch": {lab.ElfFile("name="+good.Name, "vermagic="+lab.Release+" SMP"), "module is not a livepatch", `MODULE_INFO(livepatch, "Y")`},
		"a module for another release":     {lab.Livepatch(good.Name, "6.1.0-54-amd64"), "another kernel", "headers of the kernel"},
		"a module with another name":       {lab.Livepatch("lkp_other", lab.Release), "", ""},
		"a module that ends early":         {good.Content[:len(good.Content)-100], "", "copy the file again"},
		"a module of 65 MB":                {make([]byte, 65<<20), "larger than allowed", ""},
		"something that is no module":      {[]byte("#!/bin/sh\n"), "", "the .ko that the build made"},
	}
	lab.Must(t, os.WriteFile(s.Path("patch.json"), good.Description(t), 0o644))
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), good.Name+".ko")
			lab.Must(t, os.WriteFile(file, tc.content, 0o644))
			before := s.Publisher("list").Stdout
			r := s.Publisher("add", file, "-vendor", lab.Vendor, "-description", s.Path("patch.json"), "-build-id", lab.BuildID)
			if r.Code != 1 || r.Stdout != "" || !strings.HasPrefix(r.Stderr, "livepatch-publish: error: cannot ") ||
				!strings.Contains(r.Stderr, tc.why) || !strings.Contains(r.Stderr, tc.next) || !strings.Contains(r.Stderr, "livepatch-publish: hint: ") {
				t.Errorf("add: %v\nwant %q and %q", r, tc.why, tc.next)
			}
			if after := s.Publisher("list").Stdout; after != before {
				t.Errorf("the repository has changed:\n%s", after)
			}
		})
	}
}

// The machine's clock is two days off. The agent can tell by the service's
// answers.
func TestRefreshWithAWrongClock(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	f := lab.NewHonestFront(t, s)
	m := lab.NewMachine(t, s.Pinned())
	m.Join(s, f.URL)
	m.OK("enable", s.Token())
	m.OK("refresh")
	m.Accepts(lab.NewModule(1))
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
			f.Set(serviceTime(tc.ahead))
			defer f.Set(nil)
			m.Refuses(t, true, tc.why, "set the clock", "refresh")
			m.WantInForce(lab.NewModule(1))
		})
	}
	m.OK("refresh")
}

// A clock that was set back does not make the loader believe again what has
// expired: time has passed that it remembers.
func TestAClockThatWasSetBackDoesNotReviveExpiredFiles(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	repo := lab.NewRepository(time.Now(), one, two)
	m := lab.NewMachine(t, repo.Pinned())
	c := m.Client()
	lab.MustApply(t, c, repo, one, applied)
	m.Loader.Kill()
	var trust map[string]any
	b, err := os.ReadFile(m.Path("loader/trust.json"))
	lab.Must(t, err)
	lab.Must(t, json.Unmarshal(b, &trust))
	trust["Time"] = time.Now().Add(48 * time.Hour).UTC().Format(time.RFC3339)
	b, err = json.Marshal(trust)
	lab.Must(t, err)
	lab.Must(t, os.WriteFile(m.Path("loader/trust.json"), b, 0o600))
	before := m.Footprint(true)
	if _, err := lab.Apply(t, c, repo.Opening(two), two.Content); !errors.Is(err, patch.ErrExpired) {
		t.Errorf("apply = %v, want %v", err, patch.ErrExpired)
	}
	lab.WantSame(t, before, m.Footprint(true))
	if got := len(m.Kernel.Insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
}
