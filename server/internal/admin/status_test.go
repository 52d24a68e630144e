package admin_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/admin"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/store"
)

// run runs the command on a service and returns what it wrote to stdout.
func run(t *testing.T, s *servicetest.Service, args ...string) string {
	t.Helper()
	cmd := admin.Command(string(s.Dir), store.Person{Account: "alice (uid 1000)", ID: "uid 1000"})
	var stdout bytes.Buffer
	cmd.SetOut(&stdout)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return stdout.String()
}

// TestStatus looks at a service with a clock that begins at 2000-01-01.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := servicetest.New(t)
		if got := run(t, s, "status"); got != "nothing is published yet\n" {
			t.Errorf("status of an empty service is %q", got)
		}
		r := tuftest.New(time.Now())
		servicetest.AddPatch(r, 53, 1)
		s.Publish(t, r)
		fresh := `generation: 1
ROLE          VERSION  EXPIRES            LEFT         LEVEL
root          1        2000-12-31T00:00Z  365d (100%)  ok
targets       1        2000-06-29T00:00Z  180d (100%)  ok
debian        1        2000-01-31T00:00Z  30d (100%)   ok
debian-* (4)  1        2000-01-31T00:00Z  30d (100%)   ok
rollout       1        2000-01-02T00:00Z  24h (100%)   ok
snapshot      1        2000-01-03T00:00Z  2d (100%)    ok
timestamp     1        2000-01-02T00:00Z  24h (100%)   ok
`
		if diff := cmp.Diff(fresh, run(t, s, "status")); diff != "" {
			t.Errorf("status differs (-want +got):\n%s", diff)
		}

		// No server runs for 23 days, and a decision waits for one.
		s.StopRule()
		time.Sleep(23 * 24 * time.Hour)
		if _, err := catalog.Decide(t.Context(), s.DB, store.Decision{
			Vendor: "debian", Version: "1.1", State: patch.Halted, At: time.Now(), By: "alice (uid 1000)",
		}); err != nil {
			t.Fatal(err)
		}
		late := `generation: 1
decisions that wait for the server to sign them: 1
ROLE          VERSION  EXPIRES            LEFT        LEVEL
root          1        2000-12-31T00:00Z  342d (93%)  ok
targets       1        2000-06-29T00:00Z  157d (87%)  ok
debian        1        2000-01-31T00:00Z  7d (23%)    warning
debian-* (4)  1        2000-01-31T00:00Z  7d (23%)    warning
rollout       1        2000-01-02T00:00Z  0h (0%)     expired
snapshot      1        2000-01-03T00:00Z  0h (0%)     expired
timestamp     1        2000-01-02T00:00Z  0h (0%)     expired
next step: livepatch-publish --repo R refresh --within 169h, then livepatch-publish --repo R push
next step: the server signs its own roles at half of their life: see that it runs, and what its log says of signing
`
		if diff := cmp.Diff(late, run(t, s, "status")); diff != "" {
			t.Errorf("status differs (-want +got):\n%s", diff)
		}
	})
}
