package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	rule "livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

var (
	alice = store.Person{Account: "alice (uid 1000)", ID: "uid 1000"}
	bob   = store.Person{Account: "root (uid 0), logged in as bob (uid 1001)", ID: "uid 1001"}
)

func change(t *testing.T, db *sqlite.DB, fn func(context.Context, store.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), func(tx store.Tx) error { return fn(t.Context(), tx) }); err != nil {
		t.Fatal(err)
	}
}

// addRequests adds requests and returns their IDs.
func addRequests(t *testing.T, db *sqlite.DB, requests ...store.Request) (ids []int64) {
	t.Helper()
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		for _, r := range requests {
			r.At, r.Vendor, r.Version = now, "debian", "1.1"
			id, err := tx.AddRequest(ctx, r)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	return ids
}

func TestRequestsWaitInTheirOrderAndAreTakenOnce(t *testing.T) {
	db := newDB(t)
	ids := addRequests(t, db,
		store.Request{Kind: store.RequestPromote, Tier: "beta", By: alice, Reason: "urgent"},
		store.Request{Kind: store.RequestProposal, Unit: "6.1/x86_64", By: alice, Reason: "a bug of ours"},
	)
	ids = append(ids, addRequests(t, db,
		store.Request{Kind: store.RequestResume, Unit: "6.1/x86_64", By: bob, Proposal: ids[1]},
		store.Request{Kind: store.RequestRelease, Unit: "6.12/x86_64", By: bob},
	)...)
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		waiting, err := tx.Requests(ctx)
		if err != nil || len(waiting) != 3 || waiting[0].ID != ids[0] || waiting[1].ID != ids[2] || waiting[2].ID != ids[3] {
			t.Fatalf("%+v wait, %v", waiting, err)
		}
		resume := waiting[1]
		if diff := cmp.Diff([]string{"uid 1000", "uid 1001"}, resume.People()); diff != "" || resume.Who() != alice.Account+" and "+bob.Account {
			t.Errorf("people of a resumption: %s, %q", diff, resume.Who())
		}
		if diff := cmp.Diff([]string{"uid 1000"}, waiting[0].People()); diff != "" {
			t.Errorf("people of a promotion: %s", diff)
		}
		return tx.TakeRequest(ctx, ids[0], now.Add(time.Second), true, "two units")
	})
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		if err := tx.TakeRequest(ctx, ids[0], now, false, "again"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("taken again: %v", err)
		}
		if err := tx.TakeRequest(ctx, ids[1], now, true, "alone"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a proposal is taken: %v", err)
		}
		want := store.Request{
			ID: ids[0], At: now, Kind: store.RequestPromote, Vendor: "debian", Version: "1.1", Tier: "beta", By: alice,
			Reason: "urgent", Taken: now.Add(time.Second), Done: true, Outcome: "two units",
		}
		got, err := tx.Request(ctx, ids[0])
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("request (-want +got): %v\n%s", err, diff)
		}
		log, err := tx.RequestLog(ctx)
		if len(log) != 4 {
			t.Errorf("%d requests in the log, want 4", len(log))
		}
		return err
	})
}

func TestAProposalIsSecondedOnce(t *testing.T) {
	db := newDB(t)
	ids := addRequests(t, db, store.Request{Kind: store.RequestProposal, By: alice}, store.Request{Kind: store.RequestProposal, Unit: "u", By: alice})
	addRequests(t, db, store.Request{Kind: store.RequestResume, By: bob, Proposal: ids[0]})
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		all, err := tx.Proposals(ctx, "debian", "1.1", "")
		if err != nil || len(all) != 0 {
			t.Errorf("proposals about all of it: %+v, %v", all, err)
		}
		unit, err := tx.Proposals(ctx, "debian", "1.1", "u")
		if len(unit) != 1 || unit[0].ID != ids[1] || unit[0].By != alice {
			t.Errorf("proposals about a unit: %+v", unit)
		}
		return err
	})
	err := db.Update(t.Context(), func(tx store.Tx) error {
		_, err := tx.AddRequest(t.Context(), store.Request{At: now, Kind: store.RequestResume, Vendor: "debian", Version: "1.1", By: bob, Proposal: ids[0]})
		return err
	})
	if err == nil {
		t.Error("seconded twice")
	}
}

// TestTheRecordIsOnlyAddedTo changes it behind the back of this package.
func TestTheRecordIsOnlyAddedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, path)
	ids := addRequests(t, db, store.Request{Kind: store.RequestPromote, Tier: "beta", By: alice})
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		d := store.Decision{Vendor: "debian", Version: "1.1", State: patch.Halted, At: now, By: "alice", Withdraw: 7}
		if err := tx.AddRollout(ctx, store.Rollout{Vendor: "debian", Version: "1.1", State: patch.Running, Created: now, Updated: now}); err != nil {
			return err
		}
		if _, err := tx.SetRollout(ctx, d); err != nil {
			return err
		}
		if err := tx.TakeRequest(ctx, ids[0], now, true, "done"); err != nil {
			return err
		}
		return tx.PutRound(ctx, store.Round{Verdicts: []store.Verdict{{Key: store.Key{Vendor: "debian", Version: "1.1"}, Seq: 1, At: now, Body: []byte(`{}`)}}})
	})
	pool, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, s := range []string{
		"UPDATE decisions SET decided_by = 'bob'", "DELETE FROM decisions",
		"UPDATE verdicts SET action = 'hold'", "DELETE FROM verdicts",
		"UPDATE requests SET account = 'bob'", "UPDATE requests SET outcome = 'refused'", "DELETE FROM requests",
	} {
		if _, err := pool.ExecContext(t.Context(), s); err == nil || !strings.Contains(err.Error(), "only added") && !strings.Contains(err.Error(), "taken once") {
			t.Errorf("%s: %v", s, err)
		}
	}
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		decisions, err := tx.Decisions(ctx, 0)
		if len(decisions) != 1 || decisions[0].Withdraw != 7 {
			t.Errorf("decisions are %+v", decisions)
		}
		return err
	})
}

func TestStagesAndVerdictsComeBack(t *testing.T) {
	db := newDB(t)
	stages := store.Stages{Vendor: "debian", Version: "1.1", At: now, Stages: []store.Stage{store.NewStage(rule.Stage{
		Unit: "6.1/x86_64", Source: "s", Tier: "edge", Cells: []string{"6.1/x86_64"}, Halted: rule.TestB, Current: true, Share: 3000,
		Machines: 10, Exposed: 3, Pending: 1, Treated: rule.Tally{Failed: 3, Of: 3}, Last: rule.Verdict{Action: rule.Halt, Reason: rule.TestB},
	}, now)}}
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		if _, err := tx.Stages(ctx, "debian", "1.1"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("before the rule has looked: %v", err)
		}
		if err := tx.PutStages(ctx, store.Stages{Vendor: "debian", Version: "1.1", At: now.Add(-time.Hour)}); err != nil {
			return err
		}
		return tx.PutStages(ctx, stages)
	})
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		got, err := tx.Stages(ctx, "debian", "1.1")
		if diff := cmp.Diff(stages, got); diff != "" {
			t.Errorf("stages (-want +got):\n%s", diff)
		}
		return err
	})
	body := func(seq string) []byte { return []byte(`{"seq":` + seq + `,"unit":"u","verdict":{"action":"hold"}}`) }
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		return tx.PutRound(ctx, store.Round{Verdicts: []store.Verdict{
			{Key: store.Key{Vendor: "debian", Version: "1.2"}, Seq: 1, At: now.Add(time.Second), Body: body("1")},
			{Key: store.Key{Vendor: "debian", Version: "1.1"}, Seq: 2, At: now, Body: body("2")},
			{Key: store.Key{Vendor: "debian", Version: "1.1"}, Seq: 1, At: now, Body: body("1")},
		}})
	})
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		got, err := tx.AllVerdicts(ctx)
		if len(got) != 3 || got[0].Version != "1.1" || got[0].Seq != 1 || got[1].Seq != 2 || got[2].Version != "1.2" || got[0].Verdict.Action != rule.Hold {
			t.Errorf("verdicts are %+v", got)
		}
		return err
	})
}

func TestWithdrawalComesBack(t *testing.T) {
	db := newDB(t)
	want := store.Withdrawal{
		Share: 10_000, Salt: "s", Pause: 10 * time.Minute, Began: now, Since: now.Add(time.Minute), Excused: 2, Held: "3 machines",
	}
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		if err := tx.SetWithdrawal(ctx, "debian", "1.1", want); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("of no rollout: %v", err)
		}
		if err := tx.AddRollout(ctx, store.Rollout{Vendor: "debian", Version: "1.1", State: patch.Halted, Created: now, Updated: now}); err != nil {
			return err
		}
		r, err := tx.Rollout(ctx, "debian", "1.1")
		if r.Withdrawal != (store.Withdrawal{}) {
			t.Errorf("a new rollout has a withdrawal: %+v", r.Withdrawal)
		}
		return errors.Join(err, tx.SetWithdrawal(ctx, "debian", "1.1", want))
	})
	rollouts, err := db.Rollouts(t.Context())
	if err != nil || len(rollouts) != 1 || rollouts[0].Withdrawal != want {
		t.Errorf("rollouts are %+v, %v", rollouts, err)
	}
}

func TestNoticesAreClaimedPutOffAndEnded(t *testing.T) {
	db := newDB(t)
	change(t, db, func(ctx context.Context, tx store.Tx) error {
		for _, id := range []string{"a", "b"} {
			if err := tx.AddNotice(ctx, store.Notice{ID: id, At: now, Kind: "k", Body: []byte("{}")}); err != nil {
				return err
			}
		}
		return nil
	})
	due := func(at time.Time) []store.Notice {
		t.Helper()
		n, err := db.DueNotices(t.Context(), at, 10)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got := due(now.Add(-time.Second)); len(got) != 0 {
		t.Errorf("due too early: %+v", got)
	}
	both := due(now)
	if len(both) != 2 || both[0].ID != "a" || string(both[0].Body) != "{}" || both[0].Kind != "k" {
		t.Fatalf("due are %+v", both)
	}
	if err := db.ClaimNotice(t.Context(), both[0], now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := db.ClaimNotice(t.Context(), both[0], now.Add(2*time.Minute)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("claimed twice: %v", err)
	}
	if got := due(now); len(got) != 1 || got[0].ID != "b" {
		t.Errorf("due beside one that is claimed: %+v", got)
	}
	both[0].Attempts, both[0].Next, both[0].Failure = 1, now.Add(time.Hour), "refused"
	both[1].Attempts, both[1].Ended, both[1].Sent = 1, now, true
	for _, n := range both {
		if err := db.KeepNotice(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	got := due(now.Add(time.Hour))
	if len(got) != 1 || got[0].ID != "a" || got[0].Attempts != 1 || got[0].Failure != "refused" {
		t.Errorf("due later: %+v", got)
	}
	if n, err := db.ForgetNotices(t.Context(), now.Add(time.Second)); n != 2 || err != nil {
		t.Errorf("%d forgotten, %v", n, err)
	}
}
