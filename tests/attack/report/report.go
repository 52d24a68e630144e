// Package report collects what the attack programs tried and what became of it.
//
// A test opens a row, attacks, and says what it saw; when the test ends the row
// is appended to build/attack.jsonl, as one line of JSON. What stopped an attack
// is said by the test from what it observed, and a test that observed nothing
// fails.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// An Actor is who attacks.
type Actor string

// The actors of docs/threat-model.md.
const (
	Agent  Actor = "compromised agent"
	Server Actor = "compromised server"
	Mirror Actor = "mirror or network"
	User   Actor = "local user"
	Key    Actor = "stolen key"
)

// A Result is how an attack ended.
type Result string

// The results. An attack that is Bounded got something, for example time, and
// no more than the row says.
const (
	Stopped Result = "stopped"
	Bounded Result = "bounded"
	Through Result = "GOT THROUGH"
)

// A Row is one attack and what became of it.
type Row struct {
	Test      string `json:"test"`       // name of the test
	Attack    string `json:"attack"`     // what was tried
	Hostile   Actor  `json:"hostile"`    // who tried it
	StoppedBy string `json:"stopped_by"` // the check that stopped it, as observed
	Sees      string `json:"sees"`       // what the user sees; "" if nothing
	Result    Result `json:"result"`
}

// An Attack is a row being made.
type Attack struct {
	t testing.TB

	mu  sync.Mutex
	row Row
}

// Begin opens the row of a test. When the test ends the row is written: as one
// that got through if the test failed, or if nothing was seen to stop it.
func Begin(t testing.TB, hostile Actor, attack string) *Attack {
	t.Helper()
	a := &Attack{t: t, row: Row{Test: t.Name(), Attack: attack, Hostile: hostile, Result: Stopped}}
	t.Cleanup(a.end)
	return a
}

// StoppedBy says which check was seen to stop the attack. Said twice, both count.
func (a *Attack) StoppedBy(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.row.StoppedBy = join(a.row.StoppedBy, fmt.Sprintf(format, args...))
}

// Bounded is StoppedBy for an attack that gets something, which is bounded by
// what is said here.
func (a *Attack) Bounded(format string, args ...any) {
	a.StoppedBy(format, args...)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.row.Result = Bounded
}

// Sees says what the user was shown: a line of a command's output, or of a log.
func (a *Attack) Sees(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.row.Sees = join(a.row.Sees, oneLine(text))
}

func (a *Attack) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.row.StoppedBy == "" && !a.t.Failed() {
		a.t.Error("nothing was seen to stop the attack")
	}
	if a.t.Failed() {
		a.row.Result = Through
	}
	if err := a.row.write(); err != nil {
		a.t.Error(err)
	}
}

// write appends the row to the file. Rows of several processes do not mix: each
// is one write to a file that is open for appending.
func (r Row) write() error {
	name, err := File()
	if err != nil {
		return err
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot write row of %s: %w", r.Test, err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("cannot write row of %s: %w", r.Test, err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("cannot write row of %s: %w", r.Test, err)
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// File returns where rows are kept: build/attack.jsonl of the tree that the
// process was started in.
func File() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return filepath.Join(dir, "build", "attack.jsonl"), nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			err = errors.New("no go.mod above the working folder")
		}
		dir = parent
	}
	return "", fmt.Errorf("cannot find the tree: %w", err)
}

func join(a, b string) string {
	switch {
	case a == "":
		return b
	case strings.Contains(a, b):
		return a
	}
	return a + "; " + b
}

// oneLine makes text fit into a table: without line breaks and control
// characters.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, text)
}
