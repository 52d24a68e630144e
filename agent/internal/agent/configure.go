package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"livepatch/agent/internal/config"
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
	a.mu.Lock()
	next := a.cfg
	a.mu.Unlock()
	changed, err := next.Apply(values)
	if err != nil || len(changed) == 0 {
		return nil, err
	}
	svc, err := a.connect(next)
	if err != nil {
		return nil, fmt.Errorf("cannot change the configuration: %w", err)
	}
	svc.Close()
	if err := next.Save(a.path(ConfigFile)); err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.cfg = next
	a.applyLevel()
	a.mu.Unlock()
	a.log.InfoContext(ctx, "Changed the configuration", "keys", changed)
	a.afterChange(changed)
	return changed, nil
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
		a.schedule(func(l *live) { l.nextCheck = time.Now() })
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
	case config.Info, config.Notice:
		a.level.Set(slog.LevelInfo)
	case config.Error:
		a.level.Set(slog.LevelError)
	case config.Warning:
		a.level.Set(slog.LevelWarn)
	default:
		a.level.Set(slog.LevelWarn)
	}
}
