// Package hooks is what snapd runs when something happens to the snap: it is set
// or unset a key, a plug is connected, the snap is removed.
//
// Hooks run as root, with the snap's confinement, and what they print is shown
// only if they fail. snapd undoes what it was about to do then.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/daemon"
)

// The hooks.
const (
	Configure  = "configure"
	Connect    = "connect-plug-kernel-module-control"
	Disconnect = "disconnect-plug-kernel-module-control"
	Remove     = "remove"
)

// Is tells whether a program of that name is a hook.
func Is(name string) bool {
	return slices.Contains([]string{Configure, Connect, Disconnect, Remove}, name)
}

// A Snapd is the hooks' view of snapd; [livepatch/agent/internal/snapd.Client] is one.
type Snapd interface {
	Config(ctx context.Context, keys ...string) (map[string]string, error)
	SetConfig(ctx context.Context, values map[string]string) error
}

// An Env is what a hook finds around it.
type Env struct {
	Stderr io.Writer
	Data   string // folder of this revision of the snap; the daemon's sockets are in it
	Common string // folder of all revisions
	Group  int    // of the agent
	Snapd  Snapd
	Loader Loader       // takes our livepatch out of the kernel
	Note   func(string) // says something that nobody has to act on where operators look for it
}

// How long hooks wait for the daemon; snapd gives a hook five minutes and more.
const (
	configureTimeout = 3 * time.Minute // a service that answers late, twice
	shortTimeout     = 10 * time.Second
)

// Main runs a hook and returns its exit code.
func Main(ctx context.Context, env Env, name string) int {
	err := env.run(ctx, name)
	if err == nil {
		return 0
	}
	fmt.Fprintln(env.Stderr, err)
	if h := hint(err); h != "" {
		fmt.Fprintln(env.Stderr, "hint:", h)
	}
	return 1
}

func (e Env) run(ctx context.Context, name string) error {
	switch name {
	case Configure:
		return e.configure(ctx)
	case Connect, Disconnect:
		e.recheck(ctx)
		return nil
	case Remove:
		e.remove(ctx)
		return nil
	default:
		return fmt.Errorf("cannot run %q: there is no such hook", name)
	}
}

// recheck has the daemon look what it may do now. A plug is connected or not
// whatever the daemon thinks of it, so nothing is a failure here.
func (e Env) recheck(ctx context.Context) {
	if _, err := e.call(ctx, shortTimeout, "tell the daemon", "/recheck", nil); err != nil {
		fmt.Fprintln(e.Stderr, "note:", err)
	}
}

// call sends a request to the daemon's private socket.
func (e Env) call(ctx context.Context, limit time.Duration, what, path string, body any) ([]byte, error) {
	ctx, cancel := daemon.Deadline(ctx, limit)
	defer cancel()
	return daemon.Client{Dir: e.Data}.Call(ctx, what, daemon.Private, http.MethodPut, path, body)
}

// hint says what the user can do about err, or "".
func hint(err error) string {
	var refused *daemon.RefusalError
	var slow *daemon.SlowError
	var own *hintedError
	switch {
	case errors.As(err, &own):
		return own.hint
	case errors.As(err, &refused):
		return refused.Hint
	case errors.As(err, &slow):
		return "the daemon may still be at work; see: canonical-livepatch status"
	case errors.Is(err, config.ErrInvalid):
		return "see the values of all keys with: sudo canonical-livepatch config"
	default:
		return ""
	}
}

// A hintedError comes with its next step.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }
