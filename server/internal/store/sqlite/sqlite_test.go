package sqlite_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

var now = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

func open(t *testing.T, path string) *sqlite.DB {
	t.Helper()
	if err := sqlite.Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	db, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newDB(t *testing.T) *sqlite.DB {
	t.Helper()
	// A name that has to be escaped in a URL.
	return open(t, filepath.Join(t.TempDir(), "a b?c=#%.db"))
}

func hash(s string) store.Hash { return sha256.Sum256([]byte(s)) }

func addToken(t *testing.T, db *sqlite.DB, secret string, token store.Token) int64 {
	t.Helper()
	token.Created = now
	id, err := db.AddToken(t.Context(), hash(secret), token)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func enrol(t *testing.T, db *sqlite.DB, secret string, auth int64, id string) {
	t.Helper()
	if err := db.Enrol(t.Context(), hash(secret), store.Machine{ID: id, AuthToken: auth, Enrolled: now, LastSeen: now}); err != nil {
		t.Fatal(err)
	}
}

func TestDatabaseNeedsToBeCreated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if _, err := sqlite.Open(t.Context(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("Open made a file")
	}
}

func TestDatabaseIsForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := open(t, path)
	addToken(t, db, "a", store.Token{Kind: store.Auth})
	all, err := filepath.Glob(path + "*")
	if err != nil || len(all) < 2 {
		t.Fatalf("files are %v, %v; want the WAL, too", all, err)
	}
	for _, f := range all {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f, info.Mode(), err)
		}
	}
}

func TestCreatingTwiceKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := open(t, path)
	id := addToken(t, db, "a", store.Token{Kind: store.Auth, Tier: "edge"})
	got, err := open(t, path).Token(t.Context(), hash("a"))
	if err != nil || got.ID != id || got.Tier != "edge" {
		t.Errorf("token = %+v, %v", got, err)
	}
}

func TestFileThatIsNoDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte("this is not a database, and long enough to be read as one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), path); err == nil {
		t.Error("it was opened")
	}
}

func TestTokens(t *testing.T) {
	db := newDB(t)
	id := addToken(t, db, "a", store.Token{Kind: store.Auth, Tier: "stable", Note: "web", Expires: now.Add(time.Hour)})
	addToken(t, db, "p", store.Token{Kind: store.Publisher})
	enrol(t, db, "m", id, "m1")

	if err := db.RevokeToken(t.Context(), store.Publisher, id, now); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("revoked as a token of another kind: %v", err)
	}
	for i := range 2 { // the time of the first counts
		if err := db.RevokeToken(t.Context(), store.Auth, id, now.Add(time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	want := store.Token{ID: id, Kind: store.Auth, Tier: "stable", Note: "web", Created: now, Expires: now.Add(time.Hour), Revoked: now}
	got, err := db.Token(t.Context(), hash("a"))
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, token differs (-want +got):\n%s", err, diff)
	}
	want.Machines = 1
	list, err := db.Tokens(t.Context(), store.Auth)
	if diff := cmp.Diff([]store.Token{want}, list); diff != "" || err != nil {
		t.Errorf("%v, list differs (-want +got):\n%s", err, diff)
	}
	if _, err := db.Token(t.Context(), hash("b")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown token: %v", err)
	}
	if err := db.RevokeToken(t.Context(), store.Auth, 99, now); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown ID: %v", err)
	}
	who, err := db.Identify(t.Context(), hash("m"))
	if err != nil || !who.Revoked || who.Machine != "m1" || who.Tier != "stable" {
		t.Errorf("identity = %+v, %v", who, err)
	}
}

func TestReportsAreKept(t *testing.T) {
	db := newDB(t)
	enrol(t, db, "old", addToken(t, db, "a", store.Token{Kind: store.Auth, Tier: "beta"}), "m1")
	old, err := db.Identify(t.Context(), hash("old"))
	if err != nil {
		t.Fatal(err)
	}
	enrol(t, db, "new", 1, "m1")
	who, err := db.Identify(t.Context(), hash("new"))
	if err != nil {
		t.Fatal(err)
	}
	report := store.Report{At: now.Add(time.Hour), CheckIn: service.CheckIn{
		Version: "2", Generation: 7,
		Facts: service.Facts{Kernel: patch.Kernel{Arch: "x86_64", Release: "r", BuildID: "b"}, KernelVersion: "k", Distribution: "d", BootID: "o"},
		Patch: &service.Patch{Name: "n", Version: "1.1", Sequence: 3, State: "enabled", Standing: "trial"},
		Events: []service.Event{
			{ID: "1", Kind: "intent", Name: "n", Version: "1.1", BootID: "o", At: now, Reason: "r", Message: "m"},
			{ID: "2", Kind: "applied", At: now.Add(time.Second)},
			{ID: "1", Kind: "failed", At: now},
		},
	}}
	if err := db.CheckIn(t.Context(), old, report); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("report under a dead token: %v", err)
	}
	for range 2 {
		if err := db.CheckIn(t.Context(), who, report); err != nil {
			t.Fatal(err)
		}
	}
	events, err := db.Events(t.Context(), "m1")
	if diff := cmp.Diff(report.Events[:2], events); diff != "" || err != nil {
		t.Errorf("%v, events differ (-want +got):\n%s", err, diff)
	}
	machines, err := db.Machines(t.Context())
	want := []store.Machine{{
		ID: "m1", AuthToken: 1, Tier: "beta", Version: "2", Facts: report.Facts, Enrolled: now, LastSeen: report.At,
		Generation: 7, Patch: *report.Patch,
	}}
	if diff := cmp.Diff(want, machines); diff != "" || err != nil {
		t.Errorf("%v, machines differ (-want +got):\n%s", err, diff)
	}
	if n, err := db.ForgetEvents(t.Context(), report.At); n != 0 || err != nil {
		t.Errorf("forgot %d events, %v", n, err)
	}
	if n, err := db.ForgetEvents(t.Context(), report.At.Add(time.Second)); n != 2 || err != nil {
		t.Errorf("forgot %d events, %v", n, err)
	}
	if err := db.Leave(t.Context(), store.Identity{Token: hash("new")}); err != nil {
		t.Fatal(err)
	}
	if err := db.Leave(t.Context(), store.Identity{Token: hash("new")}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("left twice: %v", err)
	}
}

func TestFailedUpdateIsUndone(t *testing.T) {
	db := newDB(t)
	broken := errors.New("broken")
	err := db.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.PutFile(t.Context(), store.File{Role: "root", Version: 1, Expires: now, Modified: now, Body: []byte("x"), Gzip: []byte("z")}); err != nil {
			return err
		}
		if _, err := tx.File(t.Context(), "root", 1); err != nil {
			t.Errorf("a transaction does not see what it wrote: %v", err)
		}
		if _, err := db.File(t.Context(), "root", 1); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("others see it before it is committed: %v", err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("Update = %v, want %v", err, broken)
	}
	if _, err := db.File(t.Context(), "root", 1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("File = %v, want %v", err, store.ErrNotFound)
	}
}

func TestVersionIsWrittenOnce(t *testing.T) {
	db := newDB(t)
	put := func(version int64, body string) error {
		return db.Update(t.Context(), func(tx store.Tx) error {
			return tx.PutFile(t.Context(), store.File{Role: "root", Version: version, Expires: now, Modified: now, Body: []byte(body), Gzip: []byte("z")})
		})
	}
	if err := put(1, "first"); err != nil {
		t.Fatal(err)
	}
	if err := put(1, "second"); err == nil {
		t.Error("a version was written over")
	}
	if err := put(2, "second"); err != nil {
		t.Fatal(err)
	}
	f, err := db.File(t.Context(), "root", 1)
	if err != nil || string(f.Body) != "first" || string(f.Gzip) != "z" || !f.Modified.Equal(now) {
		t.Errorf("file = %+v, %v", f, err)
	}
	if n, err := db.ForgetFiles(t.Context(), now.AddDate(1, 0, 0)); n != 0 || err != nil {
		t.Errorf("%d roots were forgotten, %v", n, err)
	}
}

func TestTargetIsPublishedAsItWasUploaded(t *testing.T) {
	db := newDB(t)
	target := store.Target{Path: "debian/x.ko", Digest: patch.Digest(hash("x")), Length: 9, Uploaded: now}
	if err := db.AddTarget(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	publish := func(target store.Target) error {
		return db.Update(t.Context(), func(tx store.Tx) error { return tx.PublishTarget(t.Context(), target) })
	}
	for name, edit := range map[string]func(*store.Target){
		"another path":   func(t *store.Target) { t.Path = "debian/y.ko" },
		"another length": func(t *store.Target) { t.Length = 8 },
		"another digest": func(t *store.Target) { t.Digest = patch.Digest(hash("y")) },
	} {
		other := target
		edit(&other)
		if err := publish(other); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v, want %v", name, err, store.ErrNotFound)
		}
	}
	if err := publish(target); err != nil {
		t.Fatal(err)
	}
	// A second upload does not take it back, and time does not forget it.
	if err := db.AddTarget(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if n, err := db.ForgetTargets(t.Context(), now.AddDate(9, 0, 0)); n != 0 || err != nil {
		t.Errorf("%d targets were forgotten, %v", n, err)
	}
	target.Published = true
	got, err := db.Target(t.Context(), target.Path, target.Digest)
	if diff := cmp.Diff(target, got); diff != "" || err != nil {
		t.Errorf("%v, target differs (-want +got):\n%s", err, diff)
	}
	for digest, want := range map[patch.Digest]bool{target.Digest: true, patch.Digest(hash("y")): false} {
		if named, err := db.Named(t.Context(), digest); named != want || err != nil {
			t.Errorf("named = %t, %v, want %t", named, err, want)
		}
	}
}

func TestRolloutIsAddedOnce(t *testing.T) {
	db := newDB(t)
	add := func(salt string) {
		t.Helper()
		if err := db.Update(t.Context(), func(tx store.Tx) error {
			return tx.AddRollout(t.Context(), store.Rollout{
				Vendor: "debian", Version: "1.1", State: patch.Running, Salt: salt, Soak: time.Hour, Created: now, Updated: now,
			})
		}); err != nil {
			t.Fatal(err)
		}
	}
	add("first")
	decision := store.Decision{
		Epoch: 1, At: now.Add(time.Hour), By: "alice (uid 1000)", Reason: "crashes",
		Vendor: "debian", Version: "1.1", State: patch.Halted,
	}
	if err := db.Update(t.Context(), func(tx store.Tx) error {
		epoch, err := tx.SetRollout(t.Context(), decision)
		if epoch != 1 {
			t.Errorf("epoch = %d, want 1", epoch)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	add("second") // published again, for more kernels: still halted
	rollout := func(version string) (r store.Rollout, err error) {
		err = db.View(t.Context(), func(tx store.Tx) error {
			r, err = tx.Rollout(t.Context(), "debian", version)
			return err
		})
		return r, err
	}
	got, err := rollout("1.1")
	want := store.Rollout{
		Vendor: "debian", Version: "1.1", State: patch.Halted, Salt: "first", Soak: time.Hour, Created: now, Updated: now.Add(time.Hour),
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, rollout differs (-want +got):\n%s", err, diff)
	}
	if _, err := rollout("2.1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown rollout: %v", err)
	}
	for epoch, want := range [][]store.Decision{{decision}, {}} {
		if err := db.View(t.Context(), func(tx store.Tx) error {
			got, err := tx.Decisions(t.Context(), int64(epoch))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("decisions after epoch %d differ (-want +got):\n%s", epoch, diff)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWritersOfTwoProcesses has a server and an admin write to one file.
func TestWritersOfTwoProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	dbs := []*sqlite.DB{open(t, path), open(t, path)}
	var wg sync.WaitGroup
	const each = 25
	for i, db := range dbs {
		for w := range 4 {
			wg.Go(func() {
				for n := range each {
					if _, err := db.AddToken(t.Context(), hash(fmt.Sprint(i, w, n)), store.Token{Kind: store.Auth, Created: now}); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	all, err := dbs[0].Tokens(t.Context(), store.Auth)
	if err != nil || len(all) != 2*4*each {
		t.Errorf("%d tokens, %v, want %d", len(all), err, 2*4*each)
	}
}

func TestWaitingWriterGivesUpWithItsCaller(t *testing.T) {
	db := newDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Update(t.Context(), func(store.Tx) error {
		done := make(chan error)
		go func() {
			_, err := db.AddToken(ctx, hash("a"), store.Token{Kind: store.Auth, Created: now})
			done <- err
		}()
		cancel()
		return <-done
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("AddToken = %v, want %v", err, context.Canceled)
	}
}

func TestDatabaseThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := open(t, path)
	db.Limit(t, 40) // pages: an empty database has about 30
	var err error
	n := 0
	for ; err == nil && n < 10_000; n++ {
		_, err = db.AddToken(t.Context(), hash(strconv.Itoa(n)), store.Token{Kind: store.Auth, Note: path, Created: now})
	}
	if !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("a full database: %v, want %v", err, store.ErrUnavailable)
	}
	all, err := db.Tokens(t.Context(), store.Auth)
	if err != nil || len(all) != n-1 {
		t.Errorf("%d tokens, %v, want the %d that were acknowledged", len(all), err, n-1)
	}
}
