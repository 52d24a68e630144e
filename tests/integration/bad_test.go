//go:build integration

package integration

import (
	"strings"
	"testing"
)

// wantRefusal fails the test unless a user was told in one line what could not be
// done and why, in a second line what to do next, and nothing else.
func wantRefusal(t *testing.T, r result, why, next string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	switch {
	case r.code != 1 || r.stdout != "" || len(lines) != 2,
		!strings.HasPrefix(lines[0], "canonical-livepatch: error: cannot "), !strings.Contains(lines[0], why),
		!strings.HasPrefix(lines[1], "canonical-livepatch: hint: "), !strings.Contains(lines[1], next):
		t.Errorf("the user was told\n%v\nwant an error with %q and a hint with %q", r, why, next)
	}
}

// refuses fails the test unless the command is refused with these words and
// nothing on the machine changes, with or without what is known of signed files.
func (m *machine) refuses(t *testing.T, signedFiles bool, why, next string, args ...string) {
	t.Helper()
	before := m.footprint(signedFiles)
	wantRefusal(t, m.cli(args...), why, next)
	wantSame(t, before, m.footprint(signedFiles))
}
