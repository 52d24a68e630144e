package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/localapi"
	"livepatch/agent/internal/servicetest"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// nobody is who the agent runs as where the tests run as root.
const nobody = 65534

var (
	kernel = patch.Kernel{Arch: facts.Arch(), Release: "6.1.0-53-amd64", BuildID: "7477656e7479206279746573206f662073686131"}
	module = patch.Module{Kernel: kernel, Flavour: "amd64", Name: "lkp_Debian_6_1_0_53_amd64_1", Version: "1.1", Sequence: 1,
		Notice: "LSN-0001-1", Fixes: []string{"CVE-2026-0001"}}
	content = bytes.Repeat([]byte("module "), 36_000) // 250 KB
)

// program is the binary as it ships, built once.
var program string

func TestMain(m *testing.M) {
	if try := os.Getenv("LIVEPATCH_TRY"); try != "" {
		tryConfined(try, os.Getenv("LIVEPATCH_FOLDER"))
		return
	}
	dir, err := os.MkdirTemp("", "livepatchd")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "canonical-livepatchd")
	build := exec.Command("go", "build", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// A world is a machine, a loader and a service.
type world struct {
	t       *testing.T
	dir     string
	service *servicetest.Service
	loader  *loadertest.Fake
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), loader: loadertest.New(kernel)}
	repo := servicetest.NewRepo()
	repo.Add(module, content, servicetest.Everyone())
	repo.Publish()
	w.service = servicetest.New(repo)
	t.Cleanup(w.service.Close)
	// A socket's path is at most 107 bytes long, and names of tests are long.
	sockets, err := os.MkdirTemp("", "lp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	w.must(os.Symlink(sockets, filepath.Join(w.dir, "run")))
	stop, err := w.loader.Serve(filepath.Join(sockets, "loader.sock"))
	w.must(err)
	t.Cleanup(stop)
	w.must(os.Chmod(sockets, 0o755))
	w.must(os.Chmod(filepath.Join(sockets, "loader.sock"), 0o777))
	for name, s := range map[string]string{
		"root.json":                             string(repo.Root()),
		"kernel/proc/sys/kernel/osrelease":      kernel.Release + "\n",
		"kernel/proc/sys/kernel/random/boot_id": "0b6a4a63-7b36-4a2e-8a0d-6e1f5a5c9d11\n",
		"kernel/proc/stat":                      "btime 1763780000\n",
		"kernel/etc/os-release":                 "ID=debian\n",
		"kernel/sys/kernel/notes":               string(notes()),
		"data/config":                           w.config(),
	} {
		path := filepath.Join(w.dir, name)
		w.must(os.MkdirAll(filepath.Dir(path), 0o755))
		w.must(os.WriteFile(path, []byte(s), 0o644))
	}
	if os.Getuid() == 0 {
		for _, name := range []string{sockets, filepath.Join(w.dir, "data"), filepath.Join(w.dir, "data/config")} {
			w.must(os.Chown(name, nobody, nobody))
		}
		// The folders of tests are closed to others.
		for dir := w.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			w.must(os.Chmod(dir, 0o755))
		}
	}
	return w
}

// notes returns the kernel's notes with the build-id of kernel.
func notes() []byte {
	id := []byte("twenty bytes of sha1")
	var b []byte
	for _, n := range []uint32{4, uint32(len(id)), 3} {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return append(append(b, "GNU\x00"...), id...)
}

func (w *world) config() string {
	b, err := json.Marshal(map[string]string{"remote-server": w.service.URL, "ca-certs": string(w.service.CA), "log-level": "debug"})
	w.must(err)
	return string(b) // JSON is YAML
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) args(more ...string) []string {
	return append([]string{"-data", filepath.Join(w.dir, "data"), "-run", filepath.Join(w.dir, "run"),
		"-loader", filepath.Join(w.dir, "run", "loader.sock"), "-root", filepath.Join(w.dir, "root.json"),
		"-kernel", filepath.Join(w.dir, "kernel")}, more...)
}

// A daemon is the program, running.
type daemon struct {
	*exec.Cmd
	log  *os.File
	done chan error
}

// command returns the program as an ordinary user would start it.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// start starts the program and waits until it answers.
func (w *world) start(args ...string) *daemon {
	w.t.Helper()
	d := w.launch(args...)
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, _, err := w.call(localapi.PublicSocket, http.MethodGet, "/version", ""); err == nil {
			return d
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("agent does not answer; its log:\n%s", d.text())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// launch starts the program.
func (w *world) launch(args ...string) *daemon {
	w.t.Helper()
	log, err := os.CreateTemp(w.dir, "log")
	w.must(err)
	d := &daemon{Cmd: w.command(w.args(args...)...), log: log, done: make(chan error, 1)}
	d.Stderr = log
	w.must(d.Start())
	go func() { d.done <- d.Wait() }()
	w.t.Cleanup(func() { _ = d.Process.Kill() })
	return d
}

func (d *daemon) text() string {
	b, _ := os.ReadFile(d.log.Name())
	return string(b)
}

// kill ends the program as a power cut would, as far as the program can tell.
func (d *daemon) kill() { _ = d.Process.Kill(); <-d.done }

// stop ends the program as systemd does.
func (w *world) stop(d *daemon) {
	w.t.Helper()
	w.must(d.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-d.done:
		if err != nil {
			w.t.Errorf("agent ended with %v; its log:\n%s", err, d.text())
		}
	case <-time.After(15 * time.Second):
		w.t.Fatalf("agent does not end; its log:\n%s", d.text())
	}
}

// call sends a request to a socket.
func (w *world) call(socket, method, path, body string) (int, string, error) {
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(w.dir, "run", socket))
		}}}
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	w.must(err)
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// want calls and fails the test unless the answer has the status and the text.
func (w *world) want(socket, method, path, body string, code int, text string) string {
	w.t.Helper()
	got, answer, err := w.call(socket, method, path, body)
	if err != nil || got != code || !strings.Contains(answer, text) {
		w.t.Fatalf("%s %s = %d %q, %v; want %d %q", method, path, got, answer, err, code, text)
	}
	return answer
}

func (w *world) enable() {
	w.t.Helper()
	w.want(localapi.PrivateSocket, http.MethodPut, "/enable", `{"auth_token":"`+servicetest.AuthToken+`"}`, 200, "Successfully enabled device")
}

// state waits until the status has the text.
func (w *world) state(text string) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, answer, err := w.call(localapi.PublicSocket, http.MethodGet, "/status?verbose=True", "")
		if err == nil && strings.Contains(answer, text) {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no %q in status %q, %v", text, answer, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestFromEnableToDisable(t *testing.T) {
	w := newWorld(t)
	d := w.start()
	w.want(localapi.PublicSocket, http.MethodGet, "/status", "", 400, "Machine is not enabled. Please run 'sudo canonical-livepatch enable' with the\ntoken")
	w.want(localapi.PublicSocket, http.MethodPut, "/enable", "", 404, "")
	w.enable()
	w.want(localapi.PrivateSocket, http.MethodPut, "/enable?auth-token=x", "", 409, "Machine-token already exists! Please use 'disable'")
	w.state("patchState: applied")
	w.want(localapi.PublicSocket, http.MethodGet, "/status?format=json", "", 200, `"State": "applied"`)
	w.want(localapi.PrivateSocket, http.MethodPut, "/refresh", "", 200, "patch version: 1.1")
	w.want(localapi.PublicSocket, http.MethodGet, "/kernel-upgrade-required", "", 204, "")

	// Everything is still known after a restart.
	w.stop(d)
	d = w.start()
	w.state("patchState: applied")

	w.want(localapi.PrivateSocket, http.MethodPut, "/disable", "", 200, "Successfully disabled device. Removed machine-token: ")
	w.want(localapi.PublicSocket, http.MethodGet, "/status", "", 400, "Machine is not enabled")
	if _, err := os.Stat(filepath.Join(w.dir, "data", "machine-token")); err == nil {
		t.Error("the token is still there")
	}
	if n := w.service.Machines(); n != 0 {
		t.Errorf("the service still knows %d machines", n)
	}
	w.stop(d)
	if calls := w.loader.Made(); len(calls) != 1 || calls[0] != "apply "+patch.ModulePath("debian", module) {
		t.Errorf("loader was asked for %q", calls)
	}
}

func TestModes(t *testing.T) {
	w := newWorld(t)
	d := w.start()
	w.enable()
	w.state("patchState: applied")
	for name, want := range map[string]os.FileMode{
		"data/machine-token": 0o600, "data/machine-id": 0o600, "data/state.json": 0o600, "data/cache": 0o700 | os.ModeDir,
		"run/livepatchd.sock": 0o666 | os.ModeSocket, "run/livepatchd-priv.sock": 0o600 | os.ModeSocket,
	} {
		fi, err := os.Stat(filepath.Join(w.dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if fi.Mode() != want {
			t.Errorf("%s: mode %v, want %v", name, fi.Mode(), want)
		}
	}
	w.stop(d)
}

func TestSecondAgentLeavesTheFirstAlone(t *testing.T) {
	w := newWorld(t)
	first := w.start()
	w.enable()
	w.state("patchState: applied")
	second := w.launch()
	select {
	case err := <-second.done:
		if err == nil {
			t.Error("the second agent ended well")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the second agent runs")
	}
	if got := second.text(); !strings.Contains(got, "another agent uses this data folder") || !strings.Contains(got, "hint: ") || strings.Count(got, "\n") != 2 {
		t.Errorf("it said %q", got)
	}
	w.state("patchState: applied")
	w.stop(first)
}

func TestRefusesRoot(t *testing.T) {
	err := run(t.Context(), nil, io.Discard, io.Discard, 0, unconfined)
	if !errors.Is(err, errRoot) || hint(err) == "" {
		t.Errorf("run = %v", err)
	}
}

func TestFlags(t *testing.T) {
	tests := map[string]struct {
		args    []string
		wantErr string // "" means none
	}{
		"version":            {[]string{"-version"}, ""},
		"unknown flag":       {[]string{"-x"}, "not defined"},
		"argument":           {[]string{"start"}, `cannot use argument "start"`},
		"uid that is a name": {[]string{"-allow-uid", "root"}, "invalid value"},
		"no root":            {[]string{"-root", "/nonexistent"}, "cannot read TUF root"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), tc.args, io.Discard, io.Discard, 1000, unconfined)
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("run = %v, want %q", err, tc.wantErr)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	w := newWorld(t)
	if out, err := w.command(w.args("-check")...).CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("good configuration: %v, %s", err, out)
	}
	w.must(os.WriteFile(filepath.Join(w.dir, "data/config"), []byte("dial-timeout: soon\n"), 0o644))
	out, err := w.command(w.args("-check")...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "dial-timeout") {
		t.Errorf("bad configuration: %v, %s", err, out)
	}
}

// A peer with another uid gets no answer from the private socket, even if the
// mode of the file let it in.
func TestPeerWithAnotherUID(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	w := newWorld(t)
	d := w.start()
	socket := filepath.Join(w.dir, "run", localapi.PrivateSocket)
	w.must(os.Chmod(socket, 0o777))
	ask := func(uid uint32) string {
		cmd := curl(socket, "/disable")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("curl as %d: %v", uid, err)
		}
		return string(out)
	}
	if got := ask(1234); got != "cannot do this as an ordinary user\nhint: run it with sudo\n" {
		t.Errorf("uid 1234 got %q", got)
	}
	for _, uid := range []uint32{0, nobody} {
		if got := ask(uid); !strings.Contains(got, "Machine is not enabled") {
			t.Errorf("uid %d got %q", uid, got)
		}
	}
	w.stop(d)
	d = w.start("-allow-uid", "1234")
	w.must(os.Chmod(socket, 0o777))
	if got := ask(1234); !strings.Contains(got, "Machine is not enabled") {
		t.Errorf("uid 1234, allowed, got %q", got)
	}
	w.stop(d)
}

// curl is a request of another user's.
func curl(socket, path string) *exec.Cmd {
	return exec.Command("curl", "-s", "-X", "PUT", "--unix-socket", socket, "http://localhost"+path)
}

// The agent is killed again and again at any moment of its work. Whatever it
// leaves behind, the next one starts, and in the end the patch is in force, was
// inserted once, and nothing half-written is left.
func TestSurvivesKill(t *testing.T) {
	w := newWorld(t)
	d := w.start()
	w.enable()
	d.kill()
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	for i := range rounds {
		if i%10 == 5 { // something new to fetch
			m := module
			m.Sequence = uint64(i)
			m.Version = fmt.Sprintf("%d.1", i)
			m.Name = fmt.Sprintf("lkp_Debian_6_1_0_53_amd64_%d", i)
			w.service.Repo.Add(m, bytes.Repeat([]byte{byte(i)}, 100_000), servicetest.Everyone())
			w.service.Repo.Publish()
		}
		d := w.launch()
		time.Sleep(time.Duration(i*7%60+5) * time.Millisecond)
		d.kill()
	}
	d = w.start()
	w.state("patchState: applied")
	w.want(localapi.PrivateSocket, http.MethodPut, "/refresh", "", 200, "patch state: applied")
	w.stop(d)
	seen := map[string]bool{}
	for _, c := range w.loader.Made() {
		if seen[c] {
			t.Errorf("%s twice", c)
		}
		seen[c] = true
	}
	w.must(filepath.WalkDir(filepath.Join(w.dir, "data"), func(path string, e os.DirEntry, err error) error {
		if err == nil && (strings.HasPrefix(e.Name(), ".tmp-") || strings.HasPrefix(e.Name(), "tuf_tmp")) {
			t.Errorf("left behind: %s", path)
		}
		return err
	}))
}

// At rest the agent holds at most 20 MB, whatever it has just done.
func TestMemoryAtRest(t *testing.T) {
	w := newWorld(t)
	d := w.start()
	w.enable()
	w.state("patchState: applied")
	for i := range 10 {
		w.service.Repo.Publish()
		w.want(localapi.PrivateSocket, http.MethodPut, "/refresh", "", 200, "patch state: applied")
		w.want(localapi.PublicSocket, http.MethodGet, "/status?verbose=true&format="+[]string{"json", "yaml", "humane"}[i%3], "", 200, "")
	}
	w.want(localapi.PrivateSocket, http.MethodPut, "/config", `{"https-proxy":"http://127.0.0.1:1","no-proxy":"127.0.0.1"}`, 204, "")
	w.want(localapi.PrivateSocket, http.MethodPut, "/disable", "", 200, "Removed")
	w.enable()
	w.state("patchState: applied")
	w.want(localapi.PrivateSocket, http.MethodPut, "/refresh", "", 200, "patch state: applied")
	rss := rssOf(t, d.Process.Pid)
	t.Logf("VmRSS at rest: %d KB", rss)
	if rss > 20<<10 {
		t.Errorf("VmRSS at rest is %d KB, want at most 20 MB", rss)
	}
	w.stop(d)
}

// Between check-ins the agent sleeps: nothing in it wakes up to look whether
// there is something to do.
func TestSleepsBetweenChecks(t *testing.T) {
	w := newWorld(t)
	d := w.start()
	w.enable()
	w.state("patchState: applied")
	// The runtime goes on collecting for a while after the work, for longer on
	// a busy machine. A daemon that polls has no quiet stretch at all, so one is
	// enough.
	const stretch, stretches = 5 * time.Second, 12
	var seen []int
	for range stretches {
		before := wakeUps(t, d.Process.Pid)
		time.Sleep(stretch)
		woken := wakeUps(t, d.Process.Pid) - before
		seen = append(seen, woken)
		if woken <= 5 {
			break
		}
	}
	t.Logf("wake-ups in each %v: %v", stretch, seen)
	if seen[len(seen)-1] > 5 {
		t.Errorf("never quiet: wake-ups in each %v: %v", stretch, seen)
	}
	w.stop(d)
}

// wakeUps returns how often the threads of a process have gone to sleep so far,
// which is how often they were woken.
func wakeUps(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	total := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		if m := regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)`).FindSubmatch(b); m != nil {
			n, err := strconv.Atoi(string(m[1]))
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
	}
	return total
}

// rssOf returns the resident memory of a process in KB.
func rssOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmRSS in %s", b)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb
}

// unconfined leaves the process of the test as it is.
func unconfined(...string) error { return nil }
