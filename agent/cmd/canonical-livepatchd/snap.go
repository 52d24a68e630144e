package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"livepatch/agent/internal/agent"
	"livepatch/agent/internal/localapi"
	"livepatch/agent/internal/snapd"
)

// snapdAround returns a client of snapd if this is a program of a snap, else nil.
func snapdAround() *snapd.Client {
	if os.Getenv("SNAP") == "" {
		return nil
	}
	return snapd.New(snapd.Socket, os.Getenv("SNAP_COOKIE"))
}

// tellCannotStart makes snapd show why the agent does not run.
func tellCannotStart(c *snapd.Client, err error) {
	// That snapd cannot be told is not worth another line.
	_ = c.SetHealth(context.Background(), snapd.Health{Status: snapd.Broken, Code: agent.CodeCannotStart, Message: err.Error()})
}

// Bounds on the time between two tries to begin work.
const (
	firstRetry = 30 * time.Second
	lastRetry  = 15 * time.Minute
)

// stayUp works until ctx is done. Whatever keeps it from that, a damaged file or a
// full disk, is told to everybody who asks and tried again after a while: a
// process that ends would be started again at once, for ever.
func (w *worker) stayUp(ctx context.Context) error {
	wait := firstRetry
	for {
		err := w.work(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to end
		}
		if err == nil {
			err = errors.New("the agent has ended without a reason")
		}
		w.log.ErrorContext(ctx, "Cannot work", "err", err, "hint", w.hint(err), "retry_in", wait)
		tellCannotStart(w.snapd, err)
		if w.refuse(ctx, wait, err); ctx.Err() != nil {
			return nil //nolint:nilerr // it was asked to end
		}
		wait = min(2*wait, lastRetry)
	}
}

// refuse tells everybody who asks why the agent does not work, for a while.
func (w *worker) refuse(ctx context.Context, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if !errors.Is(err, errRunning) { // whose sockets these are
		listeners, lerr := localapi.Listen(w.run, w.privateMode())
		if lerr == nil {
			lerr = w.api(nil).ServeRefusal(ctx, listeners, err)
		}
		if lerr != nil {
			w.log.ErrorContext(ctx, "Cannot tell why", "err", lerr)
		}
	}
	<-ctx.Done()
}

// hint says what to do about an error.
func (w *worker) hint(err error) string {
	if w.snapd != nil {
		return agent.HintInSnap(err)
	}
	return agent.HintFor(err)
}

// privateMode is that of the private socket. Inside a snap root has no right to
// what is another user's (CAP_DAC_OVERRIDE), so everybody can connect there, and
// who may ask is decided by the uid that the kernel tells.
func (w *worker) privateMode() fs.FileMode {
	if w.snapd != nil {
		return 0o666
	}
	return 0o600
}
