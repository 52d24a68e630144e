//go:build secureboot

package secureboot

import (
	"strings"
	"testing"
	"time"
)

// TestKeysOfTheFirmware is a machine whose owner has their keys in the firmware:
// one has signed the kernel, others may sign modules, one is revoked. What is
// published for it is signed by each in turn. Its parts go on from each other.
func TestKeysOfTheFirmware(t *testing.T) {
	vendor, stranger := newVendorKey(t), newKey(t, "Stranger", nextYear())
	revoked, expired := newKey(t, "Revoked", nextYear()), newKey(t, "Expired", time.Now().AddDate(0, 0, -7))
	k := keys{
		owner: newKey(t, "Owner of the machine", nextYear()), allowed: []key{vendor, revoked, expired},
		revoked: []key{revoked},
	}
	s := newSystem(t, "firmware", vendor, k.firmware(t), nil)
	one, two, three := build(t, "1"), stranger.signed(t, build(t, "2")), revoked.signed(t, build(t, "3"))

	s.part("locks the kernel down, which takes no unsigned module", func(t *testing.T) {
		s.wantLockdown()
		if err := s.WriteFile(t.Context(), "/root/unsigned.ko", one.Content); err != nil {
			t.Fatal(err)
		}
		if output := s.show("insmod-unsigned", "insmod /root/unsigned.ko"); !strings.Contains(output, "Key was rejected by service") {
			t.Errorf("insmod says %q, want that the key was rejected", output)
		}
	})
	s.part("refuses a patch that is not signed, and says so", func(t *testing.T) {
		s.enable()
		s.offer(one, "1")
		s.wantRefused("unsigned", one, "enrolled", "this kernel takes signed modules only")
	})
	s.part("refuses a patch signed by a key that it does not have, and says what to do", func(t *testing.T) {
		s.ship(stranger)
		s.offer(two, "2")
		s.wantRefused("unknown-key", two, "not-enrolled", stranger.id(), "sudo mokutil --import "+certFile)
	})
	s.part("refuses a patch signed by a key that was revoked, and says so", func(t *testing.T) {
		s.ship(revoked)
		s.offer(three, "3")
		s.wantRefused("revoked-key", three, "revoked", "this machine has revoked the key that signed the patch, "+revoked.id())
	})
	s.part("takes a patch signed by a key whose certificate has expired, and says so", func(t *testing.T) {
		s.ship(expired)
		s.offer(expired.signed(t, build(t, "4")), "4")
		s.wantPatched("4")
		if output := s.show("expired-key", "canonical-livepatch status"); !strings.Contains(output, "has expired on") {
			t.Errorf("status does not say that the certificate has expired:\n%s", output)
		}
	})
	s.part("is patched by a patch that is signed", func(t *testing.T) {
		s.ship(vendor)
		five := vendor.signed(t, build(t, "5"))
		s.offer(five, "5")
		s.wantPatched("5")
		if !s.fetched(five) {
			t.Error("the patch is not in the agent's cache: looking there says nothing")
		}
		s.show("patched", "canonical-livepatch status --verbose")
	})
}

// wantLockdown ends the test unless the kernel knows of Secure Boot, is locked down
// and takes signed modules only.
func (s *system) wantLockdown() {
	s.t.Helper()
	output := s.show("kernel", "cat /sys/kernel/security/lockdown", "cat /sys/module/module/parameters/sig_enforce",
		"grep asymmetri /proc/keys", "grep blacklist /proc/keys | grep -v bin:", "dmesg | grep -iE 'secure ?boot|locked|x.?509|blacklist'")
	for _, want := range []string{"[integrity]", "sig_enforce\nY\n", "secureboot: Secure boot enabled"} {
		if !strings.Contains(output, want) {
			s.t.Fatalf("kernel does not say %q:\n%s", want, output)
		}
	}
}
