package hooks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/hooks"
	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/snapdtest"
)

const goodToken = "0123456789abcdef"

// A world is a machine with the snap: snapd, the daemon and the folders.
type world struct {
	t      *testing.T
	snapd  *snapdtest.Snapd
	daemon *daemon
	env    hooks.Env
	stderr bytes.Buffer
	notes  []string
	before map[string]any // snapd's configuration, for when the hook fails
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, snapd: snapdtest.New(t)}
	// A socket's path is at most 107 bytes long, and names of tests are long.
	data, err := os.MkdirTemp("", "hk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	w.daemon = &daemon{dir: data, cfg: config.Default()}
	t.Cleanup(w.daemon.stop)
	w.env = hooks.Env{
		Stderr: &w.stderr, Data: data, Common: t.TempDir(), Group: os.Getgid(),
		Snapd: snapd.New(w.snapd.Socket, snapdtest.Cookie),
		Note:  func(s string) { w.notes = append(w.notes, s) },
	}
	return w
}

// set is "snap set": a key without a value is unset. It returns what the user is
// told, "" if it went well.
func (w *world) set(args ...string) string {
	w.t.Helper()
	w.snapd.Do(func(s *snapdtest.Snapd) {
		w.before = map[string]any{}
		for k, v := range s.Config {
			w.before[k] = v
		}
	})
	values := map[string]string{}
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		values[key] = value
	}
	if err := w.env.Snapd.SetConfig(w.t.Context(), values); err != nil {
		w.t.Fatal(err)
	}
	w.stderr.Reset()
	if hooks.Main(w.t.Context(), w.env, hooks.Configure) == 0 {
		return ""
	}
	w.snapd.Do(func(s *snapdtest.Snapd) { s.Config = w.before })
	return w.stderr.String()
}

// wantShown fails the test unless snapd's configuration is this.
func (w *world) wantShown(want map[string]string) {
	w.t.Helper()
	got := map[string]string{}
	w.snapd.Do(func(s *snapdtest.Snapd) {
		for k, v := range s.Config {
			got[k] = fmt.Sprint(v)
		}
	})
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Error(diff)
	}
}

// wantChosen fails the test unless this is what the daemon's operator has chosen.
func (w *world) wantChosen(want map[string]string) {
	w.t.Helper()
	w.daemon.mu.Lock()
	defer w.daemon.mu.Unlock()
	if diff := cmp.Diff(want, w.daemon.cfg.Chosen()); diff != "" {
		w.t.Error(diff)
	}
}

func TestWhatIsSetTakesEffectAndUnsetIsTheDefault(t *testing.T) {
	w := newWorld(t)
	w.daemon.start(t)
	if said := w.set("remote-server=https://x.test/", "check-interval=120", "token="+goodToken); said != "" {
		t.Fatal(said)
	}
	w.wantChosen(map[string]string{"remote-server": "https://x.test", "check-interval": "120"})
	w.wantShown(map[string]string{"remote-server": "https://x.test", "check-interval": "120", "token": "set"})
	if said := w.set("remote-server="); said != "" {
		t.Fatal(said)
	}
	w.wantChosen(map[string]string{"check-interval": "120"})
	if said := w.set("token="); said != "" || w.daemon.token != "" {
		t.Errorf("%q; token %q", said, w.daemon.token)
	}
	w.wantShown(map[string]string{"check-interval": "120"})
}

func TestWhatIsRefusedChangesNothing(t *testing.T) {
	tests := map[string]struct {
		args []string
		say  string
	}{
		"a value":                {[]string{"log-level=info", "dial-timeout=soon"}, "cannot set dial-timeout: \"soon\" is not a duration"},
		"a token":                {[]string{"log-level=info", "token=wrong"}, "cannot enable this machine: Unknown Auth-Token\nhint: get another\n"},
		"a token with a space":   {[]string{"token=a b"}, "hint: get one from the service"},
		"a list":                 {[]string{`log-level=["info"]`}, ""},
		"remove-patch":           {[]string{"remove-patch=perhaps"}, `cannot set remove-patch: "perhaps" is not true or false`},
		"a password not shown":   {[]string{"https-proxy=http://me:xxxxx@proxy.test:1"}, "hint: give the password: sudo snap set canonical-livepatch https-proxy="},
		"certificates not shown": {[]string{"ca-certs=set"}, "cannot set ca-certs"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.daemon.start(t)
			if name == "a list" {
				w.snapd.Do(func(s *snapdtest.Snapd) { s.Config["log-level"] = []string{"info"} })
				if hooks.Main(t.Context(), w.env, hooks.Configure) == 0 || !strings.Contains(w.stderr.String(), "need a single value") {
					t.Errorf("said %q", w.stderr.String())
				}
				return
			}
			said := w.set(tc.args...)
			if !strings.Contains(said, tc.say) || said == "" || strings.Count(said, "\n") > 2 {
				t.Errorf("said %q, want %q", said, tc.say)
			}
			w.wantShown(map[string]string{})
			if len(w.daemon.changes) != 0 {
				t.Errorf("the daemon has taken %+v", w.daemon.changes)
			}
		})
	}
}

// The door that was used last counts.
func TestTwoDoors(t *testing.T) {
	w := newWorld(t)
	w.daemon.start(t)
	w.set("log-level=info", "dial-timeout=20s")
	door := func(values map[string]string) { // canonical-livepatch config
		if _, err := w.daemon.cfg.Apply(values); err != nil {
			t.Fatal(err)
		}
	}
	door(map[string]string{"log-level": "debug", "patch-delay": "7d", "dial-timeout": ""})
	// Something else is set: what was not touched here follows the other door.
	if said := w.set("check-interval=60"); said != "" {
		t.Fatal(said)
	}
	want := map[string]string{"log-level": "debug", "patch-delay": "1w", "check-interval": "60"}
	w.wantChosen(want)
	w.wantShown(want)
	// What is set here now wins over what the other door had before.
	w.set("log-level=error")
	want["log-level"] = "error"
	w.wantChosen(want)
	w.wantShown(want)
	w.daemon.token = goodToken // canonical-livepatch enable
	w.set("log-level=error")
	want["token"] = "set"
	w.wantShown(want)
	w.daemon.token = "" // canonical-livepatch disable
	w.set("log-level=info")
	delete(want, "token")
	want["log-level"] = "info"
	w.wantShown(want)
	if w.daemon.token != "" || slices.ContainsFunc(w.daemon.changes, func(c config.Change) bool { return c.Disable || c.AuthToken != "" }) {
		t.Error("the enrolment was touched")
	}
}

func TestNoSecretStaysInSnapdsConfiguration(t *testing.T) {
	w := newWorld(t)
	w.daemon.start(t)
	const proxy = "http://me:pa55word@proxy.test:3128"
	if said := w.set("https-proxy="+proxy, "token="+goodToken, "http-proxy=http://proxy.test:1"); said != "" {
		t.Fatal(said)
	}
	want := map[string]string{"https-proxy": "http://me:xxxxx@proxy.test:3128", "http-proxy": "http://proxy.test:1", "token": "set"}
	w.wantShown(want)
	n := len(w.daemon.changes)
	if said := w.set("token=set", "https-proxy=http://me:xxxxx@proxy.test:3128"); said != "" {
		t.Errorf("setting what is shown: %s", said)
	}
	w.wantShown(want)
	for _, c := range w.daemon.changes[n:] {
		if len(c.Config) > 0 || c.AuthToken != "" || c.Disable {
			t.Errorf("it has changed %+v", c)
		}
	}
	w.wantChosen(map[string]string{"https-proxy": proxy, "http-proxy": "http://proxy.test:1"})
	seen, err := os.ReadFile(filepath.Join(w.env.Data, "snapd-config.json"))
	if err != nil || bytes.Contains(seen, []byte("pa55word")) || bytes.Contains(seen, []byte(goodToken)) {
		t.Errorf("%v, %s", err, seen)
	}
}

func TestDaemonThatDoesNotRunFindsTheChangeLater(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{{"log-level=info", "token=" + goodToken}, {"https-proxy=http://me:pa55word@p.test:1"}, {"log-level=debug"}} {
		if said := w.set(args...); said != "" {
			t.Fatal(said)
		}
	}
	w.wantShown(map[string]string{"log-level": "debug", "https-proxy": "http://me:xxxxx@p.test:1", "token": "set"})
	path := filepath.Join(w.env.Common, "waiting", "change.json")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o640 {
		t.Fatalf("%v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode() != 0o770|fs.ModeDir {
		t.Errorf("%v, %v", info, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.ParseChange(b)
	want := config.Change{Config: map[string]string{"log-level": "debug", "https-proxy": "http://me:pa55word@p.test:1"}, AuthToken: goodToken}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	if len(w.notes) == 0 || !strings.Contains(w.notes[0], "the daemon does not run") {
		t.Errorf("notes = %q", w.notes)
	}
	// Unset: the last word counts.
	w.set("token=")
	b, _ = os.ReadFile(path)
	if got, _ := config.ParseChange(b); !got.Disable || got.AuthToken != "" {
		t.Errorf("after unset: %+v", got)
	}
	// The hook finds it before the daemon does.
	w.daemon.start(t)
	if said := w.set("dial-timeout=20s"); said != "" {
		t.Fatal(said)
	}
	w.wantChosen(map[string]string{"log-level": "debug", "https-proxy": "http://me:pa55word@p.test:1", "dial-timeout": "20s"})
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestTokenThatWaitsIsSet(t *testing.T) {
	w := newWorld(t)
	w.daemon.away = true
	w.daemon.start(t)
	if said := w.set("token=whatever"); said != "" {
		t.Fatal(said)
	}
	w.wantShown(map[string]string{"token": "set"})
	if !slices.Equal(w.notes, []string{"the token waits"}) {
		t.Errorf("notes = %q", w.notes)
	}
}

// A refresh runs the hook, too, and must not fail for a damaged file of the
// daemon's.
func TestNothingToDoNeverFails(t *testing.T) {
	tests := map[string]func(*world){
		"no daemon":                     func(*world) {},
		"daemon in trouble":             func(w *world) { w.daemon.broken = true; w.daemon.start(w.t) },
		"damaged memory of the hook":    func(w *world) { w.write(filepath.Join(w.env.Data, "snapd-config.json"), "{") },
		"damaged change for the daemon": func(w *world) { w.write(filepath.Join(w.env.Common, "waiting", "change.json"), "{") },
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			prepare(w)
			if said := w.set(); said != "" {
				t.Error(said)
			}
		})
	}
	w := newWorld(t)
	w.daemon.broken = true
	w.daemon.start(t)
	if said := w.set("log-level=info"); !strings.Contains(said, "it is damaged\nhint: repair it\n") {
		t.Errorf("said %q", said)
	}
}

func (w *world) write(path, content string) {
	w.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

// Files that somebody else has put in the hook's way are not believed.
func TestFilesOfOthers(t *testing.T) {
	w := newWorld(t)
	elsewhere := filepath.Join(t.TempDir(), "change.json")
	w.write(elsewhere, `{"config":{"remote-server":"https://evil.test"}}`)
	link := filepath.Join(w.env.Common, "waiting", "change.json")
	if err := errors.Join(os.Mkdir(filepath.Dir(link), 0o770), os.Symlink(elsewhere, link)); err != nil {
		t.Fatal(err)
	}
	w.daemon.start(t)
	if said := w.set("log-level=info"); said != "" {
		t.Errorf("said %q", said)
	}
	w.wantChosen(map[string]string{"log-level": "info"})
	w.daemon.stop()
	if said := w.set("log-level=debug"); said != "" {
		t.Errorf("said %q", said)
	}
	if b, err := os.ReadFile(elsewhere); err != nil || !strings.Contains(string(b), "evil") {
		t.Errorf("written through the link: %s, %v", b, err)
	}
}

func TestPlugHooksTellTheDaemonAndNeverFail(t *testing.T) {
	for _, name := range []string{hooks.Connect, hooks.Disconnect} {
		w := newWorld(t)
		if code := hooks.Main(t.Context(), w.env, name); code != 0 {
			t.Errorf("%s without a daemon: %d", name, code)
		}
		w.daemon.start(t)
		if code := hooks.Main(t.Context(), w.env, name); code != 0 || w.daemon.rechecks != 1 {
			t.Errorf("%s: %d, the daemon was told %d times", name, code, w.daemon.rechecks)
		}
	}
}

// fakeLoader takes livepatches out, or not.
type fakeLoader struct {
	names []string
	err   error
	calls int
}

func (l *fakeLoader) RemoveOurs(context.Context) ([]string, error) {
	l.calls++
	return l.names, l.err
}

func TestRemove(t *testing.T) {
	tests := map[string]struct {
		set    string
		loader fakeLoader
		away   bool // snapd
		calls  int
		notes  string
	}{
		"by default": {"", fakeLoader{}, false, 0, "stays in the kernel until the next reboot"},
		"not wanted": {"false", fakeLoader{}, false, 0, "stays in the kernel until the next reboot"},
		"wanted":     {"true", fakeLoader{names: []string{"lkp_1"}}, false, 1, "removed livepatch lkp_1 from the kernel"},
		"that fails": {"true", fakeLoader{err: errors.New("a task is slow")}, false, 1, "stays in the kernel until the next reboot: a task is slow"},
		"no snapd":   {"true", fakeLoader{}, true, 0, "stays in the kernel until the next reboot: cannot read"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.env.Loader = &tc.loader
			w.snapd.Do(func(s *snapdtest.Snapd) {
				if tc.set != "" {
					s.Config["remove-patch"] = tc.set == "true"
				}
				if tc.away {
					s.Status = 500
				}
			})
			if code := hooks.Main(t.Context(), w.env, hooks.Remove); code != 0 || tc.loader.calls != tc.calls || !strings.Contains(strings.Join(w.notes, "\n"), tc.notes) {
				t.Errorf("code %d, %d calls, notes %q; want %d, %q", code, tc.loader.calls, w.notes, tc.calls, tc.notes)
			}
		})
	}
}

func TestJournal(t *testing.T) {
	dir, err := os.MkdirTemp("", "jr")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var stderr bytes.Buffer
	hooks.Journal(socket, &stderr)("one\nPRIORITY=0\ntwo")
	b := make([]byte, 1000)
	n, err := l.Read(b)
	const want = "MESSAGE=one PRIORITY=0 two\nPRIORITY=5\nSYSLOG_IDENTIFIER=canonical-livepatch\n"
	if err != nil || string(b[:n]) != want || stderr.String() != "note: one PRIORITY=0 two\n" {
		t.Errorf("%v, %q, %q", err, b[:n], stderr.String())
	}
	hooks.Journal(filepath.Join(dir, "nothing"), &stderr)("without a journal") // and without a panic
}

// The reference names every key.
func TestReferenceNamesTheKeys(t *testing.T) {
	page, err := os.ReadFile("../../../docs/reference/snap.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{hooks.Token, hooks.RemovePatch, hooks.Configure, hooks.Connect, hooks.Disconnect, hooks.Remove} {
		if !strings.Contains(string(page), "`"+word+"`") {
			t.Errorf("snap.md does not name %s", word)
		}
	}
}
