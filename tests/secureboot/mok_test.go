//go:build secureboot

package secureboot

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"livepatch/tests/vm/machine"
)

// password is what the person chooses to confirm a request with.
const password = "livepatch1"

// TestEnrolment is docs/how-to/secure-boot.md: a machine with Microsoft's keys and
// Debian's boot chain, and the person who enrols the key of the vendor's modules.
// Its parts go on from each other.
func TestEnrolment(t *testing.T) {
	vendor := newVendorKey(t)
	mokutil, err := machine.UnpackedProgram(t.Context(), unpacked, "/usr/bin/mokutil")
	if err != nil {
		t.Fatal(err)
	}
	s := newSystem(t, "enrolment", vendor, debianChain(t), mokutil)
	one := vendor.signed(t, build(t, "1"))

	s.part("sees that it has Secure Boot and lacks the key", func(t *testing.T) {
		s.wantLockdown()
		s.wantShown("before", "mokutil --sb-state", "SecureBoot enabled")
		s.wantShown("test-key", "mokutil --test-key "+certFile, "is not enrolled")
	})
	s.part("refuses the patch, and says which command enrols the key", func(t *testing.T) {
		s.enable()
		s.offer(one, "1")
		s.wantRefused("not-enrolled", one, "not-enrolled", vendor.id())
	})
	s.part("enrols the key with that command and on the console", func(t *testing.T) {
		s.request("import", s.command(), confirm("Enroll MOK"))
		s.wantShown("enrolled", "mokutil --test-key "+certFile, "is already enrolled")
	})
	s.part("is patched, with signatures enforced and the kernel locked down", func(t *testing.T) {
		s.wantLockdown()
		s.try("canonical-livepatch refresh")
		s.wantPatched("1")
		s.show("patched", "canonical-livepatch status --verbose")
	})
	s.part("revokes the key on the console, which Debian's kernel does not apply to modules", func(t *testing.T) {
		s.waitAccepted()
		s.request("revoke", "mokutil --mokx --import "+certFile, confirm("Enroll MOKX"))
		s.wantShown("revoked", "mokutil --mokx --list-enrolled | grep Subject:", vendor.cert.Subject.CommonName)
		s.wantLockdown()
		s.offer(vendor.signed(t, build(t, "2")), "2")
		s.wantPatched("2")
		s.show("patched-although-revoked", "canonical-livepatch status --verbose")
	})
	s.part("removes the key on the console, and is no longer patched", func(t *testing.T) {
		s.waitAccepted()
		s.request("delete", "mokutil --delete "+certFile, confirm("Delete MOK"))
		if output := s.show("deleted", "mokutil --list-enrolled | grep Subject:"); strings.Contains(output, vendor.cert.Subject.CommonName) {
			t.Fatalf("the key is still enrolled:\n%s", output)
		}
		s.try("canonical-livepatch refresh")
		s.eventually("status says that the key is not enrolled", func() bool { return s.status().Signing.State == "not-enrolled" })
		s.show("without-key", "canonical-livepatch status --verbose")
		if got := s.run("cat /proc/cmdline"); strings.HasPrefix(got, "patch") {
			t.Errorf("kernel answers %q, want that it is not patched", got)
		}
		if got := s.command(); got != "mokutil --import "+certFile {
			t.Errorf("status says to run %q", got)
		}
	})
}

// debianChain returns a firmware with the keys that machines are sold with, and
// what Debian has signed for it.
func debianChain(t *testing.T) *machine.Firmware {
	t.Helper()
	return &machine.Firmware{
		Code: ovmf("OVMF_CODE_4M.secboot.fd"), Vars: readFile(t, ovmf("OVMF_VARS_4M.ms.fd")), Image: here.Kernel.Image,
		Loader: &machine.BootLoader{
			Shim:       filepath.Join(unpacked, "usr/lib/shim/shimx64.efi.signed"),
			MokManager: filepath.Join(unpacked, "usr/lib/shim/mmx64.efi.signed"),
			Grub:       filepath.Join(unpacked, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
		},
	}
}

// wantShown ends the test unless a command prints a text.
func (s *system) wantShown(name, command, want string) {
	s.t.Helper()
	if output := s.show(name, command); !strings.Contains(output, want) {
		s.t.Fatalf("%s says\n%s\nwant %q", command, output, want)
	}
}

// command returns the command that status tells the user to run as the next step.
func (s *system) command() string {
	s.t.Helper()
	output, _ := s.try("canonical-livepatch status")
	m := regexp.MustCompile(`sudo (mokutil --import [^\s;]+)`).FindStringSubmatch(output)
	if m == nil {
		s.t.Fatalf("status names no command:\n%s", output)
	}
	return m[1]
}

// A step is a screen of MokManager, known by a text on it, and the keys that the
// person presses there, one after the other.
type step struct {
	screen string
	keys   []string
}

// confirm are the steps from the entry of MokManager's menu that a request adds to
// the restart; each menu begins with its first entry.
func confirm(entry string) []step {
	next := []string{machine.KeyDown, machine.KeyEnter}
	return []step{
		{"Press any key to perform MOK management", []string{" "}},
		{entry, next},
		{"Continue", next},
		{"Yes", next},
		{"assword", []string{password, machine.KeyEnter}},
		{"Reboot", []string{machine.KeyEnter}},
	}
}

// request makes a request of MokManager with a command, restarts, and confirms it
// on the console.
func (s *system) request(name, command string, steps []step) {
	s.t.Helper()
	s.show(name, "printf '"+password+"\\n"+password+"\\n' | "+command)
	s.restart(func(ctx context.Context, screen *machine.Terminal) {
		for i, step := range steps {
			wait := screen.WaitForAll
			if i == 0 {
				wait = screen.WaitFor // it counts the seconds
			}
			text, err := wait(ctx, step.screen)
			if err != nil {
				s.t.Fatal(err)
			}
			s.keep(fmt.Sprintf("%s-screen-%d", name, i+1), text)
			for _, key := range step.keys {
				if err := screen.Press(ctx, key); err != nil {
					s.t.Fatal(err)
				}
			}
		}
	})
}
