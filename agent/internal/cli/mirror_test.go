package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/agent/internal/cli"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/snapdtest"
)

// serveStanding returns a folder with the sockets of a daemon that does whatever
// it is asked, and how things stand with it then.
func serveStanding(t *testing.T, standing *config.Standing) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lp") // the paths of t.TempDir are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "livepatchd-priv.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for _, path := range []string{"PUT /config", "PUT /enable", "PUT /disable"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "done") })
	}
	mux.HandleFunc("PUT /configure", func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); string(b) != "{}" {
			t.Errorf("it was asked to change %s", b)
		}
		_ = json.NewEncoder(w).Encode(standing)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		_ = os.RemoveAll(dir)
	})
	return dir
}

func TestSnapdShowsWhatTheCommandHasChanged(t *testing.T) {
	standing := &config.Standing{Config: map[string]string{"log-level": "info", "https-proxy": "http://me:pa55word@p.test:1"}, Enabled: true}
	dir := serveStanding(t, standing)
	fake := snapdtest.New(t)
	fake.Config = map[string]any{"log-level": "debug", "patch-delay": "1w", "remove-patch": true}
	tests := []struct {
		args []string
		want map[string]string
	}{
		{[]string{"config", "log-level=info"}, map[string]string{"log-level": "info", "https-proxy": "http://me:xxxxx@p.test:1", "token": "set", "remove-patch": "true"}},
		{[]string{"disable"}, map[string]string{"log-level": "info", "https-proxy": "http://me:xxxxx@p.test:1", "remove-patch": "true"}},
		{[]string{"enable", "t0ken"}, map[string]string{"log-level": "info", "https-proxy": "http://me:xxxxx@p.test:1", "token": "set", "remove-patch": "true"}},
	}
	for _, tc := range tests {
		standing.Enabled = tc.args[0] != "disable"
		var stdout, stderr bytes.Buffer
		env := cli.Env{Stdout: &stdout, Stderr: &stderr, RunDir: dir, Snap: true, Snapd: snapd.New(fake.Socket, snapdtest.Cookie)}
		if code := cli.Main(t.Context(), env, tc.args); code != 0 || stderr.Len() > 0 {
			t.Errorf("%q: %d, %s", tc.args, code, stderr.String())
		}
		got := map[string]string{}
		for key := range fake.Config {
			got[key] = fake.Get(key)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q: %s", tc.args, diff)
		}
	}
}

func TestChangeIsMadeAlsoIfSnapdCannotBeTold(t *testing.T) {
	dir := serveStanding(t, &config.Standing{Enabled: true})
	fake := snapdtest.New(t)
	fake.Do(func(s *snapdtest.Snapd) { s.Ordinary = true })
	var stdout, stderr bytes.Buffer
	env := cli.Env{Stdout: &stdout, Stderr: &stderr, RunDir: dir, Snap: true, Snapd: snapd.New(fake.Socket, snapdtest.Cookie)}
	code := cli.Main(t.Context(), env, []string{"enable", "t0ken"})
	if code != 0 || stdout.String() != "done\n" || !strings.HasPrefix(stderr.String(), "canonical-livepatch: note: snap get does not show it yet: ") || strings.Contains(stderr.String(), "t0ken") {
		t.Errorf("%d, %q, %q", code, stdout.String(), stderr.String())
	}
}
