package admin_test

import (
	"errors"
	"strings"
	"testing"

	"livepatch/server/internal/admin"
)

// FuzzAccount reads any content of /proc/self/loginuid. What goes into the
// record of decisions is one line that begins with who runs the command.
func FuzzAccount(f *testing.F) {
	for _, s := range []string{"1000\n", "4294967295", "", "-1", "0x10", "1000\n1001", "\x00"} {
		f.Add(0, s)
	}
	f.Fuzz(func(t *testing.T, uid int, login string) {
		got := admin.Account(uid, login, func(string) (string, error) { return "", errors.New("unknown") })
		if !strings.HasPrefix(got, "uid ") || strings.ContainsAny(got, "\n\x00\x1b") {
			t.Errorf("account is %q", got)
		}
	})
}
