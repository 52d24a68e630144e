package controller_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/controller"
	"livepatch/server/internal/ops"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// A bed is a database with a controller on it, whose clock stands still until a test
// moves it.
type bed struct {
	testing.TB
	path string
	db   *sqlite.DB
	*controller.Controller
	now    time.Time
	signed int // times that something had to be signed
	events int
}

var begin = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

var kernel = patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: "00112233445566778899aabbccddeeff00112233"}

// newBed returns one with a published patch, version 1.1.
func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{TB: t, path: filepath.Join(folder(t), "db"), now: begin}
	b.try(sqlite.Create(t.Context(), b.path))
	b.open()
	b.publish("1.1")
	_, err := b.db.AddToken(t.Context(), store.Hash{1}, store.Token{Kind: store.Auth, Tier: "stable", Created: begin})
	b.try(err)
	t.Cleanup(func() {
		if b.db != nil {
			b.try(b.db.Close())
		}
	})
	return b
}

// publish publishes patches for the kernel of all machines.
func (b *bed) publish(versions ...string) {
	b.Helper()
	ix := patch.Index{Arch: kernel.Arch, Release: kernel.Release}
	b.try(b.db.Update(b.Context(), func(tx store.Tx) error {
		for _, v := range versions {
			if err := tx.AddRollout(b.Context(), store.Rollout{
				Vendor: "debian", Version: v, State: patch.Running, Salt: "salt", Created: begin, Updated: begin,
			}); err != nil {
				return err
			}
			ix.Patches = append(ix.Patches, patch.IndexEntry{Version: v})
		}
		if err := tx.PutKernel(b.Context(), store.Kernel{
			Path: patch.IndexPath("debian", kernel.Release, kernel.Arch), Role: "debian-0", Index: ix,
		}); err != nil {
			return err
		}
		return tx.CountPublication(b.Context())
	}))
}

// folder returns one in memory if that can be had: tests commit thousands of times, and
// wait for no disk.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "livepatch-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (b *bed) try(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// open opens the database with a controller, as a server that starts does.
func (b *bed) open() {
	b.Helper()
	var err error
	b.db, err = sqlite.Open(b.Context(), b.path)
	b.try(err)
	b.Controller = b.controller(b.db)
}

func (b *bed) controller(db *sqlite.DB) *controller.Controller {
	b.Helper()
	c, err := controller.New(controller.Config{
		Log: slog.New(slog.DiscardHandler), DB: db, Params: rollout.Defaults(), Tiers: controller.Tiers(),
		SignFiles: func(context.Context) error { b.signed++; return nil },
		Now:       func() time.Time { return b.now },
		Metrics:   ops.NewMetrics(),
	})
	b.try(err)
	return c
}

// restart ends the server without a word and starts another one.
func (b *bed) restart() {
	b.Helper()
	b.try(b.db.Close())
	b.open()
	b.round(0) // a server does so before it listens
}

// round lets time pass and runs the rule.
func (b *bed) round(after time.Duration) {
	b.Helper()
	b.now = b.now.Add(after)
	b.try(b.Round(b.Context()))
}

// identity is that of machine i, which enrolled before the patch was published.
func identity(i int) store.Identity {
	return store.Identity{
		Token: sha256.Sum256(fmt.Append(nil, i)), Machine: fmt.Sprintf("%032x", i+1), AuthToken: 1, Tier: "stable",
		Enrolled: begin.Add(-time.Hour),
	}
}

// enrol enrols the first n machines.
func (b *bed) enrol(n int) {
	b.Helper()
	machines := make([]store.Enrolled, n)
	for i := range machines {
		who := identity(i)
		machines[i] = store.Enrolled{Token: who.Token, Machine: store.Machine{
			ID: who.Machine, AuthToken: 1, Facts: service.Facts{Kernel: kernel}, Enrolled: who.Enrolled, LastSeen: b.now,
		}}
	}
	b.try(b.db.EnrolAll(b.Context(), machines))
	b.round(2 * time.Minute) // the fleet is counted each minute
}

func event(kind service.Kind, reason string) service.Event {
	return service.Event{Kind: kind, Version: "1.1", Reason: reason}
}

// report has a machine check in, without waiting for the rule.
func (b *bed) report(c *controller.Controller, i int, events ...service.Event) *store.Sign {
	b.Helper()
	who := identity(i)
	for j := range events {
		b.events++
		events[j].ID = fmt.Sprint(b.events)
	}
	r := store.Report{CheckIn: service.CheckIn{Facts: service.Facts{Kernel: kernel}, Events: events}, At: b.now}
	r.Sign = c.Sign(who, r)
	b.try(b.db.CheckIn(b.Context(), who, r))
	return r.Sign
}

// checkIn has a machine check in, and returns the rule's answer.
func (b *bed) checkIn(i int, events ...service.Event) store.Answer {
	b.Helper()
	s := b.report(b.Controller, i, events...)
	b.round(0)
	return b.Await(b.Context(), s)
}

// asks has a machine ask whether it may begin.
func (b *bed) asks(i int) bool {
	b.Helper()
	return slices.Contains(b.checkIn(i, event(service.Intent, "")).Go, "1.1")
}

// rollout returns what the database says of the rollout.
func (b *bed) rollout() (r store.Rollout) {
	b.Helper()
	b.try(b.db.View(b.Context(), func(tx store.Tx) (err error) {
		r, err = tx.Rollout(b.Context(), "debian", "1.1")
		return err
	}))
	return r
}

// verdicts returns what the rule has decided so far.
func (b *bed) verdicts() []rollout.Decision {
	b.Helper()
	bodies, err := b.db.Verdicts(b.Context(), store.Key{Vendor: "debian", Version: "1.1"})
	b.try(err)
	decisions := make([]rollout.Decision, len(bodies))
	for i, body := range bodies {
		b.try(json.Unmarshal(body, &decisions[i]))
	}
	return decisions
}

// exposed returns how many machines count as having begun.
func (b *bed) exposed() (n int64) {
	for _, s := range b.Stages() {
		n += s.Exposed
	}
	return n
}

// lost returns how many machines that have begun count as lost.
func (b *bed) lost() (n float64) {
	for _, s := range b.Stages() {
		n += s.Treated.Failed
	}
	return n
}

// told returns how often the rule was told of something, by the steps in the database.
func (b *bed) told(kind rollout.Kind) (n int) {
	b.Helper()
	kept, steps, err := b.db.RuleState(b.Context(), store.Key{Vendor: "debian", Version: "1.1"})
	b.try(err)
	if kept.Step != 1 {
		b.Fatalf("steps before the %dth are not listed", kept.Step)
	}
	for _, s := range steps {
		var events []rollout.Event
		b.try(json.Unmarshal(s.Events, &events))
		for _, e := range events {
			if e.Kind == kind {
				n++
			}
		}
	}
	return n
}
