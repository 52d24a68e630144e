package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/internal/durable"
)

// waitingFile holds an auth token that could not be used yet; only the agent's
// user can read it.
const waitingFile = "waiting-token"

// A waiting is an auth token that the agent uses as soon as it can. Its place is
// under Agent.mu, but for next, that of [live].
type waiting struct {
	token string
	err   error // of the last try; nil: there was none since the start
	tries int
}

// mayWait tells whether an enrolment that failed may succeed later without
// anybody's doing, or with it: the service was not reached, the clock is not set yet,
// or network access is switched off.
func mayWait(err error) bool {
	return isAway(err) || mayBeTooEarly(err) || errors.Is(err, errMode)
}

// isRefusal tells whether the service has looked at the auth token and said no.
func isRefusal(err error) bool { return isTokenProblem(err) }

// loadWaiting returns the token that waited when the agent stopped, or nil.
func (a *Agent) loadWaiting() *waiting {
	b, err := os.ReadFile(a.path(waitingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	token := strings.TrimSpace(string(b))
	if err == nil {
		err = checkAuthToken(token)
	}
	if err != nil {
		a.log.Warn("Cannot read the token that waits, it has to be set again", "err", err)
		return nil
	}
	return &waiting{token: token}
}

// keepWaiting keeps a token that could not be used because of err, and has it
// tried again.
func (a *Agent) keepWaiting(ctx context.Context, token string, err error) error {
	if werr := durable.WriteFile(a.path(waitingFile), []byte(token+"\n"), 0o600); werr != nil {
		return fmt.Errorf("cannot keep the token: %w", werr)
	}
	a.mu.Lock()
	a.waiting = &waiting{token: token}
	a.rec.Dropped = nil
	a.mu.Unlock()
	a.waitOn(ctx, err)
	return nil
}

// waitOn plans the next try after one that failed with err.
func (a *Agent) waitOn(ctx context.Context, err error) {
	a.mu.Lock()
	w := a.waiting
	w.err = err
	w.tries++
	first := w.tries == 1
	wait := min(max(jitter(backoff(w.tries), 0.25), firstRetry), lastRetry)
	var ferr *fetch.Error
	if errors.As(err, &ferr) {
		wait = max(wait, ferr.RetryAfter)
	}
	a.mu.Unlock()
	if first { // the others would say the same
		a.story(ctx, "Enrolment waits", "err", err)
	}
	a.log.InfoContext(ctx, "Cannot enable yet", "err", err, "retry_in", wait.Round(time.Second))
	a.schedule(func(l *live) { l.nextEnrol = time.Now().Add(wait) })
}

// stopWaiting forgets the token that waits and tells whether there was one.
func (a *Agent) stopWaiting(ctx context.Context) bool {
	a.mu.Lock()
	was := a.waiting != nil
	a.waiting, a.live.nextEnrol = nil, time.Time{}
	a.mu.Unlock()
	if err := durable.Remove(a.path(waitingFile)); err != nil {
		a.log.ErrorContext(ctx, "Cannot delete the token that waited", "err", err)
	}
	return was
}

// tryWaiting uses the token that waits. One that the service refuses is dropped.
func (a *Agent) tryWaiting(ctx context.Context) {
	if err := a.begin(ctx); err != nil {
		return
	}
	defer a.end()
	a.mu.Lock()
	w, cfg := a.waiting, a.cfg
	a.live.nextEnrol = time.Time{}
	a.mu.Unlock()
	if w == nil {
		return // disabled, or enabled by somebody, meanwhile
	}
	e, err := a.enrol(ctx, cfg, w.token)
	if err == nil {
		err = a.takeEnrolment(ctx, cfg, w.token, e)
	}
	switch {
	case err == nil, ctx.Err() != nil:
	case isRefusal(err):
		a.stopWaiting(ctx)
		a.drop(ctx, fmt.Errorf("cannot enable this machine: %w", err))
	default:
		a.waitOn(ctx, err)
	}
}

// drop writes down that what waited was refused.
func (a *Agent) drop(ctx context.Context, err error) {
	a.log.ErrorContext(ctx, "Refused what was waiting", "err", err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rec.Dropped = &problem{err.Error(), a.hint(err)}
	if serr := a.saveRecord(); serr != nil {
		a.log.ErrorContext(ctx, "Cannot save state", "err", serr)
	}
}

// Unfinished says, of a machine that is not enabled, why a token that it was given
// has not enabled it, and what to do; "" if it was given none.
func (a *Agent) Unfinished() (why, hint string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.token != "":
		return "", ""
	case a.waiting != nil && a.waiting.err == nil:
		return "enabling: waiting for the service", ""
	case a.waiting != nil:
		return "enabling: waiting for the service: " + a.waiting.err.Error(), a.hint(a.waiting.err)
	case a.rec.Dropped != nil:
		return a.rec.Dropped.Message, a.rec.Dropped.Hint
	}
	return "", ""
}

// changeFile is what root has left for the agent to do while it did not run: a
// [config.Change], in a folder of root's from which the agent may remove files.
const changeFile = "change.json"

// takeChange does what was left for the agent to do. What cannot be done is
// dropped, and said: whoever left it is gone.
func (a *Agent) takeChange(ctx context.Context) {
	path := filepath.Join(a.left, changeFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var change config.Change
	if err == nil {
		change, err = config.ParseChange(b)
	}
	if err == nil {
		err = a.configureLate(ctx, change)
	}
	if ctx.Err() != nil {
		return // the next start takes it
	}
	if err != nil {
		a.drop(ctx, err)
	}
	if err := durable.Remove(path); err != nil {
		a.log.ErrorContext(ctx, "Cannot delete the change that was taken", "err", err)
	}
}

// configureLate makes a change of which somebody has already been told that it is
// made: a token that is refused does not take the configuration with it.
func (a *Agent) configureLate(ctx context.Context, c config.Change) error {
	_, err := a.Configure(ctx, c)
	if err == nil || c.AuthToken == "" || ctx.Err() != nil {
		return err
	}
	if _, cerr := a.Configure(ctx, config.Change{Config: c.Config}); cerr != nil {
		return cerr // the token was not looked at
	}
	return err
}
