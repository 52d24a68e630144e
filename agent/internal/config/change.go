package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// A Change is what an operator wants to be different: all of it, or nothing. It
// is the body of PUT /configure, and what waits in a file while the daemon does
// not run.
type Change struct {
	// Config are keys and the values to give them; "" is the default.
	Config map[string]string `json:"config,omitempty"`
	// AuthToken enrols the machine with the service; "" leaves the enrolment as
	// it is.
	AuthToken string `json:"auth_token,omitempty"`
	// Disable ends the enrolment. It excludes a token.
	Disable bool `json:"disable,omitempty"`
}

// A Standing is how things are after a change.
type Standing struct {
	Config  map[string]string `json:"config"`  // the keys that were set, in canonical form
	Enabled bool              `json:"enabled"` // the machine has a machine token
	Waiting bool              `json:"waiting"` // it has an auth token, to be used when the service can be reached
	Notes   []string          `json:"notes,omitempty"`
}

// maxChange bounds a change, in bytes.
const maxChange = 2 * maxValue

// errBothWays means a change that enrols and ends the enrolment.
var errBothWays = errors.New("it cannot both enable and disable the machine")

// ParseChange reads a change. What it sets is looked at when it is applied.
func ParseChange(b []byte) (Change, error) {
	var c Change
	if len(b) > maxChange {
		return c, fmt.Errorf("cannot read change: it is longer than %d bytes", maxChange)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Change{}, fmt.Errorf("cannot read change: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Change{}, errors.New("cannot read change: there is something behind it")
	}
	if c.Disable && c.AuthToken != "" {
		return Change{}, fmt.Errorf("cannot read change: %w", errBothWays)
	}
	return c, nil
}

// Then returns what the change and a later one come to.
func (c Change) Then(later Change) Change {
	all := Change{Config: map[string]string{}, AuthToken: c.AuthToken, Disable: c.Disable}
	for _, values := range []map[string]string{c.Config, later.Config} {
		for k, v := range values {
			all.Config[k] = v
		}
	}
	if later.AuthToken != "" || later.Disable {
		all.AuthToken, all.Disable = later.AuthToken, later.Disable
	}
	return all
}

// Chosen returns the keys that the operator has set, in canonical form.
func (c Config) Chosen() map[string]string {
	chosen := map[string]string{}
	for name, value := range c.set {
		chosen[name] = value
	}
	return chosen
}

// MaxToken bounds a token, in bytes. Those of Ubuntu Pro are macaroons of a few
// hundred.
const MaxToken = 16 << 10

// ParseToken strips white space around an auth token and refuses what cannot be
// one. The error does not show it.
func ParseToken(text []byte) (string, error) {
	token := string(bytes.TrimSpace(text))
	switch {
	case len(token) > MaxToken:
		return "", fmt.Errorf("cannot use the token: it is longer than %d bytes", MaxToken)
	case token == "":
		return "", errors.New("cannot use the token: it is empty")
	case strings.ContainsFunc(token, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsGraphic(r) || r == ' ' }):
		return "", errors.New("cannot use the token: there is a space, a line break or another strange character in it")
	}
	return token, nil
}
