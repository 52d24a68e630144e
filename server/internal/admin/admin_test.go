package admin_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/admin"
	"livepatch/server/internal/cli"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/layout"
	rule "livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"livepatch-admin": func() {
			os.Exit(cli.Main(context.Background(), admin.Command(os.Getenv("LIVEPATCH_DIR"), who()), os.Args[1:], admin.Hint))
		},
	})
}

// who is alice, unless a transcript says otherwise.
func who() store.Person {
	switch os.Getenv("WHO") {
	case "bob":
		return store.Person{Account: "root (uid 0), logged in as bob (uid 1001)", ID: "uid 1001"}
	case "cron":
		return store.Person{Account: "root (uid 0)", ID: "uid 0, no login"}
	case "service":
		return store.Person{Account: "livepatch (uid 990)", ID: "uid 990, no login"}
	}
	return store.Person{Account: "alice (uid 1000)", ID: "uid 1000"}
}

func TestTranscripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"service": makeService,
			"enrol":   enrol,
			"rollout": addRollout,
			"rule":    runRule,
			"take":    take,
			"try":     try,
			"age":     age,
			"sql":     statement,
		},
	})
}

// makeService makes an empty service: service DIR.
func makeService(ts *testscript.TestScript, _ bool, args []string) {
	_, err := layout.Dir(ts.MkAbs(args[0])).Create(context.Background())
	ts.Check(err)
}

// enrol enrols a machine that has applied a patch: enrol DIR TOKENFILE.
func enrol(ts *testscript.TestScript, _ bool, args []string) {
	db, err := layout.Dir(ts.MkAbs(args[0])).Database(context.Background())
	ts.Check(err)
	defer db.Close()
	ctx, now := context.Background(), time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	facts := service.Facts{Kernel: patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64"}, BootID: "b"}
	desk := enrolment.New(db)
	secret := ts.ReadFile(args[1])
	e, err := desk.Enrol(ctx, secret[:len(secret)-1], service.EnrolRequest{
		MachineID: "0123456789abcdef0123456789abcdef", Hostname: "web-1", Version: "1.0", Facts: facts,
	}, now)
	ts.Check(err)
	who, err := desk.Identify(ctx, e.MachineToken)
	ts.Check(err)
	ts.Check(desk.CheckIn(ctx, who, store.Report{At: now, CheckIn: service.CheckIn{
		Version: "1.0", Facts: facts,
		Patch:  &service.Patch{Name: "lkp_1", Version: "113.1", Sequence: 1, State: "enabled", Standing: "trial"},
		Events: []service.Event{{ID: "1", Kind: "applied", Name: "lkp_1", Version: "113.1", At: now}},
	}}))
}

// addRollout adds a rollout as a publication would: rollout DIR VENDOR VERSION.
func addRollout(ts *testscript.TestScript, _ bool, args []string) {
	update(ts, args[0], func(ctx context.Context, tx store.Tx) error {
		at := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
		return tx.AddRollout(ctx, store.Rollout{
			Vendor: args[1], Version: args[2], State: patch.Running, Salt: "salt", Created: at, Updated: at,
		})
	})
}

func update(ts *testscript.TestScript, dir string, fn func(context.Context, store.Tx) error) {
	ctx := context.Background()
	db, err := layout.Dir(ts.MkAbs(dir)).Database(ctx)
	ts.Check(err)
	defer db.Close()
	if err := db.Update(ctx, func(tx store.Tx) error { return fn(ctx, tx) }); err != nil {
		ts.Fatalf("%s", fmt.Sprint(err))
	}
}

// The fleet of a transcript: a kernel with many machines, and one with some.
const (
	bigCell  = "6.1.0-53-amd64/x86_64"
	restCell = "6.1.0-54-amd64/x86_64"
)

// runRule has the rule look at a rollout for the first time, and then hear of two
// machines with the same oops: rule DIR VENDOR VERSION.
func runRule(ts *testscript.TestScript, _ bool, args []string) {
	r, err := rule.New(rule.Defaults(), "salt", []rule.Tier{{Name: "edge"}, {Name: "beta"}})
	ts.Check(err)
	start := time.Now().Add(-2 * time.Minute) // before any request of the transcript
	first, err := r.Step(start, []rule.Event{
		{Kind: rule.Population, Cell: bigCell, Source: "src", Tier: "edge", Machines: 2000, Accounts: 100},
		{Kind: rule.Population, Cell: restCell, Source: "src", Tier: "edge", Machines: 1000, Accounts: 100},
	})
	ts.Check(err)
	second, err := r.Step(start.Add(time.Minute), []rule.Event{oops(1), oops(2)})
	ts.Check(err)
	key := store.Key{Vendor: args[1], Version: args[2]}
	update(ts, args[0], func(ctx context.Context, tx store.Tx) error {
		stages := store.Stages{Vendor: key.Vendor, Version: key.Version, At: start.Add(time.Minute)}
		for _, s := range r.Stages() {
			stages.Stages = append(stages.Stages, store.NewStage(s, start.Add(time.Minute)))
		}
		return errors.Join(
			tx.PutStages(ctx, stages),
			tx.PutRound(ctx, store.Round{At: start.Add(time.Minute), Verdicts: verdicts(ts, key, append(first, second...))}),
		)
	})
}

func oops(machine byte) rule.Event {
	return rule.Event{
		Kind: rule.Failed, Machine: rule.Machine{machine}, Cell: bigCell, Tier: "edge", Account: fmt.Sprint(machine),
		Failure: rule.Oops, Signature: "general protection fault/lkp_1/do_it",
	}
}

func verdicts(ts *testscript.TestScript, k store.Key, decisions []rule.Decision) (rows []store.Verdict) {
	for _, d := range decisions {
		body, err := json.Marshal(d)
		ts.Check(err)
		rows = append(rows, store.Verdict{
			Key: k, Seq: d.Seq, At: time.Unix(d.At, 0), Unit: d.Unit,
			Action: string(d.Verdict.Action), Reason: string(d.Verdict.Reason), Body: body,
		})
	}
	return rows
}

// take does with the next request what the server does that runs the rule: take DIR
// granted|refused OUTCOME. It waits for the request.
func take(ts *testscript.TestScript, _ bool, args []string) {
	ctx := context.Background()
	db, err := layout.Dir(ts.MkAbs(args[0])).Database(ctx)
	ts.Check(err)
	defer db.Close()
	eventually(ts, func() (taken bool) {
		ts.Check(db.Update(ctx, func(tx store.Tx) error {
			requests, err := tx.Requests(ctx)
			if err != nil || len(requests) == 0 {
				return err
			}
			taken = true
			return tx.TakeRequest(ctx, requests[0].ID, time.Now(), args[1] == "granted", args[2])
		}))
		return taken
	})
}

// try does with the next notice what the server does that sends them: try DIR sent, or
// try DIR FAILURE. It waits for the notice.
func try(ts *testscript.TestScript, _ bool, args []string) {
	ctx := context.Background()
	db, err := layout.Dir(ts.MkAbs(args[0])).Database(ctx)
	ts.Check(err)
	defer db.Close()
	eventually(ts, func() bool {
		due, err := db.DueNotices(ctx, time.Now(), 1)
		ts.Check(err)
		if len(due) == 0 {
			return false
		}
		n := due[0]
		n.Attempts++
		if args[1] == "sent" {
			n.Ended, n.Sent = time.Now(), true
		} else {
			n.Failure, n.Next = args[1], time.Now().Add(time.Hour)
		}
		ts.Check(db.KeepNotice(ctx, n))
		return true
	})
}

func eventually(ts *testscript.TestScript, done func() bool) {
	for begin := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			ts.Fatalf("nobody asks for anything")
		}
	}
}

// age makes all proposals older: age DIR DURATION.
func age(ts *testscript.TestScript, _ bool, args []string) {
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	execute(ts, args[0], fmt.Sprintf("DROP TRIGGER IF EXISTS requests_change; DROP TRIGGER IF EXISTS requests_take; UPDATE requests SET at = at - %d", int64(d/time.Second)))
}

// statement changes the database behind everybody's back: sql DIR STATEMENT.
func statement(ts *testscript.TestScript, _ bool, args []string) { execute(ts, args[0], args[1]) }

func execute(ts *testscript.TestScript, dir, statement string) {
	pool, err := sql.Open("sqlite", filepath.Join(ts.MkAbs(dir), "livepatch.db"))
	ts.Check(err)
	defer pool.Close()
	_, err = pool.ExecContext(context.Background(), statement)
	ts.Check(err)
}
