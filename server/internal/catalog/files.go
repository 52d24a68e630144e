package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/server/internal/store"
)

// Timestamp returns the current timestamp.json, or [store.ErrNotFound] before
// the first publication.
func (c *Catalog) Timestamp() (store.File, error) {
	v := c.view.Load()
	f, ok := v.files[nameOf(metadata.TIMESTAMP, v.roles[metadata.TIMESTAMP].Version)]
	if !ok {
		return store.File{}, fmt.Errorf("cannot find timestamp.json: nothing is published: %w", store.ErrNotFound)
	}
	return f, nil
}

// Metadata returns the metadata file of that name ("7.debian-3ff.json"). The
// error matches [patch.ErrInvalid] or [store.ErrNotFound].
func (c *Catalog) Metadata(ctx context.Context, name string) (store.File, error) {
	role, version, err := parseName(name)
	if err != nil {
		return store.File{}, err
	}
	if f, ok := c.view.Load().files[name]; ok && role != metadata.TIMESTAMP {
		return f, nil
	}
	if role == metadata.TIMESTAMP {
		return store.File{}, fmt.Errorf("cannot find %q: %w", name, store.ErrNotFound)
	}
	f, err := c.db.File(ctx, role, version)
	if err != nil {
		return store.File{}, fmt.Errorf("cannot find %q: %w", name, err)
	}
	return f, nil
}

// Open opens a published target. The caller closes the file. The error matches
// [store.ErrNotFound] if path was not published with that content.
func (c *Catalog) Open(ctx context.Context, path string, d patch.Digest) (*os.File, store.Target, error) {
	t, err := c.db.Target(ctx, path, d)
	if err == nil && !t.Published {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, store.Target{}, fmt.Errorf("cannot find target %q: %w", path, err)
	}
	f, err := c.blobs.Open(d)
	if err != nil {
		return nil, store.Target{}, fmt.Errorf("cannot find target %q: %w", path, err)
	}
	return f, t, nil
}

// Has tells whether a target was uploaded.
func (c *Catalog) Has(ctx context.Context, path string, d patch.Digest) (bool, error) {
	t, err := c.db.Target(ctx, path, d)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil && c.blobs.Has(d, t.Length), err
}

// Upload keeps the content of a target, at most limit bytes, until a
// publication names it. An upload that none names is forgotten after a day.
func (c *Catalog) Upload(ctx context.Context, path string, d patch.Digest, r io.Reader, limit int64) error {
	if _, err := patch.VendorOf(path); err != nil {
		return err
	}
	n, err := c.blobs.Put(d, r, limit)
	if err == nil {
		err = c.addTarget(ctx, store.Target{Path: path, Digest: d, Length: n, Uploaded: c.Now()})
	}
	if err != nil {
		return fmt.Errorf("cannot upload %q: %w", path, err)
	}
	return nil
}

// addTarget names a blob that was just put.
func (c *Catalog) addTarget(ctx context.Context, t store.Target) error {
	c.uploads.RLock()
	defer c.uploads.RUnlock()
	// An older upload of the same content may have been forgotten meanwhile.
	if !c.blobs.Has(t.Digest, t.Length) {
		return store.ErrUnavailable
	}
	return c.db.AddTarget(ctx, t)
}

// How long things are kept that nothing current names.
const (
	// A client that holds an old timestamp may ask for what it names until the
	// snapshot expires, and a cache may be slow.
	keepFiles   = 7 * 24 * time.Hour
	keepUploads = 24 * time.Hour
	keepEvents  = 400 * 24 * time.Hour
	keepSteps   = 30 * 24 * time.Hour // what decisions were made from is in the verdicts
	cleanEvery  = time.Hour
)

// Clean deletes what nobody needs any more, every hour until ctx is done.
func (c *Catalog) Clean(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(cleanEvery):
		}
		if err := c.clean(ctx, c.Now()); err != nil && ctx.Err() == nil {
			c.log.ErrorContext(ctx, "Cannot delete old files", "err", err)
		}
	}
}

func (c *Catalog) clean(ctx context.Context, now time.Time) error {
	_, errFiles := c.db.ForgetFiles(ctx, now.Add(-keepFiles))
	_, errEvents := c.db.ForgetEvents(ctx, now.Add(-keepEvents))
	_, errSteps := c.db.ForgetSteps(ctx, now.Add(-keepSteps))
	return errors.Join(errFiles, errEvents, errSteps, c.cleanUploads(ctx, now.Add(-keepUploads)))
}

// cleanUploads forgets uploads that no publication has named, and blobs without
// a name, which an upload leaves when it is cut off at the wrong moment.
func (c *Catalog) cleanUploads(ctx context.Context, before time.Time) error {
	c.uploads.Lock()
	defer c.uploads.Unlock()
	if _, err := c.db.ForgetTargets(ctx, before); err != nil {
		return err
	}
	return c.blobs.Older(before, func(d patch.Digest) error {
		named, err := c.db.Named(ctx, d)
		if err != nil || named {
			return err
		}
		return c.blobs.Remove(d)
	})
}

// IsNotFound tells whether err means that there is no such file.
func IsNotFound(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
}
