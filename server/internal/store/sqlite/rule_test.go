package sqlite_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// signs returns what the rule is to be told, in its order.
func signs(t *testing.T, db *sqlite.DB) (signs []store.Sign) {
	t.Helper()
	reports, err := db.Reports(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		signs = append(signs, r.Signs...)
	}
	return signs
}

func TestWhatIsReportedAgainIsNoNews(t *testing.T) {
	tests := map[string]struct {
		again, want []store.Event
	}{
		"an event that is known": {
			[]store.Event{{ID: "1", Kind: service.Crashed}}, nil,
		},
		"one that is known and a new one": {
			[]store.Event{{ID: "1", Kind: service.Crashed}, {ID: "3", Kind: service.Applied}},
			[]store.Event{{Kind: service.Applied}},
		},
		"the same words in another event": {
			[]store.Event{{ID: "3", Kind: service.Crashed}}, []store.Event{{Kind: service.Crashed}},
		},
		"a question": {
			[]store.Event{{ID: "2", Kind: service.Intent}}, []store.Event{{Kind: service.Intent}},
		},
		"a heartbeat, of which none is kept": {
			[]store.Event{{ID: "0", Kind: service.Heartbeat}}, []store.Event{{Kind: service.Heartbeat}},
		},
		"nothing": {nil, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			db := newDB(t)
			enrol(t, db, "m", addToken(t, db, "a", store.Token{Kind: store.Auth, Tier: "beta"}), "m1")
			first := []store.Event{{ID: "0", Kind: service.Heartbeat}, {ID: "1", Kind: service.Crashed}, {ID: "2", Kind: service.Intent}}
			for _, events := range [][]store.Event{first, tc.again} {
				report := store.Report{At: now, Sign: &store.Sign{Machine: "m1", Events: events}}
				for _, e := range events {
					report.Events = append(report.Events, service.Event{ID: e.ID, Kind: e.Kind, At: now})
				}
				if err := db.CheckIn(t.Context(), store.Identity{Token: hash("m"), Machine: "m1"}, report); err != nil {
					t.Fatal(err)
				}
			}
			all := signs(t, db)
			if len(all) != 2 || len(all[0].Events) != len(first) {
				t.Fatalf("the rule is told %+v, want two reports and of the first one all", all)
			}
			if diff := cmp.Diff(tc.want, all[1].Events); diff != "" {
				t.Errorf("of the second report the rule is told (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheRuleIsToldOfTheMachinesOfARevokedToken(t *testing.T) {
	const machines = 600 // more than one row takes
	db := newDB(t)
	id := addToken(t, db, "a", store.Token{Kind: store.Auth, Tier: "beta"})
	other := addToken(t, db, "b", store.Token{Kind: store.Auth, Tier: "edge"})
	enrol(t, db, "other", other, "other")
	var all []store.Enrolled
	for i := range machines {
		name := fmt.Sprintf("m%03d", i)
		all = append(all, store.Enrolled{Token: hash(name), Machine: store.Machine{ID: name, AuthToken: id, Enrolled: now, LastSeen: now}})
	}
	if err := db.EnrolAll(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	if err := db.RevokeToken(t.Context(), store.Auth, id, now); err != nil {
		t.Fatal(err)
	}
	var want []store.Sign
	for _, m := range all {
		want = append(want, store.Sign{Machine: m.ID, Account: id, Tier: "beta", Enrolled: now, Events: []store.Event{{Kind: store.Gone}}})
	}
	if diff := cmp.Diff(want, signs(t, db)); diff != "" {
		t.Errorf("the rule is told (-want +got):\n%s", diff)
	}
}

func TestTheFleetIsCounted(t *testing.T) {
	db := newDB(t)
	for i, token := range []store.Token{{Tier: "edge"}, {Tier: "beta"}, {Tier: "beta"}, {Tier: "late"}} {
		token.Kind = store.Auth
		id := addToken(t, db, fmt.Sprint(i), token)
		for j := range i + 1 {
			name := fmt.Sprint(i, "-", j)
			if err := db.Enrol(t.Context(), hash(name), store.Machine{
				ID: name, AuthToken: id, Enrolled: now, LastSeen: now.Add(-time.Duration(j) * time.Hour),
				Facts: service.Facts{Kernel: patch.Kernel{Arch: "x86_64", Release: "6.1"}},
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.RevokeToken(t.Context(), store.Auth, 4, now); err != nil {
		t.Fatal(err)
	}
	got, err := db.Population(t.Context(), now.Add(-time.Hour)) // without the third machine of the third token
	want := []store.Population{
		{Cell: "6.1/x86_64", Tier: "beta", Machines: 4, Accounts: 2, Account: 2},
		{Cell: "6.1/x86_64", Tier: "edge", Machines: 1, Accounts: 1, Account: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, fleet differs (-want +got):\n%s", err, diff)
	}
}
