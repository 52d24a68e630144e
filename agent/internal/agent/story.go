package agent

import (
	"context"
	"log/slog"

	"livepatch/agent/internal/status"
)

// LevelStory is the level of the few lines that tell, in order, what was done to
// this machine: enabled, fetched, applied, accepted, withdrawn. They are in the
// log whatever its level is; see [Storyteller].
const LevelStory = slog.LevelInfo + 2

// A Storyteller is a handler that lets the story through, whatever the level of
// the one below.
type Storyteller struct {
	slog.Handler
}

// Enabled implements [slog.Handler].
func (s Storyteller) Enabled(ctx context.Context, level slog.Level) bool {
	return level == LevelStory || s.Handler.Enabled(ctx, level)
}

// WithAttrs implements [slog.Handler].
func (s Storyteller) WithAttrs(attrs []slog.Attr) slog.Handler {
	return Storyteller{s.Handler.WithAttrs(attrs)}
}

// WithGroup implements [slog.Handler].
func (s Storyteller) WithGroup(name string) slog.Handler {
	return Storyteller{s.Handler.WithGroup(name)}
}

// StoryName writes the level of the story as a word; it is for the ReplaceAttr of
// a handler.
func StoryName(groups []string, attr slog.Attr) slog.Attr {
	if level, ok := attr.Value.Any().(slog.Level); ok && len(groups) == 0 && attr.Key == slog.LevelKey && level == LevelStory {
		return slog.String(slog.LevelKey, "NOTICE")
	}
	return attr
}

// story logs a line of the story.
func (a *Agent) story(ctx context.Context, message string, args ...any) {
	a.log.Log(ctx, LevelStory, message, args...) //nolint:sloglint // the callers' messages are fixed
}

// said is what the log says of the patch; the zero value is a log that has not
// begun.
type said struct {
	state   status.State
	version string
	err     string
}

// tellChange logs what has become of the patch, if that is new since the start.
// The caller holds a.mu.
func (a *Agent) tellChange(ctx context.Context, r *round) {
	now := said{r.rec.State, r.rec.Version, r.rec.PatchError}
	if a.live.said == now {
		return
	}
	a.live.said = now
	if now.err != "" {
		a.log.WarnContext(ctx, "Patch is not in the kernel", "state", now.state, "version", now.version, "err", now.err, "hint", r.rec.PatchHint)
		return
	}
	a.story(ctx, "Patch state", "state", now.state, "version", now.version)
}
