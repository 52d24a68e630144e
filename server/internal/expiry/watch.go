package expiry

import (
	"context"
	"log/slog"
	"time"
)

// A Watch logs when a role passes a threshold: once for each, however often it
// is looked at, and again after a restart. It is used by one goroutine.
type Watch struct {
	log    *slog.Logger
	levels map[string]Level // last told, by role
}

// NewWatch returns a Watch that has told nothing yet.
func NewWatch(log *slog.Logger) *Watch {
	return &Watch{log: log, levels: map[string]Level{}}
}

// Look compares roles with the clock.
func (w *Watch) Look(ctx context.Context, roles []Role, now time.Time) {
	for _, r := range roles {
		have, level := w.levels[r.Name], r.Level(now)
		if level == have {
			continue
		}
		w.levels[r.Name] = level
		switch {
		case level > have:
			w.tell(ctx, r, level, now)
		case level == Fine:
			w.log.InfoContext(ctx, "Signed role is fresh again", "role", r.Name, "version", r.Version, "expires", r.Expires)
		}
	}
}

func (w *Watch) tell(ctx context.Context, r Role, level Level, now time.Time) {
	log := w.log.With("role", r.Name, "version", r.Version, "expires", r.Expires, "left", max(0, r.Left(now)),
		"urgency", level.String(), "next_step", Advice([]Role{r}, now)[0])
	if level == Expired {
		log.ErrorContext(ctx, "Signed role has expired")
	} else {
		log.WarnContext(ctx, "Signed role runs out")
	}
}
