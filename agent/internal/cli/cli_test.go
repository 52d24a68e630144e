package cli_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"livepatch/agent/internal/cli"
	"livepatch/agent/internal/config"
)

// socketDir returns an empty folder with a path short enough for a socket.
func socketDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "lp") // the paths of t.TempDir are too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A hanging command at login keeps people out of a machine in trouble.
func TestKernelUpgradeRequiredDoesNotHang(t *testing.T) {
	dir := socketDir(t)
	// A listener that never accepts: the connection is made by the kernel.
	l, err := net.Listen("unix", filepath.Join(dir, "livepatchd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var stdout, stderr bytes.Buffer
	start := time.Now()
	code := cli.Main(t.Context(), cli.Env{Stdout: &stdout, Stderr: &stderr, RunDir: dir}, []string{"kernel-upgrade-required"})
	// Its own limit is 700 ms; any other limit of the client's is far
	// longer than a busy machine's delay.
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if code != 1 || stdout.Len() != 0 {
		t.Errorf("code = %d, stdout = %q", code, stdout.String())
	}
}

func TestInterruptedExitsAsAShellSays(t *testing.T) {
	dir := socketDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "livepatchd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	code := cli.Main(ctx, cli.Env{Stdout: &stdout, Stderr: &stderr, RunDir: dir}, []string{"status"})
	if code != 130 || stdout.Len() != 0 {
		t.Errorf("code = %d, stdout = %q", code, stdout.String())
	}
}

// A full disk behind standard output is a failure, or a script would go on with
// half a status.
func TestOutputThatCannotBeWrittenIsAFailure(t *testing.T) {
	d := &fakeDaemon{dir: socketDir(t), mode: "enabled", enabled: true}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	defer d.stop()
	var stderr bytes.Buffer
	code := cli.Main(t.Context(), cli.Env{Stdout: brokenWriter{}, Stderr: &stderr, RunDir: d.dir}, []string{"status"})
	if want := "canonical-livepatch: error: cannot write to standard output: no space left on device\n"; code != 1 || stderr.String() != want {
		t.Errorf("code = %d, stderr = %q, want 1, %q", code, stderr.String(), want)
	}
}

func TestExitCodes(t *testing.T) {
	tests := map[string]struct {
		enabled bool
		args    []string
		want    int
	}{
		"status":                          {true, []string{"status"}, 0},
		"status of a machine not enabled": {false, []string{"status"}, 1},
		"upgrade not required":            {true, []string{"kernel-upgrade-required"}, 1},
		"wrong token":                     {false, []string{"enable", "0123"}, 1},
		"no token":                        {false, []string{"enable"}, 2},
		"unknown command":                 {true, []string{"stauts"}, 2},
		"unknown flag":                    {true, []string{"status", "--colour"}, 2},
		"argument too many":               {true, []string{"refresh", "now"}, 2},
		"unknown key":                     {true, []string{"config", "interval=30"}, 2},
		"value it cannot have":            {true, []string{"config", "log-level=loud"}, 1},
		"help":                            {true, []string{"help"}, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			d := &fakeDaemon{dir: socketDir(t), enabled: tc.enabled, config: config.Default()}
			if err := d.start(); err != nil {
				t.Fatal(err)
			}
			defer d.stop()
			var stderr bytes.Buffer
			got := cli.Main(t.Context(), cli.Env{Stdout: io.Discard, Stderr: &stderr, RunDir: d.dir}, tc.args)
			if got != tc.want {
				t.Errorf("exit code = %d, want %d; stderr:\n%s", got, tc.want, &stderr)
			}
		})
	}
}

// The kernel refuses the connection before the daemon can say that root is
// needed. Root may connect to everything, so as root the test runs itself again
// as somebody else.
func TestSudoIsAdvisedWhereTheSocketIsClosed(t *testing.T) {
	if os.Getuid() == 0 {
		runAsNobody(t)
		return
	}
	dir := socketDir(t)
	path := filepath.Join(dir, "livepatchd-priv.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	code := cli.Main(t.Context(), cli.Env{Stdout: new(bytes.Buffer), Stderr: &stderr, RunDir: dir}, []string{"disable"})
	want := "canonical-livepatch: error: cannot disable this machine: this user may not talk to the daemon: " +
		"dial unix " + path + ": connect: permission denied\n" +
		"canonical-livepatch: hint: run it with sudo\n"
	if code != 1 || stderr.String() != want {
		t.Errorf("code = %d, stderr:\n%swant:\n%s", code, &stderr, want)
	}
}

// runAsNobody runs the test that calls it in a process of uid 65534.
func runAsNobody(t *testing.T) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "GOCOVERDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// Every command has a manual page, and its text is fit for one.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	root := cli.New(cli.Env{})
	root.InitDefaultHelpCmd()
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1"}, dir); err != nil {
		t.Fatal(err)
	}
	walk(root, func(c *cobra.Command) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		if b, err := os.ReadFile(filepath.Join(dir, name)); c.IsAvailableCommand() && (err != nil || !bytes.Contains(b, []byte(".SH NAME"))) {
			t.Errorf("page %s: %v", name, err)
		}
		for l := range strings.Lines(c.Long + "\n" + c.Example) {
			if len(l) > 100 {
				t.Errorf("%s: line of %d columns in the help: %q", c.CommandPath(), len(l), l)
			}
		}
	})
}

func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

// FuzzAnswer holds that no answer of a daemon, and no refusal, gets a control
// character to the terminal.
func FuzzAnswer(f *testing.F) {
	f.Add(200, "kernel: 6.1\n")
	f.Add(400, "Machine is not enabled. Please")
	f.Add(500, "cannot\x1b[2J\nhint: \x9b31m\nhint: two")
	f.Add(403, "")
	f.Add(204, "x")
	dir := socketDir(f)
	answers := make(chan answer, 1)
	serve(f, filepath.Join(dir, "livepatchd.sock"), answers)
	f.Fuzz(func(t *testing.T, c int, body string) {
		code := 200 + int(uint(c)%400)
		answers <- answer{code, body}
		var stdout, stderr bytes.Buffer
		exit := cli.Main(t.Context(), cli.Env{Stdout: &stdout, Stderr: &stderr, RunDir: dir}, []string{"status"})
		if (exit == 0) != (code < 300) {
			t.Errorf("exit %d after %d %q", exit, code, body)
		}
		if exit != 0 && (stdout.Len() > 0 || stderr.Len() == 0) {
			t.Errorf("stdout = %q, stderr = %q after %d %q", &stdout, &stderr, code, body)
		}
		for _, r := range stdout.String() + stderr.String() {
			if r != '\n' && r != '\t' && !unicode.IsGraphic(r) {
				t.Errorf("%U reaches the terminal after %d %q", r, code, body)
			}
		}
	})
}

type answer struct {
	code int
	body string
}

// serve gives one of answers to each request on a socket.
func serve(tb testing.TB, path string, answers <-chan answer) {
	tb.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	s := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			a := <-answers
			w.WriteHeader(a.code)
			_, _ = io.WriteString(w, a.body)
		}),
	}
	go s.Serve(l)
	tb.Cleanup(func() { _ = s.Close() })
}
