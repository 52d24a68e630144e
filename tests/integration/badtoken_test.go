//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

func TestEnableWithABadToken(t *testing.T) {
	t.Parallel()
	s := newService(t)
	m := newMachine(t, s.pinned())
	m.join(s, s.url())

	expired := s.token("-expires", "1ms")
	revoked := s.token("-note", "to be revoked")
	s.admin("token", "revoke", tokenID(t, s, "to be revoked"))
	time.Sleep(2 * time.Millisecond)
	tests := map[string]struct{ token, why, next string }{
		"a token that nobody made":      {"0123456789abcdef0123456789abcdef", "the service does not know the token", "get a token from the service"},
		"a token that has expired":      {expired, "the token has expired", "get a new token"},
		"a token that was revoked":      {revoked, "the token has been revoked", "get a new token"},
		"a token that is a file name":   {"/root/token", "the service does not know the token", "get a token from the service"},
		"a publisher's token":           {s.admin("publisher-token", "create"), "the service does not know the token", "get a token from the service"},
		"a token that is much too long": {strings.Repeat("x", 8000), "the service does not know the token", "get a token from the service"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) { m.refuses(t, true, tc.why, tc.next, "enable", tc.token) })
	}
	if r := m.cli("status"); r.code != 1 || !strings.Contains(r.stderr, "Machine is not enabled") {
		t.Errorf("status after that: %v", r)
	}
}

// tokenID returns the id of the token with a note.
func tokenID(t *testing.T, s *service, note string) string {
	t.Helper()
	for line := range strings.Lines(s.admin("token", "list")) {
		if strings.Contains(line, note) {
			return strings.Fields(line)[0]
		}
	}
	t.Fatalf("no token has the note %q", note)
	return ""
}

// The token that enrolled a machine is revoked while the machine is out there.
func TestARevokedMachineKeepsItsPatchAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := newService(t)
	m := newMachine(t, s.pinned())
	m.join(s, s.url())
	m.ok("enable", s.token("-note", "lost"))
	m.ok("refresh")
	m.accepts(newModule(1))

	s.admin("token", "revoke", tokenID(t, s, "lost"))
	m.refuses(t, true, "the token has been revoked", "get a new token", "refresh")
	m.wantInForce(newModule(1))
	m.wantStatus(newModule(1), "check-failed", "applied")

	m.ok("enable", s.token()) // without disabling first
	m.ok("refresh")
	m.wantStatus(newModule(1), "checked", "applied")
}
