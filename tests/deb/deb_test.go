//go:build deb

// Package deb holds the test of the Debian package: on a machine with a whole
// Debian and no snapd, with the commands that people use. See tests/README.md.
package deb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/debian"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// own is the beginning of what an unpatched kernel answers.
const own = "console=ttyS0"

// A session is a machine on which somebody types commands as root.
type session struct {
	*machine.Machine
	t *testing.T
}

// run runs a command that has to succeed and returns what it printed.
func (s session) run(command string) string {
	s.t.Helper()
	res, err := s.Run(s.t.Context(), command)
	if err != nil {
		s.t.Fatal(err)
	}
	if res.Code != 0 {
		s.t.Fatalf("%s: exit status %d\n%s%s\n%s", command, res.Code, res.Stdout, res.Stderr, s.log())
	}
	return strings.TrimSpace(res.Stdout)
}

func (s session) log() string {
	res, err := s.Run(s.t.Context(), "journalctl --no-pager -n 80 -u 'livepatch*' -u 'canonical-livepatchd*'")
	return fmt.Sprint(res.Stdout, err)
}

// eventually ends the test unless ok returns true within a time that no machine
// needs.
func (s session) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(4 * time.Minute); !ok(); time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within 4 minutes\n%s", what, s.log())
		}
	}
}

// wantAnswer ends the test unless the kernel itself, asked for /proc/cmdline,
// answers as a livepatch makes it, or as it does by itself.
func (s session) wantAnswer(want string) {
	s.t.Helper()
	if got := s.run("cat /proc/cmdline"); got != want && (want != own || !strings.HasPrefix(got, own)) {
		s.t.Fatalf("kernel answers %q, want %q", got, want)
	}
}

// wantApplied waits until status says that a version is applied.
func (s session) wantApplied(version string) {
	s.t.Helper()
	s.eventually("version "+version+" is applied", func() bool {
		var got struct {
			Status []struct {
				Livepatch struct{ State, Version string }
			}
		}
		res, err := s.Run(s.t.Context(), "canonical-livepatch status --format json")
		return err == nil && json.Unmarshal([]byte(res.Stdout), &got) == nil && len(got.Status) > 0 &&
			got.Status[0].Livepatch.State == "applied" && got.Status[0].Livepatch.Version == version
	})
}

// noRoot waits until nothing of ours runs as root.
func (s session) noRoot() {
	s.t.Helper()
	s.eventually("no process of root's is left", func() bool {
		return s.run("ps -u root -o args= | grep -c '[l]ivepatch' || true") == "0"
	})
}

// pack makes the package as "make deb" does.
func pack(t *testing.T, here *lab.Lab, trust, version string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "make", "-C", here.Tree(), "deb", "TRUST="+trust, "DEB="+dir)
	cmd.Env = append(os.Environ(), "DEB_VERSION="+version)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot make the package: %v\n%s", err, out)
	}
	return filepath.Join(dir, "livepatch-client_amd64.deb")
}

// setUp returns a lab whose kernel is that of a Debian without snapd, and its disk.
func setUp(ctx context.Context, bin string) (*lab.Lab, *debian.Image, error) {
	host, err := lab.New(ctx, os.Getenv("LIVEPATCH_CACHE"), bin, func(string, time.Duration) {})
	if err != nil {
		return nil, nil, err
	}
	cache := debian.NewCache(host.Cache)
	disk, err := cache.Image(ctx, "plain", debian.Recipe{Suite: debian.Bookworm})
	if err != nil {
		return nil, nil, err
	}
	return host.On(disk.Kernel), disk, cache.AddToolchain(ctx, disk)
}

// TestPackage is the life of a machine without snapd. Its steps go on from each
// other.
func TestPackage(t *testing.T) {
	here, disk, err := setUp(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	service, err := here.NewService(t.Context(), t.TempDir(), lab.ServiceOptions{Soak: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	publisher, err := here.NewPublisher(t.Context(), t.TempDir(), service)
	if err != nil {
		t.Fatal(err)
	}
	trust := t.TempDir()
	if err := os.WriteFile(filepath.Join(trust, "root.json"), publisher.Root, 0o644); err != nil {
		t.Fatal(err)
	}
	certificate, err := lab.ModuleCertificate()
	if err := errors.Join(err, os.WriteFile(filepath.Join(trust, "livepatch-kmod.x509"), certificate, 0o644)); err != nil {
		t.Fatal(err)
	}
	publish(t, here, publisher, "1", "one")
	ca, err := os.ReadFile(service.CA)
	if err != nil {
		t.Fatal(err)
	}
	m, err := here.BootRoot(t.Context(), lab.RootSetup{
		Dir: t.TempDir(), Disk: disk.Disk, Service: service.Address, MemoryMB: 512, CPUs: 2,
		Files: []machine.File{
			{Path: "/root/one.deb", Source: pack(t, here, trust, "1.0")},
			{Path: "/root/two.deb", Source: pack(t, here, trust, "2.0")},
			{Path: "/root/ca.crt", Data: ca},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := session{m, t}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	install(s)
	enable(s, service)
	inside(s)
	reboot(s)
	upgrade(s, here, publisher)
	remove(s)
}

func publish(t *testing.T, here *lab.Lab, p *lab.Publisher, version, answer string) {
	t.Helper()
	mod, err := here.Build(t.Context(), lab.Patch{Source: "answer", Version: version, Answer: answer})
	err = errors.Join(err, p.Sign(t.Context(), mod, version, "CVE-2026-1000"+version), p.Push(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
}

func install(s session) {
	s.t.Helper()
	s.run("dpkg -i /root/one.deb")
	if failed := s.run("systemctl --failed --no-legend --plain"); failed != "" {
		s.t.Errorf("failed units: %s", failed)
	}
	for unit, want := range map[string]string{
		"livepatch-loader.socket": "active", "livepatch-loader-boot.service": "active", "canonical-livepatchd.service": "active", "livepatch-loader.service": "inactive",
	} {
		if got := s.run("systemctl is-active " + unit + " || true"); got != want {
			s.t.Errorf("%s is %s, want %s", unit, got, want)
		}
	}
	res, err := s.Run(s.t.Context(), "canonical-livepatch status")
	if err != nil || res.Code != 1 || !strings.Contains(res.Stderr, "Machine is not enabled") {
		s.t.Errorf("status before it is enabled: %+v, %v", res, err)
	}
}

func enable(s session, service *lab.Service) {
	s.t.Helper()
	token, err := service.Admin(s.t.Context(), "token", "create")
	if err != nil {
		s.t.Fatal(err)
	}
	s.run("canonical-livepatch config ca-certs=@stdin < /root/ca.crt")
	s.run("canonical-livepatch config remote-server=https://" + lab.ServiceName + ":8443")
	s.run("echo " + token + " | canonical-livepatch enable -")
	s.wantApplied("1")
	s.wantAnswer("one")
	s.eventually("the patch is accepted", func() bool {
		return strings.Contains(s.run("cat /var/lib/livepatch-loader/journal.json"), `"accepted"`)
	})
	if logged := s.run("journalctl --no-pager"); strings.Contains(logged, token) {
		s.t.Error("the token is in the log")
	}
}

// inside looks at the processes.
func inside(s session) {
	s.t.Helper()
	pid := s.run("systemctl show -P MainPID canonical-livepatchd.service")
	status := s.run("cat /proc/" + pid + "/status")
	if strings.Contains(status, "\nUid:\t0\t") || !strings.Contains(status, "CapEff:\t0000000000000000") || !strings.Contains(status, "CapBnd:\t0000000000000000") {
		s.t.Errorf("the agent has privilege:\n%s", status)
	}
	s.noRoot()
}

// reboot does without a network: what was accepted returns by itself.
func reboot(s session) {
	s.t.Helper()
	if err := s.Network(false); err != nil {
		s.t.Fatal(err)
	}
	if err := s.Reboot(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("the patch has returned", func() bool { return s.run("cat /proc/cmdline") == "one" })
	if err := s.Network(true); err != nil {
		s.t.Fatal(err)
	}
}

// upgrade brings another version of the package while the kernel is patched.
func upgrade(s session, here *lab.Lab, p *lab.Publisher) {
	s.t.Helper()
	s.run("dpkg -i /root/two.deb")
	s.wantAnswer("one")
	s.wantApplied("1")
	if boot := s.run("cat /proc/sys/kernel/random/boot_id"); strings.Contains(s.run("cat /var/lib/livepatch-loader/journal.json"), `"clean_boot":"`+boot) {
		s.t.Error("an upgrade was recorded as the end of the boot")
	}
	publish(s.t, here, p, "2", "two")
	s.run("canonical-livepatch refresh")
	s.wantApplied("2")
	s.wantAnswer("two")
}

// remove leaves the kernel as it is; purging forgets everything.
func remove(s session) {
	s.t.Helper()
	if out := s.run("dpkg -r livepatch-client"); !strings.Contains(out, "stay there until this machine reboots") {
		s.t.Errorf("removal does not say what becomes of the kernel: %s", out)
	}
	s.wantAnswer("two")
	s.noRoot()
	s.run("test -e /var/lib/livepatch-loader/journal.json")
	s.run("dpkg -P livepatch-client")
	if left := s.run("ls -d /var/lib/livepatch-loader /var/lib/canonical-livepatch /etc/livepatch /lib/systemd/system/*livepatch* 2>/dev/null || true"); left != "" {
		s.t.Errorf("left behind: %s", left)
	}
	s.wantAnswer("two")
}
