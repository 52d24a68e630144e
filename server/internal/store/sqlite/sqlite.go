// Package sqlite keeps the service's records in one SQLite file.
//
// The file is in WAL mode. What is acknowledged to a caller is on the disk: a
// commit waits for fsync. The one exception is [DB.CheckIn] without events or
// anything that the rule has to know, which survives a crash of the process but, for some seconds, not of the
// machine; it is repeated within the hour.
package sqlite

//go:generate sqlc generate

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite/db"
)

//go:embed migrations/*.sql
var migrations embed.FS

// busyTimeout is how long a writer waits for one of another process.
const busyTimeout = 5 * time.Second

// A DB is an open database. It is safe for concurrent use, also by several
// processes on one machine.
type DB struct {
	read    handle // any number of readers, which never wait for a writer
	durable handle // one writer whose commits are on the disk
	lazy    handle // one writer whose commits reach the disk a little later

	// writer holds a token while this process writes. SQLite allows one writer
	// and lets the others sleep and try again; queueing here is fair and awake.
	writer chan struct{}

	checkIns chan *checkIn // to be committed together
	closing  chan struct{} // closed by Close
	drained  chan struct{} // closed when no check-in is being committed any more
	lead     *os.File      // locked while this process runs the rule
	path     string
}

// A handle is a connection pool with the queries prepared for it.
type handle struct {
	pool    *sql.DB
	queries *db.Queries
}

// Create makes the database at path, or brings an older one up to date.
func Create(ctx context.Context, path string) error {
	// SQLite would make the file readable for everybody whom umask lets.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("cannot create database: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("cannot create database: %w", err)
	}
	pool, err := sql.Open("sqlite", dsn(path, "FULL", false))
	if err != nil {
		return fmt.Errorf("cannot create database %q: %w", path, err)
	}
	if err := errors.Join(migrate(ctx, pool), pool.Close()); err != nil {
		return fmt.Errorf("cannot create database %q: %w", path, wrap(err))
	}
	return nil
}

func migrate(ctx context.Context, pool *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, pool, files)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Open opens the database that [Create] made, and brings it up to date. If
// there is none, the error matches [fs.ErrNotExist].
func Open(ctx context.Context, path string) (*DB, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("cannot open database: %w", err)
	}
	if err := Create(ctx, path); err != nil {
		return nil, err
	}
	d := &DB{
		path: path, writer: make(chan struct{}, 1),
		checkIns: make(chan *checkIn), closing: make(chan struct{}), drained: make(chan struct{}),
	}
	var err error
	for _, h := range []struct {
		handle      *handle
		synchronous string
		readonly    bool
		conns       int
	}{
		{&d.read, "NORMAL", true, max(4, runtime.GOMAXPROCS(0))},
		{&d.durable, "FULL", false, 1},
		{&d.lazy, "NORMAL", false, 1},
	} {
		if *h.handle, err = open(ctx, dsn(path, h.synchronous, h.readonly), h.conns); err != nil {
			close(d.drained) // it never ran
			return nil, errors.Join(fmt.Errorf("cannot open database %q: %w", path, wrap(err)), d.Close())
		}
	}
	go d.ingest()
	return d, nil
}

func open(ctx context.Context, dsn string, conns int) (handle, error) {
	pool, err := sql.Open("sqlite", dsn)
	if err != nil {
		return handle{}, err
	}
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	queries, err := db.Prepare(ctx, pool)
	if err != nil {
		return handle{}, errors.Join(err, pool.Close())
	}
	return handle{pool, queries}, nil
}

// dsn names the database for the driver. A writing transaction takes the write
// lock when it begins: taken later, it could not wait for the lock.
func dsn(path, synchronous string, readonly bool) string {
	v := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
			"journal_mode(WAL)",
			"synchronous(" + synchronous + ")",
			"foreign_keys(1)",
			// A check-in touches a page of machines at random: they fit into memory, and
			// many touches of one are written back once.
			"cache_size(-65536)",
			"wal_autocheckpoint(8192)",
		},
	}
	if readonly {
		v.Set("_txlock", "deferred")
		v.Add("_pragma", "query_only(1)")
	}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: v.Encode()}).String()
}

// Close closes the database. Calls that run are finished first.
func (d *DB) Close() error {
	close(d.closing)
	<-d.drained
	var errs []error
	if d.lead != nil {
		errs = append(errs, d.lead.Close())
	}
	for _, h := range []handle{d.read, d.durable, d.lazy} {
		if h.pool != nil {
			errs = append(errs, h.queries.Close(), h.pool.Close())
		}
	}
	return errors.Join(errs...)
}

// Ping returns an error if the database cannot be read.
func (d *DB) Ping(ctx context.Context) error {
	_, err := d.read.queries.GetService(ctx)
	return wrap(err)
}

// Update runs fn in one transaction, which is on the disk when Update returns
// nil, and undone when fn or Update fails.
func (d *DB) Update(ctx context.Context, fn func(store.Tx) error) error {
	return d.write(ctx, d.durable, func(q *db.Queries) error { return fn(tx{q}) })
}

// View runs fn in one read-only transaction: fn sees one state of the database.
func (d *DB) View(ctx context.Context, fn func(store.Tx) error) error {
	t, err := d.read.pool.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return wrap(err)
	}
	defer t.Rollback() // nothing was written
	return wrap(fn(tx{d.read.queries.WithTx(t)}))
}

// write runs fn in one transaction of h.
func (d *DB) write(ctx context.Context, h handle, fn func(*db.Queries) error) error {
	select {
	case d.writer <- struct{}{}:
		defer func() { <-d.writer }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// A commit that has begun is finished: interrupted, nobody could say
	// whether it happened.
	t, err := h.pool.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return wrap(err)
	}
	if err := fn(h.queries.WithTx(t)); err != nil {
		return wrap(errors.Join(err, t.Rollback()))
	}
	return wrap(t.Commit())
}

// wrap gives errors of the database the sentinels of package store.
func wrap(err error) error {
	var e *sqlite.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return store.ErrNotFound
	case errors.As(err, &e) && unavailable(e.Code()):
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	default:
		return err
	}
}

// unavailable tells whether a result code may go away without a change of the
// program: https://sqlite.org/rescode.html.
func unavailable(code int) bool {
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
		sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM:
		return true
	}
	return false
}

func seconds(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.Unix(), Valid: !t.IsZero()}
}

func fromSeconds(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.Unix(n.Int64, 0).UTC()
}
