package main

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"livepatch/agent/internal/cli"
	"livepatch/agent/internal/hooks"
	"livepatch/agent/internal/localapi"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/snapd"
	"livepatch/agent/internal/snapdtest"
)

// inSnap makes the programs that the test starts believe that they are in a snap,
// whose snapd is away.
func inSnap(t *testing.T) {
	t.Helper()
	t.Setenv("SNAP", "/snap/canonical-livepatch/x1")
	t.Setenv("SNAP_COOKIE", "none")
}

// A damaged file does not end the daemon of a snap, and whoever asks learns of it.
func TestStaysUpWithADamagedConfiguration(t *testing.T) {
	w := newWorld(t)
	config := filepath.Join(w.dir, "data/config")
	w.must(os.WriteFile(config, []byte("dial-timeout: soon\n"), 0o644))

	outside := w.launch()
	if err := <-outside.done; err == nil {
		t.Error("outside of a snap it has ended well")
	}
	inSnap(t)
	d := w.start()
	for _, socket := range []string{localapi.PublicSocket, localapi.PrivateSocket} {
		w.want(socket, http.MethodGet, "/status", "", 503, "dial-timeout")
		w.want(socket, http.MethodPut, "/enable", "", 503, "hint: repair the file or move it away")
	}
	w.must(os.Remove(config))
	w.stop(d)
	if got := d.text(); strings.Count(got, "Cannot work") != 1 {
		t.Errorf("its log:\n%s", got)
	}
	w.stop(w.start())
}

// What nobody can repair while it runs does not make systemd start it for ever.
func TestCannotStartEndsWellInASnap(t *testing.T) {
	w := newWorld(t)
	inSnap(t)
	w.must(os.Remove(filepath.Join(w.dir, "root.json")))
	d := w.launch()
	select {
	case err := <-d.done:
		if err != nil || !strings.Contains(d.text(), "canonical-livepatchd: error: cannot read TUF root") {
			t.Errorf("%v; it said:\n%s", err, d.text())
		}
	case <-time.After(20 * time.Second):
		t.Error("it runs")
	}
}

// hookEnv is the world as a hook sees it.
func (w *world) hookEnv(snap *snapdtest.Snapd, stderr io.Writer) hooks.Env {
	group := os.Getgid()
	if os.Getuid() == 0 {
		group = nobody
	}
	return hooks.Env{Stderr: stderr, Data: filepath.Join(w.dir, "run"), Common: w.dir, Group: group,
		Snapd: snapd.New(snap.Socket, snapdtest.Cookie), Note: func(string) {}}
}

// set is "snap set", against the real daemon.
func (w *world) set(snap *snapdtest.Snapd, values map[string]string) string {
	w.t.Helper()
	var said strings.Builder
	env := w.hookEnv(snap, &said)
	w.must(env.Snapd.SetConfig(w.t.Context(), values))
	if hooks.Main(w.t.Context(), env, hooks.Configure) != 0 && said.Len() == 0 {
		w.t.Error("the hook has failed without a word")
	}
	return said.String()
}

func TestSnapSet(t *testing.T) {
	w := newWorld(t)
	snap := snapdtest.New(t)
	inSnap(t)
	waiting := filepath.Join(w.dir, "waiting")
	// Nothing runs yet: what is set waits.
	if said := w.set(snap, map[string]string{"token": servicetest.AuthToken, "log-level": "info"}); said != "" {
		t.Fatal(said)
	}
	d := w.start("-waiting", waiting)
	w.state("patchState: applied")
	if left, _ := filepath.Glob(waiting + "/*"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if said := w.set(snap, map[string]string{"token": "wrong"}); !strings.Contains(said, "Unknown Auth-Token") || !strings.Contains(said, "\nhint: ") {
		t.Errorf("a wrong token: %q", said)
	}
	snap.Do(func(s *snapdtest.Snapd) { s.Config["token"] = "set" }) // snapd takes back what the hook refused
	w.state("patchState: applied")
	if said := w.set(snap, map[string]string{"token": ""}); said != "" {
		t.Errorf("unset: %q", said)
	}
	w.want(localapi.PublicSocket, http.MethodGet, "/status", "", 400, "Machine is not enabled. Please run")

	w.service.Override(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	if said := w.set(snap, map[string]string{"token": servicetest.AuthToken}); said != "" {
		t.Errorf("while the service is away: %q", said)
	}
	w.want(localapi.PublicSocket, http.MethodGet, "/status", "", 400, "Machine is not enabled. enabling: waiting for the service: ")
	if got := snap.Get("token"); got != "set" {
		t.Errorf("snap get shows %q", got)
	}
	w.service.Override(nil)
	w.stop(d)
	d = w.start("-waiting", waiting)
	w.state("patchState: applied")
	w.stop(d)
}

// Everybody may connect to the private socket of a snap, and only the agent's user
// and root are answered.
func TestPrivateSocketInASnap(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	w := newWorld(t)
	inSnap(t)
	d := w.start()
	socket := filepath.Join(w.dir, "run", localapi.PrivateSocket)
	if info, err := os.Stat(socket); err != nil || info.Mode() != 0o666|os.ModeSocket {
		t.Errorf("%v, %v", info, err)
	}
	cmd := curl(socket, "/disable")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "cannot do this as an ordinary user\nhint: run it with sudo\n" {
		t.Errorf("%s, %v", out, err)
	}
	w.stop(d)
}

// The log of a daemon whose level nobody has set tells what was done, in order,
// and gives no secret away.
func TestLogTellsTheStory(t *testing.T) {
	w := newWorld(t)
	config := strings.Replace(w.config(), `"log-level":"debug",`, "", 1)
	w.must(os.WriteFile(filepath.Join(w.dir, "data/config"), []byte(config), 0o644))
	d := w.start()
	if code, _, err := w.call(localapi.PrivateSocket, http.MethodPut, "/enable", `{"auth_token":"wr0ng-token"}`); err != nil || code == 200 {
		t.Fatalf("%d, %v", code, err)
	}
	w.enable()
	w.state("patchState: applied")
	token := w.token()
	w.want(localapi.PrivateSocket, http.MethodPut, "/config", `{"https-proxy":"http://me:pa55word@127.0.0.1:1","no-proxy":"127.0.0.1"}`, 204, "")
	w.want(localapi.PrivateSocket, http.MethodPut, "/disable", "", 200, "Removed")
	w.stop(d)
	rest := d.text()
	for _, line := range []string{"level=NOTICE msg=Started", "level=NOTICE msg=Enabled", `level=NOTICE msg="Fetched file"`, `level=NOTICE msg="Applied livepatch"`,
		`level=NOTICE msg="Changed the configuration"`, "level=NOTICE msg=Disabled", "level=NOTICE msg=Stopped"} {
		_, after, ok := strings.Cut(rest, line)
		if !ok {
			t.Fatalf("no %q, or not in this order, in\n%s", line, d.text())
		}
		rest = after
	}
	for _, secret := range []string{"pa55word", "wr0ng-token", servicetest.AuthToken, token} {
		if strings.Contains(d.text(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, d.text())
		}
	}
	if strings.Contains(d.text(), "level=INFO") || strings.Contains(d.text(), "level=DEBUG") {
		t.Errorf("it says more than the story:\n%s", d.text())
	}
}

// token returns the machine token.
func (w *world) token() string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "data/machine-token"))
	if err != nil || len(b) < 32 {
		w.t.Fatal(errors.Join(err, errors.New("no token")))
	}
	return strings.TrimSpace(string(b))
}

// The command changes the daemon and then snapd's configuration, for which snapd
// runs the hook, which asks the daemon: nobody waits for anybody, and all agree.
func TestTwoDoorsToOneDaemon(t *testing.T) {
	w := newWorld(t)
	snap := snapdtest.New(t)
	inSnap(t)
	d := w.start()
	var said strings.Builder
	inHook := false
	snap.Do(func(s *snapdtest.Snapd) {
		s.OnSet = func() {
			if inHook {
				return // what a hook sets runs no hook
			}
			inHook = true
			defer func() { inHook = false }()
			if code := hooks.Main(t.Context(), w.hookEnv(snap, &said), hooks.Configure); code != 0 {
				t.Errorf("the hook: %d, %s", code, said.String())
			}
		}
	})
	command := func(args ...string) string {
		var stdout, stderr strings.Builder
		env := cli.Env{Stdout: &stdout, Stderr: &stderr, RunDir: filepath.Join(w.dir, "run"), Snap: true, Snapd: snapd.New(snap.Socket, snapdtest.Cookie)}
		if code := cli.Main(t.Context(), env, args); code != 0 || stderr.Len() > 0 {
			t.Errorf("%q: %d, %s", args, code, stderr.String())
		}
		return stdout.String()
	}
	command("enable", servicetest.AuthToken)
	command("config", "patch-delay=7d", "https-proxy=http://me:pa55word@127.0.0.1:1", "no-proxy=127.0.0.1")
	for key, want := range map[string]string{"token": "set", "patch-delay": "1w", "https-proxy": "http://me:xxxxx@127.0.0.1:1"} {
		if got := snap.Get(key); got != want {
			t.Errorf("snap get %s shows %q, want %q", key, got, want)
		}
	}
	w.must(w.hookEnv(snap, &said).Snapd.SetConfig(t.Context(), map[string]string{"patch-delay": "1h", "no-proxy": "localhost,127.0.0.1"}))
	if got := command("config"); !strings.Contains(got, "patch-delay: 1h\n") || !strings.Contains(got, "https-proxy: http://me:pa55word@127.0.0.1:1\n") {
		t.Errorf("config shows %s", got)
	}
	command("disable")
	if got := snap.Get("token"); got != "" {
		t.Errorf("after disable snap get shows the token %q", got)
	}
	w.stop(d)
}
