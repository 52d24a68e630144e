package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// A Mode says what the operator has switched off: by the kernel's command line,
// which a person can change who has only a boot menu, or by a file of root's. The
// zero Mode is that nothing is.
type Mode uint8

// What can be switched off. Two that are asked for at two places add up.
const (
	NoApply   Mode = 1 << iota // nothing is inserted, at boot neither
	NoRefresh                  // nobody is asked over the network

	Normal Mode = 0
	Stop        = NoApply | NoRefresh
)

// modes are the words for them.
var modes = [...]string{Normal: "normal", NoApply: "no-apply", NoRefresh: "no-refresh", Stop: "stop"}

// String returns the word for a mode.
func (m Mode) String() string { return modes[m&Stop] }

// ModeParameter is the parameter of the kernel's command line, as existing clients
// know it, and ModeFile the name of the file.
const (
	ModeParameter = "canonical_livepatch_mode"
	ModeFile      = "mode"
)

// ParseMode reads a mode. No word is [Normal]; one that it does not know is [NoApply],
// with an error: who wrote it wanted something to be off.
func ParseMode(word string) (Mode, error) {
	if word == "" {
		return Normal, nil
	}
	for m, known := range modes {
		if word == known {
			return Mode(m), nil
		}
	}
	return NoApply, fmt.Errorf("mode %.40q is not known, need normal, no-apply, no-refresh or stop", word)
}

// CommandLineMode returns the mode of a kernel's command line, /proc/cmdline. Of
// several the last counts, as for the kernel's own parameters.
func CommandLineMode(line string) (Mode, error) {
	mode := ""
	for word := range strings.FieldsSeq(line) {
		if value, ok := strings.CutPrefix(word, ModeParameter+"="); ok {
			mode = strings.Trim(value, `"`)
		}
	}
	return ParseMode(mode)
}

// ReadMode reads the mode of the machine whose files are root, and of the file in the
// folder state, which may be nil. What is not there switches nothing off.
func ReadMode(root, state fs.FS) (Mode, error) {
	mode, err := readMode(root, "proc/cmdline", CommandLineMode)
	if state == nil {
		return mode, err
	}
	more, ferr := readMode(state, ModeFile, ParseMode)
	return mode | more, cmp.Or(err, ferr)
}

// readMode reads a mode from a file; one that cannot be read may say anything.
func readMode(fsys fs.FS, name string, parse func(string) (Mode, error)) (Mode, error) {
	b, err := fs.ReadFile(fsys, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return NoApply, err
	}
	return parse(strings.TrimSpace(string(b)))
}
