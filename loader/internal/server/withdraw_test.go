package server_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/tuftest"
	loaderv1 "livepatch/proto/loader/v1"
)

// decide signs a decision about patch number seq.
func (m *machine) decide(seq uint64, s patch.RolloutState) {
	m.repo.AddTarget(patch.RolloutPath("debian", versionOf(seq)), nil, patch.Rollout{State: s})
	m.repo.Publish("rollout")
}

// update hands the signed metadata over, as an honest agent does.
func (m *machine) update() ([]string, error) { return m.updateWith(m.metadata()) }

func (m *machine) updateWith(metadata *loaderv1.Metadata) ([]string, error) {
	resp, err := m.client.Update(m.t.Context(), &loaderv1.UpdateRequest{Metadata: metadata})
	return resp.GetWithdrawn(), rpcerr.FromStatus(err)
}

func (m *machine) wantWithdrawn(want ...string) {
	m.t.Helper()
	got, err := m.update()
	if err != nil || !slices.Equal(got, want) {
		m.t.Errorf("withdrawn = %q, %v; want %q", got, err, want)
	}
}

func (m *machine) accept(seq uint64) {
	m.t.Helper()
	if _, err := m.client.Accept(m.t.Context(), &loaderv1.AcceptRequest{Name: nameOf(seq)}); err != nil {
		m.t.Fatal(err)
	}
}

// boot is what a reboot in good order does: clean shutdown, a fresh kernel, the
// loader's one-shot run.
func (m *machine) boot(id string) {
	m.t.Helper()
	facts, err := m.server.Facts()
	if err == nil {
		err = m.server.Journal.MarkCleanShutdown(facts.BootID)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.kernel.reboot(id)
	m.restart()
	if err := m.server.Reapply(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
}

func TestRevokedPatchLeavesTheKernelAndDoesNotReturnAtBoot(t *testing.T) {
	for _, proven := range []bool{false, true} {
		m := newMachine(t)
		m.publish(1)
		m.mustApply(1, applied)
		if proven {
			m.accept(1)
		}
		m.decide(1, patch.Revoked)
		m.wantWithdrawn(nameOf(1))
		m.check(1, absent, quarantined)
		m.wantWithdrawn() // nothing is left to do
		m.boot("boot2")
		m.check(1, absent, quarantined)
	}
}

func TestRevokedPatchIsReplacedByTheOneAcceptedBefore(t *testing.T) {
	for name, proven := range map[string]bool{"on trial": false, "accepted": true} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.publish(1)
			m.mustApply(1, applied)
			m.accept(1)
			m.publish(2)
			m.mustApply(2, applied)
			if proven {
				m.accept(2)
			}
			m.decide(2, patch.Revoked)
			m.wantWithdrawn(nameOf(2))
			m.check(1, enabled, accepted)
			m.check(2, absent, quarantined)
			m.boot("boot2")
			m.check(1, enabled, accepted)
			m.check(2, absent, quarantined)
			// What was revoked has raised the floor for good.
			if _, err := m.apply(1); !errors.Is(err, patch.ErrRollback) {
				t.Errorf("error = %v, want %v", err, patch.ErrRollback)
			}
		})
	}
}

// The journal has it before the kernel is touched.
func TestRevocationHeardBeforeAPowerCutHoldsAtBoot(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	if err := m.server.Journal.Hear(map[string]patch.RolloutState{nameOf(1): patch.Revoked}); err != nil {
		t.Fatal(err)
	}
	m.kernel.reboot("boot2") // the power goes
	m.restart()
	if err := m.server.Reapply(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.check(1, absent, accepted)
}

func TestLoaderThatWasKilledWithdrawsAtItsNextStart(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if err := m.server.Journal.Hear(map[string]patch.RolloutState{nameOf(1): patch.Revoked}); err != nil {
		t.Fatal(err)
	}
	m.restart()
	m.check(1, absent, quarantined)
}

func TestRevocationOutlivesMetadataThatDoesNotMentionIt(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.decide(1, patch.Halted)
	m.wantWithdrawn()
	delete(m.repo.Roles["rollout"].Signed["targets"].(tuftest.Object), patch.RolloutPath("debian", versionOf(1)))
	m.repo.Publish("rollout")
	m.wantWithdrawn()
	m.checkRollout(1, patch.Halted)
}

func (m *machine) checkRollout(seq uint64, want patch.RolloutState) {
	m.t.Helper()
	resp, err := m.client.Status(m.t.Context(), &loaderv1.StatusRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, lp := range resp.GetLivepatches() {
		if lp.GetName() == nameOf(seq) && lp.GetRollout() != string(want) {
			m.t.Errorf("rollout of patch %d is %q, want %q", seq, lp.GetRollout(), want)
		}
	}
}

// Apply hands over the same metadata: what it says of other patches counts, too.
func TestApplyHearsOfRevocations(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.decide(1, patch.Revoked)
	m.publish(2)
	m.mustApply(2, applied)
	m.check(1, absent, quarantined)
	m.boot("boot2") // patch 2 was on trial, patch 1 is revoked
	m.check(1, absent, quarantined)
	m.check(2, absent, quarantined)
}

func TestHaltedPatchStaysAndIsNotAccepted(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.decide(1, patch.Halted)
	m.wantWithdrawn()
	m.check(1, enabled, trial)
	_, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)})
	if err := rpcerr.FromStatus(err); !errors.Is(err, patch.ErrHalted) {
		t.Errorf("error = %v, want %v", err, patch.ErrHalted)
	}
	m.decide(1, patch.Running)
	m.wantWithdrawn()
	m.accept(1)
}

// A patch that was accepted before it was halted has proven itself here.
func TestHaltedPatchReturnsAtBootIfItWasAccepted(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.decide(1, patch.Halted)
	m.wantWithdrawn()
	m.boot("boot2")
	m.check(1, enabled, accepted)
}

func TestRevocationCannotBeTakenBackWithOlderMetadata(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	before := m.metadata()
	m.decide(1, patch.Revoked)
	m.wantWithdrawn(nameOf(1))
	if _, err := m.updateWith(before); !errors.Is(err, patch.ErrRollback) {
		t.Errorf("error = %v, want %v", err, patch.ErrRollback)
	}
	if _, err := m.apply(1); !errors.Is(err, patch.ErrRevoked) {
		t.Errorf("error = %v, want %v", err, patch.ErrRevoked)
	}
}

// Whoever withholds a revocation can go on for as long as the last timestamp
// without it lives.
func TestWithheldRevocationIsBoundedByTheTimestamp(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	before := m.opening(1)
	m.decide(1, patch.Revoked)
	m.server.Gate.Now = func() time.Time { return start.AddDate(0, 0, 2) }
	content := m.repo.Files().Content[targetOf(1)]
	if _, err := m.send(opening(before), piece(content)); !errors.Is(err, patch.ErrExpired) {
		t.Errorf("error = %v, want %v", err, patch.ErrExpired)
	}
}

func TestRevokedPatchIsRemovedIfTheOneBeforeCannotReturn(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.publish(2)
	m.mustApply(2, applied)
	m.decide(2, patch.Revoked)
	m.kernel.errno = unix.ENOMEM
	m.wantWithdrawn(nameOf(2))
	m.check(2, absent, quarantined)
	m.kernel.errno = 0
	m.boot("boot2")
	m.check(1, enabled, accepted) // it was not its fault
}

func TestWithdrawalWaitsForAnotherTransition(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.decide(1, patch.Revoked)
	m.kernel.write("sys/kernel/livepatch/kpatch_other/enabled", "1\n")
	m.kernel.write("sys/kernel/livepatch/kpatch_other/transition", "1\n")
	if _, err := m.update(); !errors.Is(err, patch.ErrBusy) {
		t.Errorf("error = %v, want %v", err, patch.ErrBusy)
	}
	m.check(1, enabled, trial)
	m.kernel.settle("kpatch_other")
	m.wantWithdrawn(nameOf(1))
}

// Removing is the operator's word that the kernel is to run without: none that
// was accepted before comes back in its place.
func TestNothingReturnsAtBootAfterRemove(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.publish(2)
	m.mustApply(2, applied)
	if _, err := m.client.Remove(t.Context(), &loaderv1.RemoveRequest{Name: nameOf(2)}); err != nil {
		t.Fatal(err)
	}
	m.boot("boot2")
	m.check(1, absent, quarantined)
	m.check(2, absent, quarantined)
}

func TestUpdateIsVerified(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.decide(1, patch.Revoked)
	good := m.metadata()
	tests := map[string]struct {
		change func(*loaderv1.Metadata)
		want   error
	}{
		"nothing at all":                {func(md *loaderv1.Metadata) { *md = loaderv1.Metadata{} }, patch.ErrMalformed},
		"a root that is known":          {func(md *loaderv1.Metadata) { md.Roots = m.repo.Files().Roots[:1] }, patch.ErrRollback},
		"a timestamp that is a root":    {func(md *loaderv1.Metadata) { md.Timestamp = m.repo.Files().Roots[0] }, patch.ErrMalformed},
		"no rollout":                    {func(md *loaderv1.Metadata) { md.Rollout = nil }, patch.ErrMalformed},
		"no targets":                    {func(md *loaderv1.Metadata) { md.Targets = nil }, patch.ErrMalformed},
		"a rollout with one bit turned": {func(md *loaderv1.Metadata) { md.Rollout = turned(md.GetRollout()) }, patch.ErrUntrusted},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			md := &loaderv1.Metadata{Roots: good.GetRoots(), Timestamp: good.GetTimestamp(), Snapshot: good.GetSnapshot(), Targets: good.GetTargets(), Rollout: good.GetRollout()}
			tc.change(md)
			if _, err := m.updateWith(md); !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
			m.check(1, enabled, trial)
		})
	}
	m.wantWithdrawn(nameOf(1))
}

// turned returns b with another letter in what is signed.
func turned(b []byte) []byte {
	s := string(b)
	i := len(s) - 1
	for ; s[i] != 'd'; i-- { // of "revoked" or "signed": any is as good
	}
	return []byte(s[:i] + "e" + s[i+1:])
}
