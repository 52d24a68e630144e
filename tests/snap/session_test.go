//go:build snap

package snap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/guest"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// A session is a machine at whose prompt somebody types commands. Each command and
// its output is kept in a file.
type session struct {
	*machine.Machine
	t     *testing.T
	count int
}

// boot starts a machine that reaches a service. When the test ends, what the
// machine has logged is kept.
func boot(t *testing.T, service *lab.Service, files ...machine.File) *session {
	t.Helper()
	dir := t.TempDir()
	m, err := here.BootRoot(t.Context(), lab.RootSetup{
		Dir: dir, Disk: disk.Disk, Service: service.Address, MemoryMB: memoryMB, CPUs: cpus(disk.Suite), Files: files,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("machine is up after %.1fs", m.BootTime().Seconds())
	s := &session{Machine: m, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			s.keepJournal()
		}
		console, err := m.Console()
		err = errors.Join(err, os.WriteFile(filepath.Join(saved, "console.txt"), console, 0o644), m.Close())
		if err != nil {
			t.Error(err)
		}
	})
	return s
}

// in returns the session for a part of the test.
func (s *session) in(t *testing.T, part func()) {
	outer := s.t
	s.t = t
	defer func() { s.t = outer }()
	part()
}

// A typed is what a command has printed.
type typed struct {
	command, out, err string
	code              int
}

// all is what a person sees, whichever stream it was on.
func (c typed) all() string { return c.out + c.err }

// unsafe matches what is not to be in the name of a file.
var unsafe = regexp.MustCompile(`[^a-z0-9.=-]+`)

// types types a command as root and keeps it. It may fail.
func (s *session) types(command string) typed { return s.typesWith(command, "") }

// typesWith is types with something on the command's standard input.
func (s *session) typesWith(command, stdin string) typed {
	s.t.Helper()
	start := time.Now()
	res, err := s.RunRequest(s.t.Context(), guest.Request{Command: command, Stdin: []byte(stdin)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.count++
	c := typed{command, res.Stdout, res.Stderr, res.Code}
	name := unsafe.ReplaceAllString(strings.ToLower(command), "-")
	name = fmt.Sprintf("%02d-%s.txt", s.count, strings.Trim(name[:min(60, len(name))], "-"))
	text := fmt.Sprintf("# %s\n%s[exit status %d, %.1fs]\n", command, c.all(), c.code, time.Since(start).Seconds())
	if err := os.WriteFile(filepath.Join(saved, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// does types a command that has to succeed.
func (s *session) does(command string) typed {
	s.t.Helper()
	c := s.types(command)
	if c.code != 0 {
		s.t.Fatalf("%s: exit status %d\n%s", command, c.code, c.all())
	}
	return c
}

// refuses types a command that has to fail and to say all of want.
func (s *session) refuses(command string, want ...string) typed {
	s.t.Helper()
	c := s.types(command)
	if c.code == 0 {
		s.t.Errorf("%s: succeeded, want that it is refused\n%s", command, c.all())
	}
	c.says(s.t, want...)
	return c
}

// says fails the test unless all of want was printed.
func (c typed) says(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(c.all(), w) {
			t.Errorf("%s: does not say %q:\n%s", c.command, w, c.all())
		}
	}
}

// run runs a command that is not a user's and returns what it printed, without
// space around it.
func (s *session) run(command string) string {
	s.t.Helper()
	res, err := s.Run(s.t.Context(), command)
	if err != nil {
		s.t.Fatal(err)
	}
	if res.Code != 0 {
		s.t.Fatalf("%s: exit status %d\n%s%s", command, res.Code, res.Stdout, res.Stderr)
	}
	return strings.TrimSpace(res.Stdout)
}

// own is the beginning of what an unpatched kernel answers.
const own = "console=ttyS0"

// wantAnswer ends the test unless the kernel itself, asked for /proc/cmdline,
// answers as a livepatch makes it, or as it does by itself.
func (s *session) wantAnswer(want string) {
	s.t.Helper()
	if got := s.run("cat /proc/cmdline"); got != want && (want != own || !strings.HasPrefix(got, own)) {
		s.t.Fatalf("kernel answers %q, want %q", got, want)
	}
}

// eventually ends the test unless ok returns true within a time that no machine
// needs.
func (s *session) eventually(what string, ok func() bool) {
	s.t.Helper()
	const within = 4 * time.Minute
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %v\n%s", what, within, s.run("journalctl --no-pager -n 60; snap services"))
		}
		time.Sleep(time.Second)
	}
}

// keepJournal keeps all that the machine's services have logged. It is also done
// for a test that has failed, whose context has ended.
func (s *session) keepJournal() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute)
	defer cancel()
	res, err := s.Run(ctx, "journalctl --no-pager -o short-iso-precise")
	err = errors.Join(err, os.WriteFile(filepath.Join(saved, "journal.txt"), []byte(res.Stdout), 0o644))
	if err != nil {
		s.t.Error(err)
	}
}
