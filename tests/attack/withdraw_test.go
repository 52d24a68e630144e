//go:build attack

package attack

import (
	"errors"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// decide has the rollout role say something of a patch.
func decide(r lab.Repository, m lab.Module, s patch.RolloutState) {
	r.AddTarget(patch.RolloutPath(lab.Vendor, m.Version), nil, patch.Rollout{State: s})
	r.Publish(patch.RolloutRole)
}

// revoke tells the loader that a patch is revoked, as an honest agent does.
func (l *target) revoke(t *testing.T, m lab.Module) {
	t.Helper()
	decide(l.repo, m, patch.Revoked)
	resp, err := l.c.Update(t.Context(), &loaderv1.UpdateRequest{Metadata: l.repo.Metadata()})
	lab.Must(t, err)
	if got := resp.GetWithdrawn(); len(got) != 1 || got[0] != m.Name {
		t.Fatalf("withdrawn = %q, want %s", got, m.Name)
	}
	l.WantInForce()
}

// accept ends the trial of the patch in force.
func (l *target) accept(t *testing.T) {
	t.Helper()
	_, err := l.c.Accept(t.Context(), &loaderv1.AcceptRequest{Name: l.one.Name})
	lab.Must(t, err)
}

func TestRevokedPatchIsNotAppliedAgain(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T, l *target, old *loaderv1.Opening) error{
		"with the files of before": func(t *testing.T, l *target, old *loaderv1.Opening) error {
			_, err := lab.Apply(t, l.c, old, l.one.Content)
			return err
		},
		"with the files of now": func(t *testing.T, l *target, _ *loaderv1.Opening) error {
			_, err := lab.Apply(t, l.c, l.repo.Opening(l.one), l.one.Content)
			return err
		},
		"with the rollout of before in the files of now": func(t *testing.T, l *target, old *loaderv1.Opening) error {
			o := l.repo.Opening(l.one)
			o.Metadata.Rollout = old.GetMetadata().GetRollout()
			_, err := lab.Apply(t, l.c, o, l.one.Content)
			return err
		},
		"by accepting it": func(t *testing.T, l *target, _ *loaderv1.Opening) error {
			_, err := l.c.Accept(t.Context(), &loaderv1.AcceptRequest{Name: l.one.Name})
			return rpcerr.FromStatus(err)
		},
		"with newer files that do not mention it": func(t *testing.T, l *target, _ *loaderv1.Opening) error {
			delete(l.repo.Roles[patch.RolloutRole].Signed["targets"].(map[string]any), patch.RolloutPath(lab.Vendor, l.one.Version))
			l.repo.Publish(patch.RolloutRole)
			_, err := lab.Apply(t, l.c, l.repo.Opening(l.one), l.one.Content)
			return err
		},
	}
	for name, again := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := report.Begin(t, report.Agent, "revoked patch applied again "+name)
			l := newTarget(t)
			old := l.repo.Opening(l.one)
			l.revoke(t, l.one)
			err := again(t, l, old)
			if err == nil {
				t.Error("the loader did it")
			} else {
				a.StoppedBy("%s", checkOf(err))
			}
			l.WantInForce()
			if got := len(l.Kernel.Insertions()); got != 1 {
				t.Errorf("insertions = %d, want 1", got)
			}
		})
	}
}

// A revoked patch does not come back at boot, though its module may still be in the
// store, nobody asks the agent, and there is no network.
func TestRevokedPatchDoesNotReturnAtBoot(t *testing.T) {
	t.Parallel()
	for name, orderly := range map[string]bool{"after a shutdown": true, "after a crash": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := report.Begin(t, report.Agent, "revoked patch returns at boot "+name)
			l := newTarget(t)
			l.accept(t)
			l.revoke(t, l.one)
			l.Reboot(orderly)
			r := l.OneShot("-boot")
			l.WantInForce()
			if got := len(l.Kernel.Insertions()); got != 1 {
				t.Errorf("insertions = %d, want 1", got)
			}
			_, err := lab.Apply(t, l.Client(), l.repo.Opening(l.one), l.one.Content)
			if !errors.Is(err, patch.ErrRevoked) {
				t.Errorf("apply after the boot = %v, want %v", err, patch.ErrRevoked)
			}
			a.StoppedBy("loader -boot: exit %d and nothing inserted; then Apply: %s", r.Code, rpcerr.Reason(err))
		})
	}
}

// The agent that was taken over learns of the revocation and does not pass it on. The
// machine keeps the patch, but takes no other with those files: what is new has to come
// with the rollout of a day at most, and that takes the revoked one out.
func TestWithheldRevocationByTheAgent(t *testing.T) {
	t.Parallel()
	a := report.Begin(t, report.Agent, "revocation withheld from the loader")
	l := newTarget(t)
	l.accept(t)
	old := lab.Repository{Repo: l.repo.Clone()}
	decide(l.repo, l.one, patch.Revoked)
	// A day later the old files are of no use.
	for _, role := range []string{"timestamp", "rollout"} {
		old.Roles[role].Expire(time.Now().Add(-time.Minute))
	}
	old.Publish(patch.RolloutRole)
	two := lab.NewModule(2)
	old.Add(two)
	old.Roles["timestamp"].Expire(time.Now().Add(-time.Minute))
	_, err := lab.Apply(t, l.c, old.Opening(two), two.Content)
	if !errors.Is(err, patch.ErrExpired) {
		t.Errorf("apply with the files of yesterday = %v, want %v", err, patch.ErrExpired)
	}
	// And whatever comes with the files of today brings the revocation along.
	l.repo.Add(two)
	lab.MustApply(t, l.c, l.repo, two, loaderv1.Outcome_OUTCOME_APPLIED)
	_, err = l.c.Remove(t.Context(), &loaderv1.RemoveRequest{Name: two.Name})
	lab.Must(t, err)
	l.Reboot(true)
	l.OneShot("-boot")
	l.WantInForce()
	a.Bounded("loader: files of yesterday %s; those of today carry the revocation, and the patch does not return", rpcerr.Reason(patch.ErrExpired))
}

// The service, or whoever stands in front of it, goes on with the files of before. The
// machine finds out when they run out, and says so.
func TestWithheldRevocationByTheServer(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Server, "revocation withheld: the files of before for ever")
	v := newVictim(t, s)
	old := lab.Repository{Repo: v.repo.Clone()}
	v.serve(old)
	v.OK("refresh") // today nobody can tell
	// The files of before, a day later.
	old.Roles["timestamp"].Expire(time.Now().Add(-time.Minute))
	old.Publish()
	v.serve(old)
	v.refresh(t, a, patch.ErrExpired)
	a.Bounded("timestamp lives for a day; then status says check-failed")
	v.WantStatus(v.one, "check-failed", "applied")

	decide(v.repo, v.one, patch.Revoked)
	v.repo.Publish()
	v.repo.Publish()
	v.serve(v.repo)
	v.OK("refresh")
	v.WantInForce()
}
