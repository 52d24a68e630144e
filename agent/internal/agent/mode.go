package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/machine"
	"livepatch/agent/internal/status"
	facts "livepatch/internal/kernel"
)

// errMode means that the operator has switched off what was to be done.
var errMode = errors.New("switched off by the operator")

// A modeError tells what is switched off, and how to switch it on again. It matches
// errMode.
type modeError struct {
	mode facts.Mode
	what string // "network access"
	hint string
}

// Error says what is switched off, and by which word.
func (e *modeError) Error() string {
	return fmt.Sprintf("%s is switched off: mode is %q", e.what, e.mode)
}

// Unwrap returns errMode.
func (*modeError) Unwrap() error { return errMode }

// Hint says how to switch it on again.
func (e *modeError) Hint() string { return e.hint }

// mode returns what is switched off, by the kernel's command line or by the file of
// which only the loader knows. The caller holds a.mu.
func (a *Agent) mode() facts.Mode { return a.cmdline | a.live.fileMode }

// modeRemembered tells whether something is switched off by a file of which the loader
// has told before the agent was started, and not since. The caller holds a.mu.
func (a *Agent) modeRemembered() bool { return !a.live.modeKnown && a.mode() != a.cmdline }

// stopped tells whether nothing is to be done until the operator says so. If only the
// file has said it, and that before the agent was started, the loader has to be asked
// again: the file may be gone. The caller holds a.mu.
func (a *Agent) stopped() bool { return a.mode() == facts.Stop && !a.modeRemembered() }

// modeHint says how to get out of the mode. The caller holds a.mu.
func (a *Agent) modeHint() string {
	var ways []string
	if a.cmdline != facts.Normal {
		ways = append(ways, "take "+facts.ModeParameter+"=… off the kernel's command line and reboot")
	}
	if a.mode() != a.cmdline {
		file := "/var/lib/livepatch-loader/" + facts.ModeFile
		if a.snapd != nil {
			file = "/var/snap/" + SnapName + "/common/loader/" + facts.ModeFile
		}
		ways = append(ways, "sudo rm "+file+"; sudo canonical-livepatch refresh")
	}
	if a.modeRemembered() {
		ways = append(ways, "livepatch-loader, which alone reads that file, has to answer: "+a.hint(loader.ErrAway))
	}
	return strings.Join(ways, "; and: ")
}

// off returns an error if the mode has one of the bits of what. The caller holds a.mu.
func (a *Agent) off(bits facts.Mode, what string) error {
	if m := a.mode(); m&bits != 0 {
		return &modeError{m, what, a.modeHint()}
	}
	return nil
}

// dial returns a client of the service, unless the operator wants nobody to be asked.
func (a *Agent) dial(ctx context.Context, cfg config.Config) (Service, error) {
	a.mu.Lock()
	known := a.live.modeKnown
	a.mu.Unlock()
	if !known {
		a.learnMode(ctx)
	}
	a.mu.Lock()
	err := a.off(facts.NoRefresh, "network access")
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return a.connect(cfg)
}

// learnMode asks the loader, which knows the file, before anybody else is asked. While
// the agent itself may not see the kernel, as in a snap whose plugs are not connected, it
// does not: the loader could not start, and after some attempts systemd would close its
// socket.
func (a *Agent) learnMode(ctx context.Context) {
	if _, err := machine.Read(a.kernel); err != nil {
		return
	}
	if s, err := a.loader.Status(ctx); err == nil {
		a.setMode(ctx, s.Mode)
	}
}

// setMode notes what the loader says, which is of the command line and of the file, and
// keeps it: a switch that is off stays so while the loader does not answer.
func (a *Agent) setMode(ctx context.Context, m facts.Mode) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.mode()
	first := !a.live.modeKnown
	// Whether the file says what the command line says too, cannot be told.
	file := m&^a.cmdline | a.live.fileMode&a.cmdline
	changed := file != a.live.fileMode
	a.live.fileMode, a.live.modeKnown = file, true
	if changed {
		if err := a.saveRecord(); err != nil {
			a.log.ErrorContext(ctx, "Cannot save state", "err", err)
		}
	}
	if is := a.mode(); is != was || first && is != facts.Normal {
		a.story(ctx, "Mode", "mode", is.String(), "hint", a.modeHint())
	}
}

// readCommandLine notes what the kernel's command line switches off.
func (a *Agent) readCommandLine() {
	var err error
	if a.cmdline, err = facts.ReadMode(a.kernel, nil); err != nil {
		a.log.Warn("Cannot tell the mode, nothing is applied", "err", err)
		a.cmdlineErr = err
	}
}

// modeNotices tell what is switched off. The caller holds a.mu.
func (a *Agent) modeNotices() []status.Notice {
	m := a.mode()
	what := map[facts.Mode]string{
		facts.NoApply:   "no patch is applied",
		facts.NoRefresh: "the service is not asked; the patch in the kernel stays",
		facts.Stop:      "nothing is done",
	}[m]
	if m == facts.Normal {
		return nil
	}
	text := fmt.Sprintf("switched off by mode %q: %s", m, what)
	if a.cmdlineErr != nil {
		text += fmt.Sprintf(" (%v)", a.cmdlineErr)
	}
	if a.modeRemembered() {
		text += "; livepatch-loader has said so before, and does not answer now"
	}
	return []status.Notice{{Message: text, Hint: a.modeHint()}}
}
