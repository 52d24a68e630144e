package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
)

// A Snapd is the agent's view of snapd; [snapd.Client] is one.
type Snapd interface {
	Connected(ctx context.Context, plug string) (bool, error)
	Services(ctx context.Context) ([]snapd.Service, error)
	SetHealth(ctx context.Context, h snapd.Health) error
}

// SnapName is the name of the snap, which its commands begin with.
const SnapName = "canonical-livepatch"

// plugs are what has to be connected for livepatches to work, in the order in
// which to tell. A store connects them by itself.
var plugs = []string{"kernel-module-control", "kernel-livepatch", "kernel-identity"}

// How long what snapd has said counts.
const (
	askAgain  = time.Hour
	askSoon   = time.Minute      // while something is missing: two of the plugs have no hook
	settling  = 2 * time.Minute  // after a hook, which runs before a plug is disconnected
	askSettle = 20 * time.Second // meanwhile
)

// A confined is what the agent knows as a part of a snap. The zero confined is
// that of one that has not asked yet.
type confined struct {
	missing  []string // plugs that are not connected
	stopped  []string // services that somebody has stopped or disabled
	err      error    // why snapd could not be asked
	asked    time.Time
	settleBy time.Time
	told     snapd.Health // what snapd was last told of
}

// Recheck looks again at what was refused: it is for hooks, which run when a plug
// is connected or disconnected.
func (a *Agent) Recheck() {
	a.schedule(func(l *live) {
		l.snap.asked, l.snap.settleBy = time.Time{}, time.Now().Add(settling)
		a.lookAgain(l)
	})
}

// lookAgain makes everything due that may have failed for want of a plug. The
// caller holds a.mu.
func (a *Agent) lookAgain(l *live) {
	l.again, l.nextCheck = true, time.Now()
	if !l.nextEnrol.IsZero() {
		l.nextEnrol = time.Now()
	}
}

// nextAsk returns when to ask snapd again; zero outside of a snap.
func (a *Agent) nextAsk() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.live.snap
	switch {
	case a.snapd == nil:
		return time.Time{}
	case time.Now().Before(s.settleBy):
		return s.asked.Add(askSettle)
	case len(s.missing)+len(s.stopped) > 0:
		return s.asked.Add(askSoon)
	default:
		return s.asked.Add(askAgain)
	}
}

// attend keeps up with snapd: it asks what may have changed, if that is long ago
// or there is trouble that it may explain, and tells how the snap is.
func (a *Agent) attend(ctx context.Context) {
	if a.snapd == nil {
		return
	}
	if !time.Now().Before(a.nextAsk()) || a.unexplained() {
		a.ask(ctx)
	}
	h := a.health()
	a.mu.Lock()
	same := a.live.snap.told == h
	a.mu.Unlock()
	if same {
		return
	}
	if err := a.snapd.SetHealth(ctx, h); err != nil {
		a.log.InfoContext(ctx, "Cannot tell snapd", "err", err)
		return // the next occasion comes
	}
	a.mu.Lock()
	a.live.snap.told = h
	a.mu.Unlock()
}

// unexplained tells whether the last check met trouble with the kernel or the
// loader that has come up since snapd was asked.
func (a *Agent) unexplained() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rec.PatchError != "" && a.rec.LastAttempt.After(a.live.snap.asked)
}

// ask asks snapd what is connected and which services are stopped.
func (a *Agent) ask(ctx context.Context) {
	var now confined
	for _, plug := range plugs {
		ok, err := a.snapd.Connected(ctx, plug)
		if err != nil {
			now.err = err
			break // the others would take as long
		}
		if !ok {
			now.missing = append(now.missing, plug)
		}
	}
	if now.err == nil {
		now.stopped, now.err = a.stoppedServices(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	s := &a.live.snap
	was := *s
	s.missing, s.stopped, s.err, s.asked = now.missing, now.stopped, now.err, time.Now()
	if now.err != nil {
		s.missing, s.stopped = was.missing, was.stopped
	}
	regained := len(was.missing) > 0 && len(s.missing) < len(was.missing)
	if regained {
		a.lookAgain(&a.live)
	}
	changed := !slices.Equal(was.missing, s.missing)
	missing := slices.Clone(s.missing)
	a.mu.Unlock()
	switch {
	case now.err != nil && was.err == nil:
		a.log.WarnContext(ctx, "Cannot ask snapd", "err", now.err)
	case changed && len(missing) > 0:
		a.log.WarnContext(ctx, "Plugs of the snap are not connected", "plugs", missing, "hint", connectHint(missing))
	case changed:
		a.story(ctx, "All plugs of the snap are connected")
	}
}

// stoppedServices returns the services without which nothing can be applied and
// that cannot be started by a connection. A snapd that cannot tell is no failure.
func (a *Agent) stoppedServices(ctx context.Context) ([]string, error) {
	services, err := a.snapd.Services(ctx)
	if errors.Is(err, snapd.ErrTooOld) || errors.Is(err, snapd.ErrForbidden) {
		return nil, nil
	}
	var stopped []string
	for _, s := range services {
		if s.Name == "loader" && !s.Enabled {
			stopped = append(stopped, SnapName+"."+s.Name)
		}
	}
	return stopped, err
}

// connectHint says how to connect plugs.
func connectHint(missing []string) string {
	var commands []string
	for _, plug := range missing {
		commands = append(commands, "sudo snap connect "+SnapName+":"+plug)
	}
	return "run: " + strings.Join(commands, " && ")
}

// snapTrouble returns what is wrong with the snap around the agent, with the next
// step; the zero Notice if nothing is. The caller holds a.mu.
func (a *Agent) snapTrouble() status.Notice {
	s := &a.live.snap
	switch {
	case len(s.missing) == 1:
		return status.Notice{Message: "the snap's plug " + s.missing[0] + " is not connected", Hint: connectHint(s.missing)}
	case len(s.missing) > 1:
		return status.Notice{Message: "the snap's plugs " + strings.Join(s.missing, ", ") + " are not connected", Hint: connectHint(s.missing)}
	case len(s.stopped) > 0:
		return status.Notice{Message: "the service " + s.stopped[0] + " is disabled", Hint: "run: sudo snap start --enable " + s.stopped[0]}
	}
	return status.Notice{}
}

// snapNotices are what a person should know of the snap. The caller holds a.mu.
func (a *Agent) snapNotices() []status.Notice {
	var n []status.Notice
	if t := a.snapTrouble(); t.Message != "" {
		n = append(n, t)
	}
	if err := a.live.snap.err; err != nil {
		hint := "see: snap version; systemctl status snapd"
		if errors.Is(err, snapd.ErrTooOld) {
			hint = "upgrade snapd: sudo snap install snapd"
		}
		n = append(n, status.Notice{Message: err.Error(), Hint: hint})
	}
	if a.waiting != nil && a.token != "" {
		n = append(n, status.Notice{Message: fmt.Sprintf("a new token waits for the service: %v", a.waiting.err)})
	}
	if d := a.rec.Dropped; d != nil {
		n = append(n, status.Notice{Message: d.Message, Hint: d.Hint})
	}
	return n
}

// The codes of the snap's health; docs/reference/snap.md explains them.
const (
	codeNotConnected  = "interface-not-connected"
	codeServiceOff    = "service-disabled"
	codeWaiting       = "waiting-for-service"
	codeRefused       = "token-refused"
	codeNotEnabled    = "not-enabled"
	codeUnreachable   = "service-unreachable"
	codeCheckFailed   = "check-failed"
	codeClock         = "clock-wrong"
	codeSignature     = "module-key-not-accepted"
	codeLoader        = "loader-unavailable"
	codeSuspect       = "patch-suspect"
	codePatchFailed   = "patch-failed"
	codeNotCovered    = "kernel-not-covered"
	codeKernelUpgrade = "kernel-upgrade-required"

	// CodeCannotStart is that of an agent that cannot begin its work.
	CodeCannotStart = "cannot-start"
)

// health sums up, for snapd, how the snap is. What has to be put right first comes
// first; there is room for 70 characters.
func (a *Agent) health() snapd.Health {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, judge := range []func() snapd.Health{a.snapHealth, a.enrolmentHealth, a.checkHealth, a.patchHealth, a.kernelHealth} {
		if h := judge(); h.Status != "" {
			return h
		}
	}
	return snapd.Health{Status: snapd.Okay}
}

func blocked(code, message string) snapd.Health {
	return snapd.Health{Status: snapd.Blocked, Code: code, Message: message}
}

func broken(code, message string) snapd.Health {
	return snapd.Health{Status: snapd.Broken, Code: code, Message: message}
}

func waits(code, message string) snapd.Health {
	return snapd.Health{Status: snapd.Waiting, Code: code, Message: message}
}

func (a *Agent) snapHealth() snapd.Health {
	switch s := &a.live.snap; {
	case len(s.missing) > 0:
		return blocked(codeNotConnected, connectHint(s.missing[:1]))
	case len(s.stopped) > 0:
		return blocked(codeServiceOff, "run: sudo snap start --enable "+s.stopped[0])
	}
	return snapd.Health{}
}

func (a *Agent) enrolmentHealth() snapd.Health {
	switch {
	case a.token == "" && a.waiting != nil:
		return waits(codeWaiting, "waiting for the service to be reachable, to be enabled there")
	case a.rec.Dropped != nil, a.token != "" && a.rec.TokenProblem != "":
		return blocked(codeRefused, "the token is refused; see: canonical-livepatch status")
	case a.token == "":
		return blocked(codeNotEnabled, "run: sudo snap set canonical-livepatch token=TOKEN")
	}
	return snapd.Health{}
}

func (a *Agent) checkHealth() snapd.Health {
	err := a.live.checkErr
	switch {
	case a.rec.CheckState != checkFailed || err == nil:
		return snapd.Health{}
	case fetch.Unreachable(err):
		return waits(codeUnreachable, "the service cannot be reached; see: canonical-livepatch status")
	case isAway(err):
		return waits(codeUnreachable, "the service is not available; see: canonical-livepatch status")
	case errors.Is(err, ErrClock), errors.Is(err, fetch.ErrTLSTime):
		return blocked(codeClock, "the clock is wrong; see: canonical-livepatch status")
	default:
		return broken(codeCheckFailed, "checking in fails; see: canonical-livepatch status")
	}
}

func (a *Agent) patchHealth() snapd.Health {
	err := a.live.patchErr
	switch {
	case a.rec.PatchError == "":
		return snapd.Health{}
	case a.rec.Failure == status.FailureSignature && !errors.Is(err, patch.ErrUntrusted) && !errors.Is(err, patch.ErrTampered):
		return blocked(codeSignature, "the kernel does not accept the patch's key; see its status")
	case errors.Is(err, loader.ErrAway), errors.Is(err, loader.ErrForbidden):
		return broken(codeLoader, "the loader does not answer; see: canonical-livepatch status")
	case a.rec.Failure == status.FailureCrash:
		return broken(codeSuspect, "the machine went down while a patch was on trial; see its status")
	case a.rec.State == status.ApplyFailed:
		return broken(codePatchFailed, "a patch is not applied; see: canonical-livepatch status")
	}
	return snapd.Health{}
}

func (a *Agent) kernelHealth() snapd.Health {
	switch {
	case a.rec.Supported == status.Unsupported:
		return blocked(codeNotCovered, "there are no livepatches for this kernel")
	case a.rec.Supported == status.SupportUpgradeRequired, a.rec.Supported == status.SupportEndOfLife, len(a.rec.Unpatched) > 0:
		return blocked(codeKernelUpgrade, "upgrade the kernel and reboot; see: canonical-livepatch status")
	}
	return snapd.Health{}
}
