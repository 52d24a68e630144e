package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"livepatch/agent/internal/cache"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/machine"
	"livepatch/agent/internal/status"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// ErrClock means that this machine's clock is wrong.
var ErrClock = errors.New("clock is wrong")

// How far the clocks of machine and service may be apart: before it is worth
// mentioning, and before signed files that expire after a day cannot be judged.
const (
	mentionSkew = 5 * time.Minute
	refuseSkew  = 12 * time.Hour
)

// A round is one check. It works on copies of what the agent knows; finish takes
// them over.
type round struct {
	*Agent
	token      string
	cfg        config.Config
	rec        record
	byOperator bool // somebody asked for it
	again      bool // what has failed is tried again

	facts  machine.Facts
	kernel *loader.Status // nil: the loader did not answer
	away   error          // why not
	skew   time.Duration

	svc       Service  // nil until it is needed
	let       []string // versions that the last check-in was answered with Go for
	changed   bool     // something happened that the service wants to know now
	ix        patch.Index
	opens     window // the maintenance window that a patch waits for
	retrySoon bool   // the next check should not wait for the interval
	patchErr  error  // why the patch is not in the kernel
}

// run makes one check. The error is about the service and its files; what is
// wrong with the patch itself is in the record.
func (r *round) run(ctx context.Context) error {
	var err error
	if r.facts, err = machine.Read(r.Agent.kernel); err != nil {
		return err
	}
	if r.vendor != "" {
		r.facts.Vendor = r.vendor
	}
	if r.rec.BootID != r.facts.BootID || r.rec.Release != r.facts.Kernel.Release {
		r.rec.afterReboot(r.facts)
	}
	r.askLoader(ctx)
	if r.kernel != nil {
		r.settle(ctx)
		r.noteBoot()
		r.noteHarm()
		r.beat()
	}
	err = r.follow(ctx)
	r.unlist(ctx)
	return err
}

// follow brings the machine to what the service says.
func (r *round) follow(ctx context.Context) error {
	svc, err := r.service(ctx)
	if err != nil {
		r.describe()
		return err
	}
	defer r.close()
	view, serviceErr := r.refresh(ctx, svc, r.meet(ctx, svc))
	if view == nil {
		r.describe()
		return serviceErr
	}
	err = r.reconcile(ctx, view)
	r.describe()
	if r.changed {
		r.report(ctx)
	}
	if serviceErr == nil {
		serviceErr = err
	}
	if serviceErr == nil {
		r.tidy(ctx, view)
	}
	return serviceErr
}

// service returns the client of this round, which has to be closed.
func (r *round) service(ctx context.Context) (Service, error) {
	if r.svc == nil {
		svc, err := r.dial(ctx, r.cfg)
		if err != nil {
			return nil, err
		}
		r.svc = svc
	}
	return r.svc, nil
}

// close ends the connections of this round.
func (r *round) close() {
	if r.svc != nil {
		r.svc.Close()
	}
}

// askLoader asks what is in the kernel. Without an answer the machine can still
// check in.
func (r *round) askLoader(ctx context.Context) {
	s, err := r.loader.Status(ctx)
	r.kernel, r.away = &s, err
	if err != nil {
		r.kernel = nil
		return
	}
	r.setMode(ctx, s.Mode)
}

// meet checks in with the service.
func (r *round) meet(ctx context.Context, svc Service) error {
	answer, err := r.checkIn(ctx, svc)
	skew, known := svc.Skew()
	if known && (skew > mentionSkew || skew < -mentionSkew) {
		r.skew = skew
	}
	if err != nil {
		return fmt.Errorf("cannot check in with %s: %w", svc.Base(), err)
	}
	r.rec.Generation = answer.Generation
	if r.skew > refuseSkew || r.skew < -refuseSkew {
		return fmt.Errorf("cannot judge the age of signed files: %w", &clockError{r.skew})
	}
	return nil
}

// A clockError tells how wrong the clock is. It matches [ErrClock].
type clockError struct {
	skew time.Duration // of the service against this machine
}

// Error says by how much.
func (e *clockError) Error() string {
	return fmt.Sprintf("this machine's clock is %s the service's", describeSkew(e.skew))
}

// Unwrap returns [ErrClock].
func (*clockError) Unwrap() error { return ErrClock }

// describeSkew words a difference of clocks: "2 days behind", "12 minutes ahead
// of".
func describeSkew(skew time.Duration) string {
	where := "behind"
	if skew < 0 {
		where, skew = "ahead of", -skew
	}
	switch {
	case skew >= 36*time.Hour:
		return fmt.Sprintf("%d days %s", (skew+12*time.Hour)/(24*time.Hour), where)
	case skew >= 90*time.Minute:
		return fmt.Sprintf("%d hours %s", (skew+30*time.Minute)/time.Hour, where)
	default:
		return fmt.Sprintf("%d minutes %s", (skew+30*time.Second)/time.Minute, where)
	}
}

// refresh brings the signed files up to date, unless meeting the service has
// failed with err. It returns what has failed, now or before. While the service
// is away the cache has to do, and there is a view nevertheless; whatever else
// is wrong with the service or its files ends the check.
func (r *round) refresh(ctx context.Context, svc Service, err error) (*trust.View, error) {
	if err == nil {
		var view *trust.View
		if view, err = r.keeper.Refresh(ctx, svc, r.rec.Generation); err == nil {
			return view, nil
		}
		err = fmt.Errorf("cannot get the signed files of %s: %w", svc.Base(), err)
	}
	if errors.Is(err, patch.ErrExpired) && r.skew != 0 {
		err = fmt.Errorf("%w: %w", err, &clockError{r.skew})
	}
	if !isAway(err) {
		return nil, err
	}
	view, cerr := r.keeper.Cached(ctx)
	if cerr != nil {
		r.log.InfoContext(ctx, "Cannot work from the cache", "err", cerr)
		return nil, err
	}
	return view, err
}

// isAway tells whether the service is not there at the moment.
func isAway(err error) bool {
	return fetch.Unreachable(err) || errors.Is(err, fetch.ErrOverload) || errors.Is(err, fetch.ErrService)
}

// serviceFacts returns what the service is told of this machine.
func (r *round) serviceFacts() service.Facts { return serviceFacts(r.facts) }

func serviceFacts(f machine.Facts) service.Facts {
	return service.Facts{Kernel: f.Kernel, KernelVersion: f.KernelVersion, Distribution: f.Distribution, BootID: f.BootID}
}

// reconcile brings the kernel to what the signed files say. The error is about
// the files; what became of the patch is in the record.
func (r *round) reconcile(ctx context.Context, view *trust.View) error {
	ix, err := r.index(ctx, view)
	if errors.Is(err, patch.ErrNotFound) {
		r.rec.Supported, r.rec.Until, r.rec.Unpatched, r.rec.FixedIn = status.Unsupported, "", nil, ""
		r.rec.Offered = []string{}
		r.nothing()
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot learn which patches there are for kernel %s: %w", r.facts.Kernel.Release, err)
	}
	r.ix = ix
	r.noteIndex(ix)
	c := chooser{catalog: view, vendor: r.facts.Vendor, kernel: r.facts.Kernel, tier: r.rec.Tier, machineID: r.machineID, cfg: r.cfg, now: time.Now()}
	got, err := c.choose(ix)
	if err != nil {
		return err
	}
	r.rec.Blocked, r.rec.BlockedBy = got.blocked, got.blockedBy
	r.rec.SigningKey = signingKey(got.target)
	r.noteHeld(got)
	r.noteSoak(c, got)
	switch {
	case r.kernel == nil:
		r.fail(got, fmt.Errorf("cannot tell what is in the kernel: %w", r.away))
	case r.isNewer(got):
		r.apply(ctx, view, got)
		r.noteSoak(c, got) // another patch may be in force now
	case current(r.kernel) != nil:
		r.keep()
	case got.otherBuild != "":
		r.nothing()
		r.rec.Supported = status.Unsupported
		r.rec.PatchError = fmt.Sprintf("the patches for kernel %s are for another build of it (build-id %s, running %s)",
			r.facts.Kernel.Release, got.otherBuild, r.facts.Kernel.BuildID)
		r.rec.PatchHint = "install the kernel package of the distribution and reboot"
	default:
		r.nothing()
		if l := r.suspect(); l != nil {
			r.fail(choice{entry: patch.IndexEntry{Name: l.Name, Version: l.Version}, found: true}, r.suspected(l.Name, false))
		}
	}
	// Last: a newer patch is the better way out for one that is revoked.
	return r.heed(ctx, view, c)
}

// index returns the index of the running kernel, from the cache or the service.
func (r *round) index(ctx context.Context, view *trust.View) (patch.Index, error) {
	t, err := view.Target(patch.IndexPath(r.facts.Vendor, r.facts.Kernel.Release, r.facts.Kernel.Arch))
	if err != nil {
		return patch.Index{}, err
	}
	if t.Length > service.MaxIndex {
		return patch.Index{}, fmt.Errorf("index is %d bytes long: %w", t.Length, patch.ErrTooLarge)
	}
	f, err := r.file(ctx, t)
	if err != nil {
		return patch.Index{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return patch.Index{}, fmt.Errorf("cannot read cache: %w", err)
	}
	return patch.ParseIndex(b)
}

// file returns the content of a target, from the cache or else from the service.
// The caller closes it.
func (r *round) file(ctx context.Context, t trust.Target) (io.ReadCloser, error) {
	f, err := r.store.Open(t.Digest)
	if !errors.Is(err, cache.ErrMissing) {
		return f, err
	}
	svc, err := r.service(ctx)
	if err != nil {
		return nil, err
	}
	body, err := svc.Target(ctx, t.Remote())
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", t.Path, err)
	}
	err = r.store.Put(t.Digest, t.Length, body)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", t.Path, err)
	}
	level := slog.LevelInfo
	if _, err := patch.VendorOf(t.Path); err == nil { // a module, not an index
		level = LevelStory
	}
	r.log.Log(ctx, level, "Fetched file", "target", t.Path, "bytes", t.Length)
	return r.store.Open(t.Digest)
}

// noteIndex writes down what the index says of the kernel.
func (r *round) noteIndex(ix patch.Index) {
	r.rec.Supported, r.rec.Until = status.Supported, ix.Until
	r.rec.Unpatched, r.rec.FixedIn, r.rec.Offered = nil, "", []string{}
	for _, e := range ix.Patches {
		if e.BuildID == r.facts.Kernel.BuildID {
			r.rec.Offered = append(r.rec.Offered, e.Name)
		}
	}
	if until, err := time.Parse(time.DateOnly, ix.Until); err == nil && !time.Now().Before(until.AddDate(0, 0, 1)) {
		r.rec.Supported = status.SupportUpgradeRequired
	}
	for _, u := range ix.Unpatchable {
		if u.Priority == patch.High || u.Priority == patch.Critical {
			r.rec.Unpatched = append(r.rec.Unpatched, u.Name)
			r.rec.FixedIn = u.FixedIn
		}
	}
}

// noteSoak writes down how long the trial of the patch in force lasts.
func (r *round) noteSoak(c chooser, got choice) {
	r.rec.Soak = nil
	if got.found {
		r.rec.Soak = &soak{got.target.Digest, time.Duration(max(got.rollout.SoakSeconds, 0)) * time.Second, true}
	}
	if r.kernel == nil {
		return
	}
	l := current(r.kernel)
	if l == nil || l.Version == "" || got.found && got.target.Digest == l.Digest {
		return
	}
	if rollout, err := c.rollout(l.Version); err == nil {
		r.rec.Soak = &soak{l.Digest, time.Duration(max(rollout.SoakSeconds, 0)) * time.Second, rollout.For(c.kernel) == nil}
	}
}

// isNewer tells whether there is a patch to have and it comes after the one in
// the kernel. Livepatches are not taken back to older content.
func (r *round) isNewer(got choice) bool {
	l := current(r.kernel)
	return got.found && (l == nil || got.entry.Sequence > l.Sequence)
}

// tidy removes from the cache what is no longer of use.
func (r *round) tidy(ctx context.Context, view *trust.View) {
	var keep []patch.Digest
	if r.rec.Soak != nil {
		keep = append(keep, r.rec.Soak.Digest)
	}
	if err := errors.Join(view.Prune(), r.store.Collect(keep...)); err != nil {
		r.log.WarnContext(ctx, "Cannot tidy up the cache", "err", err)
	}
}
