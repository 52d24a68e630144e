package admin_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/admin"
	"livepatch/server/internal/cli"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/store"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"livepatch-admin": func() {
			os.Exit(cli.Main(context.Background(), admin.Command(os.Getenv("LIVEPATCH_DIR"), "alice (uid 1000)"), os.Args[1:], admin.Hint))
		},
	})
}

func TestTranscripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"service": makeService,
			"enrol":   enrol,
			"rollout": addRollout,
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
	ts.Check(desk.CheckIn(ctx, who, service.CheckIn{
		Version: "1.0", Facts: facts,
		Patch:  &service.Patch{Name: "lkp_1", Version: "113.1", Sequence: 1, State: "enabled", Standing: "trial"},
		Events: []service.Event{{ID: "1", Kind: "applied", Name: "lkp_1", Version: "113.1", At: now}},
	}, now))
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
