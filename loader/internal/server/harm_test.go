package server_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
)

func (m *machine) status() *loaderv1.StatusResponse {
	m.t.Helper()
	resp, err := m.client.Status(m.t.Context(), &loaderv1.StatusRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	return resp
}

func TestStatusTellsWhichBootEndedCleanly(t *testing.T) {
	m := newMachine(t)
	if got := m.status().GetCleanBoot(); got != "" {
		t.Errorf("clean boot = %q before there was one", got)
	}
	m.boot("boot2")
	if got := m.status().GetCleanBoot(); got != "boot1" {
		t.Errorf("clean boot = %q, want boot1", got)
	}
	m.restart() // the next connection to its socket
	if got := m.status().GetCleanBoot(); got != "boot1" {
		t.Errorf("clean boot = %q in another process", got)
	}
	m.kernel.reboot("boot3") // the power went
	m.restart()
	if got := m.status().GetCleanBoot(); got != "boot1" {
		t.Errorf("clean boot = %q after a crash of boot2, want boot1", got)
	}
}

const oops = `[    9.331787] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    9.332585] Oops: 0002 [#1] PREEMPT SMP NOPTI
[    9.333368] RIP: 0010:livepatch_cmdline_proc_show+0x30/0x4d [lkp_Debian_6_1_0_53_amd64_1]
[    9.333368] ---[ end trace 0000000000000000 ]---
[   10.000000] WARNING: CPU: 0 PID: 1 at x.c:1 foo+0x1/0x2 [somebody_elses]
`

func TestStatusTellsWhatTheKernelSaysOfOurs(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.kernel.log = oops
	m.kernel.write("sys/fs/pstore/dmesg-ramoops-0", "Panic#1 Part1\n"+oops)
	if got := m.status().GetComplaints(); len(got) != 0 {
		t.Errorf("complaints = %v before there was a patch", got)
	}
	m.mustApply(1, applied)
	got := m.status().GetComplaints()
	if len(got) != 2 {
		t.Fatalf("complaints = %v", got)
	}
	for i, boot := range []string{"", "boot1"} { // the record of an earlier boot comes first
		c := got[i]
		if c.GetName() != nameOf(1) || c.GetSignature() != "NULL pointer dereference/"+nameOf(1)+"/livepatch_cmdline_proc_show" ||
			c.GetMessage() != "BUG: kernel NULL pointer dereference, address: … in livepatch_cmdline_proc_show" || c.GetBootId() != boot {
			t.Errorf("complaint = %v", c)
		}
	}
}

func TestModeKeepsEverythingOutOfTheKernel(t *testing.T) {
	tests := map[string]struct {
		cmdline, file string
		want          string // as Status tells it
		applies       bool
	}{
		"nothing is said":               {"quiet\n", "", "normal", true},
		"normal is said":                {"canonical_livepatch_mode=normal\n", "normal\n", "normal", true},
		"no-refresh is the agent's":     {"canonical_livepatch_mode=no-refresh", "", "no-refresh", true},
		"no-apply on the command line":  {"ro canonical_livepatch_mode=no-apply quiet\n", "", "no-apply", false},
		"stop on the command line":      {"canonical_livepatch_mode=stop\n", "normal", "stop", false},
		"no-apply in the file":          {"quiet\n", "no-apply", "no-apply", false},
		"stop in the file":              {"canonical_livepatch_mode=normal\n", "stop\n", "stop", false},
		"the stricter of both":          {"canonical_livepatch_mode=no-apply\n", "no-refresh\n", "stop", false},
		"a word that nobody knows":      {"canonical_livepatch_mode=off\n", "", "no-apply", false},
		"a word in the file, the same":  {"quiet\n", "aus\n", "no-apply", false},
		"two words on the command line": {"canonical_livepatch_mode=stop canonical_livepatch_mode=normal", "", "normal", true},
		"something that only begins so": {"canonical_livepatch_mode_x=stop xcanonical_livepatch_mode=stop", "", "normal", true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.publish(1)
			m.mustApply(1, applied)
			m.accept(1)
			m.publish(2)
			m.kernel.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda "+tc.cmdline)
			if tc.file != "" {
				if err := os.WriteFile(filepath.Join(m.state, kernel.ModeFile), []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := m.status().GetMode(); got != tc.want {
				t.Errorf("mode = %q, want %q", got, tc.want)
			}
			_, err := m.apply(2)
			if tc.applies != (err == nil) || err != nil && !errors.Is(err, patch.ErrSwitchedOff) {
				t.Errorf("apply = %v", err)
			}
			// What was accepted does not come back at boot either, and stays accepted.
			m.kernel.reboot("boot2")
			m.restart()
			err = m.server.Reapply(t.Context())
			if tc.applies != (err == nil) || err != nil && !errors.Is(err, patch.ErrSwitchedOff) || tc.applies != (len(m.kernel.inserted) == 1) {
				t.Errorf("at boot: %v, inserted %q", err, m.kernel.inserted)
			}
			if e, _ := m.server.Journal.Find(nameOf(1)); e.Standing != "accepted" {
				t.Errorf("patch 1 is %s", e.Standing)
			}
		})
	}
}

// What is switched off is applying, not taking away what is revoked.
func TestModeKeepsNothingRevokedInTheKernel(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.kernel.write("proc/cmdline", "canonical_livepatch_mode=stop\n")
	m.decide(1, patch.Revoked)
	m.wantWithdrawn(nameOf(1))
}

// withdrawSome signs that the share of all loaders gives a halted patch up.
func (m *machine) withdrawSome(share int64) {
	m.repo.AddTarget(patch.RolloutPath("debian", "1.1"), nil, patch.Rollout{State: patch.Halted, Withdraw: &patch.Stage{Share: share, Salt: "salt"}})
	m.repo.Publish("rollout")
}

// Of many loaders the share that was signed takes the patch out, and each of them the
// same when it is asked again.
func TestStagedWithdrawalReachesItsShare(t *testing.T) {
	const loaders, share = 60, patch.Everyone / 2
	out := 0
	for i := range loaders {
		m := newMachine(t)
		m.kernel.write("proc/sys/kernel/random/uuid", strconv.Itoa(i)+"\n")
		m.publish(1)
		m.mustApply(1, applied)
		m.accept(1)
		e, _ := m.server.Journal.Find(nameOf(1))
		want := patch.Rollout{State: patch.Halted, Withdraw: &patch.Stage{Share: share, Salt: "salt"}}.ForLoader(running, e.ID) == patch.Revoked
		for range 2 { // said again, it counts again
			m.withdrawSome(share)
			got, err := m.update()
			if err != nil {
				t.Fatal(err)
			}
			out += len(got)
		}
		m.boot("boot2")
		if back := len(m.kernel.inserted) == 1; back == want {
			t.Errorf("loader %d is to give it up: %v; back at boot: %v", i, want, back)
		}
		m.stop()
	}
	if out < loaders/5 || out > loaders*4/5 {
		t.Errorf("%d of %d loaders gave it up, want about half", out, loaders)
	}
}

// The identity is made once for a patch: a draw that could be repeated at each boot
// would reach everybody in the end.
func TestIdentityStays(t *testing.T) {
	m := newMachine(t)
	m.kernel.write("proc/sys/kernel/random/uuid", "one\n")
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.kernel.write("proc/sys/kernel/random/uuid", "two\n")
	m.boot("boot2")
	m.publish(2)
	m.mustApply(2, applied)
	for seq, want := range map[uint64]string{1: "one", 2: "two"} {
		if e, _ := m.server.Journal.Find(nameOf(seq)); e.ID != want {
			t.Errorf("patch %d has identity %q, want %q", seq, e.ID, want)
		}
	}
}

func TestForgivenPatchIsTriedAgain(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if err := m.server.Journal.Forgive(nameOf(1)); err == nil {
		t.Error("forgave a patch on trial")
	}
	m.kernel.reboot("boot2")
	m.restart()
	m.check(1, absent, suspect)
	if _, err := m.apply(1); !errors.Is(err, patch.ErrSuspect) {
		t.Fatalf("error = %v, want %v", err, patch.ErrSuspect)
	}
	if err := m.server.Journal.Forgive("nobody"); err == nil {
		t.Error("forgave nobody")
	}
	if err := m.server.Journal.Forgive(nameOf(1)); err != nil {
		t.Fatal(err)
	}
	m.mustApply(1, applied)
	m.check(1, enabled, trial)
}
