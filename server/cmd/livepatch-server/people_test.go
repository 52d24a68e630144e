package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/admin"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/store"
)

var (
	alice = store.Person{Account: "alice (uid 1000)", ID: "uid 1000"}
	bob   = store.Person{Account: "bob (uid 1001)", ID: "uid 1001"}
)

// administer runs livepatch-admin and returns what it prints.
func administer(t *testing.T, dir layout.Dir, who store.Person, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := admin.Command(string(dir), who)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// ok is administer for what must succeed and print something.
func ok(t *testing.T, dir layout.Dir, who store.Person, want string, args ...string) {
	t.Helper()
	if got, err := administer(t, dir, who, args...); err != nil || !strings.Contains(got, want) {
		t.Fatalf("livepatch-admin %s printed %q, %v, want %q", strings.Join(args, " "), got, err, want)
	}
}

// signed returns what is signed about version 1.1.
func (p *process) signed(t *testing.T) (r patch.Rollout) {
	t.Helper()
	var timestamp metadata.Metadata[metadata.TimestampType]
	var snapshot metadata.Metadata[metadata.SnapshotType]
	var role metadata.Metadata[metadata.TargetsType]
	if err := p.get(service.PathMetadata+"timestamp.json", &timestamp); err != nil {
		t.Fatal(err)
	}
	if err := p.get(fmt.Sprintf("%s%d.snapshot.json", service.PathMetadata, timestamp.Signed.Meta["snapshot.json"].Version), &snapshot); err != nil {
		t.Fatal(err)
	}
	if err := p.get(fmt.Sprintf("%s%d.rollout.json", service.PathMetadata, snapshot.Signed.Meta["rollout.json"].Version), &role); err != nil {
		t.Fatal(err)
	}
	custom := role.Signed.Targets[patch.RolloutPath("debian", "1.1")].Custom
	if custom == nil {
		t.Fatal("nothing is signed about the rollout")
	}
	if err := json.Unmarshal(*custom, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// publishedService is a server with version 1.1 of a patch, and a machine that is for.
func publishedService(t *testing.T) (layout.Dir, *process) {
	t.Helper()
	dir := newDir(t)
	publisher, auth := token(t, dir, store.Publisher), token(t, dir, store.Auth)
	p := start(t, dir)
	r := tuftest.New(time.Now())
	if status, err := p.send("POST", service.PathPublishMetadata, publisher, servicetest.Publication(r), nil); err != nil || status != http.StatusOK {
		t.Fatalf("publication: %d, %v", status, err)
	}
	var done service.Published
	if !addPatch(r, 1).send(p, publisher, &done) {
		t.Fatal("patch was not published")
	}
	machine := service.EnrolRequest{MachineID: fmt.Sprintf("%032x", 1), Version: "1", Facts: facts}
	if status, err := p.send("POST", service.PathMachines, auth, machine, nil); err != nil || status != http.StatusCreated {
		t.Fatalf("enrolment: %d, %v", status, err)
	}
	return dir, p
}

// TestRevocationGoesThroughSignedShares: what machines fetch follows the withdrawal,
// share by share, and nobody has to do anything for it.
func TestRevocationGoesThroughSignedShares(t *testing.T) {
	dir, p := publishedService(t)
	ok(t, dir, alice, "decided and signed", "rollout", "revoke", "--first-share", "2", "--pause", "2s", "--reason", "hangs", "debian", "1.1")
	if r := p.signed(t); r.State != patch.Halted || r.Withdraw == nil || r.Withdraw.Share != 20_000 || r.Withdraw.Salt == "" {
		t.Errorf("signed at first is %+v", r)
	}
	if out, err := administer(t, dir, bob, "rollout", "resume", "debian", "1.1"); err == nil {
		t.Errorf("resumed while machines give it up: %s", out)
	}
	shares := map[int64]bool{}
	wait(t, func() bool {
		r := p.signed(t)
		if r.Withdraw != nil {
			shares[r.Withdraw.Share] = true
		}
		return r.State == patch.Revoked
	})
	if !shares[200_000] {
		t.Errorf("signed shares are %v, want 200000 between the first and all", shares)
	}
	ok(t, dir, alice, "by livepatch-server: 0 machines have given it up so far", "rollout", "show", "debian", "1.1")
}

// TestTwoPeopleResumeWhatRuns: the server signs it within the command of the second.
func TestTwoPeopleResumeWhatRuns(t *testing.T) {
	dir, p := publishedService(t)
	ok(t, dir, alice, "decided and signed", "rollout", "halt", "debian", "1.1")
	ok(t, dir, alice, "resume proposed by alice", "rollout", "resume", "debian", "1.1")
	if r := p.signed(t); r.State != patch.Halted {
		t.Errorf("signed after one word to resume is %s", r.State)
	}
	ok(t, dir, bob, "decided and signed", "rollout", "resume", "debian", "1.1")
	if r := p.signed(t); r.State != patch.Running {
		t.Errorf("signed after two is %s", r.State)
	}
	ok(t, dir, alice, "alice (uid 1000) and bob (uid 1001)", "rollout", "log")
	ok(t, dir, alice, "each follows from its evidence", "rollout", "replay")
}

// TestRequestsAreAnswered: the server that runs the rule takes what people ask for
// while they wait, and says why not.
func TestRequestsAreAnswered(t *testing.T) {
	dir, p := publishedService(t)
	wait(t, func() bool { return strings.Contains(p.metrics(), "livepatch_rollout_verdict_age_seconds{") })
	out, err := administer(t, dir, alice, "patch", "promote", "1.1", "beta")
	if err == nil || !strings.Contains(err.Error(), "has come there already") {
		t.Errorf("promoted to a tier that it is past: %q, %v", out, err)
	}
	ok(t, dir, alice, "done: ", "patch", "promote", "--reason", "urgent", "1.1", "late")
	ok(t, dir, alice, "a person said so", "rollout", "log", "debian", "1.1")
	p.kill()
	if want := `"msg":"Took request about a rollout"`; strings.Count(p.log.String(), want) != 2 {
		t.Errorf("want twice %s in the log: %s", want, p.log.String())
	}
}
