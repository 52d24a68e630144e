package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/daemon"
	"livepatch/agent/internal/hooks"
)

// mirror makes snapd's configuration show what the daemon's has become. The
// change itself is made, so that a failure is only a note: the hook of the next
// "snap set" does it.
func (a *app) mirror(ctx context.Context) {
	if a.env.Snapd == nil {
		return
	}
	if err := a.tellSnapd(ctx); err != nil {
		_, _ = fmt.Fprintln(a.env.Stderr, "canonical-livepatch: note: snap get does not show it yet:", printableLine(err.Error()))
	}
}

func (a *app) tellSnapd(ctx context.Context) error {
	have, err := a.env.Snapd.Config(ctx, append(config.Keys(), hooks.Token)...)
	if err != nil {
		return err
	}
	answer, err := a.call(ctx, "ask for the configuration", daemon.Private, http.MethodPut, "/configure", config.Change{})
	if err != nil {
		return err
	}
	var now config.Standing
	if err := json.Unmarshal(answer, &now); err != nil {
		return fmt.Errorf("the daemon's answer makes no sense: %w", err)
	}
	return a.env.Snapd.SetConfig(ctx, hooks.Differences(have, hooks.Shown(now)))
}
