package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// enabled returns a world that has made its first check.
func enabled(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.enable()
	if err := w.now(); err != nil {
		t.Fatal(err)
	}
	return w
}

// reboot empties the kernel and gives the boot another id, after a shutdown in good
// order.
func (w *world) reboot() {
	was := w.live.facts.BootID
	w.crash()
	w.fake.Do(func(f *loadertest.Fake) { f.CleanBoot = was })
}

// crash is reboot without a shutdown.
func (w *world) crash() {
	w.boots++
	w.kernel["proc/sys/kernel/random/boot_id"] = &fstest.MapFile{Data: fmt.Appendf(nil, "%08d-7b36-4a2e-8a0d-6e1f5a5c9d11\n", w.boots)}
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = nil })
	w.restart()
}

func (w *world) mustCheck() {
	w.t.Helper()
	if err := w.now(); err != nil {
		w.t.Fatal(err)
	}
}

func TestFirstCheckAppliesAndReports(t *testing.T) {
	w := enabled(t)
	w.wantPatch(status.Applied, "1.1")
	if e := w.svc.events(); !slices.Equal(e, []string{"intent 1.1", "applied 1.1"}) {
		t.Errorf("events = %q", e)
	}
	last := w.svc.checkIns[len(w.svc.checkIns)-1]
	want := service.Patch{Name: module1.Name, Version: "1.1", Sequence: 1, State: "enabled", Standing: "trial"}
	if last.Patch == nil || *last.Patch != want || last.Release != kernel.Release || last.BootID != bootID || last.Distribution != "debian" {
		t.Errorf("reported %+v of %+v", last.Patch, last.Facts)
	}
	// The intent was reported before the loader was asked.
	if c := w.svc.checkIns[1]; len(c.Events) != 1 || c.Events[0].Kind != eventIntent || c.Patch != nil {
		t.Errorf("second check-in: %+v", c)
	}
	p := w.patch()
	if len(p.Fixes) != 1 || p.Fixes[0].Name != "CVE-2026-1.1" || !p.Fixes[0].Patched || p.Module != module1.Name {
		t.Errorf("patch = %+v", p)
	}
	applied := w.fake.Applied[0]
	if string(applied.Content) != string(contentOf("1.1")) || len(applied.Roots) != 0 || string(applied.Timestamp) != string(w.repo.Metadata("timestamp.json")) {
		t.Errorf("loader got %d bytes, %d roots", len(applied.Content), len(applied.Roots))
	}
}

func TestSecondCheckChangesNothing(t *testing.T) {
	w := enabled(t)
	w.fake.Made()
	w.mustCheck()
	if made := w.fake.Made(); len(made) != 0 {
		t.Errorf("loader was asked for %q", made)
	}
	if w.svc.targets != 2 { // index and module
		t.Errorf("%d targets were fetched", w.svc.targets)
	}
}

func TestNewerPatchReplaces(t *testing.T) {
	w := enabled(t)
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
	if e := w.svc.events(); !slices.Equal(e, []string{"intent 1.1", "applied 1.1", "intent 2.1", "applied 2.1"}) {
		t.Errorf("events = %q", e)
	}
}

func TestRootsGoToTheLoader(t *testing.T) {
	w := newWorld(t)
	w.repo.RotateRoot("timestamp")
	w.repo.RotateRoot("")
	w.repo.Publish()
	w.enable()
	w.mustCheck()
	if roots := w.fake.Applied[0].Roots; len(roots) != 2 || string(roots[0]) != string(w.repo.Metadata("2.root.json")) {
		t.Errorf("%d roots", len(roots))
	}
}

// After a reboot without a network the patch comes back from the cache.
func TestRebootWithoutNetwork(t *testing.T) {
	w := enabled(t)
	w.reboot()
	w.svc.down()
	if err := w.now(); err == nil {
		t.Error("no error")
	}
	w.wantPatch(status.Applied, "1.1")
	if p := w.patch(); p.CheckState == status.CheckFailed {
		t.Errorf("check state = %q", p.CheckState)
	}
	// And is reported when the network is there.
	w.svc.up()
	w.mustCheck()
	if e := w.svc.events(); !slices.Equal(e, []string{"intent 1.1", "applied 1.1", "booted CLEAN", "intent 1.1", "applied 1.1"}) {
		t.Errorf("events = %q", e)
	}
}

func TestRebootWithoutNetworkAndModuleGone(t *testing.T) {
	w := enabled(t)
	if err := os.RemoveAll(filepath.Join(w.dir, "cache", "blobs")); err != nil {
		t.Fatal(err)
	}
	w.reboot()
	w.svc.down()
	if err := w.now(); err == nil {
		t.Error("no error")
	}
	if l := w.inKernel(); l.Name != "" {
		t.Errorf("in the kernel: %+v", l)
	}
	w.svc.up()
	w.mustCheck()
	w.wantPatch(status.Applied, "1.1")
}

func TestOtherKernelAfterReboot(t *testing.T) {
	w := enabled(t)
	w.kernel["proc/sys/kernel/osrelease"] = &fstest.MapFile{Data: []byte("6.1.0-99-amd64\n")}
	w.fake.Do(func(f *loadertest.Fake) { f.Kernel.Release = "6.1.0-99-amd64" })
	w.reboot()
	w.mustCheck()
	s, _ := w.Status(false)
	k := s.Kernels[0]
	if k.Supported != status.Unsupported || k.Livepatch.State != status.NothingToApply || k.Livepatch.Version != "" || !k.Livepatch.KernelUpgraded {
		t.Errorf("kernel = %+v", k)
	}
}

func TestStatusAfterRestartKnowsTheLastCheck(t *testing.T) {
	w := enabled(t)
	before, _ := w.Status(false)
	w.restart()
	after, on := w.Status(false)
	if !on || !after.LastCheck.Equal(before.LastCheck) || after.LastCheck.IsZero() || after.Tier != "stable" || after.MachineID != before.MachineID {
		t.Errorf("status = %+v", after)
	}
	w.wantPatch(status.Applied, "1.1")
	if p := w.patch(); p.CheckState == status.Checked {
		t.Error("claims to have checked since the restart")
	}
}

// A refusal by the kernel is remembered for this module in this boot.
func TestRefusedPatchIsNotTriedAtEveryCheck(t *testing.T) {
	w := newWorld(t)
	w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrUnknownSymbol })
	w.enable()
	for range 3 {
		w.mustCheck()
		w.restart()
	}
	if made := w.fake.Made(); len(made) != 1 {
		t.Errorf("loader was asked for %q", made)
	}
	w.mustCheck()
	p := w.patch()
	if p.State != status.ApplyFailed || !strings.Contains(p.PatchError, "needs a symbol") || p.PatchHint == "" {
		t.Errorf("patch = %+v", p)
	}
	if e := w.svc.events(); !slices.Equal(e, []string{"intent 1.1", "failed 1.1 UNKNOWN_SYMBOL"}) {
		t.Errorf("events = %q", e)
	}
	w.reboot()
	w.mustCheck()
	if made := w.fake.Made(); len(made) != 1 {
		t.Errorf("after a reboot loader was asked for %q", made)
	}
	w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = nil })
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
}

func TestBusyKernelIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = patch.ErrBusy })
	w.enable()
	w.mustCheck()
	w.fake.Do(func(f *loadertest.Fake) { f.ApplyErr = nil })
	w.mustCheck()
	w.wantPatch(status.Applied, "1.1")
}

func TestSuspectPatchWaitsForANewerOne(t *testing.T) {
	w := enabled(t)
	suspect := w.inKernel()
	w.reboot()
	suspect.State, suspect.Standing = loader.Absent, loader.Suspect
	w.fake.Do(func(f *loadertest.Fake) { f.Livepatches = []loader.Livepatch{suspect} })
	w.fake.Made()
	for range 2 {
		w.mustCheck()
	}
	p := w.patch()
	if p.State != status.ApplyFailed || p.Failure != status.FailureCrash || !strings.Contains(p.PatchHint, "newer one") {
		t.Errorf("patch = %+v", p)
	}
	if made := w.fake.Made(); !slices.Equal(made, []string{"update"}) {
		t.Errorf("loader was asked for %q", made)
	}
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
}

func TestRevokedPatchLeaves(t *testing.T) {
	w := enabled(t)
	w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
	w.repo.Publish()
	w.mustCheck()
	w.wantPatch(status.NothingToApply, "")
	if made := w.fake.Made(); !slices.Equal(made[1:], []string{"update"}) {
		t.Errorf("loader was asked for %q", made)
	}
	if e := w.svc.events(); !slices.Contains(e, "removed 1.1") {
		t.Errorf("events = %q", e)
	}
}

func TestRevokedPatchIsReplacedIfThereIsANewerOne(t *testing.T) {
	w := enabled(t)
	w.repo.SetRollout("1.1", patch.Rollout{State: patch.Revoked})
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.fake.Made()
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
	if made := w.fake.Made(); len(made) != 1 {
		t.Errorf("loader was asked for %q", made)
	}
}

func TestOlderPatchIsNotTakenBack(t *testing.T) {
	w := enabled(t)
	w.repo.Add(module2, contentOf("2.1"), servicetest.Everyone())
	w.repo.Publish()
	w.mustCheck()
	w.repo.SetRollout("2.1", patch.Rollout{State: patch.Halted})
	w.repo.Publish()
	w.fake.Made()
	w.mustCheck()
	w.wantPatch(status.Applied, "2.1")
	if made := w.fake.Made(); !slices.Equal(made, []string{"update"}) {
		t.Errorf("loader was asked for %q", made)
	}
}

func TestCoverage(t *testing.T) {
	day := func(n int) string { return time.Now().AddDate(0, 0, n).UTC().Format(time.DateOnly) }
	critical := []patch.Unpatchable{{Fix: patch.Fix{Name: "CVE-2026-7", Priority: patch.Critical}, FixedIn: "6.1.0-60-amd64"}}
	low := []patch.Unpatchable{{Fix: patch.Fix{Name: "CVE-2026-8", Priority: patch.Low}, FixedIn: "6.1.0-60-amd64"}}
	tests := map[string]struct {
		ix        patch.Index
		supported status.Support
		state     status.State
		required  string // part of the line; "" means no upgrade is required
	}{
		"inside the window":       {patch.Index{Until: day(10)}, status.Supported, status.NothingToApply, ""},
		"on the last day":         {patch.Index{Until: day(0)}, status.Supported, status.NothingToApply, ""},
		"the day after":           {patch.Index{Until: day(-1)}, status.SupportUpgradeRequired, status.NothingToApply, "ended " + day(-1)},
		"a hole no patch closes":  {patch.Index{Until: day(10), Unpatchable: critical}, status.Supported, status.KernelUpgradeRequired, "CVE-2026-7"},
		"a hole that can wait":    {patch.Index{Until: day(10), Unpatchable: low}, status.Supported, status.NothingToApply, ""},
		"a window without an end": {patch.Index{}, status.Supported, status.NothingToApply, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.ix.Arch, tc.ix.Release, tc.ix.From = kernel.Arch, kernel.Release, "2020-01-01"
			w.repo.SetIndex(tc.ix)
			w.repo.Publish()
			w.enable()
			w.mustCheck()
			s, _ := w.Status(false)
			if k := s.Kernels[0]; k.Supported != tc.supported || k.Livepatch.State != tc.state {
				t.Errorf("supported = %q, state = %q", k.Supported, k.Livepatch.State)
			}
			line, err := w.UpgradeRequired()
			if err != nil || tc.required == "" && line != "" || !strings.Contains(line, tc.required) {
				t.Errorf("UpgradeRequired = %q, %v; want %q", line, err, tc.required)
			}
		})
	}
}

func TestOtherBuildOfTheSameRelease(t *testing.T) {
	w := newWorld(t)
	m := module1
	m.BuildID = "ffffffffffffffffffffffffffffffffffffffff"
	w.repo.SetIndex(patch.Index{Arch: kernel.Arch, Release: kernel.Release, Until: "2099-01-01"})
	w.repo.Add(m, contentOf("1.1"), servicetest.Everyone())
	w.repo.Publish()
	w.enable()
	w.mustCheck()
	s, _ := w.Status(false)
	k := s.Kernels[0]
	if k.Supported != status.Unsupported || !strings.Contains(k.Livepatch.PatchError, "are for another build of it") || k.Livepatch.PatchHint == "" {
		t.Errorf("kernel = %+v", k)
	}
}

func TestClockThatIsAMinuteOrTenOff(t *testing.T) {
	for skew, want := range map[time.Duration]string{
		time.Minute:       "",
		10 * time.Minute:  "this machine's clock is 10 minutes behind the service's",
		-10 * time.Minute: "this machine's clock is 10 minutes ahead of the service's",
		3 * time.Hour:     "this machine's clock is 3 hours behind the service's",
	} {
		w := newWorld(t)
		w.svc.skew = skew
		w.enable()
		w.mustCheck() // it is not so wrong that nothing can be judged
		s, _ := w.Status(false)
		got := ""
		for _, n := range s.Notices {
			got += n.Message
			if !strings.Contains(n.Hint, "set the clock") {
				t.Errorf("%v: hint = %q", skew, n.Hint)
			}
		}
		if got != want {
			t.Errorf("%v: notices %q, want %q", skew, got, want)
		}
	}
}

func TestDisableAndRemove(t *testing.T) {
	for _, remove := range []bool{false, true} {
		w := enabled(t)
		_, notes, err := w.Disable(t.Context(), remove)
		if err != nil || len(notes) != 1 {
			t.Fatalf("Disable = %q, %v", notes, err)
		}
		if gone := w.inKernel().Name == ""; gone != remove {
			t.Errorf("remove %v: gone from the kernel is %v; notes %q", remove, gone, notes)
		}
		if _, err := os.Stat(w.path(tokenFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("token file: %v", err)
		}
		w.restart()
		if _, on := w.Status(false); on {
			t.Error("enabled after a restart")
		}
	}
}

// The token cannot be kept: the service is told to forget the machine.
func TestEnableThatCannotKeepTheToken(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(filepath.Join(w.path(tokenFile), "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := w.Enable(t.Context(), servicetest.AuthToken)
	if err == nil || !strings.HasPrefix(err.Error(), "cannot keep the machine token: ") {
		t.Errorf("Enable = %v", err)
	}
	if _, on := w.Status(false); on || w.svc.forgot != 1 {
		t.Errorf("enabled: %v, service told %d times", on, w.svc.forgot)
	}
}

func TestDisableWithoutTheService(t *testing.T) {
	w := enabled(t)
	w.svc.down()
	_, notes, err := w.Disable(t.Context(), false)
	if err != nil || !strings.Contains(strings.Join(notes, "\n"), "could not be told") {
		t.Errorf("Disable = %q, %v", notes, err)
	}
}

// The agent was killed between telling the service and hearing from the loader.
func TestKilledWhileApplying(t *testing.T) {
	tests := map[string]struct {
		inKernel bool
		want     []string
	}{
		"after the insertion":  {true, []string{"intent 1.1", "applied 1.1"}},
		"before the insertion": {false, []string{"intent 1.1", "intent 1.1", "applied 1.1"}}, // nothing has failed
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.enable()
			crash := &crashingLoader{Fake: w.fake, insert: tc.inKernel}
			w.Agent.loader = crash
			func() {
				defer func() { _ = recover() }()
				_ = w.now()
			}()
			w.restart()
			w.mustCheck()
			w.wantPatch(status.Applied, "1.1")
			if e := w.svc.events(); !slices.Equal(e, tc.want) {
				t.Errorf("events = %q, want %q", e, tc.want)
			}
		})
	}
}

// The agent's own files are damaged: what can be made again is.
func TestDamagedFiles(t *testing.T) {
	for _, content := range []string{"", "{", "null", "\x00\x00\x00\x00", `{"events":7}`} {
		w := enabled(t)
		w.reboot()
		for _, name := range []string{stateFile, machineIDFile, "cache/refresh.json"} {
			if err := os.WriteFile(w.path(name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.restart()
		w.mustCheck()
		w.wantPatch(status.Applied, "1.1")
		if !hex32.MatchString(w.machineID) {
			t.Errorf("machine id = %q", w.machineID)
		}
	}
	w := enabled(t)
	if err := os.WriteFile(w.path(tokenFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.enable()
	w.mustCheck()
}

// crashingLoader ends the agent in the middle of an Apply.
type crashingLoader struct {
	*loadertest.Fake
	insert bool
}

func (c *crashingLoader) Apply(ctx context.Context, r loader.Request) (loader.Result, error) {
	if c.insert {
		_, _ = c.Fake.Apply(ctx, r)
	}
	panic("killed")
}

func TestChoose(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	everyone := servicetest.Everyone()
	entry := func(version string, sequence uint64, daysOld int) patch.IndexEntry {
		m := module(version, sequence)
		return patch.IndexEntry{Target: patch.ModulePath("debian", m), Name: m.Name, Version: version, Sequence: sequence, BuildID: kernel.BuildID,
			Notice: m.Notice, Added: now.AddDate(0, 0, -daysOld).Format(time.RFC3339), Fixes: []patch.Fix{{Name: "CVE-" + version}}}
	}
	both := []patch.IndexEntry{entry("1.1", 1, 30), entry("2.1", 2, 3)}
	tests := map[string]struct {
		entries  []patch.IndexEntry
		rollouts map[string]patch.Rollout
		change   func(*chooser)
		want     string // version; "" means none
		blocked  []string
		wantErr  error
	}{
		"the newest":                       {both, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, nil, "2.1", nil, nil},
		"the newest, whatever the order":   {[]patch.IndexEntry{both[1], both[0]}, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, nil, "2.1", nil, nil},
		"nothing in the index":             {nil, nil, nil, "", nil, nil},
		"no rollout for the newest":        {both, map[string]patch.Rollout{"1.1": everyone}, nil, "1.1", nil, nil},
		"the newest is halted":             {both, map[string]patch.Rollout{"1.1": everyone, "2.1": {State: patch.Halted, Tiers: everyone.Tiers}}, nil, "1.1", nil, nil},
		"the newest is revoked":            {both, map[string]patch.Rollout{"1.1": everyone, "2.1": {State: patch.Revoked, Tiers: everyone.Tiers}}, nil, "1.1", nil, nil},
		"the newest is for another tier":   {both, map[string]patch.Rollout{"1.1": everyone, "2.1": {State: patch.Running, Tiers: map[string]patch.Stage{"edge": {Share: patch.Everyone}}}}, nil, "1.1", nil, nil},
		"a stage that has not come to us":  {both, map[string]patch.Rollout{"2.1": {State: patch.Running, Tiers: map[string]patch.Stage{"stable": {Share: 0}}}}, nil, "", nil, nil},
		"halted for our kernel":            {both[:1], map[string]patch.Rollout{"1.1": {State: patch.Running, Tiers: everyone.Tiers, Kernels: map[string]patch.RolloutState{kernel.Release + "/" + kernel.Arch: patch.Halted}}}, nil, "", nil, nil},
		"cutoff date":                      {both, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, func(c *chooser) { c.cfg.CutoffDate = now.AddDate(0, 0, -10) }, "1.1", []string{config.CutoffDate}, nil},
		"cutoff date before all":           {both, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, func(c *chooser) { c.cfg.CutoffDate = now.AddDate(0, 0, -100) }, "", []string{config.CutoffDate}, nil},
		"delay":                            {both, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, func(c *chooser) { c.cfg.PatchDelay = 7 * 24 * time.Hour }, "1.1", []string{config.PatchDelay}, nil},
		"delay that is over":               {both, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, func(c *chooser) { c.cfg.PatchDelay = 2 * 24 * time.Hour }, "2.1", nil, nil},
		"delay and a patch without a date": {[]patch.IndexEntry{undated(both[1])}, map[string]patch.Rollout{"2.1": everyone}, func(c *chooser) { c.cfg.PatchDelay = time.Hour }, "", []string{config.PatchDelay}, nil},
		"another build":                    {both, map[string]patch.Rollout{"1.1": everyone, "2.1": everyone}, func(c *chooser) { c.kernel.BuildID = "00ff" }, "", nil, nil},
		"target of another vendor":         {[]patch.IndexEntry{retarget(both[0], "fedora/x.ko")}, map[string]patch.Rollout{"1.1": everyone}, nil, "", nil, patch.ErrMalformed},
		"target that climbs":               {[]patch.IndexEntry{retarget(both[0], "debian/../x.ko")}, map[string]patch.Rollout{"1.1": everyone}, nil, "", nil, patch.ErrMalformed},
		"target that is not there":         {[]patch.IndexEntry{retarget(both[0], "debian/none.ko")}, map[string]patch.Rollout{"1.1": everyone}, nil, "", nil, patch.ErrNotFound},
		"target of another patch":          {[]patch.IndexEntry{retarget(both[0], both[1].Target)}, map[string]patch.Rollout{"1.1": everyone}, nil, "", nil, patch.ErrMalformed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c := chooser{catalog: memCatalog(tc.rollouts), vendor: "debian", kernel: kernel, tier: "stable", machineID: "m", cfg: config.Default(), now: now}
			if tc.change != nil {
				tc.change(&c)
			}
			got, err := c.choose(patch.Index{Patches: tc.entries})
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("choose = %v, want %v", err, tc.wantErr)
			}
			if got.found != (tc.want != "") || got.entry.Version != tc.want || !slices.Equal(got.blockedBy, tc.blocked) {
				t.Errorf("chose %q, blocked by %q; want %q, %q", got.entry.Version, got.blockedBy, tc.want, tc.blocked)
			}
			if (len(got.blocked) > 0) != (len(tc.blocked) > 0) {
				t.Errorf("blocked = %+v", got.blocked)
			}
		})
	}
}

func undated(e patch.IndexEntry) patch.IndexEntry { e.Added = "soon"; return e }

func retarget(e patch.IndexEntry, target string) patch.IndexEntry { e.Target = target; return e }

// memCatalog has the modules 1.1 and 2.1 and some rollouts.
type memCatalog map[string]patch.Rollout

func (c memCatalog) Target(path string) (trust.Target, error) {
	for version, r := range c {
		if path == patch.RolloutPath("debian", version) {
			return trust.Target{Path: path, Custom: mustJSON(r)}, nil
		}
	}
	for _, m := range []patch.Module{module1, module2} {
		if path == patch.ModulePath("debian", m) {
			return trust.Target{Path: path, Custom: mustJSON(m)}, nil
		}
	}
	return trust.Target{}, patch.ErrNotFound
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func TestEveryErrorOfThePatchPackageHasANextStep(t *testing.T) {
	for _, err := range []error{
		patch.ErrTooLarge, patch.ErrRefused, patch.ErrUntrusted, patch.ErrExpired, patch.ErrRollback, patch.ErrMalformed, patch.ErrTampered,
		patch.ErrHalted, patch.ErrRevoked, patch.ErrWrongKernel, patch.ErrNotLivepatch, patch.ErrNameTaken, patch.ErrSuspect, patch.ErrNoLivepatch,
		patch.ErrSwitchedOff, patch.ErrModulesDisabled, patch.ErrFtraceDisabled, patch.ErrFtraceConflict, patch.ErrBusy, patch.ErrIncompatible, patch.ErrUnknownSymbol,
		patch.ErrBadFormat, patch.ErrModuleSignature, patch.ErrNotPermitted, patch.ErrNoMemory, patch.ErrKernel, patch.ErrStalled,
		patch.ErrTransitionFailed, patch.ErrStorage, patch.ErrNotOurs, patch.ErrNotFound,
	} {
		if h := Hint(err); h == "" || strings.Contains(h, "\n") {
			t.Errorf("%v: hint is %q", err, h)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"interval":-5,"events":[{}],"soak":{"digest":"00"},"failed":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err == nil && r.Interval < 0 {
			t.Error("negative interval")
		}
	})
}
