// Package cache keeps verified files by their hash, so that what was fetched
// once is there when the service is away.
//
// A file gets its name only after its bytes have been hashed and are on the
// disk, and it is hashed again when it is opened: a file that was damaged since
// is removed and fetched anew.
package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"livepatch/internal/durable"
	"livepatch/internal/patch"
)

// ErrMissing means that the cache does not have the file.
var ErrMissing = errors.New("file is not in the cache")

// A Store is a folder of files named by their hash. It is used by one process,
// which holds the agent's lock.
type Store struct {
	dir     string
	maxSize int64
	create  func(dir string) (file, error)
}

// A file is what Put writes to: a [durable.File], or one that fails, in tests.
type file interface {
	io.Writer
	Commit(name string) error
	Abort()
}

// Open returns the store in dir, which is created if it does not exist. Collect
// keeps it below maxSize bytes.
func Open(dir string, maxSize int64) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open cache: %w", err)
	}
	if err := durable.Sweep(dir); err != nil {
		return nil, fmt.Errorf("cannot open cache: %w", err)
	}
	return &Store{dir: dir, maxSize: maxSize, create: func(dir string) (file, error) {
		return durable.Create(dir, 0o600)
	}}, nil
}

// Put copies src into the store. It fails with [patch.ErrTampered] unless src
// has exactly length bytes that hash to d; then, and after any other failure,
// the store is as before.
func (s *Store) Put(d patch.Digest, length int64, src io.Reader) error {
	f, err := s.create(s.dir)
	if err != nil {
		return fmt.Errorf("cannot keep file in the cache: %w", err)
	}
	if err := copyVerified(f, d, length, src); err != nil {
		f.Abort()
		return err
	}
	if err := f.Commit(d.String()); err != nil {
		return fmt.Errorf("cannot keep file in the cache: %w", err)
	}
	return nil
}

// copyVerified copies src to dst as Put promises.
func copyVerified(dst io.Writer, d patch.Digest, length int64, src io.Reader) error {
	h := sha256.New()
	w := &failingWrites{w: dst}
	// One byte more than was signed is enough to know that it is too long.
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(src, length+1))
	switch {
	case w.err != nil:
		return fmt.Errorf("cannot keep file in the cache: %w", w.err)
	case err != nil:
		return err
	case n > length:
		return fmt.Errorf("file is longer than the %d bytes that were signed: %w", length, patch.ErrTampered)
	case n < length:
		return fmt.Errorf("file ends after %d of %d bytes: %w", n, length, patch.ErrTampered)
	case patch.Digest(h.Sum(nil)) != d:
		return fmt.Errorf("hash of file is %x, not %v: %w", h.Sum(nil), d, patch.ErrTampered)
	}
	return nil
}

// failingWrites remembers that writing failed, so that a full disk can be told
// from a broken connection.
type failingWrites struct {
	w   io.Writer
	err error
}

func (f *failingWrites) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	f.err = err
	return n, err
}

// Open returns the file that hashes to d, read to its beginning, or an error
// matching [ErrMissing]. The caller closes it.
func (s *Store) Open(d patch.Digest) (*os.File, error) {
	path := filepath.Join(s.dir, d.String())
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot open %v: %w", d, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read cache: %w", err)
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	if err == nil && patch.Digest(h.Sum(nil)) == d {
		_, err = f.Seek(0, io.SeekStart)
		if err == nil {
			// For Collect: used files go last.
			now := time.Now()
			_ = os.Chtimes(path, now, now)
			return f, nil
		}
	}
	_ = f.Close() // opened for reading
	if rerr := durable.Remove(path); rerr != nil {
		return nil, fmt.Errorf("cannot remove damaged file from the cache: %w", rerr)
	}
	return nil, fmt.Errorf("cannot use damaged file %v: %w", d, ErrMissing)
}

// Drop removes a file. That it is not there is success.
func (s *Store) Drop(d patch.Digest) error {
	return durable.Remove(filepath.Join(s.dir, d.String()))
}

// Collect removes the files used longest ago until what is left fits. Files
// that keep lists stay.
func (s *Store) Collect(keep ...patch.Digest) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("cannot collect cache: %w", err)
	}
	var files []fs.FileInfo
	var size int64
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		size += fi.Size()
		files = append(files, fi)
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, fi := range files {
		if size <= s.maxSize {
			return nil
		}
		if slices.ContainsFunc(keep, func(d patch.Digest) bool { return d.String() == fi.Name() }) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, fi.Name())); err != nil {
			return fmt.Errorf("cannot collect cache: %w", err)
		}
		size -= fi.Size()
	}
	return nil
}
