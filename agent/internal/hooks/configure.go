package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/daemon"
)

// The keys that only snapd's configuration has.
const (
	Token       = "token"        // takes an auth token and shows that there is one
	RemovePatch = "remove-patch" // removing the snap takes the livepatch out of the kernel
)

// Set stands, in snapd's configuration, for a value that it does not show: any
// user of the machine can read what is there. Setting it changes nothing.
const Set = "set"

// hidden is what a password is shown as; see [url.URL.Redacted].
const hidden = "xxxxx"

// maxShown is how long a value may be that snapd's configuration shows, in bytes:
// snapd writes all of its state anew at each change.
const maxShown = 64 << 10

// Keys returns the keys that snapd's configuration of this snap can have.
func Keys() []string { return append(config.Keys(), Token, RemovePatch) }

// configure brings snapd's configuration and the daemon's together. What snapd's
// has got since it was last seen goes to the daemon, and what the daemon has got
// in the meantime, by canonical-livepatch config, goes to snapd.
func (e Env) configure(ctx context.Context) error {
	now, err := e.Snapd.Config(ctx, Keys()...)
	if err != nil {
		return err
	}
	// What the daemon has already is nothing new, whoever has told snapd of it.
	was, err := e.send(ctx, config.Change{})
	if err != nil && !errors.Is(err, daemon.ErrAway) {
		return err
	}
	change, err := changeOf(now, e.loadSeen(), was)
	if err != nil {
		return err
	}
	standing, err := e.apply(ctx, change)
	if err != nil {
		return err
	}
	show := shownBeforeStart(now)
	if standing != nil {
		show = Shown(*standing)
		for _, note := range standing.Notes {
			e.Note(note)
		}
	}
	if v, ok := now[RemovePatch]; ok {
		show[RemovePatch] = v
	}
	diff := Differences(now, show)
	if err := e.Snapd.SetConfig(ctx, diff); err != nil {
		return err
	}
	maps.Copy(now, diff)
	if err := e.saveSeen(now); err != nil {
		// The next time what was set now is set once more, which changes nothing.
		e.Note(err.Error())
	}
	return nil
}

// changeOf returns what is new in snapd's configuration: neither was it there when
// it was last seen, nor is it what the daemon has; was is nil if that is not known.
func changeOf(now, seen map[string]string, was *config.Standing) (config.Change, error) {
	change := config.Change{Config: map[string]string{}}
	have := map[string]string{}
	if was != nil {
		have = Shown(*was)
	}
	for _, key := range config.Keys() {
		if now[key] == seen[key] || was != nil && now[key] == have[key] {
			continue
		}
		if err := checkShown(key, now[key]); err != nil {
			return change, err
		}
		change.Config[key] = now[key]
	}
	fresh := config.Default()
	if _, err := fresh.Apply(change.Config); err != nil {
		return change, err
	}
	if v := now[RemovePatch]; v != "" && v != "true" && v != "false" {
		return change, &config.ValueError{Key: RemovePatch, Reason: fmt.Sprintf("%q is not true or false", v)}
	}
	switch token := now[Token]; {
	case token == "" && seen[Token] != "":
		change.Disable = true
	case token != "" && token != Set:
		text, err := config.ParseToken([]byte(token))
		if err != nil {
			return change, &hintedError{err, "get one from the service and run: sudo snap set canonical-livepatch token=TOKEN"}
		}
		change.AuthToken = text
	}
	return change, nil
}

// checkShown refuses a value that only stands for one that is not shown.
func checkShown(key, value string) error {
	if password, ok := passwordIn(value); !ok || password != hidden {
		return nil
	}
	return &hintedError{
		&config.ValueError{Key: key, Reason: fmt.Sprintf("%q has %s for a password, which stands for one that is not shown", value, hidden)},
		fmt.Sprintf("give the password: sudo snap set canonical-livepatch %s=http://USER:PASSWORD@HOST:PORT", key),
	}
}

// passwordIn returns the password of a URL, if it is one that has any.
func passwordIn(value string) (string, bool) {
	u, err := url.Parse(value)
	if err != nil || u.User == nil {
		return "", false
	}
	return u.User.Password()
}

// apply hands a change to the daemon and returns how things stand then. If the
// daemon does not run, the change waits for it, and nobody knows how things stand.
func (e Env) apply(ctx context.Context, change config.Change) (*config.Standing, error) {
	left, err := e.takeLeft()
	if err != nil {
		return nil, err
	}
	change = left.Then(change)
	standing, err := e.send(ctx, change)
	if !errors.Is(err, daemon.ErrAway) {
		return standing, err
	}
	if isEmpty(change) {
		return nil, nil
	}
	if err := e.leave(change); err != nil {
		return nil, err
	}
	// It may have come up just before it could find the change.
	if standing, err = e.send(ctx, change); errors.Is(err, daemon.ErrAway) {
		e.Note("the daemon does not run; the change takes effect when it does")
		return nil, nil
	}
	_, lerr := e.takeLeft()
	return standing, errors.Join(err, lerr)
}

// send hands a change to the daemon.
func (e Env) send(ctx context.Context, change config.Change) (*config.Standing, error) {
	answer, err := e.call(ctx, configureTimeout, "change the configuration", "/configure", change)
	if err != nil {
		var refused *daemon.RefusalError
		if isEmpty(change) && errors.As(err, &refused) {
			// Nobody has asked for anything: a daemon that is in trouble of its own
			// does not keep the snap from being refreshed.
			e.Note(err.Error())
			return nil, nil
		}
		return nil, err
	}
	var standing config.Standing
	if err := json.Unmarshal(answer, &standing); err != nil {
		return nil, errors.New("cannot change the configuration: the daemon's answer makes no sense")
	}
	return &standing, nil
}

func isEmpty(c config.Change) bool { return len(c.Config) == 0 && c.AuthToken == "" && !c.Disable }

// Shown returns what snapd's configuration has to show of how things stand, but
// for the keys that only it has.
func Shown(s config.Standing) map[string]string {
	show := map[string]string{}
	for key, value := range s.Config {
		show[key] = showValue(value)
	}
	if s.Enabled || s.Waiting {
		show[Token] = Set
	}
	return show
}

// shownBeforeStart returns what snapd's configuration has to show while the
// daemon does not run: what is there, without secrets.
func shownBeforeStart(now map[string]string) map[string]string {
	show := map[string]string{}
	for key, value := range now {
		show[key] = showValue(value)
	}
	if show[Token] != "" {
		show[Token] = Set
	}
	return show
}

// showValue hides what everybody may not know, or what is too long.
func showValue(value string) string {
	if len(value) > maxShown {
		return Set
	}
	if _, ok := passwordIn(value); ok {
		u, _ := url.Parse(value)
		return u.Redacted()
	}
	return value
}

// Differences returns the changes that make want of have: keys with their new
// values, "" for those that are to go.
func Differences(have, want map[string]string) map[string]string {
	diff := map[string]string{}
	for _, key := range slices.Concat(slices.Collect(maps.Keys(have)), slices.Collect(maps.Keys(want))) {
		if strings.TrimSpace(have[key]) != strings.TrimSpace(want[key]) {
			diff[key] = want[key]
		}
	}
	return diff
}
