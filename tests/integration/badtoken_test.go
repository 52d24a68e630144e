//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"livepatch/tests/lab"
)

func TestEnableWithABadToken(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	m.Join(s, s.URL())

	expired := s.Token("-expires", "1ms")
	revoked := s.Token("-note", "to be revoked")
	s.Admin("token", "revoke", tokenID(t, s, "to be revoked"))
	time.Sleep(2 * time.Millisecond)
	tests := map[string]struct{ token, why, next string }{
		"a token that nobody made":      {"0123456789abcdef0123456789abcdef", "the service does not know the token", "get a token from the service"},
		"a token that has expired":      {expired, "the token has expired", "get a new token"},
		"a token that was revoked":      {revoked, "the token has been revoked", "get a new token"},
		"a token that is a file name":   {"/root/token", "the service does not know the token", "get a token from the service"},
		"a publisher's token":           {s.Admin("publisher-token", "create"), "the service does not know the token", "get a token from the service"},
		"a token that is much too long": {strings.Repeat("x", 8000), "the service does not know the token", "get a token from the service"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) { m.Refuses(t, true, tc.why, tc.next, "enable", tc.token) })
	}
	if r := m.CLI("status"); r.Code != 1 || !strings.Contains(r.Stderr, "Machine is not enabled") {
		t.Errorf("status after that: %v", r)
	}
}

// tokenID returns the id of the token with a note.
func tokenID(t *testing.T, s *lab.Service, note string) string {
	t.Helper()
	for line := range strings.Lines(s.Admin("token", "list")) {
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
	s := lab.NewService(t)
	m := lab.NewMachine(t, s.Pinned())
	m.Join(s, s.URL())
	m.OK("enable", s.Token("-note", "lost"))
	m.OK("refresh")
	m.Accepts(lab.NewModule(1))

	s.Admin("token", "revoke", tokenID(t, s, "lost"))
	m.Refuses(t, true, "the token has been revoked", "get a new token", "refresh")
	m.WantInForce(lab.NewModule(1))
	m.WantStatus(lab.NewModule(1), "check-failed", "applied")

	m.OK("enable", s.Token()) // without disabling first
	m.OK("refresh")
	m.WantStatus(lab.NewModule(1), "checked", "applied")
}
