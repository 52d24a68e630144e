package catalog_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/expiry"
	"livepatch/server/internal/servicetest"
)

func names(roles []expiry.Role) []string {
	var all []string
	for _, r := range roles {
		all = append(all, r.Name)
	}
	return all
}

func find(t *testing.T, roles []expiry.Role, name string) expiry.Role {
	t.Helper()
	i := slices.IndexFunc(roles, func(r expiry.Role) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("there is no %q in %v", name, names(roles))
	}
	return roles[i]
}

func TestEveryRoleInUseIsWatched(t *testing.T) {
	if roles := servicetest.New(t).Catalog.Expiring(); len(roles) != 0 {
		t.Errorf("before the first publication: %v", names(roles))
	}
	s, r := published(t)
	early := time.Now().Add(3 * time.Hour).UTC().Truncate(time.Second)
	r.Roles["debian-1"].Expire(early)
	s.Publish(t, r, bump(r, "debian-1")...)

	roles := s.Catalog.Expiring()
	want := []string{"root", "targets", "debian", "debian-*", "rollout", "snapshot", "timestamp"}
	if diff := cmp.Diff(want, names(roles)); diff != "" {
		t.Errorf("roles differ (-want +got):\n%s", diff)
	}
	bins := find(t, roles, "debian-*")
	if bins.Bins < 2 || bins.Version != 2 || !bins.Expires.Equal(early) || bins.Online {
		t.Errorf("bins are %+v, want the one that expires first", bins)
	}
	for _, role := range roles {
		// Modification times of one file are a second apart, at least.
		if since := time.Since(role.Published); since < -time.Minute || since > time.Minute {
			t.Errorf("%s was published %v ago", role.Name, since)
		}
		if online := slices.Contains([]string{"rollout", "snapshot", "timestamp"}, role.Name); role.Online != online {
			t.Errorf("%s: online = %t", role.Name, role.Online)
		}
	}
}

func TestVendorThatIsGoneIsNotWatched(t *testing.T) {
	s, r := published(t)
	top := tuftest.Path{"delegations"}.Get(r.Roles["targets"].Signed).(tuftest.Object)
	top["roles"] = top["roles"].([]any)[:1]
	s.Publish(t, r, bump(r, "targets")...)
	want := []string{"root", "targets", "rollout", "snapshot", "timestamp"}
	if diff := cmp.Diff(want, names(s.Catalog.Expiring())); diff != "" {
		t.Errorf("roles differ (-want +got):\n%s", diff)
	}
}

// TestRunWarnsOfRolesThatRunOut has a service run until one bin has expired: no
// other role runs out meanwhile.
func TestRunWarnsOfRolesThatRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := servicetest.New(t)
		r := tuftest.New(time.Now())
		r.Roles["debian-0"].Expire(time.Now().Add(4 * time.Minute))
		s.Publish(t, r)
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
		defer stop()
		s.Catalog.Run(ctx)
		log := s.Log.String()
		for _, want := range []string{
			`"level":"WARN","msg":"Signed role runs out","role":"debian-*","version":1,"expires":"2000-01-01T00:04:00Z","left":120000000000,"urgency":"notice"`,
			`"left":60000000000,"urgency":"warning"`,
			`"level":"ERROR","msg":"Signed role has expired","role":"debian-*"`,
		} {
			if n := strings.Count(log, want); n != 1 {
				t.Errorf("%d times in the log: %s", n, want)
			}
		}
		const next = `"next_step":"livepatch-publish --repo R refresh --within 1h, then livepatch-publish --repo R push"`
		if n := strings.Count(log, next); n != 3 || n != strings.Count(log, `"urgency":`) {
			t.Errorf("%d warnings, want 3:\n%s", n, log)
		}
	})
}

// TestWithdrawalIsSignedWithinASecond has a server run while somebody revokes.
func TestWithdrawalIsSignedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := published(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Catalog.Run(ctx)
		}()
		defer func() { stop(); <-done }()
		time.Sleep(time.Minute + 300*time.Millisecond)
		before := s.Catalog.Generation()
		if _, err := catalog.Decide(t.Context(), s.DB, decision("1.1", patch.Revoked)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := rolloutState(t, s, r, "1.1").State; got != patch.Revoked {
			t.Errorf("signed state is %s a second after the decision", got)
		}
		if got := s.Catalog.Generation(); got != before+1 {
			t.Errorf("generation = %d, want %d", got, before+1)
		}
		want := `"msg":"Signed decision about a rollout","vendor":"debian","version":"1.1","state":"revoked","decided_by":"alice (uid 1000)","reason":"crashes"`
		if n := strings.Count(s.Log.String(), want); n != 1 {
			t.Errorf("%d times in the log: %s", n, want)
		}
	})
}
