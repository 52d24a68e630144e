package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Service is a livepatch-server that runs on the host, on the loopback only.
type Service struct {
	// Address is where it listens, HOST:PORT.
	Address string
	// CA is the file with the certificate authority that it made for itself.
	CA string

	lab  *Lab
	dir  string
	opts ServiceOptions
	stop func() error
	log  *logBuffer
}

// ServiceOptions are what a test changes about a service.
type ServiceOptions struct {
	CheckInterval time.Duration // 0 means an hour
	Soak          time.Duration // how long a patch stays on trial
}

// NewService sets up a service in dir and starts it. The caller must Stop it.
func (l *Lab) NewService(ctx context.Context, dir string, o ServiceOptions) (*Service, error) {
	if o.CheckInterval == 0 {
		o.CheckInterval = time.Hour
	}
	s := &Service{lab: l, dir: dir, opts: o, CA: filepath.Join(dir, "tls", "ca.crt"), log: new(logBuffer)}
	if _, err := l.Output(ctx, "livepatch-server", "init", "--dir", dir); err != nil {
		return nil, err
	}
	if _, err := l.Output(ctx, "livepatch-server", "dev-ca", "--dir", dir, "--host", ServiceName+",127.0.0.1"); err != nil {
		return nil, err
	}
	return s, s.Start("127.0.0.1:0")
}

// Start starts the server on an address. It outlives the context of the call, as
// a service does; Stop ends it.
func (s *Service) Start(address string) error {
	cmd := exec.Command(s.lab.Program("livepatch-server"), "serve", "--dir", s.dir, "--listen", address, "--ops-listen", "",
		"--check-interval", s.opts.CheckInterval.String(), "--soak", s.opts.Soak.String())
	listening := make(chan string, 1)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	done, err := start(cmd)
	if err != nil {
		return fmt.Errorf("cannot start livepatch-server: %w", err)
	}
	go s.read(stderr, listening)
	s.stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return <-done
	}
	select {
	case s.Address = <-listening:
		return nil
	case err := <-done:
		return fmt.Errorf("livepatch-server ended: %w\n%s", err, s.Log())
	case <-time.After(time.Minute):
		return errors.Join(fmt.Errorf("livepatch-server does not listen\n%s", s.Log()), s.Stop())
	}
}

// start starts a program that does not outlive this process, and tells on the
// channel how it ended.
func start(cmd *exec.Cmd) (<-chan error, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan error, 1)
	go func() {
		// The kernel watches the thread that has started the program.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	return done, <-started
}

// read keeps the log and finds the address in it.
func (s *Service) read(stderr io.Reader, listening chan<- string) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		fmt.Fprintln(s.log, lines.Text())
		var line struct{ Msg, Addr string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "Listening" {
			listening <- line.Addr
		}
	}
}

// Stop ends the server in good order.
func (s *Service) Stop() error { return s.stop() }

// Log returns what the server has logged.
func (s *Service) Log() string { return s.log.String() }

// Admin runs livepatch-admin and returns what it printed.
func (s *Service) Admin(ctx context.Context, args ...string) (string, error) {
	return s.lab.Output(ctx, "livepatch-admin", append([]string{"--dir", s.dir}, args...)...)
}

// Tamper changes one bit of a file that the service hands out, behind its back.
func (s *Service) Tamper(content []byte) (undo func(), err error) {
	sum := sha256.Sum256(content)
	var found string
	err = filepath.WalkDir(filepath.Join(s.dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(path, hex.EncodeToString(sum[:])) {
			found = path
		}
		return err
	})
	if err == nil && found == "" {
		err = errors.New("cannot find the file in the service's store")
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(found)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(found, info.Mode()|0o200); err != nil {
		return nil, err
	}
	changed := bytes.Clone(content)
	changed[len(changed)/2] ^= 1
	if err := os.WriteFile(found, changed, info.Mode()); err != nil {
		return nil, err
	}
	return func() { _ = os.WriteFile(found, content, info.Mode()) }, nil
}

// A logBuffer is a buffer that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends p.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written.
func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Output runs one of our programs on the host and returns what it printed on
// standard output, without the last newline.
func (l *Lab) Output(ctx context.Context, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, l.Program(program), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("cannot run %s %s: %w\n%s", program, strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// A Publisher is a repository with its offline keys, on the host.
type Publisher struct {
	// Root is the TUF root that machines are shipped with.
	Root []byte

	lab        *Lab
	service    *Service
	dir        string
	passphrase string // file
	token      string // file
	sequence   int
}

// NewPublisher creates the offline keys and a repository with Debian as a vendor.
func (l *Lab) NewPublisher(ctx context.Context, dir string, s *Service) (*Publisher, error) {
	p := &Publisher{
		lab: l, service: s, dir: filepath.Join(dir, "repository"),
		passphrase: filepath.Join(dir, "passphrase"), token: filepath.Join(dir, "publisher-token"),
	}
	token, err := s.Admin(ctx, "publisher-token", "create")
	if err != nil {
		return nil, err
	}
	for file, content := range map[string]string{p.passphrase: "correct horse battery staple", p.token: token} {
		if err := os.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	if err := p.publish(ctx, "init", "--online-keys", filepath.Join(s.dir, "online-keys.json")); err != nil {
		return nil, err
	}
	if err := p.publish(ctx, "vendor", "add", "debian"); err != nil {
		return nil, err
	}
	root, err := l.Output(ctx, "livepatch-publish", "--repo", p.dir, "root", "show", "--version", "1")
	p.Root = []byte(root)
	return p, err
}

// publish runs livepatch-publish on the repository.
func (p *Publisher) publish(ctx context.Context, args ...string) error {
	_, err := p.lab.Output(ctx, "livepatch-publish", append([]string{"--repo", p.dir, "--passphrase-file", p.passphrase}, args...)...)
	return err
}

// Sign adds a module to the repository. It says that it fixes the given
// vulnerabilities.
func (p *Publisher) Sign(ctx context.Context, m Module, version string, fixes ...string) error {
	p.sequence++
	var d bytes.Buffer
	k := p.lab.Kernel
	fmt.Fprintf(&d, "kernel:\n  flavour: %s\n  version: %q\nversion: %q\nnotice: LSN-%s\nfixes:\n", k.Flavour, k.Version, version, version)
	for _, f := range fixes {
		fmt.Fprintf(&d, "  - name: %s\n    priority: high\n    summary: A test of this vulnerability.\n", f)
	}
	now := time.Now().UTC()
	fmt.Fprintf(&d, "support:\n  from: %s\n  until: %s\n", now.Format(time.DateOnly), now.AddDate(1, 0, 0).Format(time.DateOnly))
	file := filepath.Join(p.dir, "..", fmt.Sprintf("patch-%d.yaml", p.sequence))
	if err := os.WriteFile(file, d.Bytes(), 0o600); err != nil {
		return err
	}
	args := []string{"add", m.File, "--vendor", "debian", "--description", file, "--vmlinuz", k.Image}
	if m.Cert != "" {
		args = append(args, "--module-cert", m.Cert)
	}
	return p.publish(ctx, args...)
}

// Push brings what is new to the service.
func (p *Publisher) Push(ctx context.Context) error {
	return p.publish(ctx, "push", "--server", "https://"+p.service.Address, "--ca", p.service.CA, "--token-file", p.token)
}
