package catalog

import (
	"context"
	"log/slog"
	"maps"
	"time"
)

// Database is what a test may fake.
type Database = database

// Due tells whether something is to be signed at a time.
func (c *Catalog) Due(now time.Time) bool { return c.due(now) }

// CleanAt cleans as if it were a time.
func (c *Catalog) CleanAt(ctx context.Context, now time.Time) error { return c.clean(ctx, now) }

// Age makes the online roles look as if they had been signed d earlier.
func (c *Catalog) Age(d time.Duration) {
	v := *c.view.Load()
	v.roles = maps.Clone(v.roles)
	for name, r := range v.roles {
		r.Expires = r.Expires.Add(-d)
		v.roles[name] = r
	}
	c.view.Store(&v)
}

// With returns a catalog with c's view on another database.
func (c *Catalog) With(db Database) *Catalog {
	other := &Catalog{log: slog.New(slog.DiscardHandler), db: db, blobs: c.blobs, signer: c.signer, Now: c.Now, Published: c.Published}
	v := *c.view.Load()
	other.view.Store(&v)
	return other
}

// On returns a catalog with c's view and keys that logs nowhere and writes
// through wrap.
func (c *Catalog) On(wrap func(Database) Database) *Catalog { return c.With(wrap(c.db)) }

// Late returns what a reader does that was slow to load the view of now.
func (c *Catalog) Late() func() {
	v := c.view.Load()
	return func() { c.replace(v) }
}

// ParseName is what a file name of a request goes through.
var ParseName = parseName

// CompareReleases orders kernel releases.
var CompareReleases = compareReleases
