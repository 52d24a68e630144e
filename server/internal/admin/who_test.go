package admin_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"livepatch/server/internal/admin"
)

func TestWho(t *testing.T) {
	names := map[string]string{"0": "root", "990": "livepatch", "1000": "alice"}
	tests := map[string]struct {
		uid     int
		login   string
		account string
		id      string
	}{
		"a user":                          {1000, "1000\n", "alice (uid 1000)", "uid 1000"},
		"a user who became root":          {0, "1000\n", "root (uid 0), logged in as alice (uid 1000)", "uid 1000"},
		"a user who became the service":   {990, "1000", "livepatch (uid 990), logged in as alice (uid 1000)", "uid 1000"},
		"root without a login":            {0, "4294967295\n", "root (uid 0)", "uid 0, no login"},
		"a kernel without audit":          {1001, "", "uid 1001", "uid 1001, no login"},
		"a user whom nobody knows a name": {1001, "1001", "uid 1001", "uid 1001"},
		"an account that is gone":         {1007, "1008", "uid 1007, logged in as uid 1008", "uid 1008"},
		"a number that is no UID":         {0, "99999999999\n", "root (uid 0)", "uid 0, no login"},
		"zeros before the number":         {0, "01000", "root (uid 0), logged in as alice (uid 1000)", "uid 1000"},
		"no number":                       {1000, "alice", "alice (uid 1000)", "uid 1000, no login"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := admin.Who(tc.uid, tc.login, func(uid string) (string, error) {
				if n, ok := names[uid]; ok {
					return n, nil
				}
				return "", errors.New("unknown")
			})
			if got.Account != tc.account || got.ID != tc.id {
				t.Errorf("got %+v, want %q, %q", got, tc.account, tc.id)
			}
		})
	}
}

// FuzzWho reads any content of /proc/self/loginuid. What goes into the record of
// decisions is one line that begins with who runs the command, and who counts as the
// same person is a number.
func FuzzWho(f *testing.F) {
	for _, s := range []string{"1000\n", "4294967295", "", "-1", "0x10", "1000\n1001", "\x00", "01000"} {
		f.Add(1, s)
	}
	id := regexp.MustCompile(`^uid (0|[1-9][0-9]*)(, no login)?$`)
	f.Fuzz(func(t *testing.T, uid int, login string) {
		got := admin.Who(max(uid, 0), login, func(string) (string, error) { return "", errors.New("unknown") })
		if !strings.HasPrefix(got.Account, "uid ") || strings.ContainsAny(got.Account, "\n\x00\x1b") || !id.MatchString(got.ID) {
			t.Errorf("who is %+v", got)
		}
	})
}
