package inprocess

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

const vendor = "debian"

// batch is how many machines are enrolled in one transaction.
const batch = 20_000

// Kernel returns the n-th kernel that there is a patch for, from 1.
func Kernel(n int) patch.Kernel { return servicetest.Kernel(n) }

// Prepare makes the folder of a service with the online keys of tests, and enrols a
// fleet an hour before now: not by a million requests, but as if there had been.
func Prepare(ctx context.Context, path string, now time.Time, fleet func(yield func(Machine) bool)) error {
	dir := layout.Dir(path)
	if err := writeKeys(filepath.Join(path, "keys")); err != nil {
		return fmt.Errorf("cannot prepare service: %w", err)
	}
	if _, err := dir.Create(ctx); err != nil {
		return fmt.Errorf("cannot prepare service: %w", err)
	}
	db, err := dir.Database(ctx)
	if err != nil {
		return fmt.Errorf("cannot prepare service: %w", err)
	}
	defer db.Close()
	e := enroller{db: db, at: now.Add(-time.Hour), accounts: map[string]int64{}}
	for m := range fleet {
		if err := e.add(ctx, m); err != nil {
			return fmt.Errorf("cannot enrol fleet: %w", err)
		}
	}
	if err := e.flush(ctx); err != nil {
		return fmt.Errorf("cannot enrol fleet: %w", err)
	}
	return nil
}

func writeKeys(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, role := range signer.Roles {
		seed := sha256.Sum256([]byte(role)) // as tuftest.NewKey
		der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed[:]))
		if err != nil {
			return err
		}
		b := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, role+".key"), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// An enroller enrols machines, many in one transaction.
type enroller struct {
	db       *sqlite.DB
	at       time.Time
	accounts map[string]int64 // IDs of their tokens
	waiting  []store.Enrolled
}

func (e *enroller) add(ctx context.Context, m Machine) error {
	id, ok := e.accounts[m.Account]
	if !ok {
		var err error
		id, err = e.db.AddToken(ctx, sha256.Sum256([]byte(m.Account)), store.Token{Kind: store.Auth, Tier: m.Tier, Note: m.Account, Created: e.at})
		if err != nil {
			return err
		}
		e.accounts[m.Account] = id
	}
	e.waiting = append(e.waiting, store.Enrolled{Token: sha256.Sum256([]byte(m.Token)), Machine: store.Machine{
		ID: m.ID.String(), AuthToken: id, Facts: service.Facts{Kernel: m.Kernel}, Enrolled: e.at, LastSeen: e.at,
	}})
	if len(e.waiting) < batch {
		return nil
	}
	return e.flush(ctx)
}

func (e *enroller) flush(ctx context.Context) error {
	err := e.db.EnrolAll(ctx, e.waiting)
	e.waiting = e.waiting[:0]
	return err
}

// Publish publishes the patch for the first so many kernels, as a publisher would. The
// machines that have enrolled by then are dealt.
func (s *Service) Publish(ctx context.Context, kernels int) error {
	repo := tuftest.New(s.now())
	for n := range kernels {
		servicetest.AddPatch(repo, n+1, 1)
	}
	s.stored = tuf.Stored{Root: repo.Files().Roots[0]}
	for path, content := range repo.Content {
		if err := s.cat.Upload(ctx, path, sha256.Sum256(content), bytes.NewReader(content), service.MaxModule); err != nil {
			return fmt.Errorf("cannot publish patch: %w", err)
		}
	}
	if _, err := s.cat.Publish(ctx, servicetest.Publication(repo)); err != nil {
		return fmt.Errorf("cannot publish patch: %w", err)
	}
	if err := s.settleSalt(ctx); err != nil {
		return fmt.Errorf("cannot publish patch: %w", err)
	}
	return nil
}

// settleSalt puts the salt that is wanted in the place of the one that was drawn.
func (s *Service) settleSalt(ctx context.Context) error {
	if s.salt != "" {
		return s.exec(ctx, "UPDATE rollouts SET salt = ?", s.salt)
	}
	return s.withSQL(func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT salt FROM rollouts").Scan(&s.salt)
	})
}

// often is how often the fleet is said to be there, and counted.
const often = 6 * time.Hour

// touch says now and then that the whole fleet is there, for those machines that are
// not simulated because nothing depends on what they say.
func (s *Service) touch(ctx context.Context) error {
	now := s.now()
	if now.Sub(s.touched) < often {
		return nil
	}
	s.touched = now
	return s.exec(ctx, "UPDATE machines SET last_seen = ? WHERE last_seen < ?", now.Unix(), now.Add(-often).Unix())
}

// withSQL runs a query beside the server, whose store knows no such thing.
func (s *Service) withSQL(do func(*sql.DB) error) error {
	db, err := sql.Open("sqlite", filepath.Join(string(s.dir), "livepatch.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	return do(db)
}

func (s *Service) exec(ctx context.Context, query string, args ...any) error {
	return s.withSQL(func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, query, args...)
		return err
	})
}
