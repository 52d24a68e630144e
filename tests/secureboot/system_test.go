//go:build secureboot

package secureboot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// artefacts is where screens and transcripts go.
var artefacts = flag.String("artefacts", "../../build/secureboot", "`folder` for what the tests have seen: screens and transcripts")

// certFile is where the certificate of the vendor's key lies on a machine; the
// agent's unit says so.
const certFile = "/usr/share/livepatch/keys/livepatch-kmod.x509"

// A system is a service outside and a machine with Secure Boot inside.
type system struct {
	*machine.Machine
	t         *testing.T
	service   *lab.Service
	publisher *lab.Publisher
	folder    string // for artefacts
	count     int    // of artefacts
}

// newSystem starts a service with a publisher's empty repository, and a machine
// that is shipped with the certificate of a key. It knows the service, and is not
// enabled.
func newSystem(t *testing.T, name string, shipped key, f *machine.Firmware, files []machine.File) *system {
	t.Helper()
	ctx := t.Context()
	s := &system{t: t, folder: filepath.Join(*artefacts, name)}
	s.newFolder()
	service, err := here.NewService(ctx, t.TempDir(), lab.ServiceOptions{Soak: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := service.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the service:\n%s", service.Log())
		}
	})
	publisher, err := here.NewPublisher(ctx, t.TempDir(), service)
	if err != nil {
		t.Fatal(err)
	}
	s.service, s.publisher = service, publisher
	s.Machine = boot(t, lab.Setup{
		Root: publisher.Root, Service: service.Address, Firmware: f,
		Files: append(files, machine.File{Path: certFile, Data: shipped.der()}),
	})
	if err := s.WriteFile(ctx, "/root/ca.crt", readFile(t, service.CA)); err != nil {
		t.Fatal(err)
	}
	s.waitAgent()
	return s
}

// part runs a part of the test. If it fails, so do those that go on from it.
func (s *system) part(name string, do func(t *testing.T)) {
	s.t.Helper()
	whole := s.t
	ok := whole.Run(name, func(t *testing.T) {
		s.t = t
		do(t)
	})
	s.t = whole
	if !ok {
		whole.FailNow()
	}
}

// newFolder empties the folder for artefacts.
func (s *system) newFolder() {
	s.t.Helper()
	if err := os.RemoveAll(s.folder); err != nil {
		s.t.Fatal(err)
	}
	if err := os.MkdirAll(s.folder, 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// keep writes an artefact; they are numbered in their order.
func (s *system) keep(name, content string) {
	s.t.Helper()
	s.count++
	file := filepath.Join(s.folder, fmt.Sprintf("%02d-%s.txt", s.count, name))
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// boot starts a machine. If the test fails, the end of what the machine logged is
// shown, and all of it kept if -keep says where.
func boot(t *testing.T, setup lab.Setup) *machine.Machine {
	t.Helper()
	// One processor: under SMM, all of them are brought to rest for every change of
	// a variable.
	setup.Dir, setup.MemoryMB, setup.CPUs = t.TempDir(), 768, 1
	m, err := here.Boot(t.Context(), setup)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("machine is up after %.1fs", m.BootTime().Seconds())
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			showLogs(t, m)
		}
	})
	return m
}

func showLogs(t *testing.T, m *machine.Machine) {
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
	file := filepath.Join(*keep, strings.ReplaceAll(t.Name(), "/", "_")+".log")
	if err := os.MkdirAll(*keep, 0o755); err != nil {
		t.Log(err)
	}
	t.Logf("log is in %s: %v", file, os.WriteFile(file, console, 0o644))
}

// try runs a command as root and returns all that it printed, and its exit status.
func (s *system) try(command string) (output string, code int) {
	s.t.Helper()
	res, err := s.Run(s.t.Context(), command)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.Stdout + res.Stderr, res.Code
}

// run runs a command as root and returns what it printed on standard output,
// without the last newline. A command that fails ends the test.
func (s *system) run(command string) string {
	s.t.Helper()
	res, err := s.Run(s.t.Context(), command)
	if err != nil {
		s.t.Fatal(err)
	}
	if res.Code != 0 {
		s.t.Fatalf("%s: exit status %d\n%s%s", command, res.Code, res.Stdout, res.Stderr)
	}
	return strings.TrimSuffix(res.Stdout, "\n")
}

// show runs commands as a user would, keeps what was to be seen, and returns it.
func (s *system) show(name string, commands ...string) string {
	s.t.Helper()
	var b strings.Builder
	for _, command := range commands {
		output, code := s.try(command)
		fmt.Fprintf(&b, "# %s\n%s", command, output)
		if code != 0 {
			fmt.Fprintf(&b, "(exit status %d)\n", code)
		}
	}
	s.keep(name, b.String())
	return b.String()
}

// eventually ends the test unless ok returns true within a time that no healthy
// machine needs.
func (s *system) eventually(what string, ok func() bool) {
	s.t.Helper()
	const within = 3 * time.Minute
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			status, _ := s.try("canonical-livepatch status --verbose")
			s.t.Fatalf("%s: not within %v; status is\n%s", what, within, status)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// waitAgent waits until the agent answers after a start.
func (s *system) waitAgent() {
	s.t.Helper()
	s.eventually("agent answers", func() bool {
		output, _ := s.try("canonical-livepatch status")
		return !strings.Contains(output, "Connection to the daemon failed") && !strings.Contains(output, "agent is not running")
	})
}

// ship gives the machine the certificate of another key, as a newer package would.
func (s *system) ship(k key) {
	s.t.Helper()
	ctx := s.t.Context()
	if err := s.WriteFile(ctx, certFile, k.der()); err != nil {
		s.t.Fatal(err)
	}
	if err := s.Stop(ctx, lab.Agent); err != nil {
		s.t.Fatal(err)
	}
	if err := s.Start(ctx, lab.Agent); err != nil {
		s.t.Fatal(err)
	}
	s.waitAgent()
}

// offer publishes a module and lets the machine look for it. Whether that ends
// well is another matter.
func (s *system) offer(m lab.Module, version string) {
	s.t.Helper()
	if err := s.publisher.Sign(s.t.Context(), m, version, "CVE-2026-1000"+version); err != nil {
		s.t.Fatal(err)
	}
	if err := s.publisher.Push(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.try("canonical-livepatch refresh")
}

// enable enables the machine with a new token.
func (s *system) enable() {
	s.t.Helper()
	token, err := s.service.Admin(s.t.Context(), "token", "create")
	if err != nil {
		s.t.Fatal(err)
	}
	s.run("canonical-livepatch config ca-certs=@stdin < /root/ca.crt")
	s.run("canonical-livepatch config remote-server=https://" + lab.ServiceName + ":8443")
	s.show("enable", "canonical-livepatch enable "+token)
}

// A report is what the tests read of status in JSON.
type report struct {
	Status []struct {
		Livepatch struct{ State, Version string }
	}
	Signing struct {
		Demanded bool
		Key      string
		State    string
		Message  string
		Hint     string
	} `json:"Module-Signing"`
}

func (s *system) status() report {
	s.t.Helper()
	var r report
	out := s.run("canonical-livepatch status --format json --verbose")
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Status) == 0 {
		s.t.Fatalf("cannot read status: %v\n%s", err, out)
	}
	return r
}

// wantPatched waits until status says that a version is applied, and asks the
// kernel.
func (s *system) wantPatched(version string) {
	s.t.Helper()
	s.eventually("status says that version "+version+" is applied", func() bool {
		p := s.status().Status[0].Livepatch
		return p.State == "applied" && p.Version == version
	})
	if got, want := s.run("cat /proc/cmdline"), "patch "+version; got != want {
		s.t.Fatalf("kernel answers %q, want %q", got, want)
	}
}

// waitAccepted waits until the patch in force is off its trial: a machine that is
// reset during that does not trust the patch any more.
func (s *system) waitAccepted() {
	s.t.Helper()
	s.eventually("the patch is accepted", func() bool {
		output, _ := s.try("canonical-livepatch status --verbose")
		return strings.Contains(output, "patch standing: accepted")
	})
}

// fetched tells whether the agent has a module in its cache.
func (s *system) fetched(m lab.Module) bool {
	s.t.Helper()
	sum := sha256.Sum256(m.Content)
	return s.run("find /var/lib/canonical-livepatch -type f -exec sha256sum {} + | grep -c "+hex.EncodeToString(sum[:])+" || true") != "0"
}

// wantRefused waits until status says how the kernel stands to the key, and
// compares what it tells the user. The module was not even fetched.
func (s *system) wantRefused(name string, m lab.Module, state string, says ...string) {
	s.t.Helper()
	s.eventually("status says that the key is "+state, func() bool { return s.status().Signing.State == state })
	output := s.show(name, "canonical-livepatch status", "canonical-livepatch status --verbose")
	for _, want := range says {
		if !strings.Contains(output, want) {
			s.t.Errorf("status does not say %q:\n%s", want, output)
		}
	}
	if loaded := s.run("grep -c '^" + m.Name + " ' /proc/modules || true"); loaded != "0" {
		s.t.Errorf("%s is in the kernel", m.Name)
	}
	if s.fetched(m) {
		s.t.Errorf("%s was fetched although it could not be used", m.Name)
	}
}

// restart restarts the machine with the reset button, because there is nothing to
// be saved but what the firmware has already, and calls drive meanwhile.
func (s *system) restart(drive func(ctx context.Context, screen *machine.Terminal)) {
	s.t.Helper()
	ctx, cancel := context.WithCancelCause(s.t.Context())
	defer cancel(nil)
	s.run("sync")
	up := make(chan error, 1)
	go func() {
		err := s.Reset(ctx)
		if err != nil {
			cancel(err)
		}
		up <- err
	}()
	drive(ctx, s.Terminal())
	if err := <-up; err != nil {
		s.t.Fatal(err)
	}
	s.waitAgent()
}
