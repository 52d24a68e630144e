package withdraw_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
	"livepatch/server/internal/withdraw"
)

var start = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

func TestNext(t *testing.T) {
	const all = patch.Everyone
	due := start.Add(withdraw.Pause)
	tests := map[string]struct {
		share, excused int64
		held           string
		gone, crashed  int64
		now            time.Time
		want           int64
		holds          bool
	}{
		"the pause is not over":                     {share: all / 100, now: due.Add(-time.Second), want: all / 100},
		"the pause is over":                         {share: all / 100, now: due, want: all / 10},
		"the last share is everybody":               {share: all / 10, now: due, want: all},
		"a share that does not go into everybody":   {share: all / 3, now: due, want: all},
		"nothing is left":                           {share: all, now: due, want: all},
		"one machine went down":                     {share: all / 100, crashed: 1, now: due, want: all / 10},
		"two machines went down":                    {share: all / 100, crashed: 2, now: due, want: all / 100, holds: true},
		"two machines went down before it is over":  {share: all / 100, crashed: 2, now: start, want: all / 100, holds: true},
		"a person has looked at them":               {share: all / 100, crashed: 2, excused: 2, now: due, want: all / 10},
		"one more since":                            {share: all / 100, crashed: 3, excused: 2, now: due, want: all / 10},
		"two more since":                            {share: all / 100, crashed: 4, excused: 2, now: due, want: all / 100, holds: true},
		"two of four hundred":                       {share: all / 100, gone: 400, crashed: 2, now: due, want: all / 10},
		"three of four hundred":                     {share: all / 100, gone: 400, crashed: 3, now: due, want: all / 100, holds: true},
		"what a large fleet loses anyway":           {share: all / 10, gone: 10_000, crashed: 40, now: due, want: all},
		"more than that":                            {share: all / 10, gone: 10_000, crashed: 51, now: due, want: all / 10, holds: true},
		"more than that, of which half are known":   {share: all / 10, gone: 10_000, crashed: 51, excused: 25, now: due, want: all},
		"one of none, who knows how":                {share: all / 100, crashed: 1, now: due, want: all / 10},
		"it waits, and the reports are forgotten":   {share: all / 100, held: "2 machines", now: due, want: all / 100, holds: true},
		"a clock that was set back":                 {share: all / 100, now: start.Add(-time.Hour), want: all / 100},
		"nobody looked for a long time: one share":  {share: all / 100, now: due.Add(24 * time.Hour), want: all / 10},
		"the smallest share that there is, at last": {share: 1, now: due, want: 10},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := store.Withdrawal{Share: tc.share, Pause: withdraw.Pause, Since: start, Excused: tc.excused, Held: tc.held}
			got := withdraw.Next(w, tc.gone, tc.crashed, tc.now)
			if got.Share != tc.want || (got.Held != "") != tc.holds {
				t.Errorf("got %+v, want share %d, held %t", got, tc.want, tc.holds)
			}
		})
	}
}

// TestNextNeverGoesBack: whatever is reported, a share only grows, by no more than
// ten times, and not while it is held.
func TestNextNeverGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := store.Withdrawal{
			Share: rapid.Int64Range(1, patch.Everyone).Draw(t, "share"),
			Pause: time.Duration(rapid.Int64Range(1, 1e6).Draw(t, "pause")) * time.Second,
			Since: start, Excused: rapid.Int64Range(0, 10).Draw(t, "excused"),
		}
		got := withdraw.Next(w, rapid.Int64Range(0, 2000).Draw(t, "gone"), rapid.Int64Range(0, 20).Draw(t, "crashed"), start.Add(time.Duration(rapid.Int64Range(-1e6, 1e6).Draw(t, "age"))*time.Second))
		switch {
		case got.Share < w.Share, got.Share > 10*w.Share, got.Share > patch.Everyone:
			t.Fatalf("share goes from %d to %d", w.Share, got.Share)
		case got.Held != "" && got.Share != w.Share:
			t.Fatalf("held, and the share goes from %d to %d", w.Share, got.Share)
		}
	})
}

// A bed is a service with a halted rollout and some machines.
type bed struct {
	*testing.T
	db    *sqlite.DB
	desk  *enrolment.Desk
	token string
	now   time.Time
}

func newBed(t *testing.T) *bed {
	dir := layout.Dir(t.TempDir())
	if _, err := dir.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	db, err := dir.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bed{T: t, db: db, desk: enrolment.New(db), now: start}
	b.update(func(ctx context.Context, tx store.Tx) error {
		return tx.AddRollout(ctx, store.Rollout{Vendor: "debian", Version: "1.1", State: patch.Running, Salt: "salt", Created: start, Updated: start})
	})
	if _, b.token, err = b.desk.Issue(t.Context(), store.Token{Kind: store.Auth, Tier: "stable"}, start); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bed) update(fn func(context.Context, store.Tx) error) {
	b.Helper()
	if err := b.db.Update(b.Context(), func(tx store.Tx) error { return fn(b.Context(), tx) }); err != nil {
		b.Fatal(err)
	}
}

// report has the i-th machine report events now.
func (b *bed) report(i int, events ...service.Event) {
	b.Helper()
	facts := service.Facts{Kernel: patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64"}, BootID: "b"}
	id := fmt.Sprintf("%032x", i)
	e, err := b.desk.Enrol(b.Context(), b.token, service.EnrolRequest{MachineID: id, Version: "1", Facts: facts}, b.now)
	if err != nil {
		b.Fatal(err)
	}
	who, err := b.desk.Identify(b.Context(), e.MachineToken)
	if err != nil {
		b.Fatal(err)
	}
	for j := range events {
		events[j].ID, events[j].At = fmt.Sprint(b.now.Unix(), events[j].Kind, j), b.now
	}
	if err := b.desk.CheckIn(b.Context(), who, store.Report{At: b.now, CheckIn: service.CheckIn{Version: "1", Facts: facts, Events: events}}); err != nil {
		b.Fatal(err)
	}
}

func removed(version string) service.Event {
	return service.Event{Kind: service.Removed, Version: version}
}
func crashed() service.Event {
	return service.Event{Kind: service.Crashed, Reason: service.ReasonOops, Version: "1.1"}
}
func unclean() service.Event {
	return service.Event{Kind: service.Booted, Reason: service.ReasonUnclean}
}
func clean() service.Event { return service.Event{Kind: service.Booted, Reason: service.ReasonClean} }

// advance looks at the withdrawal now and returns the rollout.
func (b *bed) advance() (r store.Rollout, decided bool) {
	b.Helper()
	b.update(func(ctx context.Context, tx store.Tx) (err error) {
		if r, err = tx.Rollout(ctx, "debian", "1.1"); err != nil {
			return err
		}
		if decided, err = withdraw.Advance(ctx, tx, r, b.now); err != nil {
			return err
		}
		r, err = tx.Rollout(ctx, "debian", "1.1")
		return err
	})
	return r, decided
}

func (b *bed) wait(d time.Duration) { b.now = b.now.Add(d) }

func (b *bed) decision() store.Decision {
	return store.Decision{Vendor: "debian", Version: "1.1", At: b.now, By: "alice (uid 1000)", Reason: "hangs"}
}

func (b *bed) begin(first int64) {
	b.Helper()
	b.update(func(ctx context.Context, tx store.Tx) error {
		_, err := withdraw.Begin(ctx, tx, b.decision(), first, withdraw.Pause)
		return err
	})
}

// notices returns the kinds of all notices, oldest first.
func (b *bed) notices() (kinds []string) {
	b.Helper()
	due, err := b.db.DueNotices(b.Context(), b.now.Add(time.Hour), 100)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range due {
		kinds = append(kinds, n.Kind)
	}
	return kinds
}

// TestWithdrawalGoesThroughItsShares: 1 %, 10 %, and all of the machines, ten minutes
// each, every step signed and told.
func TestWithdrawalGoesThroughItsShares(t *testing.T) {
	b := newBed(t)
	b.begin(withdraw.FirstShare)
	var got []string
	for range 25 {
		r, _ := b.advance()
		line := fmt.Sprint(r.State, " ", r.Withdrawal.Share)
		if len(got) == 0 || got[len(got)-1] != line {
			got = append(got, line)
		}
		b.wait(time.Minute)
	}
	if want := []string{"halted 10000", "halted 100000", "revoked 1000000"}; !slices.Equal(got, want) {
		t.Errorf("withdrawal went %q, want %q", got, want)
	}
	if got, want := b.notices(), []string{string(notify.Withdrawing), string(notify.Withdrawing), string(notify.Revoked)}; !slices.Equal(got, want) {
		t.Errorf("notices %q, want %q", got, want)
	}
	b.update(func(ctx context.Context, tx store.Tx) error {
		decisions, err := tx.Decisions(ctx, 0)
		if len(decisions) != 3 || decisions[0].By != "alice (uid 1000)" || decisions[2].State != patch.Revoked || decisions[2].Withdraw != patch.Everyone {
			t.Errorf("decisions are %+v", decisions)
		}
		return err
	})
}

// TestWithdrawalWaitsForAPerson: two machines that gave it up go down.
func TestWithdrawalWaitsForAPerson(t *testing.T) {
	b := newBed(t)
	b.begin(withdraw.FirstShare)
	b.wait(time.Minute)
	b.report(1, removed("1.1"), crashed())
	b.report(1, crashed(), unclean()) // is one machine however often it goes down
	if r, _ := b.advance(); r.Withdrawal.Held != "" {
		t.Fatalf("one machine holds it: %q", r.Withdrawal.Held)
	}
	b.report(2, removed("1.1"))
	b.wait(time.Minute)
	b.report(2, unclean())
	r, decided := b.advance()
	if r.Withdrawal.Held == "" || decided {
		t.Fatalf("two machines do not hold it: %+v", r.Withdrawal)
	}
	b.wait(24 * time.Hour)
	if r, _ := b.advance(); r.Withdrawal.Share != withdraw.FirstShare {
		t.Errorf("share is %d while it waits", r.Withdrawal.Share)
	}
	b.update(func(ctx context.Context, tx store.Tx) error {
		_, err := withdraw.Continue(ctx, tx, b.decision())
		return err
	})
	if r, decided := b.advance(); r.Withdrawal.Share != 10*withdraw.FirstShare || !decided {
		t.Errorf("after a person said so: %+v", r.Withdrawal)
	}
	b.report(3, removed("1.1"), crashed())
	b.report(4, removed("1.1"), crashed())
	if r, _ := b.advance(); !strings.HasPrefix(r.Withdrawal.Held, "4 machines") {
		t.Errorf("two more do not hold it: %+v", r.Withdrawal)
	}
	want := []string{string(notify.Withdrawing), string(notify.HeldBack), string(notify.Withdrawing), string(notify.Withdrawing), string(notify.HeldBack)}
	if got := b.notices(); !slices.Equal(got, want) {
		t.Errorf("notices %q, want %q", got, want)
	}
}

// TestAMachineGivesItUpOnce: one that says so a thousand times does not make the machines
// that go down look few.
func TestAMachineGivesItUpOnce(t *testing.T) {
	b := newBed(t)
	b.begin(withdraw.FirstShare)
	for range 500 {
		b.wait(time.Second)
		b.report(1, removed("1.1"))
	}
	b.report(2, removed("1.1"), crashed())
	b.report(3, removed("1.1"), crashed())
	if r, _ := b.advance(); r.Withdrawal.Held != "2 machines went down after they gave it up, of 3" {
		t.Errorf("held is %q", r.Withdrawal.Held)
	}
}

// TestWhichCrashesHoldAWithdrawal: only of machines that gave up this version, and
// only after they did.
func TestWhichCrashesHoldAWithdrawal(t *testing.T) {
	tests := map[string]struct {
		before, after []service.Event
		want          int64
	}{
		"a machine that still has it":       {nil, []service.Event{crashed()}, 0},
		"one that gave up another patch":    {[]service.Event{removed("1.0")}, []service.Event{crashed()}, 0},
		"one that went down and gave it up": {[]service.Event{crashed()}, []service.Event{removed("1.1")}, 0},
		"one that gave it up and is well":   {[]service.Event{removed("1.1")}, []service.Event{clean()}, 0},
		"one that gave it up and rebooted":  {[]service.Event{removed("1.1")}, []service.Event{unclean()}, 1},
		"one that gave it up and oopsed":    {[]service.Event{removed("1.1")}, []service.Event{crashed()}, 1},
		"one that reports both at once":     {nil, []service.Event{removed("1.1"), crashed()}, 1},
		"one whose report has another kind": {[]service.Event{removed("1.1")}, []service.Event{{Kind: service.Heartbeat, Reason: service.ReasonUnclean}}, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.report(1, tc.before...)
			b.wait(time.Minute)
			b.report(1, tc.after...)
			b.update(func(ctx context.Context, tx store.Tx) error {
				got, err := tx.Crashed(ctx, "1.1", start)
				if got != tc.want {
					t.Errorf("%d machines, want %d", got, tc.want)
				}
				return err
			})
		})
	}
}

func TestWhoMayBeginAndContinue(t *testing.T) {
	begin := func(first int64) func(*bed) error {
		return func(b *bed) error {
			return b.db.Update(b.Context(), func(tx store.Tx) error {
				_, err := withdraw.Begin(b.Context(), tx, b.decision(), first, withdraw.Pause)
				return err
			})
		}
	}
	again := func(b *bed) error {
		return b.db.Update(b.Context(), func(tx store.Tx) error {
			_, err := withdraw.Continue(b.Context(), tx, b.decision())
			return err
		})
	}
	tests := map[string]struct {
		first, then func(*bed) error
		want        error
		state       patch.RolloutState
	}{
		"a second withdrawal":             {begin(1), begin(1), withdraw.ErrUnderWay, patch.Halted},
		"all of it while it is under way": {begin(1), begin(patch.Everyone), nil, patch.Revoked},
		"what is revoked":                 {begin(patch.Everyone), begin(1), withdraw.ErrRevoked, patch.Revoked},
		"what is revoked, at once":        {begin(patch.Everyone), begin(patch.Everyone), withdraw.ErrRevoked, patch.Revoked},
		"what does not wait":              {begin(1), again, withdraw.ErrNotHeld, patch.Halted},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			if err := tc.first(b); err != nil {
				t.Fatal(err)
			}
			if err := tc.then(b); !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if r, _ := b.advance(); r.State != tc.state {
				t.Errorf("state is %s, want %s", r.State, tc.state)
			}
		})
	}
}

// TestNoticeAndDecisionAreOneTransaction: what is undone is not told.
func TestNoticeAndDecisionAreOneTransaction(t *testing.T) {
	b := newBed(t)
	broken := errors.New("broken")
	err := b.db.Update(t.Context(), func(tx store.Tx) error {
		if _, err := withdraw.Begin(t.Context(), tx, b.decision(), patch.Everyone, 0); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if r, _ := b.advance(); r.State != patch.Running || len(b.notices()) != 0 {
		t.Errorf("undone, and state is %s, notices %q", r.State, b.notices())
	}
	b.begin(patch.Everyone)
	due, err := b.db.DueNotices(t.Context(), b.now, 10)
	if err != nil || len(due) != 1 {
		t.Fatalf("%d notices, %v", len(due), err)
	}
	var m notify.Message
	if err := json.Unmarshal(due[0].Body, &m); err != nil || m.Type != notify.Revoked || m.Data.Version != "1.1" || m.Data.By != "alice (uid 1000)" {
		t.Errorf("notice is %s, %v", due[0].Body, err)
	}
}
