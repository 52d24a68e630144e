package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// naive measures how many reports a second are kept without batches: a transaction for
// each, on the disk before it is acknowledged, asked for by as many goroutines as there are
// connections to the server. It has no TLS, no HTTP and no rule to run, and one
// connection to the database, for which they queue: with one for each, most of them
// sleep until SQLite's lock is free and lose it again.
func (f *fleet) naive(ctx context.Context, goroutines int, lasts time.Duration) (float64, error) {
	db, err := sql.Open("sqlite", "file:"+f.database+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)")
	if err != nil {
		return 0, fmt.Errorf("cannot measure a transaction a report: %w", err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	k, err := f.newKeeper(ctx, db)
	if err != nil {
		return 0, fmt.Errorf("cannot measure a transaction a report: %w", err)
	}
	begin := time.Now()
	var (
		kept   atomic.Int64
		work   sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	for g := range goroutines {
		work.Go(func() {
			d := rand.New(rand.NewPCG(uint64(g), 1))
			for time.Since(begin) < lasts {
				if err := k.keep(ctx, d.IntN(f.machines), kept.Add(1)); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed = errors.Join(failed, err)
					return
				}
			}
		})
	}
	work.Wait()
	if failed != nil {
		return 0, fmt.Errorf("cannot measure a transaction a report: %w", failed)
	}
	return float64(kept.Load()) / time.Since(begin).Seconds(), nil
}

// A keeper keeps one report at a time.
type keeper struct {
	*fleet
	db            *sql.DB
	touch, insert *sql.Stmt
}

// newKeeper prepares the statements, which end with db.
func (f *fleet) newKeeper(ctx context.Context, db *sql.DB) (*keeper, error) {
	k := &keeper{fleet: f, db: db}
	var err error
	if k.touch, err = db.PrepareContext(ctx, `UPDATE machines SET last_seen = ?, boot_id = ?, patch_version = ? WHERE id = ?`); err != nil {
		return nil, err
	}
	k.insert, err = db.PrepareContext(ctx, `INSERT INTO events
		(machine_id, id, kind, name, version, boot_id, at, received_at, reason, message)
		VALUES (?, ?, 'heartbeat', ?, ?, ?, ?, ?, '', '')`)
	return k, err
}

// keep keeps the n-th report, which is one of the i-th machine.
func (k *keeper) keep(ctx context.Context, i int, n int64) error {
	tx, err := k.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	touch, insert := tx.StmtContext(ctx, k.touch), tx.StmtContext(ctx, k.insert)
	defer touch.Close()
	defer insert.Close()
	id, _ := identity(i)
	now, boot := time.Now().Unix(), k.facts(i).BootID
	if _, err := touch.ExecContext(ctx, now, boot, k.version, id); err != nil {
		return err
	}
	if _, err := insert.ExecContext(ctx, id, fmt.Sprintf("naive-%d", n), k.module, k.version, boot, now, now); err != nil {
		return err
	}
	return tx.Commit()
}
