//go:build integration

package integration

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

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
	one, two := newModule(1), newModule(2)
	repo := newRepository(time.Now(), one, two)
	m := newMachine(t, repo.pinned())
	c := m.client()

	mustApply(t, c, repo, one, applied)
	if got := m.inForce(); !slices.Equal(got, []string{one.Name}) {
		t.Fatalf("in force = %q, want %s", got, one.Name)
	}
	mustApply(t, c, repo, one, already)
	resp := mustApply(t, c, repo, two, applied)
	if got := resp.GetUnloaded(); !slices.Equal(got, []string{one.Name}) {
		t.Errorf("unloaded = %q, want %s", got, one.Name)
	}
	if got := m.kernel.modules(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("modules = %q, want only the newer one", got)
	}
	if _, err := c.Accept(t.Context(), &loaderv1.AcceptRequest{Name: two.Name}); err != nil {
		t.Fatal(err)
	}

	m.reboot(true)
	if r := m.oneShot("-boot"); r.code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	if got := m.inForce(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("in force after the reboot = %q, want %s", got, two.Name)
	}
	if r := m.oneShot("-boot"); r.code != 0 || len(m.kernel.insertions()) != 3 {
		t.Errorf("loader -boot again: %v; insertions = %v", r, m.kernel.insertions())
	}

	removed, err := c.Remove(t.Context(), &loaderv1.RemoveRequest{Name: two.Name})
	if err != nil {
		t.Fatal(err)
	}
	if got := removed.GetLivepatch().GetState(); got != loaderv1.State_STATE_ABSENT || len(m.kernel.modules()) > 0 {
		t.Errorf("state = %v, modules = %q, want none", got, m.kernel.modules())
	}
	m.reboot(true)
	if r := m.oneShot("-boot"); r.code != 0 || len(m.kernel.livepatches()) > 0 {
		t.Errorf("loader -boot after removal: %v; livepatches = %q", r, m.kernel.livepatches())
	}
}

func TestLoaderLeavesWhenIdleAndComesBackWhenAsked(t *testing.T) {
	t.Parallel()
	repo := newRepository(time.Now(), newModule(1))
	m := newMachine(t, repo.pinned())
	if m.loader.running() {
		t.Error("a root process runs before anybody has asked")
	}
	c := m.client()
	for range 2 {
		if _, err := c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "loader leaves", func() bool { return !m.loader.running() })
	}
	if got := m.loader.count(); got != 2 {
		t.Errorf("loader was started %d times, want 2", got)
	}
}

func TestLoaderDoesNotServeWithoutASocketFromItsActivator(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newRepository(time.Now()).pinned())
	r := runToEnd(t, m.loaderCommand())
	if r.code != 1 || !strings.Contains(r.stderr, "cannot serve without a socket") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("loader without a socket: %v", r)
	}
}

func TestASuspectPatchIsNotInsertedAgain(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	repo := newRepository(time.Now(), one, two)
	m := newMachine(t, repo.pinned())
	c := m.client()
	mustApply(t, c, repo, one, applied)
	m.reboot(false) // it goes down while the patch is on trial
	if r := m.oneShot("-boot"); r.code != 0 || !strings.Contains(r.stderr, one.Name) {
		t.Errorf("loader -boot: %v, want a word on %s", r, one.Name)
	}
	if _, err := apply(t, c, repo.opening(one), one.content); !errors.Is(err, patch.ErrSuspect) {
		t.Errorf("apply = %v, want %v", err, patch.ErrSuspect)
	}
	if got := len(m.kernel.insertions()); got != 1 {
		t.Errorf("insertions = %d, want 1", got)
	}
	mustApply(t, c, repo, two, applied) // a newer one may try
}

// A refusal is one thing that an agent which was taken over, or an unlucky one,
// hands to the loader.
type refusal struct {
	module func() module // nil: the patch after the one in force
	change func(r repository, bin *tuftest.Role)
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

func forKernel(k patch.Kernel) func() module { return func() module { return newModuleFor(k, 2) } }

func ofFields(fields ...string) func() module {
	return func() module {
		m := newModule(2)
		m.content = elfFile(fields...)
		return m
	}
}

func decide(r repository, m module, s patch.RolloutState) {
	r.AddTarget(patch.RolloutPath(vendor, m.Version), nil, patch.Rollout{State: s})
	r.Publish(patch.RolloutRole)
}

var badModules = map[string]refusal{
	"a module that ends early":         {edit: content(func(b []byte) []byte { return b[:len(b)-1] }), want: patch.ErrTampered, believed: true},
	"a module with one bit changed":    {edit: content(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), want: patch.ErrTampered, believed: true},
	"a module with a byte more":        {edit: content(func(b []byte) []byte { return append(b, 0) }), want: patch.ErrTampered, believed: true},
	"no module":                        {edit: content(func([]byte) []byte { return nil }), want: patch.ErrTampered, believed: true},
	"a module of 65 MB":                {edit: content(func([]byte) []byte { return make([]byte, 65<<20) }), want: patch.ErrTooLarge},
	"a module for another release":     {module: forKernel(patch.Kernel{Arch: "x86_64", Release: "6.1.0-54-amd64", BuildID: buildID}), want: patch.ErrWrongKernel, believed: true},
	"a module for another build-id":    {module: forKernel(patch.Kernel{Arch: "x86_64", Release: release, BuildID: otherBuildID}), want: patch.ErrWrongKernel, believed: true},
	"a module for another machine":     {module: forKernel(patch.Kernel{Arch: "aarch64", Release: release, BuildID: buildID}), want: patch.ErrWrongKernel, believed: true},
	"a module that is not a livepatch": {module: ofFields("name="+moduleName(2), "vermagic="+release+" SMP"), want: patch.ErrNotLivepatch, believed: true},
	"a module with another name":       {module: ofFields("livepatch=Y", "name=lkp_other", "vermagic="+release+" SMP"), want: patch.ErrTampered, believed: true},
	"a module with another vermagic":   {module: ofFields("livepatch=Y", "name="+moduleName(2), "vermagic=6.1.0-54-amd64 SMP"), want: patch.ErrWrongKernel, believed: true},
}

var badMetadata = map[string]refusal{
	"a target that is not there": {edit: opening(func(o *loaderv1.Opening) { o.Target = "debian/lkp_none.x86_64.ko" }), want: patch.ErrNotFound, believed: true},
	"a target that is a path":    {edit: opening(func(o *loaderv1.Opening) { o.Target = "../../etc/shadow" }), want: patch.ErrInvalid},
	"a timestamp that has expired": {
		change: func(r repository, _ *tuftest.Role) { r.Roles["timestamp"].Expire(time.Now().Add(-time.Minute)) }, want: patch.ErrExpired,
	},
	"a bin that has expired": {
		change: func(_ repository, bin *tuftest.Role) { bin.Expire(time.Now().Add(-time.Minute)) }, want: patch.ErrExpired, believed: true,
	},
	"a bin that one person signed": {
		change: func(_ repository, bin *tuftest.Role) { bin.Signers = bin.Signers[:1] }, want: patch.ErrUntrusted, believed: true,
	},
	"a bin with one signature twice": {
		change: func(_ repository, bin *tuftest.Role) { bin.Signers = []tuftest.Key{bin.Signers[0], bin.Signers[0]} }, want: patch.ErrMalformed, believed: true,
	},
	"a bin that strangers signed": {
		change: func(_ repository, bin *tuftest.Role) {
			bin.Signers = []tuftest.Key{tuftest.NewKey("one"), tuftest.NewKey("two")}
		}, want: patch.ErrUntrusted, believed: true,
	},
	"a timestamp that ends early": {edit: opening(func(o *loaderv1.Opening) { o.Timestamp = o.GetTimestamp()[:100] }), want: patch.ErrMalformed},
	"an empty snapshot":           {edit: opening(func(o *loaderv1.Opening) { o.Snapshot = nil }), want: patch.ErrTampered, believed: true},
	"a timestamp of 17 KB":        {edit: opening(func(o *loaderv1.Opening) { o.Timestamp = make([]byte, 17<<10) }), want: patch.ErrTooLarge},
	"a rollout that is halted": {
		change: func(r repository, _ *tuftest.Role) { decide(r, newModule(2), patch.Halted) }, want: patch.ErrHalted, believed: true,
	},
	"a rollout that is revoked": {
		change: func(r repository, _ *tuftest.Role) { decide(r, newModule(2), patch.Revoked) }, want: patch.ErrRevoked, believed: true,
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
	inForce, bad := newModule(1), newModule(2)
	if tc.module != nil {
		bad = tc.module()
	}
	good := newRepository(time.Now(), inForce, bad)
	m := newMachine(t, good.pinned())
	c := m.client()
	mustApply(t, c, good, inForce, applied)

	repo := repository{good.Clone()}
	repo.Publish()
	if tc.change != nil {
		tc.change(repo, repo.Roles[repo.Bin(bad.path())])
	}
	o, module := repo.opening(bad), bad.content
	if tc.edit != nil {
		tc.edit(o, &module)
	}
	before := m.footprint(!tc.believed)
	_, err := apply(t, c, o, module)
	if !errors.Is(err, tc.want) {
		t.Errorf("apply = %v, want %v", err, tc.want)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("error has more than one line: %q", err)
	}
	wantSame(t, before, m.footprint(!tc.believed))

	// It is none the worse for it: what comes next gets in.
	next := repository{repo.Clone()}
	if tc.change != nil {
		next = repository{good.Clone()}
		next.Publish()
		next.Publish()
	}
	last := newModule(3)
	next.add(last)
	mustApply(t, c, next, last, applied)
}

// Signed files that are older than those seen before do not come back.
func TestLoaderRefusesWhatIsOlderThanItHasSeen(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	repo := newRepository(time.Now(), one, two)
	old := repository{repo.Clone()}
	repo.Publish()
	m := newMachine(t, repo.pinned())
	c := m.client()
	mustApply(t, c, repo, two, applied)
	before := m.footprint(true)
	tests := map[string]struct {
		o       *loaderv1.Opening
		content []byte
		want    error
	}{
		"older signed files":              {old.opening(two), two.content, patch.ErrRollback},
		"an older patch, freshly signed":  {repo.opening(one), one.content, patch.ErrRollback},
		"a timestamp of before, replayed": {mix(repo.opening(two), old.opening(two)), two.content, patch.ErrRollback},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := apply(t, c, tc.o, tc.content); !errors.Is(err, tc.want) {
				t.Errorf("apply = %v, want %v", err, tc.want)
			}
			wantSame(t, before, m.footprint(true))
		})
	}
	if got := m.inForce(); !slices.Equal(got, []string{two.Name}) {
		t.Errorf("in force = %q, want %s", got, two.Name)
	}
}

// mix returns an opening whose timestamp is that of another.
func mix(o, timestamp *loaderv1.Opening) *loaderv1.Opening {
	o = proto.CloneOf(o)
	o.Timestamp = timestamp.GetTimestamp()
	return o
}

// A module of the same name and other content is not the same patch, even if it
// is signed.
func TestLoaderDoesNotTakeAnotherModuleForTheOneInForce(t *testing.T) {
	t.Parallel()
	one := newModule(1)
	repo := newRepository(time.Now(), one)
	m := newMachine(t, repo.pinned())
	c := m.client()
	mustApply(t, c, repo, one, applied)
	same := newModule(1)
	same.content = append(same.content, "more"...)
	same.Sequence = 2
	repo.add(same)
	if _, err := apply(t, c, repo.opening(same), same.content); !errors.Is(err, patch.ErrNameTaken) {
		t.Errorf("apply = %v, want %v", err, patch.ErrNameTaken)
	}
	if got := m.kernel.insertions(); len(got) != 1 {
		t.Errorf("insertions = %v, want one", got)
	}
}

func TestATransitionThatDoesNotEndIsAnswered(t *testing.T) {
	t.Parallel()
	one, two := newModule(1), newModule(2)
	repo := newRepository(time.Now(), one, two)
	m := newMachine(t, repo.pinned())
	m.kernel.set(steering{transition: never})
	m.kernel.addTask(4242, "vhost-4200", "vhost_worker")
	m.kernel.addTask(4300, "kworker/0:1", "0")
	c := m.client()
	resp, err := apply(t, c, waiting(repo.opening(one), 100*time.Millisecond), one.content)
	if err != nil {
		t.Fatal(err)
	}
	lp := resp.GetLivepatch()
	if resp.GetOutcome() != pending || lp.GetState() != loaderv1.State_STATE_ENABLING || lp.GetStanding() != loaderv1.Standing_STANDING_INSERTING {
		t.Errorf("apply = %v", resp)
	}
	if b := lp.GetBlockers(); len(b) != 2 || b[0].GetTid() != 4242 || b[0].GetComm() != "vhost-4200" || b[0].GetFunction() != "vhost_worker" || lp.GetBlockerCount() != 2 {
		t.Errorf("blockers = %v", b)
	}
	// Nothing else gets in meanwhile; the same patch is on its way.
	if _, err := apply(t, c, repo.opening(two), two.content); !errors.Is(err, patch.ErrBusy) {
		t.Errorf("apply of another patch = %v, want %v", err, patch.ErrBusy)
	}
	if resp, err := apply(t, c, waiting(repo.opening(one), 50*time.Millisecond), one.content); err != nil || resp.GetOutcome() != pending {
		t.Errorf("apply of the same patch = %v, %v", resp, err)
	}
	if _, err := c.Accept(t.Context(), &loaderv1.AcceptRequest{Name: one.Name}); !errors.Is(rpcerr.FromStatus(err), patch.ErrStalled) {
		t.Errorf("accept = %v, want %v", err, patch.ErrStalled)
	}
	// The tasks move at last, with nobody waiting; who asks next learns it.
	m.kernel.set(steering{})
	eventually(t, "transition ends", func() bool { return len(m.inForce()) == 1 })
	status, err := c.Status(t.Context(), &loaderv1.StatusRequest{})
	if err != nil || status.GetLivepatches()[0].GetStanding() != loaderv1.Standing_STANDING_TRIAL {
		t.Errorf("status = %v, %v, want a trial", status, err)
	}
	if got := m.kernel.insertions(); len(got) != 1 {
		t.Errorf("insertions = %v, want one", got)
	}
}
