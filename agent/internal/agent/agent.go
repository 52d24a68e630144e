// Package agent keeps the running kernel at the livepatch that the service
// offers for it: it checks in, fetches and verifies, asks the loader, and
// reports what became of it.
//
// One goroutine, in [Agent.Run], does all of that, one thing after the other.
// Everything else reads what it has left behind or asks it for more.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"livepatch/agent/internal/cache"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/machine"
	"livepatch/agent/internal/modkey"
	"livepatch/agent/internal/trust"
	"livepatch/internal/durable"
	facts "livepatch/internal/kernel"
	"livepatch/internal/service"
)

// Names below the data folder.
const (
	tokenFile     = "machine-token" // its existence means "enabled" to other programs
	machineIDFile = "machine-id"
	stateFile     = "state.json"
	cacheDir      = "cache"
)

// ConfigFile is the name of the configuration below the data folder.
const ConfigFile = "config"

// maxCache is how much the cache of modules may hold: one module of the largest
// size and then some.
const maxCache = 96 << 20

// A Service is the agent's view of the service; [fetch.Client] is one.
type Service interface {
	trust.Source
	Enrol(ctx context.Context, authToken string, r service.EnrolRequest) (service.Enrolment, error)
	Forget(ctx context.Context, machineToken string) error
	CheckIn(ctx context.Context, machineToken string, r service.CheckIn) (service.CheckInAnswer, error)
	Target(ctx context.Context, path string) (io.ReadCloser, error)
	Skew() (time.Duration, bool)
	Base() string
	Close()
}

// A Loader is the agent's view of livepatch-loader; [loader.Client] is one.
type Loader interface {
	Status(ctx context.Context) (loader.Status, error)
	Apply(ctx context.Context, r loader.Request) (loader.Result, error)
	Update(ctx context.Context, m loader.Metadata) (withdrawn []string, err error)
	Accept(ctx context.Context, name string) (loader.Livepatch, error)
	Remove(ctx context.Context, name string) (loader.Livepatch, error)
}

// Options are what an agent is made of.
type Options struct {
	Log     *slog.Logger
	Level   *slog.LevelVar                       // follows the configuration
	Data    string                               // folder; locked by the caller
	Root    []byte                               // pinned TUF root
	Kernel  fs.FS                                // root of the machine's files
	Loader  Loader                               //
	Connect func(config.Config) (Service, error) // makes a client of the configured service
	Version string                               // of this program, "v1.2.3"
	Vendor  string                               // "" to find out
	Snapd   Snapd                                // nil outside of a snap
	// Waiting is a folder in which root leaves what is to be done at the start; ""
	// for the folder "waiting" of the data.
	Waiting string
	// Metadata are signed files that a new machine begins with; nil if there are none.
	Metadata fs.FS
	Kmod     modkey.Certificate // of the key that signs the vendor's modules; zero: none was shipped
	_        struct{}           // named fields only
}

// An Agent is made by [New].
type Agent struct {
	log     *slog.Logger
	level   *slog.LevelVar
	data    string
	kernel  fs.FS
	loader  Loader
	connect func(config.Config) (Service, error)
	version string
	vendor  string
	snapd   Snapd  // nil outside of a snap
	left    string // folder in which root leaves changes

	kmodCert modkey.Certificate

	machineID string
	keeper    *trust.Keeper
	store     *cache.Store

	cmdline    facts.Mode // what the kernel's command line switches off
	cmdlineErr error      // why that is not what was meant

	started time.Time
	wake    chan struct{}     // there is something new to do; holds one
	refresh chan refreshOrder // somebody waits for a check

	// working holds a token while files, state and kernel are being changed, by
	// a check or by a change of enrolment.
	working chan struct{}

	mu      sync.Mutex // guards what follows
	token   string     // "" if not enabled
	waiting *waiting   // nil: no token waits
	cfg     config.Config
	rec     record
	live    live
	cancel  context.CancelCauseFunc // of the check that runs, or nil
}

// live is what is known now and not kept on disk.
type live struct {
	facts     machine.Facts
	loader    *loader.Status // nil until it has answered
	fileMode  facts.Mode     // what its file switches off, as it has said last
	modeKnown bool           // it has said so since the start
	skew      time.Duration  // of the service's clock, if it is worth mentioning
	failures  int            // checks failed in a row
	retries   int            // checks in a row after which the next one was not to wait
	succeeded bool           // a check succeeded since start
	trouble   error          // why the last check failed, if it may still be too early to say
	nextCheck time.Time      // zero: none
	nextLook  time.Time      // when to ask the loader again; zero: no need
	looks     int            // how often it was asked about the same transition, or to end the same trial
	begun     begun
	nextEnrol time.Time   // when to use the token that waits; zero: none does
	nextBeat  time.Time   // when a heartbeat is due; zero: none is
	hasty     []time.Time // when the service asked for a check before minInterval, in the last hour
	again     bool        // the next check tries again what has failed
	checkErr  error       // of the last check
	patchErr  error       // why the last check did not bring in the patch
	said      said        // what the log says of the patch
	snap      confined
}

// A refreshOrder asks for a check and for how it went.
type refreshOrder struct {
	done chan error // holds one
}

// New opens the agent's files. What was damaged and can be made again is.
func New(o Options) (*Agent, error) {
	a := &Agent{
		log: o.Log, level: o.Level, data: o.Data, kernel: o.Kernel, loader: o.Loader, connect: o.Connect,
		version: o.Version, vendor: o.Vendor, snapd: o.Snapd, kmodCert: o.Kmod,
		left:    cmp.Or(o.Waiting, filepath.Join(o.Data, "waiting")),
		started: time.Now(),
		wake:    make(chan struct{}, 1),
		refresh: make(chan refreshOrder),
		working: make(chan struct{}, 1),
	}
	if err := a.openFiles(o); err != nil {
		return nil, err
	}
	a.applyLevel()
	a.readCommandLine()
	if unknown := a.cfg.Unknown(); len(unknown) > 0 {
		a.log.Warn("Keys of the configuration have no effect in this version", "keys", unknown)
	}
	a.waiting, a.rec = a.loadWaiting(), a.loadRecord()
	a.live.fileMode = a.rec.FileMode
	var err error
	if a.live.facts, err = machine.Read(a.kernel); err != nil {
		// Not the end: status and disable must work, and the check will say it.
		a.log.Warn("Cannot read facts of the machine", "err", err)
	}
	if a.rec.BootID != a.live.facts.BootID {
		// What was true of the kernel before the reboot need not be true now.
		known := a.rec.BootID != ""
		a.rec.afterReboot(a.live.facts)
		if known { // or one more reboot would hide how this one came about
			if err := a.saveRecord(); err != nil {
				a.log.Warn("Cannot save state", "err", err)
			}
		}
	}
	a.rec.CheckState = ""
	return a, nil
}

// openFiles opens what the agent cannot do without.
func (a *Agent) openFiles(o Options) (err error) {
	if err := durable.Sweep(o.Data); err != nil {
		return fmt.Errorf("cannot open data folder: %w", err)
	}
	if err := os.MkdirAll(a.path(cacheDir), 0o700); err != nil {
		return fmt.Errorf("cannot open cache: %w", err)
	}
	if a.cfg, err = config.Load(a.path(ConfigFile)); err != nil {
		return err
	}
	if a.machineID, err = a.loadMachineID(); err != nil {
		return err
	}
	if a.token, err = a.loadToken(); err != nil {
		return err
	}
	if a.keeper, err = trust.Open(a.path(cacheDir), o.Root); err != nil {
		return err
	}
	if o.Metadata != nil {
		if err := a.keeper.Seed(o.Metadata); err != nil {
			a.log.Warn("Cannot begin with the signed files that came with the program", "err", err)
		}
	}
	a.store, err = cache.Open(filepath.Join(a.path(cacheDir), "blobs"), maxCache)
	return err
}

func (a *Agent) path(name string) string { return filepath.Join(a.data, name) }

// Run checks in now and whenever it is time again, until ctx is done. It returns
// the reason ctx was done.
func (a *Agent) Run(ctx context.Context) error {
	a.takeChange(ctx)
	a.schedule(func(l *live) {
		l.nextCheck = time.Now()
		if a.waiting != nil && l.nextEnrol.IsZero() {
			l.nextEnrol = time.Now()
		}
	})
	for {
		a.attend(ctx)
		check, look, enrol := a.due()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.wake:
		case order := <-a.refresh:
			order.done <- a.check(ctx, true)
		case <-after(check):
			// The error is in the log and in the status.
			_ = a.check(ctx, false)
		case <-after(look):
			a.look(ctx)
		case <-after(enrol):
			a.tryWaiting(ctx)
		case <-after(a.nextAsk()):
		}
	}
}

// due returns when to check, when to look after a transition or a trial, and when
// to use the token that waits; the zero time means never. A machine that is not
// enabled does not check.
func (a *Agent) due() (check, look, enrol time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == "" {
		return time.Time{}, time.Time{}, a.live.nextEnrol
	}
	check = a.live.nextCheck
	if beat := a.live.nextBeat; !beat.IsZero() && (check.IsZero() || beat.Before(check)) {
		check = beat
	}
	return check, a.live.nextLook, a.live.nextEnrol
}

// after returns a channel that delivers at a time; a nil channel, which never
// does, for the zero time. While the machine is suspended no time passes for it: what
// was due then comes late, by as long as the machine slept.
func after(at time.Time) <-chan time.Time {
	if at.IsZero() {
		return nil
	}
	return time.After(time.Until(at))
}

// schedule changes what is due and makes Run look at it.
func (a *Agent) schedule(change func(*live)) {
	a.mu.Lock()
	change(&a.live)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// begin takes the right to change things. It fails if ctx is done first.
func (a *Agent) begin(ctx context.Context) error {
	select {
	case a.working <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *Agent) end() { <-a.working }

// Refresh runs a check now and waits for it. It returns what a person wants to
// know, a line each.
func (a *Agent) Refresh(ctx context.Context) ([]string, error) {
	if !a.enabled() {
		return nil, ErrNotEnabled
	}
	order := refreshOrder{done: make(chan error, 1)}
	select {
	case a.refresh <- order:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case err := <-order.done:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return a.outcome()
}

func (a *Agent) enabled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token != ""
}

// check runs one check and writes down how it went. An operator who asked for it
// is told at once, gets another try at what has failed before, and need not wait for
// the maintenance window.
func (a *Agent) check(ctx context.Context, byOperator bool) error {
	if err := a.begin(ctx); err != nil {
		return err
	}
	defer a.end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.mu.Lock()
	if a.token == "" {
		a.mu.Unlock()
		return ErrNotEnabled
	}
	a.cancel = cancel
	r := &round{Agent: a, token: a.token, cfg: a.cfg, rec: a.rec.clone(), byOperator: byOperator, again: byOperator || a.live.again, facts: a.live.facts}
	a.live.again = false
	a.mu.Unlock()

	start := time.Now()
	err := r.run(ctx)
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause // "context canceled" says nothing
	}
	a.finish(ctx, r, err)
	a.log.DebugContext(ctx, "Checked", "took", time.Since(start), "err", err)
	// The garbage of a check, mostly parsed JSON, is many times what the agent
	// needs until the next one.
	debug.FreeOSMemory()
	return err
}

// finish writes down how a check went and when the next one is due.
func (a *Agent) finish(ctx context.Context, r *round, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancel = nil
	if errors.Is(err, errDisabled) || errors.Is(err, context.Canceled) {
		return // nothing was learned
	}
	a.live.facts, a.live.loader, a.live.skew = r.facts, r.kernel, r.skew
	r.rec.LastAttempt, r.rec.Dropped = time.Now().UTC(), a.rec.Dropped
	a.live.trouble = nil
	a.live.checkErr, a.live.patchErr = err, r.patchErr
	a.tellChange(ctx, r)
	switch {
	case errors.Is(err, errMode):
		a.live.failures, a.live.checkErr = 0, nil
		r.rec.CheckState, r.rec.CheckError, r.rec.CheckHint = "", "", ""
	case err == nil:
		a.live.failures, a.live.succeeded = 0, true
		r.rec.CheckState, r.rec.CheckError, r.rec.CheckHint, r.rec.TokenProblem = checkedOK, "", "", ""
		r.rec.LastCheck = r.rec.LastAttempt
	default:
		a.live.failures++
		a.noteFailure(ctx, r, err)
	}
	a.rec = r.rec
	if serr := a.saveRecord(); serr != nil {
		a.log.ErrorContext(ctx, "Cannot save state", "err", serr)
	}
	wait := a.planCheck(r, err)
	a.planLook(&r.rec)
	if err != nil && !errors.Is(err, errMode) {
		level := slog.LevelWarn
		if r.rec.CheckState != checkFailed {
			level = slog.LevelInfo
		}
		a.log.Log(ctx, level, "Cannot check in", "err", err, "retry_in", wait.Round(time.Second))
	}
}

// noteFailure writes down a failed check. A machine that has just started may
// not have its network yet: until there was a fair chance for it to come up,
// that is not worth a failure.
func (a *Agent) noteFailure(ctx context.Context, r *round, err error) {
	fair := a.live.succeeded || r.again || !mayBeTooEarly(err) ||
		a.live.failures >= fairTries && time.Since(a.started) > fairTime
	if !fair {
		a.live.trouble = err
		return
	}
	r.rec.CheckState, r.rec.CheckError, r.rec.CheckHint = checkFailed, err.Error(), a.hint(err)
	if isTokenProblem(err) {
		r.rec.TokenProblem = err.Error()
		a.log.ErrorContext(ctx, "Service does not accept the machine token", "err", err)
	}
}

// What a fair chance is for a machine that starts.
const (
	fairTries = 3
	fairTime  = 5 * time.Minute
)

// mayBeTooEarly tells whether err is one that a starting machine meets: no
// network yet, or a clock that has not been set.
func mayBeTooEarly(err error) bool {
	return fetch.Unreachable(err) || errors.Is(err, fetch.ErrTLSTime) || errors.Is(err, ErrClock)
}

func isTokenProblem(err error) bool {
	return errors.Is(err, fetch.ErrToken) || errors.Is(err, fetch.ErrTokenOld) || errors.Is(err, fetch.ErrTokenGone)
}
