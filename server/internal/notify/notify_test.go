package notify_test

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/server/internal/explain"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

// A box keeps the notices that are added.
type box []store.Notice

func (b *box) AddNotice(_ context.Context, n store.Notice) error { *b = append(*b, n); return nil }

func TestWhichVerdictsAreTold(t *testing.T) {
	tests := map[string]struct {
		action rollout.Action
		reason rollout.Reason
		want   notify.Kind
	}{
		"a halt":                          {rollout.Halt, rollout.TestB, notify.Halted},
		"a halt by a new test":            {rollout.Halt, "test-z", notify.Halted},
		"a tier that is done":             {rollout.Promote, rollout.Healthy, notify.Entered},
		"a tier without machines":         {rollout.Promote, rollout.NoMachines, ""},
		"the last tier":                   {rollout.Complete, rollout.Healthy, notify.Completed},
		"a person has to say so":          {rollout.Hold, rollout.NeedsPerson, notify.Waits},
		"a sibling is halted":             {rollout.Hold, rollout.SiblingHalted, notify.Waits},
		"machines fail":                   {rollout.Hold, rollout.Failing, notify.Waits},
		"it does not go in":               {rollout.Hold, rollout.SoftFailures, notify.Waits},
		"nobody comes":                    {rollout.Hold, rollout.NobodyCame, notify.Waits},
		"nobody counts":                   {rollout.Hold, rollout.NoEvidence, notify.Waits},
		"a stage that goes on":            {rollout.Advance, rollout.Healthy, ""},
		"outcomes that are still to come": {rollout.Hold, rollout.PendingOutcomes, ""},
		"others go first":                 {rollout.Hold, rollout.WaitsForLead, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := told(t, tc.action, tc.reason); got != tc.want {
				t.Errorf("told as %q, want %q", got, tc.want)
			}
		})
	}
}

// TestWhatAsksForAPersonIsTold: of whatever has a next step people hear, and the page
// says so.
func TestWhatAsksForAPersonIsTold(t *testing.T) {
	page, err := os.ReadFile("../../../docs/reference/webhook.md")
	if err != nil {
		t.Fatal(err)
	}
	halts, others := rollout.Reasons()
	for _, r := range halts {
		if got := told(t, rollout.Halt, r); got != notify.Halted {
			t.Errorf("a halt by %s is told as %q", r, got)
		}
	}
	for _, r := range others {
		d := rollout.Decision{Verdict: rollout.Verdict{Action: rollout.Hold, Reason: r}}
		want := notify.Kind("")
		if explain.Next("debian", "1.1", d) != "" {
			want = notify.Waits
		}
		if got := told(t, rollout.Hold, r); got != want {
			t.Errorf("a unit that stays for %s is told as %q, want %q", r, got, want)
		}
		if want != "" && !strings.Contains(string(page), "`"+string(r)+"`") {
			t.Errorf("%s is not in webhook.md", r)
		}
	}
}

// told returns as what a verdict is told, "" if it is not.
func told(t *testing.T, a rollout.Action, r rollout.Reason) notify.Kind {
	t.Helper()
	var b box
	d := rollout.Decision{Unit: "6.1/x86_64", Verdict: rollout.Verdict{Action: a, Reason: r}}
	if err := notify.Verdict(t.Context(), &b, "debian", "1.1", d); err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return ""
	}
	return notify.Kind(b[0].Kind)
}

// TestMessage holds the words of docs/reference/webhook.md.
func TestMessage(t *testing.T) {
	var b box
	d := rollout.Decision{
		Seq: 7, At: start.Unix(), Unit: "6.1.0-53-amd64/x86_64", Source: "s", Cells: []string{"6.1.0-53-amd64/x86_64"}, Tier: "edge",
		Params:   rollout.Defaults(),
		Evidence: rollout.Evidence{Hits: 2, Signature: "general protection fault/lkp_1/do_it", Tier: "edge"},
	}
	d.Verdict = d.Judge()
	if err := notify.Verdict(t.Context(), &b, "debian", "113.1", d); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b[0].Body, &got); err != nil {
		t.Fatal(err)
	}
	data, _ := got["data"].(map[string]any)
	decision, _ := data["decision"].(map[string]any)
	if decision["evidence"] == nil || decision["params"] == nil || decision["verdict"] == nil {
		t.Errorf("decision is %v", decision)
	}
	delete(data, "decision")
	want := map[string]any{
		"type": "rollout.halted", "timestamp": "2026-11-22T09:00:00Z",
		"data": map[string]any{
			"vendor": "debian", "version": "113.1", "unit": "6.1.0-53-amd64/x86_64", "kernels": []any{"6.1.0-53-amd64/x86_64"},
			"tier": "edge", "by": "rule", "reason": "test-c-oops",
			"text":      `debian 113.1 on 6.1.0-53-amd64/x86_64: halted: 2 machines had the same oops that names our module, "general protection fault/lkp_1/do_it" (test C)`,
			"next_step": "livepatch-admin rollout show debian 113.1",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(b[0].ID, "msg_") || len(b[0].ID) < 24 {
		t.Errorf("ID is %q", b[0].ID)
	}
}

func TestWhatPeopleDecideIsTold(t *testing.T) {
	request := store.Request{
		At: start, Vendor: "debian", Version: "1.1", Unit: "6.1/x86_64", Reason: "a bug",
		By: store.Person{Account: "bob"}, First: store.Person{Account: "alice"}, Proposal: 1,
	}
	decided := func(s patch.RolloutState, withdraw int64) func(*box) error {
		return func(b *box) error {
			return notify.Decided(t.Context(), b, store.Decision{
				Vendor: "debian", Version: "1.1", State: s, Withdraw: withdraw, By: "alice", Reason: "why", At: start,
			})
		}
	}
	taken := func(k store.RequestKind) func(*box) error {
		return func(b *box) error {
			r := request
			r.Kind = k
			return notify.Taken(t.Context(), b, r, start, "6.1/x86_64")
		}
	}
	tests := map[string]struct {
		tell func(*box) error
		kind notify.Kind
		text string
		next string
	}{
		"halted":  {decided(patch.Halted, 0), notify.Halted, "debian 1.1: no further machine gets it, by alice: why", ""},
		"resumed": {decided(patch.Running, 0), notify.Resumed, "debian 1.1: it goes on, by alice: why", ""},
		"a share": {decided(patch.Halted, 10_000), notify.Withdrawing, "debian 1.1: 1 % of the machines give it up, by alice: why", ""},
		"revoked": {decided(patch.Revoked, patch.Everyone), notify.Revoked, "debian 1.1: all machines give it up, by alice: why", ""},
		"proposed": {func(b *box) error {
			r := request
			r.Proposal = 0
			return notify.Requested(t.Context(), b, r)
		}, notify.Proposed, "debian 1.1: resuming 6.1/x86_64 is proposed, and takes a second person, by bob: a bug", "livepatch-admin rollout resume debian 1.1 6.1/x86_64"},
		"a unit resumed":  {taken(store.RequestResume), notify.Resumed, "debian 1.1: 6.1/x86_64 goes on, by alice and bob: a bug", ""},
		"a unit released": {taken(store.RequestRelease), notify.Released, "debian 1.1: 6.1/x86_64 goes on although a sibling is halted, by alice and bob: a bug", ""},
		"held": {func(b *box) error {
			return notify.Held(t.Context(), b, store.Rollout{
				Vendor: "debian", Version: "1.1", Withdrawal: store.Withdrawal{Share: 100_000, Held: "2 machines went down"},
			}, start)
		}, notify.HeldBack, "debian 1.1: its withdrawal stays at 10 % of the machines, by rule: 2 machines went down", "livepatch-admin rollout revoke --continue debian 1.1"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var b box
			if err := tc.tell(&b); err != nil || len(b) != 1 {
				t.Fatalf("%d notices, %v", len(b), err)
			}
			var m notify.Message
			if err := json.Unmarshal(b[0].Body, &m); err != nil {
				t.Fatal(err)
			}
			if m.Type != tc.kind || m.Data.Text != tc.text || m.Data.NextStep != tc.next {
				t.Errorf("message is %s", b[0].Body)
			}
		})
	}
	t.Run("a promotion is told of by its verdicts", func(t *testing.T) {
		var b box
		if err := taken(store.RequestPromote)(&b); err != nil || len(b) != 0 {
			t.Errorf("%d notices, %v", len(b), err)
		}
	})
}
