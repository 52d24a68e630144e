// Package snapd asks and tells snapd what a program inside a snap can, as
// snapctl(1) does: over the socket that snapd has for snaps, with the cookie that
// names the snap.
//
// As an ordinary user a program can read the configuration, ask which plugs are
// connected and how its services are, and say how healthy it is. Changing the
// configuration takes root. That snapd is away, forbids something or does not
// know it yet is an error like any other, and comes soon: no call lasts longer
// than its limit.
package snapd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/snapcore/snapd/client"
)

// Socket is where snapd listens for snaps.
const Socket = "/run/snapd-snap.socket"

// Limits of a call.
const (
	// usual is how long snapd may take to answer. One that is stopped, and whose
	// socket is still there, never does.
	usual = 10 * time.Second
	// changing the configuration from outside of a hook runs the hook configure,
	// and snapd answers when that is done.
	changing  = 3 * time.Minute
	maxAnswer = 4 << 20 // bytes
)

// Why a call failed.
var (
	ErrAway      = errors.New("snapd does not answer")
	ErrForbidden = errors.New("snapd does not allow it")
	ErrTooOld    = errors.New("this version of snapd does not know it")
)

// A Client talks to snapd; make one with [New].
type Client struct {
	socket, cookie string
}

// New returns a client of the snapd behind a socket. cookie is SNAP_COOKIE, which
// snapd hands to the programs of a snap.
func New(socket, cookie string) *Client { return &Client{socket, cookie} }

// run makes snapd run a command of snapctl and returns what it prints. The error
// of one that says no is a [*client.Error] of the kind "unsuccessful".
func (c *Client) run(ctx context.Context, limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true, // hours go by between two calls
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		},
	}
	snap := client.New(&client.Config{DisableAuth: true})
	// The library knows no context, and reads answers of any length.
	snap.Hijack(func(r *http.Request) (*http.Response, error) {
		res, err := transport.RoundTrip(r.WithContext(ctx))
		if err == nil {
			res.Body = limited{io.LimitReader(res.Body, maxAnswer), res.Body}
		}
		return res, err
	})
	stdout, _, err := snap.RunSnapctl(&client.SnapCtlOptions{ContextID: c.cookie, Args: args}, nil)
	if err != nil {
		return "", explain(err)
	}
	return string(stdout), nil
}

// limited is a body of which only so much is read.
type limited struct {
	io.Reader
	io.Closer
}

// explain sorts what the library returns.
func explain(err error) error {
	var refused *client.Error
	switch {
	case !errors.As(err, &refused):
		return fmt.Errorf("%w: %s", ErrAway, oneLine(err.Error()))
	case refused.Kind == client.ErrorKindUnsuccessful:
		return refused
	case refused.StatusCode == http.StatusForbidden, refused.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w: %s", ErrForbidden, oneLine(refused.Message))
	case unknownCommand(refused.Message):
		return fmt.Errorf("%w: %s", ErrTooOld, oneLine(refused.Message))
	default:
		return errors.New("snapd says: " + oneLine(refused.Message))
	}
}

// unknownCommand tells whether snapd has refused because it has no such command
// or flag, in the words of the library that reads them (go-flags, parser.go).
func unknownCommand(message string) bool {
	m := strings.ToLower(message)
	return strings.Contains(m, "unknown command") || strings.Contains(m, "unknown flag")
}

// oneLine makes what snapd says fit into an error.
func oneLine(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Connected tells whether a plug of the snap is connected.
func (c *Client) Connected(ctx context.Context, plug string) (bool, error) {
	_, err := c.run(ctx, usual, "is-connected", plug)
	var no *client.Error
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &no):
		return false, nil
	default:
		return false, fmt.Errorf("cannot ask whether %s is connected: %w", plug, err)
	}
}

// Config returns the configuration of the snap: the values of those keys that are
// set, as text.
func (c *Client) Config(ctx context.Context, keys ...string) (map[string]string, error) {
	out, err := c.run(ctx, usual, append([]string{"get", "-d", "--"}, keys...)...)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration that snapd has: %w", err)
	}
	return parseConfig([]byte(out))
}

// SetConfig changes the configuration of the snap; the empty value unsets a key.
// It takes root. In the hook configure the change takes effect if the hook
// succeeds; anywhere else snapd runs that hook before it answers.
func (c *Client) SetConfig(ctx context.Context, values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	args := []string{"set", "--"}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		args = append(args, assignment(key, values[key]))
	}
	if _, err := c.run(ctx, changing, args...); err != nil {
		return fmt.Errorf("cannot change the configuration that snapd has: %w", err)
	}
	return nil
}
