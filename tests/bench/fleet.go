package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	_ "modernc.org/sqlite" // the driver that the server uses

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// accounts is over how many auth tokens the machines of a fleet are spread.
const accounts = 20

// A fleet is made-up machines of one kernel that a service has enrolled.
type fleet struct {
	database string // of the server, which only has it while it runs
	machines int
	kernel   patch.Kernel
	module   string  // that is published for it
	version  string  // of the patch
	accounts []int64 // IDs of the auth tokens
	tier     string  // of all
}

// identity returns what the service knows the i-th machine by. Both are as random as
// those of real machines, so that an index over them is read in random places.
func identity(i int) (id, token string) {
	a, b := sha256.Sum256(fmt.Appendf(nil, "machine %d", i)), sha256.Sum256(fmt.Appendf(nil, "token %d", i))
	return hex.EncodeToString(a[:16]), hex.EncodeToString(b[:16])
}

// newFleet puts machines into the database of a service that does not run: to enrol a
// million of them over HTTP would take longer than all else.
func newFleet(ctx context.Context, s *site, machines int) (*fleet, error) {
	f := &fleet{database: s.path("server/livepatch.db"), machines: machines}
	for range accounts {
		if _, err := s.authToken(ctx); err != nil {
			return nil, err
		}
	}
	if err := f.readModule(ctx, s); err != nil {
		return nil, err
	}
	err := f.fill(ctx, func(tx *sql.Tx) error {
		if err := f.readTokens(ctx, tx); err != nil {
			return err
		}
		return f.enrol(ctx, tx)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make a fleet of %d machines: %w", machines, err)
	}
	return f, nil
}

// readModule finds out which kernel has a patch in the site's repository.
func (f *fleet) readModule(ctx context.Context, s *site) error {
	out, err := s.tool(ctx, "livepatch-publish", "--repo", s.path("repository"), "list", "--json")
	if err != nil {
		return err
	}
	var targets []listedTarget
	if err := json.Unmarshal([]byte(out), &targets); err != nil {
		return fmt.Errorf("cannot read list of targets: %w", err)
	}
	if len(targets) != 1 {
		return fmt.Errorf("cannot make a fleet: repository has %d modules, want one", len(targets))
	}
	m := targets[0].Module
	f.kernel, f.module, f.version = m.Kernel, m.Name, m.Version
	return nil
}

// fill changes the database in one transaction. A power cut may destroy what it makes,
// which lives as long as the benchmark.
func (f *fleet) fill(ctx context.Context, fn func(*sql.Tx) error) (err error) {
	db, err := sql.Open("sqlite", "file:"+f.database+"?_pragma=journal_mode(MEMORY)&_pragma=synchronous(OFF)&_pragma=cache_size(-500000)")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close(), flush(f.database)) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// flush waits until a file is on the disk: what is measured next waits for nothing but its
// own writes.
func flush(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

func (f *fleet) readTokens(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `SELECT id, tier FROM tokens WHERE kind = 'auth'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id, &f.tier); err != nil {
			return err
		}
		f.accounts = append(f.accounts, id)
	}
	return rows.Err()
}

// account returns to which account the i-th machine belongs.
func (f *fleet) account(i int) int64 { return f.accounts[i%len(f.accounts)] }

// enrolled is for how long the machines have been there: they are older than the patch.
const enrolled = 24 * time.Hour

// enrol puts all machines into the database, as if each had checked in just now.
func (f *fleet) enrol(ctx context.Context, tx *sql.Tx) error {
	insert, err := tx.PrepareContext(ctx, `INSERT INTO machines (id, token_hash, auth_token_id, hostname, agent_version, arch,
		release, build_id, kernel_version, distribution, boot_id, enrolled_at, last_seen)
		VALUES (?, ?, ?, 'bench', ?, ?, ?, ?, ?, ?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	now := time.Now()
	for i := range f.machines {
		id, token := identity(i)
		hash, facts := sha256.Sum256([]byte(token)), f.facts(i)
		if _, err := insert.ExecContext(ctx, id, hash[:], f.account(i), agentVersion, facts.Arch, facts.Release,
			string(facts.BuildID), facts.KernelVersion, facts.Distribution, facts.BootID, now.Add(-enrolled).Unix(), now.Unix(),
		); err != nil {
			return err
		}
	}
	return nil
}

const agentVersion = "v1.0.0"

func (f *fleet) facts(i int) service.Facts {
	facts := machine(i)
	facts.Kernel = f.kernel
	return facts
}

// A sign is what the server keeps of a report for the rule, before the rule has taken it.
type sign struct {
	At       time.Time           `json:"at"`
	Machine  string              `json:"machine"`
	Account  int64               `json:"account"`
	Tier     string              `json:"tier"`
	Cell     string              `json:"cell"`
	Enrolled time.Time           `json:"enrolled"`
	Events   []map[string]string `json:"events"`
}

// commitSize is how many reports the server keeps in one row, if as many come at a time.
const commitSize = 512

// queue writes reports for the rule into the database, as they stand there when a server is
// killed that has acknowledged them: each of the first n machines is about to begin with the
// patch. No server was asked: that none is lost is for the tests to show.
func (f *fleet) queue(ctx context.Context, n int) error {
	err := f.fill(ctx, func(tx *sql.Tx) error {
		insert, err := tx.PrepareContext(ctx, `INSERT INTO reports (body) VALUES (?)`)
		if err != nil {
			return err
		}
		defer insert.Close()
		for first := 0; first < n; first += commitSize {
			body, err := json.Marshal(f.signs(first, min(first+commitSize, n)))
			if err != nil {
				return err
			}
			if _, err := insert.ExecContext(ctx, body); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot queue %d reports: %w", n, err)
	}
	return nil
}

func (f *fleet) signs(from, to int) []sign {
	now := time.Now().UTC()
	signs := make([]sign, 0, to-from)
	for i := from; i < to; i++ {
		id, _ := identity(i)
		signs = append(signs, sign{
			At: now, Machine: id, Account: f.account(i), Tier: f.tier, Cell: f.kernel.Cell(), Enrolled: now.Add(-enrolled),
			Events: []map[string]string{{"kind": string(service.Intent), "version": f.version}},
		})
	}
	return signs
}

// decided waits until the rule has taken everything that was reported.
func (f *fleet) decided(ctx context.Context, p *process, within time.Duration) error {
	db, err := sql.Open("sqlite", "file:"+f.database+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return fmt.Errorf("cannot look for reports: %w", err)
	}
	defer db.Close()
	var failed error
	err = p.until(ctx, "done with all reports", within, func() bool {
		var waiting bool
		failed = db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM reports)`).Scan(&waiting)
		return failed != nil || !waiting
	})
	return errors.Join(err, failed)
}
