//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for something that takes a moment.
const patience = 20 * time.Second

// eventually waits until ok tells so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not after %v", what, patience)
}

// A transcript is what a process writes while it runs.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// String returns what was written so far.
func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A process is a program that runs beside the test. It is killed when the test
// ends, and what it wrote is shown if the test failed.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *transcript
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done is closed
}

// root is the uid under which tests run; where it is not 0 everything runs under
// it.
var root = os.Getuid() == 0

// as returns what makes a program run as somebody else, where tests may do that.
func as(uid int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if root && uid != 0 {
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	return attr
}

// program returns a command that runs one of the programs with an environment
// that holds nothing but what is given.
func program(ctx context.Context, uid int, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Env = slices.Concat([]string{"PATH=/usr/bin:/bin"}, env)
	cmd.Dir = "/"
	cmd.SysProcAttr = as(uid)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// start starts a command. What it writes to standard error, and to standard
// output unless that is taken, goes to log.
func start(t *testing.T, name string, cmd *exec.Cmd, log *transcript) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	cmd.Stderr = log
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9. The process is gone when it returns.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// stop asks the process to end and returns how it did.
func (p *process) stop(t *testing.T) error {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s did not end within %v of SIGTERM", p.name, patience)
	}
	return p.err
}

// ended tells whether the process is gone.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// showOnFailure prints a transcript if the test fails.
func showOnFailure(t *testing.T, name string, log *transcript) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- %s ---\n%s", name, strings.TrimSpace(log.String()))
		}
	})
}

// A result is what a program that ran to its end left behind.
type result struct {
	stdout, stderr string
	code           int
}

// String shows all of it.
func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// runToEnd runs a command.
func runToEnd(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("cannot run %v: %v", cmd.Args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}
