package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/loader/internal/gate"
)

// TestMain runs the tests of the package; or, where LIVEPATCH_FILE_KERNEL names
// the folder of a kernel that is made of files, it is livepatch-loader on that
// kernel, for tests/lab. Build that without cgo, as the loader is.
func TestMain(m *testing.M) {
	dir := os.Getenv("LIVEPATCH_FILE_KERNEL")
	if dir == "" {
		os.Exit(m.Run())
	}
	// What follows is main, with other modules.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := runOnFiles(ctx, dir); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "livepatch-loader: error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runOnFiles(ctx context.Context, dir string) error {
	conn, err := net.Dial("unix", filepath.Join(dir, "control", "kernel.sock"))
	if err != nil {
		return fmt.Errorf("cannot reach the kernel made of files: %w", err)
	}
	defer conn.Close()
	return run(ctx, os.Args[1:], fileKernel{conn, filepath.Join(dir, "proc", "kmsg")})
}

// A fileKernel makes the two system calls of package kmod, on a kernel that is
// made of files. As with the real one, what happens inside a call is not the
// loader's: the request goes to the kernel, a process of its own, and is carried
// out even if the loader dies meanwhile.
type fileKernel struct {
	conn io.ReadWriter // open before the loader enters its sandbox
	log  string        // file with the kernel's log
}

// A call is one system call, as tests/lab takes it: a line of JSON. The
// answer is a line, too: the errno, 0 for success.
type call struct {
	Op     string `json:"op"` // "insert" or "delete"
	Name   string `json:"name"`
	SHA256 string `json:"sha256,omitempty"` // of what is inserted
}

// Insert implements [livepatch/loader/internal/server.Modules].
func (k fileKernel) Insert(c *gate.Cleared) error {
	if c.File() == nil {
		return fmt.Errorf("cannot insert module: %w: it was not cleared", patch.ErrInvalid)
	}
	h := sha256.New()
	if _, err := io.Copy(h, c.Reader()); err != nil {
		return err
	}
	name := c.Module().Name
	if err := k.call(call{"insert", name, hex.EncodeToString(h.Sum(nil))}); err != nil {
		return fmt.Errorf("cannot insert module %q: %w: %w", name, kernel.Meaning(err), err)
	}
	return nil
}

// Delete implements [livepatch/loader/internal/server.Modules].
func (k fileKernel) Delete(name string) error {
	switch err := k.call(call{Op: "delete", Name: name}); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("cannot unload module %q: %w: it is still in use: %w", name, patch.ErrStalled, err)
	case err != nil:
		return fmt.Errorf("cannot unload module %q: %w: %w", name, kernel.Meaning(err), err)
	}
	return nil
}

// Log implements [livepatch/loader/internal/server.Modules].
func (k fileKernel) Log() string {
	b, _ := os.ReadFile(k.log) // "" where the kernel has said nothing
	return string(b)
}

func (k fileKernel) call(c call) error {
	if err := json.NewEncoder(k.conn).Encode(c); err != nil {
		return err
	}
	var errno unix.Errno
	if _, err := fmt.Fscanln(k.conn, &errno); err != nil {
		return fmt.Errorf("kernel made of files went away: %w", err)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// What stops the loader before it enters its sandbox can be seen in the process
// of the test; the rest is in tests/integration.
func TestRunRefuses(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"a flag that does not exist":     {[]string{"-url", "https://example.com"}, "flag provided but not defined: -url"},
		"an argument":                    {[]string{"start"}, `cannot use argument "start": only flags are taken`},
		"a uid that is none":             {[]string{"-agent-uid", "nobody"}, `invalid value "nobody" for flag -agent-uid`},
		"an idle time that is none":      {[]string{"-idle", "soon"}, `invalid value "soon" for flag -idle`},
		"a pinned root that is not here": {[]string{"-root", "/nonexistent/root.json"}, "cannot read pinned root: open /nonexistent/root.json: no such file or directory"},
		"a kernel over the command line": {[]string{"-boot", "/tmp/module.ko"}, `cannot use argument "/tmp/module.ko": only flags are taken`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			stderr := capture(t, &os.Stderr, func() { err = run(t.Context(), tc.args, nil) })
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run = %v, want %q", err, tc.want)
			}
			if strings.Contains(stderr, "panic") {
				t.Errorf("stderr = %q", stderr)
			}
		})
	}
}

func TestRunPrintsItsVersionAndNeedsNothingForIt(t *testing.T) {
	var err error
	stdout := capture(t, &os.Stdout, func() {
		err = run(t.Context(), []string{"-version", "-root", "/nonexistent/root.json"}, nil)
	})
	if err != nil || !strings.HasPrefix(stdout, "livepatch-loader ") || strings.Count(stdout, "\n") != 1 {
		t.Errorf("run = %v, printed %q, want one line", err, stdout)
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var err error
	stderr := capture(t, &os.Stderr, func() { err = run(t.Context(), []string{"-help"}, nil) })
	if !errors.Is(err, flag.ErrHelp) || !strings.Contains(stderr, "-agent-uid") {
		t.Errorf("run = %v, printed %q", err, stderr)
	}
}

// capture returns what f writes to a standard file.
func capture(t *testing.T, file **os.File, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := *file
	*file = w
	done := make(chan string)
	go func() {
		var b bytes.Buffer
		_, _ = b.ReadFrom(r)
		done <- b.String()
	}()
	f()
	*file = old
	w.Close()
	return <-done
}
