package lab

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

// Patience is how long a test waits for something that takes a moment.
const Patience = 20 * time.Second

// Eventually waits until ok tells so.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not after %v", what, Patience)
}

// A Transcript is what a process writes while it runs.
type Transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (s *Transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// String returns what was written so far.
func (s *Transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A Process is a program that runs beside the test. It is killed when the test
// ends, and what it wrote is shown if the test failed.
type Process struct {
	name string
	cmd  *exec.Cmd
	Log  *Transcript
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done is closed
}

// AsRoot tells whether tests run as root; where they do not, everything runs under
// it.
var AsRoot = os.Getuid() == 0

// as returns what makes a program run as somebody else, where tests may do that.
func as(uid int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if AsRoot && uid != 0 {
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	return attr
}

// Program returns a command that runs one of the programs with an environment
// that holds nothing but what is given.
func Program(ctx context.Context, uid int, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Env = slices.Concat([]string{"PATH=/usr/bin:/bin"}, env)
	cmd.Dir = "/"
	cmd.SysProcAttr = as(uid)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Start starts a command. What it writes to standard error, and to standard
// output unless that is taken, goes to log.
func Start(t *testing.T, name string, cmd *exec.Cmd, log *Transcript) *Process {
	t.Helper()
	p := &Process{name: name, cmd: cmd, Log: log, done: make(chan struct{})}
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
	t.Cleanup(p.Kill)
	return p
}

// Kill is kill -9. The process is gone when it returns.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// Stop asks the process to end and returns how it did.
func (p *Process) Stop(t *testing.T) error {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(Patience):
		t.Fatalf("%s did not end within %v of SIGTERM", p.name, Patience)
	}
	return p.err
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// ended tells whether the process is gone.
func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail is how much of a transcript a failure shows, in bytes.
const tail = 64 << 10

// showOnFailure prints the end of a transcript if the test fails.
func showOnFailure(t *testing.T, name string, log *Transcript) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			said := strings.TrimSpace(log.String())
			t.Logf("--- %s ---\n%s", name, said[max(0, len(said)-tail):])
		}
	})
}

// A Result is what a program that ran to its end left behind.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// String shows all of it.
func (r Result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.Code, r.Stdout, r.Stderr)
}

// RunToEnd runs a command.
func RunToEnd(t *testing.T, cmd *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("cannot run %v: %v", cmd.Args, err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}
