package snapd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/snapdtest"
)

func TestConnected(t *testing.T) {
	t.Parallel()
	fake := snapdtest.New(t)
	fake.Connected = []string{"kernel-module-control"}
	fake.Plugs = []string{"kernel-module-control", "network"}
	c := snapd.New(fake.Socket, snapdtest.Cookie)
	for plug, want := range map[string]bool{"kernel-module-control": true, "network": false} {
		if got, err := c.Connected(t.Context(), plug); err != nil || got != want {
			t.Errorf("Connected(%s) = %v, %v; want %v", plug, got, err, want)
		}
	}
	if _, err := c.Connected(t.Context(), "toaster"); err == nil || !strings.Contains(err.Error(), `no plug or slot named "toaster"`) {
		t.Errorf("a plug that is none: %v", err)
	}
}

func TestConfigurationIsText(t *testing.T) {
	t.Parallel()
	fake := snapdtest.New(t)
	fake.Config = map[string]any{"check-interval": 120, "tls-patch-download": true, "remote-server": "https://x", "http-proxy": nil, "other": "x"}
	c := snapd.New(fake.Socket, snapdtest.Cookie)
	got, err := c.Config(t.Context(), "check-interval", "tls-patch-download", "remote-server", "http-proxy", "token")
	want := map[string]string{"check-interval": "120", "tls-patch-download": "true", "remote-server": "https://x"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Config: %v, %s", err, diff)
	}
	fake.Do(func(s *snapdtest.Snapd) { s.Config["remote-server"] = []string{"a"} })
	var bad *snapd.ValueError
	if _, err := c.Config(t.Context(), "remote-server"); !errors.As(err, &bad) || bad.Key != "remote-server" {
		t.Errorf("a list: %v", err)
	}
}

// What is set comes back as it was, whatever it looks like.
func TestSetConfigKeepsText(t *testing.T) {
	t.Parallel()
	fake := snapdtest.New(t)
	c := snapd.New(fake.Socket, snapdtest.Cookie)
	values := map[string]string{"a": "120", "b": "true", "c": "null", "d": `{"x": 1}`, "e": "two\nlines <&>\n", "f": "1e400", "g": "-dash", "h": `"quoted"`}
	if err := c.SetConfig(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	got, err := c.Config(t.Context(), "a", "b", "c", "d", "e", "f", "g", "h")
	if diff := cmp.Diff(values, got); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	if err := c.SetConfig(t.Context(), map[string]string{"a": ""}); err != nil {
		t.Fatal(err)
	}
	if _, there := fake.Config["a"]; there {
		t.Error("the empty value does not unset")
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		health snapd.Health
		want   string
	}{
		"okay":             {snapd.Health{Status: snapd.Okay, Message: "all is well", Code: "fine"}, "okay"},
		"with a code":      {snapd.Health{Status: snapd.Blocked, Message: "connect it", Code: "not-connected"}, "blocked not-connected connect it"},
		"too short":        {snapd.Health{Status: snapd.Waiting, Message: "no"}, "waiting  canonical-livepatch: no"},
		"too long":         {snapd.Health{Status: snapd.Broken, Message: strings.Repeat("ä", 80)}, "error  " + strings.Repeat("ä", 69) + "…"},
		"more than a line": {snapd.Health{Status: snapd.Broken, Message: "one\ntwo  three"}, "error  one two three"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := snapdtest.New(t)
			if err := snapd.New(fake.Socket, snapdtest.Cookie).SetHealth(t.Context(), tc.health); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{tc.want}, fake.Health); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestServices(t *testing.T) {
	t.Parallel()
	fake := snapdtest.New(t)
	fake.Services = "Service                                   Startup   Current   Notes\n" +
		"canonical-livepatch.boot                  enabled   inactive  -\n" +
		"canonical-livepatch.canonical-livepatchd  enabled   active    -\n" +
		"canonical-livepatch.loader                disabled  inactive  socket-activated\n"
	got, err := snapd.New(fake.Socket, snapdtest.Cookie).Services(t.Context())
	want := []snapd.Service{
		{Name: "boot", Enabled: true}, {Name: "canonical-livepatchd", Enabled: true, Active: true}, {Name: "loader", Socket: true},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
}

// Whatever snapd is like, the answer is an error of which something can be made.
func TestSnapdInTrouble(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*snapdtest.Snapd)
		cookie string
		want   error // nil: any
		text   string
	}{
		"knows the command not": {func(s *snapdtest.Snapd) { s.Old = []string{"set"} }, "", snapd.ErrTooOld, "Unknown command"},
		"forbids it":            {func(s *snapdtest.Snapd) { s.Ordinary = true }, "", snapd.ErrForbidden, "try with sudo"},
		"does not know the cookie": {func(*snapdtest.Snapd) {}, "x", nil,
			"outside of a snap"},
		"answers nonsense": {func(s *snapdtest.Snapd) { s.Status = 500 }, "", snapd.ErrAway, "cannot decode"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := snapdtest.New(t)
			fake.Do(tc.change)
			cookie := snapdtest.Cookie
			if tc.cookie != "" {
				cookie = tc.cookie
			}
			err := snapd.New(fake.Socket, cookie).SetConfig(t.Context(), map[string]string{"a": "b"})
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("err = %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
}

func TestSnapdIsAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "nothing"), file} {
		if _, err := snapd.New(socket, "").Connected(t.Context(), "network"); !errors.Is(err, snapd.ErrAway) {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

// One that is stopped accepts connections, by its socket unit, and is silent.
func TestSilentSnapdIsNotWaitedForLongerThanTheContext(t *testing.T) {
	t.Parallel()
	fake := snapdtest.New(t)
	fake.Do(func(s *snapdtest.Snapd) { s.Hangs = true })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := snapd.New(fake.Socket, snapdtest.Cookie).Connected(ctx, "network"); !errors.Is(err, snapd.ErrAway) {
		t.Errorf("err = %v", err)
	}
}
