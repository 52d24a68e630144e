// Package config is the configuration of the agent: its keys, what they may be
// set to, and the file they are kept in.
//
// A key that was not set has its default, and the file holds only what was set.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// The keys, as the command line and the file name them.
const (
	HTTPProxy        = "http-proxy"
	HTTPSProxy       = "https-proxy"
	NoProxy          = "no-proxy"
	RemoteServer     = "remote-server"
	CACerts          = "ca-certs"
	DialTimeout      = "dial-timeout"
	CheckInterval    = "check-interval"
	LogLevel         = "log-level"
	TLSPatchDownload = "tls-patch-download"
	CutoffDate       = "cutoff-date"
	PatchDelay       = "patch-delay"
	SkipPatches      = "skip-patches"
	PinPatch         = "pin-patch"
	Maintenance      = "maintenance-window"
)

// The defaults that are not a zero value.
const (
	DefaultRemoteServer  = "https://livepatch.canonical.com"
	DefaultDialTimeout   = 12 * time.Second
	DefaultCheckInterval = time.Hour
	DefaultLogLevel      = Warning
)

// Conditions that callers branch on.
var (
	ErrUnknownKey = errors.New("there is no such key")
	ErrInvalid    = errors.New("value is not valid")
	ErrCorrupt    = errors.New("configuration file is damaged")
)

// A ValueError reports a value that a key cannot have. It matches [ErrInvalid].
type ValueError struct {
	Key    string
	Reason string // what is wrong and what is needed; quotes no password
}

// Error says which key cannot be set and why.
func (e *ValueError) Error() string { return fmt.Sprintf("cannot set %s: %s", e.Key, e.Reason) }

// Unwrap returns [ErrInvalid].
func (e *ValueError) Unwrap() error { return ErrInvalid }

// A Config is the configuration of the agent. [Default] makes one; the zero
// Config has no server to talk to.
//
// The exported fields are what the agent acts on. They change through
// [Config.Set], [Config.Unset] and [Config.Apply], which also remember what the
// operator chose: a field written directly is not saved. A Config may be copied.
type Config struct {
	HTTPProxy    string // URL of a http, https or socks5 proxy; "" if none
	HTTPSProxy   string
	NoProxy      string // comma-separated hosts, domains and networks
	RemoteServer string // "https://host[:port][/path]", no trailing slash
	CACerts      string // PEM; trusted besides those of the system
	DialTimeout  time.Duration

	// CheckInterval is the time between check-ins that the operator asked for.
	// If CheckIntervalSet is false nobody did: what the service says counts, and
	// CheckInterval holds the default until it has said something. 0 together
	// with CheckIntervalSet means no automatic check-ins.
	CheckInterval    time.Duration
	CheckIntervalSet bool

	LogLevel Level
	// TLSPatchDownload exists for compatibility: patches always travel over TLS.
	TLSPatchDownload bool

	CutoffDate time.Time     // patches added later are held back; zero: none are
	PatchDelay time.Duration // patches younger than this are held back

	SkipPatches []string // versions that are held back
	PinPatch    string   // versions after this one are held back; "": none are
	Maintenance Windows  // patches are inserted only inside; none: at any time

	set     map[string]string // what the operator chose, in canonical form
	unknown []*yaml.Node      // pairs of the file that this version does not know
}

// A Level is a log level.
type Level string

// The levels, most talkative first.
const (
	Debug   Level = "debug"
	Info    Level = "info"
	Notice  Level = "notice"
	Warning Level = "warning"
	Error   Level = "error"
)

// An Entry is one key and its value in canonical form, "" if it is empty.
type Entry struct {
	Key, Value string
}

// Default returns the configuration of a machine where nothing was set.
func Default() Config {
	return Config{
		RemoteServer:  DefaultRemoteServer,
		DialTimeout:   DefaultDialTimeout,
		CheckInterval: DefaultCheckInterval,
		LogLevel:      DefaultLogLevel,
	}
}

// Keys returns the names of all keys in the order in which they are listed.
func Keys() []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return names
}

// Order sorts names of keys in the order in which they have to take effect: the
// certificates and proxies that a new server needs come before it, because a
// change of server makes the agent talk to it at once. Unknown names come last.
func Order(names []string) []string {
	effect := []string{
		LogLevel, HTTPProxy, HTTPSProxy, NoProxy, CACerts, DialTimeout, TLSPatchDownload,
		CutoffDate, PatchDelay, SkipPatches, PinPatch, Maintenance, CheckInterval, RemoteServer,
	}
	rank := func(name string) int {
		if i := slices.Index(effect, name); i >= 0 {
			return i
		}
		return len(effect)
	}
	// Sorted by name first, so that the order does not depend on that of a map.
	return slices.SortedStableFunc(slices.Values(slices.Sorted(slices.Values(names))), func(a, b string) int {
		return rank(a) - rank(b)
	})
}

// Get returns the value of a key in canonical form. The error matches
// [ErrUnknownKey].
func (c Config) Get(name string) (string, error) {
	k, err := lookup(name)
	if err != nil {
		return "", fmt.Errorf("cannot show %q: %w", name, err)
	}
	return c.value(k), nil
}

// IsSet tells whether the operator has set the key.
func (c Config) IsSet(name string) bool {
	_, ok := c.set[name]
	return ok
}

// List returns all keys with their values, in the order of [Keys].
func (c Config) List() []Entry {
	entries := make([]Entry, len(keys))
	for i, k := range keys {
		entries[i] = Entry{Key: k.name, Value: c.value(k)}
	}
	return entries
}

// MarshalJSON writes a JSON object of all keys, each value a string in
// canonical form: the body of GET /config.
func (c Config) MarshalJSON() ([]byte, error) {
	values := make(map[string]string, len(keys))
	for _, e := range c.List() {
		values[e.Key] = e.Value
	}
	return json.Marshal(values)
}

// Unknown returns the keys of the file that this version does not know. They
// are kept and have no effect.
func (c Config) Unknown() []string {
	var names []string
	for i := 0; i < len(c.unknown); i += 2 {
		names = append(names, c.unknown[i].Value)
	}
	return names
}

func (c Config) value(k key) string {
	if v, ok := c.set[k.name]; ok {
		return v
	}
	return k.def
}

// Set gives a key a value; the empty value unsets it. If the value cannot be
// used, c stays as it was and the error matches [ErrUnknownKey] or [ErrInvalid].
func (c *Config) Set(name, value string) error {
	if value == "" {
		return c.Unset(name)
	}
	if name == CutoffDate {
		// Only here: a file may have to be read while the clock is not set yet.
		if err := checkPast(value, time.Now()); err != nil {
			return &ValueError{Key: name, Reason: err.Error()}
		}
	}
	return c.put(name, value)
}

// put is Set for a value that may come from a file written long ago.
func (c *Config) put(name, value string) error {
	k, err := lookup(name)
	if err != nil {
		return fmt.Errorf("cannot set %q: %w", name, err)
	}
	next := *c
	canonical, err := k.put(&next, value)
	if err != nil {
		return &ValueError{Key: name, Reason: err.Error()}
	}
	next.set = maps.Clone(c.set)
	if next.set == nil {
		next.set = make(map[string]string)
	}
	next.set[name] = canonical
	next.CheckIntervalSet = next.IsSet(CheckInterval)
	*c = next
	return nil
}

// Unset gives a key its default again. The error matches [ErrUnknownKey].
func (c *Config) Unset(name string) error {
	if _, err := lookup(name); err != nil {
		return fmt.Errorf("cannot set %q: %w", name, err)
	}
	next := Default()
	next.unknown = c.unknown
	for n, v := range c.set {
		if n == name {
			continue
		}
		if err := next.put(n, v); err != nil {
			return err
		}
	}
	*c = next
	return nil
}

// Apply sets every key of values, in the order of [Order], or none of them. It
// returns the keys whose value has changed, in that order.
func (c *Config) Apply(values map[string]string) (changed []string, err error) {
	next := *c
	for _, name := range Order(slices.Collect(maps.Keys(values))) {
		if err := next.Set(name, values[name]); err != nil {
			return nil, err
		}
		before, _ := c.Get(name)
		if after, _ := next.Get(name); after != before || c.IsSet(name) != next.IsSet(name) {
			changed = append(changed, name)
		}
	}
	*c = next
	return changed, nil
}
