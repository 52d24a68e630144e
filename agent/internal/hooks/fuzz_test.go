package hooks

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is in the hook's own file, and in snapd's configuration, may be anything:
// there is a change or one line that says why not, and no secret in what is shown.
func FuzzChange(f *testing.F) {
	f.Add([]byte(`{"token":"set","log-level":"info"}`), "https-proxy", "http://me:pa55word@x.test:1", "token")
	f.Add([]byte(`{`), "ca-certs", "set", "")
	f.Add([]byte(`{"a":1}`), "remove-patch", "true", "set")
	f.Add([]byte(`null`), "remote-server", "https://x\ny", "a b")
	f.Fuzz(func(t *testing.T, seen []byte, key, value, token string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, seenFile), seen, 0o600); err != nil {
			t.Fatal(err)
		}
		env := Env{Data: dir, Note: func(string) {}}
		now := map[string]string{key: value, Token: token}
		change, err := changeOf(now, env.loadSeen(), nil)
		if err != nil {
			if strings.Contains(err.Error(), "\n") && !strings.Contains(value, "\n") {
				t.Errorf("more than a line: %q", err)
			}
			return
		}
		if _, err := json.Marshal(change); err != nil {
			t.Error(err)
		}
		show := shownBeforeStart(now)
		if token != "" && show[Token] != Set {
			t.Errorf("the token is shown as %q", show[Token])
		}
		if strings.Contains(value, ":pa55word@") && strings.Contains(show[key], "pa55word") && key == "https-proxy" {
			t.Errorf("the password is shown: %q", show[key])
		}
	})
}
