package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is a program that runs beside the benchmark.
type process struct {
	cmd  *exec.Cmd
	name string
	logs logs
	done chan struct{} // closed when it has ended
}

// logs keeps what a process prints; it is read while the process writes.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// nobody is the user that runs what must not be root when the benchmark is.
const nobody = 65534

// asNobody makes cmd run as an ordinary user, if it would be root otherwise.
func asNobody(cmd *exec.Cmd) {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
}

// start runs cmd until stop or the end of ctx.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, name: filepath.Base(cmd.Path), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.logs, &p.logs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", p.name, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // its end is seen by whoever needs it alive
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// until polls ready until it is true, the process ends or the time is over.
func (p *process) until(ctx context.Context, what string, within time.Duration, ready func() bool) error {
	deadline := time.After(within)
	for {
		if ready() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return fmt.Errorf("%s ended before it was %s:\n%s", p.name, what, p.logs.String())
		case <-deadline:
			return fmt.Errorf("%s is not %s after %v:\n%s", p.name, what, within, p.logs.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

var listening = regexp.MustCompile(`[Ll]istening.*?addr"?[=:]"?([0-9.\[\]:]+:[0-9]+)`)

// addr returns the address that the process says it listens on, or "".
func (p *process) addr() string {
	if m := listening.FindStringSubmatch(p.logs.String()); m != nil {
		return m[1]
	}
	return ""
}

// answers tells whether something accepts connections at addr.
func answers(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// freePort returns an address that nobody listens on now.
func freePort() (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot find a free port: %w", err)
	}
	return lis.Addr().String(), lis.Close()
}

// output runs a program to its end and returns what it printed on stdout.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("%s failed: %w: %s", strings.Join(cmd.Args, " "), err, exit.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", cmd.Path, err)
	}
	return strings.TrimSpace(string(out)), nil
}
