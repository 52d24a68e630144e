//go:build attack

package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// attempts are what an ordinary user of the machine does, in a process of his own.
// Each returns what became of it; nil is success, and a hole.
var attempts = map[string]func(path string) error{
	"read": func(path string) error {
		_, err := os.ReadFile(path)
		return err
	},
	"list": func(path string) error {
		_, err := os.ReadDir(path)
		return err
	},
	"write":    func(path string) error { return os.WriteFile(path, []byte("planted"), 0o644) },
	"symlink":  func(path string) error { return os.Symlink("/etc/passwd", path) },
	"remove":   os.Remove,
	"hardlink": func(path string) error { return os.Link(path, filepath.Join(os.TempDir(), "link-of-a-stranger")) },
	"kill":     func(pid string) error { return signal(pid, syscall.SIGKILL) },
	"stop":     func(pid string) error { return signal(pid, syscall.SIGSTOP) },
	"trace": func(pid string) error {
		n, _ := strconv.Atoi(pid)
		return unix.PtraceAttach(n)
	},
	"listen": func(path string) error {
		lis, err := net.Listen("unix", path)
		if err == nil {
			lis.Close()
		}
		return err
	},
	"call loader": func(path string) error {
		conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err == nil {
			defer conn.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err = loaderv1.NewLoaderServiceClient(conn).Status(ctx, &loaderv1.StatusRequest{})
		}
		return err
	},
	"ask agent": func(target string) error {
		socket, request, _ := strings.Cut(target, " ")
		answer, err := ask(socket, request)
		if err == nil {
			fmt.Print(answer)
		}
		return err
	},
}

func signal(pid string, s syscall.Signal) error {
	n, err := strconv.Atoi(pid)
	return errors.Join(err, syscall.Kill(n, s))
}

// ask sends "PUT /config" to a unix socket and returns status and body.
func ask(socket, request string) (string, error) {
	method, target, _ := strings.Cut(request, " ")
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequest(method, "http://agent"+target, strings.NewReader(`{"remote-server":"https://evil.example"}`))
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return fmt.Sprintf("%d %s", res.StatusCode, b), err
}

// asStranger makes one attempt and prints what became of it.
func asStranger(name string, args []string) int {
	if err := attempts[name](args[0]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// attempt has a stranger try something.
func attempt(t *testing.T, name, target string) lab.Result {
	t.Helper()
	if !lab.AsRoot {
		t.Skip("needs root to be somebody else")
	}
	return lab.RunToEnd(t, lab.Program(t.Context(), lab.StrangerUID, []string{"LIVEPATCH_ATTACK=" + name}, lab.SelfBin, target))
}

// A crowded machine has an agent that is enabled and a loader that runs.
func newCrowded(t *testing.T) *victim {
	t.Helper()
	s := lab.NewService(t)
	v := newVictim(t, s)
	v.Idle = time.Hour
	v.Loader.Kill()
	lab.Eventually(t, "loader is there", func() bool {
		_, err := v.Client().Status(t.Context(), &loaderv1.StatusRequest{})
		return err == nil
	})
	return v
}

func TestHostileUserFilesAndProcesses(t *testing.T) {
	t.Parallel()
	v := newCrowded(t)
	accept(t, v)
	stored, err := filepath.Glob(v.Path("loader/store/*"))
	lab.Must(t, err)
	tests := []struct{ what, name, target string }{
		{"reads the machine token", "read", v.Path("agent/machine-token")},
		{"links the machine token to a place of his own", "hardlink", v.Path("agent/machine-token")},
		{"reads the agent's state", "read", v.Path("agent/state.json")},
		{"lists the agent's cache", "list", v.Path("agent/cache")},
		{"reads the loader's journal", "read", v.Path("loader/journal.json")},
		{"lists the loader's state", "list", v.Path("loader")},
		{"swaps the module in the loader's store", "write", stored[0]},
		{"plants a file in the loader's state", "write", v.Path("loader/trust.json")},
		{"plants a symlink in the loader's state", "symlink", v.Path("loader/journal.json.tmp")},
		{"plants a file in the agent's cache", "write", v.Path("agent/cache/metadata/timestamp.json")},
		{"plants a symlink in the agent's folder", "symlink", v.Path("agent/refresh.json")},
		{"removes the agent's private socket", "remove", v.Path("agent/livepatchd-priv.sock")},
		{"puts a socket of his own in the place of the loader's", "listen", v.Path("loader2.sock")},
		{"removes the loader's socket", "remove", v.Path("loader.sock")},
		{"changes the pinned root", "write", v.Path("root.json")},
		{"kills the agent", "kill", fmt.Sprint(v.Agent.PID())},
		{"stops the agent", "stop", fmt.Sprint(v.Agent.PID())},
		{"kills the loader", "kill", fmt.Sprint(v.Loader.PID())},
		{"traces the agent", "trace", fmt.Sprint(v.Agent.PID())},
		{"traces the loader", "trace", fmt.Sprint(v.Loader.PID())},
		{"reads the loader's memory", "read", fmt.Sprintf("/proc/%d/mem", v.Loader.PID())},
		{"reads the agent's environment", "read", fmt.Sprintf("/proc/%d/environ", v.Agent.PID())},
	}
	for _, tc := range tests {
		t.Run(tc.what, func(t *testing.T) {
			a := report.Begin(t, report.User, tc.what)
			r := attempt(t, tc.name, tc.target)
			if r.Code != 1 || !strings.Contains(r.Stderr, "permi") {
				t.Errorf("it was not refused: %v", r)
			}
			words := strings.Split(strings.TrimSpace(r.Stderr), ": ")
			a.StoppedBy("kernel: %s", words[len(words)-1])
			a.Sees(strings.ReplaceAll(r.Stderr, v.Dir, ""))
		})
	}
	v.unharmed(t)
	v.OK("refresh")
}

// accept ends the trial of the patch in force, so that the loader keeps its module.
func accept(t *testing.T, v *victim) {
	t.Helper()
	_, err := v.Client().Accept(t.Context(), &loaderv1.AcceptRequest{Name: v.one.Name})
	lab.Must(t, err)
}

func TestHostileUserAtTheSockets(t *testing.T) {
	t.Parallel()
	v := newCrowded(t)
	token, err := os.ReadFile(v.Path("agent/machine-token"))
	lab.Must(t, err)
	private, public, loader := v.Path("agent/livepatchd-priv.sock"), v.Path("agent/livepatchd.sock"), v.Path("loader.sock")
	tests := []struct {
		what, name, target string
		want               string // in what became of it
		open               string // a socket whose mode somebody has set to 0666
	}{
		{"speaks to the loader", "call loader", loader, "permission denied", ""},
		{"speaks to the loader, whose socket is open to all", "call loader", loader, "Unavailable", loader},
		{"disables the machine", "ask agent", private + " PUT /disable", "permission denied", ""},
		{"disables the machine, through a socket that is open to all", "ask agent", private + " PUT /disable", "403", private},
		{"changes the service, through a socket that is open to all", "ask agent", private + " PUT /config", "403", private},
		{"enables with a token of his, through a socket that is open to all", "ask agent", private + " PUT /enable?auth-token=x", "403", private},
		{"disables the machine through the public socket", "ask agent", public + " PUT /disable", "404", ""},
		{"changes the service through the public socket", "ask agent", public + " PUT /config", "404", ""},
		{"leaves the public part by its path", "ask agent", public + " PUT /status/../config", "404", ""},
		{"asks the public socket for secrets", "ask agent", public + " GET /status?show-secrets=true", "200", ""},
		{"asks the public socket for a format that is a path", "ask agent", public + " GET /status?format=../../etc/passwd", "400", ""},
	}
	for _, tc := range tests {
		t.Run(tc.what, func(t *testing.T) {
			a := report.Begin(t, report.User, tc.what)
			if tc.open != "" {
				lab.Must(t, os.Chmod(tc.open, 0o666))
				defer os.Chmod(tc.open, 0o600)
			}
			r := attempt(t, tc.name, tc.target)
			said := strings.TrimSpace(r.Stdout + r.Stderr)
			if !strings.Contains(said, tc.want) || strings.Contains(said, strings.TrimSpace(string(token))) {
				t.Errorf("it was not refused: %v", r)
			}
			if tc.want == "200" {
				a.StoppedBy("agent: answers without the token")
			} else {
				a.StoppedBy("%.60s", tc.want)
			}
			a.Sees(said)
		})
	}
	v.unharmed(t)
	v.OK("refresh")
}

// Whoever takes all places at the public socket keeps nobody else from asking, and the
// operator has a socket of his own besides. The one who takes them is here the test.
func TestHostileUserTakesAllPlaces(t *testing.T) {
	t.Parallel()
	v := newCrowded(t)
	a := report.Begin(t, report.User, "takes all places at the public socket and keeps them with requests that never end")
	for range 200 {
		conn, err := net.DialTimeout("unix", v.Path("agent/livepatchd.sock"), time.Second)
		if err != nil {
			break
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: agent\r\nContent-Length: 100\r\n\r\n")
	}
	v.OK("refresh") // by the private socket
	r := attempt(t, "ask agent", v.Path("agent/livepatchd.sock")+" GET /version")
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "200") {
		t.Errorf("another user got %v", r)
	}
	a.StoppedBy("agent: 16 connections a user, 64 in all, 10 s a request; another user is answered meanwhile")
}

// Somebody else's program behind the sockets' names can lie, and no more.
func TestHostileUserPlantsADaemon(t *testing.T) {
	t.Parallel()
	a := report.Begin(t, report.User, "plants a daemon that answers with commands for a terminal")
	dir := lab.Folder(t)
	for _, name := range []string{"livepatchd.sock", "livepatchd-priv.sock"} {
		lis, err := net.Listen("unix", filepath.Join(dir, name))
		lab.Must(t, err)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "\x1b[2J\x1b]0;owned\x07\u009b31m\u202e applied\n")
		})}
		go func() { _ = srv.Serve(lis) }()
		t.Cleanup(func() { srv.Close() })
	}
	for _, command := range []string{"status", "refresh", "disable"} {
		cmd := lab.Program(t.Context(), 0, []string{"LIVEPATCH_RUN_DIR=" + dir}, lab.CLIBin, command)
		r := lab.RunToEnd(t, cmd)
		if strings.ContainsAny(r.Stdout+r.Stderr, "\x1b\x07\u009b\u202e") {
			t.Errorf("%s sends commands to the terminal: %q", command, r.Stdout+r.Stderr)
		}
		a.Sees(r.Stdout)
	}
	a.StoppedBy("command: shows U+FFFD in place of what a terminal would obey")
}

// What stands on the disk of loader and agent is not believed.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	t.Run("module in the loader's store", func(t *testing.T) {
		a := report.Begin(t, report.User, "another module in the loader's store (by root, or a bad disk)")
		l := newTarget(t)
		l.accept(t)
		stored, err := filepath.Glob(l.Path("loader/store/*"))
		lab.Must(t, err)
		lab.Must(t, os.WriteFile(stored[0], evil.Content, 0o600))
		l.Reboot(true)
		r := l.OneShot("-boot")
		l.WantInForce()
		if r.Code == 0 || len(l.Kernel.Insertions()) != 1 {
			t.Errorf("loader -boot = %v, insertions = %v", r, l.Kernel.Insertions())
		}
		reason, _ := reasonIn(r.Stderr)
		a.StoppedBy("loader -boot: %.60s", reason)
		a.Sees(r.Stderr)
	})
	for _, file := range []string{"journal.json", "trust.json"} {
		for how, damage := range map[string]func(b []byte) []byte{
			"cut off": func(b []byte) []byte { return b[:len(b)/2] }, "empty": func([]byte) []byte { return nil },
			"of another program": func([]byte) []byte { return []byte("[1,2,3]") },
		} {
			t.Run(file+" "+how, func(t *testing.T) {
				a := report.Begin(t, report.User, file+" of the loader "+how+" (by root, or a bad disk)")
				l := newTarget(t)
				l.Reboot(true)
				b, err := os.ReadFile(l.Path("loader/" + file))
				lab.Must(t, err)
				lab.Must(t, os.WriteFile(l.Path("loader/"+file), damage(b), 0o600))
				r := l.OneShot("-boot")
				if r.Code != 1 || len(l.Kernel.Insertions()) != 1 {
					t.Errorf("loader -boot = %v", r)
				}
				if after, err := os.ReadFile(l.Path("loader/" + file)); err != nil || string(after) != string(damage(b)) {
					t.Errorf("%s is now %q, %v", file, after, err)
				}
				a.StoppedBy("loader does not start: %s", patch.ErrStorage)
				a.Sees(r.Stderr)
			})
		}
	}
	t.Run("cache of the agent", func(t *testing.T) {
		a := report.Begin(t, report.Agent, "everything in the agent's cache swapped for something else")
		v := newVictim(t, lab.NewService(t))
		for _, dir := range []string{"blobs", "metadata", "roots"} {
			all, _ := filepath.Glob(v.Path("agent/cache/" + dir + "/*"))
			for _, f := range all {
				lab.Must(t, os.WriteFile(f, evil.Content, 0o600))
			}
		}
		v.refresh(t, a)
		v.recovers(t)
	})
}

// What is set before the loader starts does not change what it does.
func TestHostileSurroundingsOfTheLoader(t *testing.T) {
	t.Parallel()
	a := report.Begin(t, report.User, "environment and limits set before the loader starts")
	l := newTarget(t)
	l.accept(t)
	l.Reboot(true)
	cmd := l.LoaderCommand("-boot")
	cmd.Env = append(cmd.Env, "GODEBUG=http2debug=2,schedtrace=1", "GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99",
		"LD_PRELOAD=/tmp/evil.so", "TMPDIR=/nonexistent", "GOTRACEBACK=crash", "LISTEN_FDS=1", "LISTEN_PID=1", "HTTPS_PROXY=http://evil.example", "SSL_CERT_FILE=/dev/null")
	if r := lab.RunToEnd(t, cmd); r.Code != 0 || strings.Contains(r.Stderr, "INFO: [core]") {
		t.Errorf("loader -boot = %v", r)
	}
	l.WantInForce(l.one)
	if got := len(l.Kernel.Insertions()); got != 2 {
		t.Errorf("insertions = %d, want 2", got)
	}

	// A limit on the size of files keeps the journal from being written, and then
	// nothing is inserted.
	two := lab.NewModule(2)
	l.repo.Add(two)
	c := l.Client()
	_, err := c.Status(t.Context(), &loaderv1.StatusRequest{})
	lab.Must(t, err)
	lab.Must(t, unix.Prlimit(l.Loader.PID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100, Max: 100}, nil))
	_, err = lab.Apply(t, c, l.repo.Opening(two), two.Content)
	if err == nil || len(l.Kernel.Insertions()) != 2 {
		t.Errorf("apply = %v, insertions = %v", err, l.Kernel.Insertions())
	}
	reason, _ := reasonIn(fmt.Sprint(err))
	a.StoppedBy("loader: environment of no effect; with RLIMIT_FSIZE of 100 bytes nothing inserted: %.60s", reason)
	l.Loader.Kill()
	lab.MustApply(t, l.Client(), l.repo, two, loaderv1.Outcome_OUTCOME_APPLIED)
}
