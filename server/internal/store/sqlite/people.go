package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	rule "livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite/db"
)

func (t tx) AddRequest(ctx context.Context, r store.Request) (int64, error) {
	return t.q.InsertRequest(ctx, db.InsertRequestParams{
		At: r.At.Unix(), Kind: string(r.Kind), Vendor: r.Vendor, Version: r.Version, Unit: r.Unit, Tier: r.Tier,
		Account: r.By.Account, Person: r.By.ID, Reason: r.Reason,
		Proposal: sql.NullInt64{Int64: r.Proposal, Valid: r.Proposal != 0},
		TakenAt:  seconds(r.Taken), Done: number(r.Done), Outcome: r.Outcome,
	})
}

func (t tx) Requests(ctx context.Context) ([]store.Request, error) {
	rows, err := t.q.ListWaitingRequests(ctx)
	if err != nil {
		return nil, err
	}
	requests := make([]store.Request, len(rows))
	for i, r := range rows {
		requests[i] = request(r.Request, r.FirstAccount, r.FirstPerson)
	}
	return requests, nil
}

func (t tx) RequestLog(ctx context.Context) ([]store.Request, error) {
	rows, err := t.q.ListRequests(ctx)
	if err != nil {
		return nil, err
	}
	requests := make([]store.Request, len(rows))
	for i, r := range rows {
		requests[i] = request(r.Request, r.FirstAccount, r.FirstPerson)
	}
	return requests, nil
}

func (t tx) Request(ctx context.Context, id int64) (store.Request, error) {
	r, err := t.q.GetRequest(ctx, id)
	if err != nil {
		return store.Request{}, wrap(err)
	}
	return request(r.Request, r.FirstAccount, r.FirstPerson), nil
}

func (t tx) Proposals(ctx context.Context, vendor, version, unit string) ([]store.Request, error) {
	rows, err := t.q.ListProposals(ctx, db.ListProposalsParams{Vendor: vendor, Version: version, Unit: unit})
	if err != nil {
		return nil, err
	}
	proposals := make([]store.Request, len(rows))
	for i, r := range rows {
		proposals[i] = request(r, "", "")
	}
	return proposals, nil
}

func request(r db.Request, firstAccount, firstPerson string) store.Request {
	return store.Request{
		ID: r.ID, At: time.Unix(r.At, 0).UTC(), Kind: store.RequestKind(r.Kind), Vendor: r.Vendor, Version: r.Version,
		Unit: r.Unit, Tier: r.Tier, By: store.Person{Account: r.Account, ID: r.Person}, Reason: r.Reason,
		Proposal: r.Proposal.Int64, First: store.Person{Account: firstAccount, ID: firstPerson},
		Taken: fromSeconds(r.TakenAt), Done: r.Done != 0, Outcome: r.Outcome,
	}
}

func (t tx) TakeRequest(ctx context.Context, id int64, at time.Time, done bool, outcome string) error {
	n, err := t.q.TakeRequest(ctx, db.TakeRequestParams{
		TakenAt: seconds(at), Done: number(done), Outcome: outcome, ID: id,
	})
	return found(n, err)
}

func (t tx) PutStages(ctx context.Context, s store.Stages) error {
	body, err := json.Marshal(s.Stages)
	if err != nil {
		return fmt.Errorf("cannot keep stages of %s %s: %w", s.Vendor, s.Version, err)
	}
	return t.q.PutStages(ctx, db.PutStagesParams{Vendor: s.Vendor, Version: s.Version, At: s.At.Unix(), Body: string(body)})
}

func (t tx) Stages(ctx context.Context, vendor, version string) (store.Stages, error) {
	r, err := t.q.GetStages(ctx, db.GetStagesParams{Vendor: vendor, Version: version})
	if err != nil {
		return store.Stages{}, wrap(err)
	}
	s := store.Stages{Vendor: vendor, Version: version, At: time.Unix(r.At, 0).UTC()}
	if err := json.Unmarshal([]byte(r.Body), &s.Stages); err != nil {
		return store.Stages{}, fmt.Errorf("cannot read stages of %s %s: %w", vendor, version, err)
	}
	return s, nil
}

func (t tx) AllVerdicts(ctx context.Context) ([]store.StoredVerdict, error) {
	rows, err := t.q.ListAllVerdicts(ctx)
	if err != nil {
		return nil, err
	}
	verdicts := make([]store.StoredVerdict, len(rows))
	for i, r := range rows {
		var d rule.Decision
		if err := json.Unmarshal(r.Body, &d); err != nil {
			return nil, fmt.Errorf("cannot read verdict on %s %s: %w", r.Vendor, r.Version, err)
		}
		verdicts[i] = store.StoredVerdict{Vendor: r.Vendor, Version: r.Version, Decision: d}
	}
	return verdicts, nil
}

func (t tx) SetWithdrawal(ctx context.Context, vendor, version string, w store.Withdrawal) error {
	n, err := t.q.SetWithdrawal(ctx, db.SetWithdrawalParams{
		WithdrawShare: w.Share, WithdrawSalt: w.Salt, WithdrawPause: int64(w.Pause / time.Second),
		WithdrawBegan: seconds(w.Began), WithdrawSince: seconds(w.Since),
		WithdrawExcused: w.Excused, WithdrawHeld: w.Held, Vendor: vendor, Version: version,
	})
	return found(n, err)
}

func withdrawal(r db.Rollout) store.Withdrawal {
	return store.Withdrawal{
		Share: r.WithdrawShare, Salt: r.WithdrawSalt, Pause: time.Duration(r.WithdrawPause) * time.Second,
		Began: fromSeconds(r.WithdrawBegan), Since: fromSeconds(r.WithdrawSince),
		Excused: r.WithdrawExcused, Held: r.WithdrawHeld,
	}
}

func (t tx) GaveUp(ctx context.Context, version string, since time.Time) (int64, error) {
	return t.q.CountRemovals(ctx, db.CountRemovalsParams{Version: version, Since: since.Unix()})
}

func (t tx) Crashed(ctx context.Context, version string, since time.Time) (int64, error) {
	return t.q.CountCrashesAfterRemoval(ctx, db.CountCrashesAfterRemovalParams{Version: version, Since: since.Unix()})
}

func (t tx) AddNotice(ctx context.Context, n store.Notice) error {
	return t.q.InsertNotice(ctx, db.InsertNoticeParams{
		ID: n.ID, At: n.At.Unix(), Kind: n.Kind, Body: n.Body, NextAt: n.At.Unix(),
	})
}

func (t tx) Notice(ctx context.Context, id string) (store.Notice, error) {
	r, err := t.q.GetNotice(ctx, id)
	if err != nil {
		return store.Notice{}, wrap(err)
	}
	return notice(r), nil
}

func notice(r db.Notice) store.Notice {
	return store.Notice{
		ID: r.ID, At: time.Unix(r.At, 0).UTC(), Kind: r.Kind, Body: r.Body, Attempts: r.Attempts,
		Next: time.Unix(r.NextAt, 0).UTC(), Ended: fromSeconds(r.EndedAt), Sent: r.Sent != 0, Failure: r.Failure,
	}
}

// DueNotices returns at most limit notices that are to be sent by now.
func (d *DB) DueNotices(ctx context.Context, now time.Time, limit int64) ([]store.Notice, error) {
	rows, err := d.read.queries.ListDueNotices(ctx, db.ListDueNoticesParams{NextAt: now.Unix(), Limit: limit})
	if err != nil {
		return nil, wrap(err)
	}
	notices := make([]store.Notice, len(rows))
	for i, r := range rows {
		notices[i] = notice(r)
	}
	return notices, nil
}

// ClaimNotice puts a notice off until a time, so that no other server sends it
// meanwhile. It returns [store.ErrNotFound] if another one was first.
func (d *DB) ClaimNotice(ctx context.Context, n store.Notice, until time.Time) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		return found(q.ClaimNotice(ctx, db.ClaimNoticeParams{Until: until.Unix(), ID: n.ID, Seen: n.Next.Unix()}))
	})
}

// KeepNotice keeps what came of an attempt: that the notice has ended, or when it
// is to be tried again.
func (d *DB) KeepNotice(ctx context.Context, n store.Notice) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error {
		if n.Ended.IsZero() {
			return q.PutOffNotice(ctx, db.PutOffNoticeParams{
				Attempts: n.Attempts, NextAt: n.Next.Unix(), Failure: n.Failure, ID: n.ID,
			})
		}
		return q.EndNotice(ctx, db.EndNoticeParams{
			Attempts: n.Attempts, EndedAt: seconds(n.Ended), Sent: number(n.Sent), Failure: n.Failure, ID: n.ID,
		})
	})
}

// ForgetNotices deletes notices from before a time, and returns how many.
func (d *DB) ForgetNotices(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err = q.DeleteNoticesBefore(ctx, before.Unix())
		return err
	})
	return n, err
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
