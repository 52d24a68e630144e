//go:build integration

package integration

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/tests/lab"

	"google.golang.org/protobuf/proto"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/tuftest"
	loaderv1 "livepatch/proto/loader/v1"
)

const (
	applied = loaderv1.Outcome_OUTCOME_APPLIED
	already = loaderv1.Outcome_OUTCOME_ALREADY_APPLIED
	pending = loaderv1.Outcome_OUTCOME_TRANSITION_PENDING
)

func TestLoaderBringsAPatchInReplacesItAndTakesItOut(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	repo := lab.NewRepository(time.Now(), one, two)
	m := lab.NewMachine(t, repo.Pinned())
	c := m.Client()

	lab.MustApply(t, c, repo, one, applied)
	if got := m.InForce(); !slices.Equal(got, []string{one.Name}) {
		t.Fatalf("in force = %q, want %s", got, one.Name)
	}
	lab.MustApply(t, c, repo, one, already)
	resp := lab.MustApply(t, c, repo, two, applied)
	if got := resp.GetUnloaded(); !slices.Equal(got, []string{one.Name}) {
		t.Errorf("unloaded = %q, want %s", got, one.Name)
	}
	if got := m.Kernel.Modules(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("modules = %q, want only the newer one", got)
	}
	if _, err := c.Accept(t.Context(), &loaderv1.AcceptRequest{Name: two.Name}); err != nil {
		t.Fatal(err)
	}

	m.Reboot(true)
	if r := m.OneShot("-boot"); r.Code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	if got := m.InForce(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("in force after the reboot = %q, want %s", got, two.Name)
	}
	if r := m.OneShot("-boot"); r.Code != 0 || len(m.Kernel.Insertions()) != 3 {
		t.Errorf("loader -boot again: %v; insertions = %v", r, m.Kernel.Insertions())
	}

	removed, err := c.Remove(t.Context(), &loaderv1.RemoveRequest{Name: two.Name})
	if err != nil {
		t.Fatal(err)
	}
	if got := removed.GetLivepatch().GetState(); got != loaderv1.State_STATE_ABSENT || len(m.Kernel.Modules()) > 0 {
		t.Errorf("state = %v, modules = %q, want none", got, m.Kernel.Modules())
	}
	m.Reboot(true)
	if r := m.OneShot("-boot"); r.Code != 0 || len(m.Kernel.Livepatches()) > 0 {
		t.Errorf("loader -boot after removal: %v; livepatches = %q", r, m.Kernel.Livepatches())
	}
}

func TestLoaderLeavesWhenIdleAndComesBackWhenAsked(t *testing.T) {
	t.Parallel()
	repo := lab.NewRepository(time.Now(), lab.NewModule(1))
	m := lab.NewMachine(t, repo.Pinned())
	if m.Loader.Running() {
		t.Error("a root process runs before anybody has asked")
	}
	c := m.Client()
	for range 2 {
		if _, err := c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, "loader leaves", func() bool { return !m.Loader.Running() })
	}
	if got := m.Loader.Count(); got != 2 {
		t.Errorf("loader was started %d times, want 2", got)
	}
}

func TestLoaderDoesNotServeWithoutASocketFromItsActivator(t *testing.T) {
	t.Parallel()
	m := lab.NewMachine(t, lab.NewRepository(time.Now()).Pinned())
	r := lab.RunToEnd(t, m.LoaderCommand())
	if r.Code != 1 || !strings.Contains(r.Stderr, "cannot serve without a socket") || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("loader without a socket: %v", r)
	}
}

func TestASuspectPatchIsNotInsertedAgain(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	repo := lab.NewRepository(time.Now(), one, two)
	m := lab.NewMachine(t, repo.Pinned())
	c := m.Client()
	lab.MustApply(t, c, repo, one, applied)
	m.Reboot(false) // it goes down while the patch is on trial
	if r := m.OneShot("-boot"); r.Code != 0 || !strings.Contains(r.Stderr, one.Name) {
		t.Errorf("loader -boot: %v, want a word on %s", r, one.Name)
	}
	if _, err := lab.Apply(t, c, repo.Opening(one), one.Content); !errors.Is(err, patch.ErrSuspect) {
		t.Errorf("apply = %v, want %v", err, patch.ErrSuspect)
	}
	if got := len(m.Kernel.Insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
	lab.MustApply(t, c, repo, two, applied) // a newer one may try
}

// A refusal is one thing that an agent which was taken over, or an unlucky one,
// hands to the loader.
type refusal struct {
	module func() lab.Module // nil: the patch after the one in force
	change func(r lab.Repository, bin *tuftest.Role)
	edit   func(o *loaderv1.Opening, content *[]byte)
	want   error
	// believed tells that timestamp and snapshot were in order, so that the
	// loader remembers them and takes nothing older from now on.
	believed bool
}

func content(f func(b []byte) []byte) func(*loaderv1.Opening, *[]byte) {
	return func(_ *loaderv1.Opening, c *[]byte) { *c = f(slices.Clone(*c)) }
}

func opening(f func(o *loaderv1.Opening)) func(*loaderv1.Opening, *[]byte) {
	return func(o *loaderv1.Opening, _ *[]byte) { f(o) }
}

func forKernel(k patch.Kernel) func() lab.Module {
	return func() lab.Module { return lab.NewModuleFor(k, 2) }
}

func ofFields(fields ...string) func() lab.Module {
	return func() lab.Module {
		m := lab.NewModule(2)
		m.Content = lab.ElfFile(fields...)
		return m
	}
}

func decide(r lab.Repository, m lab.Module, s patch.RolloutState) {
	r.AddTarget(patch.RolloutPath(lab.Vendor, m.Version), nil, patch.Rollout{State: s})
	r.Publish(patch.RolloutRole)
}

var badModules = map[string]refusal{
	"a module that ends early":         {edit: content(func(b []byte) []byte { return b[:len(b)-1] }), want: patch.ErrTampered, believed: true},
	"a module with one bit changed":    {edit: content(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), want: patch.ErrTampered, believed: true},
	"a module with a byte more":        {edit: content(func(b []byte) []byte { return append(b, 0) }), want: patch.ErrTampered, believed: true},
	"no module":                        {edit: content(func([]byte) []byte { return nil }), want: patch.ErrTampered, believed: true},
	"a module of 65 MB":                {edit: content(func([]byte) []byte { return make([]byte, 65<<20) }), want: patch.ErrTooLarge},
	"a module for another release":     {module: forKernel(patch.Kernel{Arch: "x86_64", Release: "6.1.0-54-amd64", BuildID: lab.BuildID}), want: patch.ErrWrongKernel, believed: true},
	"a module for another build-id":    {module: forKernel(patch.Kernel{Arch: "x86_64", Release: lab.Release, BuildID: lab.OtherBuildID}), want: patch.ErrWrongKernel, believed: true},
	"a module for another machine":     {module: forKernel(patch.Kernel{Arch: "aarch64", Release: lab.Release, BuildID: lab.BuildID}), want: patch.ErrWrongKernel, believed: true},
	"a module that is not a livepatch": {module: ofFields("name="+lab.ModuleName(2), "vermagic="+lab.Release+" SMP"), want: patch.ErrNotLivepatch, believed: true},
	"a module with another name":       {module: ofFields("livepatch=Y", "name=lkp_other", "vermagic="+lab.Release+" SMP"), want: patch.ErrTampered, believed: true},
	"a module with another vermagic":   {module: ofFields("livepatch=Y", "name="+lab.ModuleName(2), "vermagic=6.1.0-54-amd64 SMP"), want: patch.ErrWrongKernel, believed: true},
}

var badMetadata = map[string]refusal{
	"a target that is not there": {edit: opening(func(o *loaderv1.Opening) { o.Target = "debian/lkp_none.x86_64.ko" }), want: patch.ErrNotFound, believed: true},
	"a target that is a path":    {edit: opening(func(o *loaderv1.Opening) { o.Target = "../../etc/shadow" }), want: patch.ErrInvalid},
	"a timestamp that has expired": {
		change: func(r lab.Repository, _ *tuftest.Role) { r.Roles["timestamp"].Expire(time.Now().Add(-time.Minute)) }, want: patch.ErrExpired,
	},
	"a bin that has expired": {
		change: func(_ lab.Repository, bin *tuftest.Role) { bin.Expire(time.Now().Add(-time.Minute)) }, want: patch.ErrExpired, believed: true,
	},
	"a bin that one person signed": {
		change: func(_ lab.Repository, bin *tuftest.Role) { bin.Signers = bin.Signers[:1] }, want: patch.ErrUntrusted, believed: true,
	},
	"a bin with one signature twice": {
		change: func(_ lab.Repository, bin *tuftest.Role) { bin.Signers = []tuftest.Key{bin.Signers[0], bin.Signers[0]} }, want: patch.ErrMalformed, believed: true,
	},
	"a bin that strangers signed": {
		change: func(_ lab.Repository, bin *tuftest.Role) {
			bin.Signers = []tuftest.Key{tuftest.NewKey("one"), tuftest.NewKey("two")}
		}, want: patch.ErrUntrusted, believed: true,
	},
	"a timestamp that ends early": {edit: opening(func(o *loaderv1.Opening) { o.Metadata.Timestamp = o.GetMetadata().GetTimestamp()[:100] }), want: patch.ErrMalformed},
	"an empty snapshot":           {edit: opening(func(o *loaderv1.Opening) { o.Metadata.Snapshot = nil }), want: patch.ErrTampered, believed: true},
	"a timestamp of 17 KB":        {edit: opening(func(o *loaderv1.Opening) { o.Metadata.Timestamp = make([]byte, 17<<10) }), want: patch.ErrTooLarge},
	"a rollout that is halted": {
		change: func(r lab.Repository, _ *tuftest.Role) { decide(r, lab.NewModule(2), patch.Halted) }, want: patch.ErrHalted, believed: true,
	},
	"a rollout that is revoked": {
		change: func(r lab.Repository, _ *tuftest.Role) { decide(r, lab.NewModule(2), patch.Revoked) }, want: patch.ErrRevoked, believed: true,
	},
}

// What an agent hands in wrongly is refused by the loader alone, whatever the
// agent thinks of it.
func TestLoaderRefuses(t *testing.T) {
	t.Parallel()
	for _, tests := range []map[string]refusal{badModules, badMetadata} {
		for name, tc := range tests {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				tc.test(t)
			})
		}
	}
}

func (tc refusal) test(t *testing.T) {
	inForce, bad := lab.NewModule(1), lab.NewModule(2)
	if tc.module != nil {
		bad = tc.module()
	}
	good := lab.NewRepository(time.Now(), inForce, bad)
	m := lab.NewMachine(t, good.Pinned())
	c := m.Client()
	lab.MustApply(t, c, good, inForce, applied)

	repo := lab.Repository{Repo: good.Clone()}
	repo.Publish()
	if tc.change != nil {
		tc.change(repo, repo.Roles[repo.Bin(bad.Path())])
	}
	o, module := repo.Opening(bad), bad.Content
	if tc.edit != nil {
		tc.edit(o, &module)
	}
	before := m.Footprint(!tc.believed)
	_, err := lab.Apply(t, c, o, module)
	if !errors.Is(err, tc.want) {
		t.Errorf("apply = %v, want %v", err, tc.want)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("error has more than one line: %q", err)
	}
	lab.WantSame(t, before, m.Footprint(!tc.believed))

	// It is none the worse for it: what comes next gets in.
	next := lab.Repository{Repo: repo.Clone()}
	if tc.change != nil {
		next = lab.Repository{Repo: good.Clone()}
		next.Publish()
		next.Publish()
	}
	last := lab.NewModule(3)
	next.Add(last)
	lab.MustApply(t, c, next, last, applied)
}

// Signed files that are older than those seen before do not come back.
func TestLoaderRefusesWhatIsOlderThanItHasSeen(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	repo := lab.NewRepository(time.Now(), one, two)
	old := lab.Repository{Repo: repo.Clone()}
	repo.Publish()
	m := lab.NewMachine(t, repo.Pinned())
	c := m.Client()
	lab.MustApply(t, c, repo, two, applied)
	before := m.Footprint(true)
	tests := map[string]struct {
		o       *loaderv1.Opening
		content []byte
		want    error
	}{
		"older signed files":              {old.Opening(two), two.Content, patch.ErrRollback},
		"an older patch, freshly signed":  {repo.Opening(one), one.Content, patch.ErrRollback},
		"a timestamp of before, replayed": {mix(repo.Opening(two), old.Opening(two)), two.Content, patch.ErrRollback},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := lab.Apply(t, c, tc.o, tc.content); !errors.Is(err, tc.want) {
				t.Errorf("apply = %v, want %v", err, tc.want)
			}
			lab.WantSame(t, before, m.Footprint(true))
		})
	}
	if got := m.InForce(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("in force = %q, want %s", got, two.Name)
	}
}

// mix returns an opening whose timestamp is that of another.
func mix(o, timestamp *loaderv1.Opening) *loaderv1.Opening {
	o = proto.CloneOf(o)
	o.Metadata.Timestamp = timestamp.GetMetadata().GetTimestamp()
	return o
}

// A module of the same name and other content is not the same patch, even if it
// is signed.
func TestLoaderDoesNotTakeAnotherModuleForTheOneInForce(t *testing.T) {
	t.Parallel()
	one := lab.NewModule(1)
	repo := lab.NewRepository(time.Now(), one)
	m := lab.NewMachine(t, repo.Pinned())
	c := m.Client()
	lab.MustApply(t, c, repo, one, applied)
	same := lab.NewModule(1)
	same.Content = append(same.Content, "more"...)
	same.Sequence = 2
	repo.Add(same)
	if _, err := lab.Apply(t, c, repo.Opening(same), same.Content); !errors.Is(err, patch.ErrNameTaken) {
		t.Errorf("apply = %v, want %v", err, patch.ErrNameTaken)
	}
	if got := m.Kernel.Insertions(); len(got) != 1 {
		t.Errorf("insertions = %v, want one", got)
	}
}

func TestATransitionThatDoesNotEndIsAnswered(t *testing.T) {
	t.Parallel()
	one, two := lab.NewModule(1), lab.NewModule(2)
	repo := lab.NewRepository(time.Now(), one, two)
	m := lab.NewMachine(t, repo.Pinned())
	m.Kernel.Set(lab.Steering{Transition: lab.Never})
	m.Kernel.AddTask(4242, "vhost-4200", "S (sleeping)")
	m.Kernel.AddTask(4300, "kworker/0:1", "I (idle)")
	c := m.Client()
	resp, err := lab.Apply(t, c, lab.Waiting(repo.Opening(one), 100*time.Millisecond), one.Content)
	if err != nil {
		t.Fatal(err)
	}
	lp := resp.GetLivepatch()
	if resp.GetOutcome() != pending || lp.GetState() != loaderv1.State_STATE_ENABLING || lp.GetStanding() != loaderv1.Standing_STANDING_INSERTING {
		t.Errorf("apply = %v", resp)
	}
	if b := lp.GetBlockers(); len(b) != 2 || b[0].GetTid() != 4242 || b[0].GetComm() != "vhost-4200" || b[0].GetState() != "S (sleeping)" || lp.GetBlockerCount() != 2 {
		t.Errorf("blockers = %v", b)
	}
	// Nothing else gets in meanwhile; the same patch is on its way.
	if _, err := lab.Apply(t, c, repo.Opening(two), two.Content); !errors.Is(err, patch.ErrBusy) {
		t.Errorf("apply of another patch = %v, want %v", err, patch.ErrBusy)
	}
	if resp, err := lab.Apply(t, c, lab.Waiting(repo.Opening(one), 50*time.Millisecond), one.Content); err != nil || resp.GetOutcome() != pending {
		t.Errorf("apply of the same patch = %v, %v", resp, err)
	}
	if _, err := c.Accept(t.Context(), &loaderv1.AcceptRequest{Name: one.Name}); !errors.Is(rpcerr.FromStatus(err), patch.ErrStalled) {
		t.Errorf("accept = %v, want %v", err, patch.ErrStalled)
	}
	// The tasks move at last, with nobody waiting; who asks next learns it.
	m.Kernel.Set(lab.Steering{})
	lab.Eventually(t, "transition ends", func() bool { return len(m.InForce()) == 1 })
	status, err := c.Status(t.Context(), &loaderv1.StatusRequest{})
	if err != nil || status.GetLivepatches()[0].GetStanding() != loaderv1.Standing_STANDING_TRIAL {
		t.Errorf("status = %v, %v, want a trial", status, err)
	}
	if got := m.Kernel.Insertions(); len(got) != 1 {
		t.Errorf("insertions = %v, want one", got)
	}
}
