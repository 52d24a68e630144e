package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"livepatch/internal/patch"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite/db"
)

// Lead makes this process the one that runs the rule, and returns its term. While
// another process on this machine does, the error matches [store.ErrConflict].
// What an earlier leader has not committed by then, it cannot commit any more.
func (d *DB) Lead(ctx context.Context, name string) (term int64, err error) {
	if d.lead == nil {
		if d.lead, err = lockFile(d.path + ".lead"); err != nil {
			return 0, err
		}
	}
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		term, err = q.TakeLead(ctx, name)
		return err
	})
	return term, err
}

// lockFile locks a file until it is closed, by this process or by its end.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lead: %w: %w", store.ErrUnavailable, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = store.ErrConflict
		}
		return nil, errors.Join(fmt.Errorf("cannot lead: %w", err), f.Close())
	}
	return f, nil
}

// Taken returns the highest [store.Reports.Seq] that the rule has taken.
func (d *DB) Taken(ctx context.Context) (int64, error) {
	r, err := d.read.queries.GetLead(ctx)
	return r.Taken, wrap(err)
}

// Reports returns at most limit of the reports after seq, in their order.
func (d *DB) Reports(ctx context.Context, seq int64, limit int) ([]store.Reports, error) {
	rows, err := d.read.queries.ListReports(ctx, db.ListReportsParams{Seq: seq, Limit: int64(limit)})
	if err != nil {
		return nil, wrap(err)
	}
	reports := make([]store.Reports, len(rows))
	for i, r := range rows {
		reports[i].Seq = r.Seq
		if err := json.Unmarshal(r.Body, &reports[i].Signs); err != nil {
			return nil, fmt.Errorf("cannot read report %d: %w", r.Seq, err)
		}
	}
	return reports, nil
}

// PutRound implements [store.Tx].
func (t tx) PutRound(ctx context.Context, r store.Round) error {
	n, err := t.q.HoldLead(ctx, db.HoldLeadParams{Taken: r.Taken, Term: r.Term})
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("cannot keep decisions: %w: another server runs the rule", store.ErrConflict)
	}
	if err := t.q.DeleteReports(ctx, r.Taken); err != nil {
		return err
	}
	return errors.Join(keepRule(ctx, t.q, r), keepSpreads(ctx, t.q, r.Spreads), keepAnswers(ctx, t.q, r))
}

func keepRule(ctx context.Context, q *db.Queries, r store.Round) error {
	for _, s := range r.Steps {
		if err := q.InsertStep(ctx, db.InsertStepParams{
			Vendor: s.Vendor, Version: s.Version, Step: s.Step, At: s.At.Unix(), Events: s.Events,
		}); err != nil {
			return err
		}
	}
	for _, s := range r.States {
		if err := q.PutRuleState(ctx, db.PutRuleStateParams{
			Vendor: s.Vendor, Version: s.Version, Step: s.Step, Body: s.Body,
		}); err != nil {
			return err
		}
	}
	for _, v := range r.Verdicts {
		if err := q.InsertVerdict(ctx, db.InsertVerdictParams{
			Vendor: v.Vendor, Version: v.Version, Seq: v.Seq, At: v.At.Unix(),
			Unit: v.Unit, Action: v.Action, Reason: v.Reason, Body: v.Body,
		}); err != nil {
			return err
		}
	}
	return nil
}

// keepSpreads makes rollouts come further, and has that signed.
func keepSpreads(ctx context.Context, q *db.Queries, spreads map[store.Key]store.Spread) error {
	for k, s := range spreads {
		body, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := q.SetSpread(ctx, db.SetSpreadParams{Spread: string(body), Vendor: k.Vendor, Version: k.Version}); err != nil {
			return err
		}
	}
	if len(spreads) == 0 {
		return nil
	}
	_, err := q.BumpEpoch(ctx)
	return err
}

// answersLive is how long an answer waits for the server that wants it.
const answersLive = time.Minute

func keepAnswers(ctx context.Context, q *db.Queries, r store.Round) error {
	if len(r.Answers) == 0 {
		return nil
	}
	if _, err := q.DeleteAnswersBefore(ctx, r.At.Add(-answersLive).Unix()); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(r.Answers)) {
		body, err := json.Marshal(r.Answers[id])
		if err != nil {
			return err
		}
		if err := q.InsertAnswer(ctx, db.InsertAnswerParams{ID: id, At: r.At.Unix(), Body: string(body)}); err != nil {
			return err
		}
	}
	return nil
}

// Answer returns the answer to a [store.Sign] that another server has found, or
// [store.ErrNotFound].
func (d *DB) Answer(ctx context.Context, id string) (store.Answer, error) {
	body, err := d.read.queries.GetAnswer(ctx, id)
	if err != nil {
		return store.Answer{}, wrap(err)
	}
	var a store.Answer
	return a, json.Unmarshal([]byte(body), &a)
}

// Population counts the machines that have checked in since a time, without those
// whose auth token was revoked, by cell and tier.
func (d *DB) Population(ctx context.Context, since time.Time) ([]store.Population, error) {
	rows, err := d.read.queries.CountPopulation(ctx, since.Unix())
	if err != nil {
		return nil, wrap(err)
	}
	counts := make([]store.Population, len(rows))
	for i, r := range rows {
		counts[i] = store.Population{
			Cell: patch.Kernel{Release: r.Release, Arch: r.Arch}.Cell(), Tier: r.Tier,
			Machines: r.Machines, Accounts: r.Accounts, Account: r.FirstAccount,
		}
	}
	return counts, nil
}

// Coverage lists which versions the published indexes have for which kernels.
func (d *DB) Coverage(ctx context.Context) ([]store.Coverage, error) {
	rows, err := d.read.queries.ListCoverage(ctx)
	if err != nil {
		return nil, wrap(err)
	}
	var coverage []store.Coverage
	for _, r := range rows {
		vendor, err := patch.VendorOf(r.Path)
		if err != nil {
			return nil, err
		}
		coverage = append(coverage, store.Coverage{
			Key: store.Key{Vendor: vendor, Version: r.Version}, Cell: patch.Kernel{Release: r.Release, Arch: r.Arch}.Cell(),
		})
	}
	return coverage, nil
}

// RuleState returns the newest state of the rule about a rollout that was kept, or
// [store.ErrNotFound], with the steps after it.
func (d *DB) RuleState(ctx context.Context, k store.Key) (store.RuleState, []store.Step, error) {
	s := store.RuleState{Key: k}
	r, err := d.read.queries.GetRuleState(ctx, db.GetRuleStateParams{Vendor: k.Vendor, Version: k.Version})
	if err != nil {
		return s, nil, wrap(err)
	}
	s.Step, s.Body = r.Step, r.Body
	rows, err := d.read.queries.ListSteps(ctx, db.ListStepsParams{Vendor: k.Vendor, Version: k.Version, Step: r.Step})
	if err != nil {
		return s, nil, wrap(err)
	}
	steps := make([]store.Step, len(rows))
	for i, r := range rows {
		steps[i] = store.Step{Key: k, Step: r.Step, At: time.Unix(r.At, 0).UTC(), Events: r.Events}
	}
	return s, steps, nil
}

// Verdicts returns what the rule has decided about a rollout, each as JSON, oldest
// first.
func (d *DB) Verdicts(ctx context.Context, k store.Key) ([][]byte, error) {
	bodies, err := d.read.queries.ListVerdicts(ctx, db.ListVerdictsParams{Vendor: k.Vendor, Version: k.Version})
	return bodies, wrap(err)
}

// ForgetSteps deletes steps before a time that a kept state includes.
func (d *DB) ForgetSteps(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.write(ctx, d.durable, func(q *db.Queries) error {
		n, err = q.DeleteStepsBefore(ctx, before.Unix())
		return err
	})
	return n, err
}

// Rollouts lists the rollouts.
func (d *DB) Rollouts(ctx context.Context) ([]store.Rollout, error) {
	return tx{d.read.queries}.Rollouts(ctx)
}
