package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/internal/service"
)

// Config returns the configuration: keys and values as the command line shows
// them.
func (a *Agent) Config() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	values := map[string]string{}
	for _, e := range a.cfg.List() {
		values[e.Key] = e.Value
	}
	return values
}

// SetConfig changes keys, all or none; the empty value is the default. What can
// only be noticed by using it, such as certificates that do not parse, is
// refused before anything is kept. It returns the keys that have changed.
func (a *Agent) SetConfig(ctx context.Context, values map[string]string) ([]string, error) {
	if err := a.begin(ctx); err != nil {
		return nil, err
	}
	defer a.end()
	next, changed, err := a.plan(values)
	if err != nil {
		return nil, err
	}
	return changed, a.takeConfig(ctx, next, changed)
}

// Configure makes a change, all of it or nothing. A token is tried with the
// configuration that comes with it, at once; if the service cannot be reached the
// token waits, and that is success. A token that the machine is enrolled with
// changes nothing, another one takes its place.
func (a *Agent) Configure(ctx context.Context, c config.Change) (config.Standing, error) {
	if c.Disable {
		a.interrupt()
	}
	if err := a.begin(ctx); err != nil {
		return config.Standing{}, err
	}
	defer a.end()
	next, changed, err := a.plan(c.Config)
	if err != nil {
		return config.Standing{}, err
	}
	e, waits, err := a.tryToken(ctx, next, c.AuthToken)
	if err != nil {
		return config.Standing{}, err
	}
	old := a.configuration()
	if err := a.takeConfig(ctx, next, changed); err != nil {
		return config.Standing{}, err
	}
	var notes []string
	switch {
	case e != nil:
		a.leaveOld(ctx, old, next)
		err = a.takeEnrolment(ctx, next, c.AuthToken, *e)
	case waits != nil:
		notes = append(notes, "the service cannot be reached yet, the token is used as soon as it can: "+waits.Error())
		err = a.keepWaiting(ctx, c.AuthToken, waits)
	case c.Disable:
		if _, notes, err = a.endEnrolment(ctx, false); errors.Is(err, ErrNotEnabled) {
			err = nil
		}
	}
	return a.standing(notes), err
}

// plan returns the configuration with values, if it can be used, and which keys
// that changes.
func (a *Agent) plan(values map[string]string) (next config.Config, changed []string, err error) {
	next = a.configuration()
	changed, err = next.Apply(values)
	if err != nil || len(changed) == 0 {
		return next, nil, err
	}
	svc, err := a.connect(next)
	if err != nil {
		return next, nil, fmt.Errorf("cannot change the configuration: %w", err)
	}
	svc.Close()
	return next, changed, nil
}

// tryToken asks the service of cfg what it gives for a token: an enrolment, or
// nothing if there is none to be had now, or no need for one; waits is why not
// now.
func (a *Agent) tryToken(ctx context.Context, cfg config.Config, token string) (e *service.Enrolment, waits, err error) {
	if token == "" {
		return nil, nil, nil
	}
	if err := checkAuthToken(token); err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	same := a.token != "" && a.rec.TokenProblem == "" && a.rec.EnrolledWith == a.fingerprint(cfg, token)
	a.mu.Unlock()
	if same {
		return nil, nil, nil
	}
	got, err := a.enrol(ctx, cfg, token)
	switch {
	case err == nil:
		return &got, nil, nil
	case mayWait(err) && ctx.Err() == nil:
		return nil, err, nil
	default:
		return nil, nil, fmt.Errorf("cannot enable this machine: %w", err)
	}
}

// leaveOld tells the service that the machine was enrolled with that it has gone
// to another one.
func (a *Agent) leaveOld(ctx context.Context, old, next config.Config) {
	a.mu.Lock()
	token := a.token
	a.mu.Unlock()
	if token == "" || old.RemoteServer == next.RemoteServer {
		return // the same service takes back what it gave this machine before
	}
	if err := a.forget(ctx, old, token); err != nil {
		a.log.WarnContext(ctx, "Cannot tell the service", "err", err)
	}
}

// takeConfig makes next the configuration.
func (a *Agent) takeConfig(ctx context.Context, next config.Config, changed []string) error {
	if len(changed) == 0 {
		return nil
	}
	if err := next.Save(a.path(ConfigFile)); err != nil {
		return err
	}
	a.mu.Lock()
	a.cfg = next
	a.applyLevel()
	a.mu.Unlock()
	a.story(ctx, "Changed the configuration", "keys", changed)
	a.afterChange(changed)
	return nil
}

// standing tells how things are.
func (a *Agent) standing(notes []string) config.Standing {
	a.mu.Lock()
	defer a.mu.Unlock()
	return config.Standing{Config: a.cfg.Chosen(), Enabled: a.token != "", Waiting: a.waiting != nil, Notes: notes}
}

// afterChange checks at once if the service is another, or is reached in another
// way, or offers other patches; and keeps to a new interval.
func (a *Agent) afterChange(changed []string) {
	only := func(keys ...string) bool {
		return !slices.ContainsFunc(changed, func(k string) bool { return !slices.Contains(keys, k) })
	}
	switch {
	case only(config.LogLevel):
	case only(config.LogLevel, config.CheckInterval):
		a.schedule(func(l *live) {
			l.nextCheck = time.Time{}
			if !a.cfg.CheckIntervalSet || a.cfg.CheckInterval > 0 {
				l.nextCheck = time.Now().Add(jitter(a.cfg.CheckInterval, 0.1))
			}
		})
	default:
		a.schedule(func(l *live) {
			l.nextCheck = time.Now()
			if !l.nextEnrol.IsZero() {
				l.nextEnrol = time.Now()
			}
		})
	}
}

// applyLevel makes the log follow the configuration. The caller holds a.mu, or
// is New.
func (a *Agent) applyLevel() {
	if a.level == nil {
		return
	}
	switch a.cfg.LogLevel {
	case config.Debug:
		a.level.Set(slog.LevelDebug)
	case config.Info:
		a.level.Set(slog.LevelInfo)
	case config.Notice:
		a.level.Set(LevelStory)
	case config.Error:
		a.level.Set(slog.LevelError)
	case config.Warning:
		a.level.Set(slog.LevelWarn)
	default:
		a.level.Set(slog.LevelWarn)
	}
}
