//go:build vm

// Package vm holds the tests that need a real kernel. See tests/README.md.
package vm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// here is the lab of this run; TestMain makes it once.
var here *lab.Lab

// keep is where the logs of machines go that were in a failed test.
var keep = flag.String("keep", "", "keep the logs of machines in failed tests in this `folder`")

func TestMain(m *testing.M) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := runTests(ctx, m)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm tests: error:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(ctx context.Context, m *testing.M) (code int, err error) {
	bin, err := os.MkdirTemp("", "livepatch-bin")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(bin)
	here, err = lab.New(ctx, os.Getenv("LIVEPATCH_CACHE"), bin, func(step string, took time.Duration) {
		fmt.Fprintf(os.Stderr, "vm tests: %s: %.1fs\n", step, took.Seconds())
	})
	if err != nil {
		return 1, err
	}
	fmt.Fprintf(os.Stderr, "vm tests: kernel %s under %s\n", here.Kernel.Release, here.Accel)
	return m.Run(), nil
}

// A guest is a machine in a test, which ends it when it does.
type guest struct {
	*machine.Machine
	t *testing.T
}

// boot starts a machine. If the test fails, the end of what the machine logged is
// shown, and all of it kept if -keep says where.
func boot(t *testing.T, s lab.Setup) guest {
	t.Helper()
	s.Dir = t.TempDir()
	m, err := here.Boot(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("machine is up after %.1fs", m.BootTime().Seconds())
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			showLogs(t, m, s.Dir)
		}
	})
	return guest{m, t}
}

func showLogs(t *testing.T, m *machine.Machine, dir string) {
	t.Helper()
	console, err := m.Console()
	if err != nil {
		t.Log(err)
	}
	lines := strings.Split(string(console), "\n")
	t.Logf("end of the machine's log:\n%s", strings.Join(lines[max(0, len(lines)-80):], "\n"))
	if *keep == "" {
		return
	}
	to := filepath.Join(*keep, strings.ReplaceAll(t.Name(), "/", "_"))
	err = os.MkdirAll(to, 0o755)
	for _, name := range []string{"console.log", "qemu.log"} {
		b, readErr := os.ReadFile(filepath.Join(dir, name))
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(to, name), b, 0o644))
	}
	t.Logf("logs are in %s: %v", to, err)
}

// run runs a command as root and returns what it printed, without the last
// newline. A command that fails ends the test.
func (g guest) run(command string) string {
	g.t.Helper()
	res, err := g.Run(g.t.Context(), command)
	if err != nil {
		g.t.Fatal(err)
	}
	if res.Code != 0 {
		g.t.Fatalf("%s: exit status %d\n%s%s", command, res.Code, res.Stdout, res.Stderr)
	}
	return strings.TrimSuffix(res.Stdout, "\n")
}

// answer returns what the kernel says in /proc/cmdline.
func (g guest) answer() string {
	g.t.Helper()
	return g.run("cat /proc/cmdline")
}

// own is the beginning of what an unpatched kernel answers.
const own = "console=ttyS0"

// wantAnswer ends the test unless the kernel itself answers as it should.
func (g guest) wantAnswer(want string) {
	g.t.Helper()
	if got := g.answer(); got != want && (want != own || !strings.HasPrefix(got, own)) {
		g.t.Fatalf("kernel answers %q, want %q", got, want)
	}
}

// livepatches returns the names of loaded modules that are named like ours.
func (g guest) livepatches() []string {
	g.t.Helper()
	return strings.Fields(g.run("grep -o '^lkp_[^ ]*' /proc/modules | sort || true"))
}

// wantLoaded ends the test unless exactly these modules of ours are loaded.
func (g guest) wantLoaded(want ...string) {
	g.t.Helper()
	slices.Sort(want)
	if got := g.livepatches(); !slices.Equal(got, want) {
		g.t.Fatalf("loaded are %q, want %q", got, want)
	}
}

// eventually ends the test unless ok returns true within a time.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// build builds a module for the test.
func build(t *testing.T, p lab.Patch) lab.Module {
	t.Helper()
	m, err := here.Build(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func readFile(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
