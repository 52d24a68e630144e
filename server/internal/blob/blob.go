// Package blob keeps files by the SHA-256 of their content, in a folder.
//
// A file is complete and on the disk before its name exists, so that whatever
// has a name can be served; a crash leaves at most a temporary file, which
// [Open] removes.
package blob

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"livepatch/internal/patch"
)

// Conditions that callers branch on.
var (
	// ErrFull means that the disk or the quota is exhausted.
	ErrFull = errors.New("no space left for files")
	// ErrMismatch means that the content is not what its digest promises.
	ErrMismatch = errors.New("content differs from its digest")
)

// A Store is a folder of blobs. It is safe for concurrent use.
type Store struct {
	dir string
	tmp string
	// create makes a new file in a folder: [os.CreateTemp], or a disk that is
	// full in a test.
	create func(dir string) (file, error)
}

// A file is what Put needs of an [os.File].
type file interface {
	io.WriteCloser
	Name() string
	Sync() error
}

func createTemp(dir string) (file, error) { return os.CreateTemp(dir, "put-") }

// Create makes an empty store in dir. An existing one is left as it is.
func Create(dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("cannot create blob folder: %w", err)
		}
	}
	return nil
}

// Open opens the store in dir and removes what an interrupted [Store.Put] left.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, tmp: filepath.Join(dir, "tmp"), create: createTemp}
	left, err := os.ReadDir(s.tmp)
	if err != nil {
		return nil, fmt.Errorf("cannot open blob folder: %w", err)
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(s.tmp, e.Name())); err != nil {
			return nil, fmt.Errorf("cannot open blob folder: %w", err)
		}
	}
	return s, nil
}

// path spreads blobs over 256 folders.
func (s *Store) path(d patch.Digest) string {
	name := d.String()
	return filepath.Join(s.dir, name[:2], name)
}

// Put keeps what r yields, at most limit bytes, under its digest, and returns
// its length. The errors are [patch.ErrTooLarge], [ErrMismatch], [ErrFull], or
// those of r and of the disk; the store is then as before.
func (s *Store) Put(d patch.Digest, r io.Reader, limit int64) (n int64, err error) {
	f, err := s.create(s.tmp)
	if err != nil {
		return 0, wrap(d, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(wrap(d, err), os.Remove(f.Name()))
		}
	}()
	n, err = fill(f, d, r, limit)
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return n, s.name(f.Name(), d)
}

// fill writes r into f, checks it and brings it to the disk.
func fill(f file, d patch.Digest, r io.Reader, limit int64) (int64, error) {
	sum := sha256.New()
	// One byte more than allowed tells "exactly the limit" from "too much".
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, limit+1))
	switch {
	case err != nil:
		return 0, err
	case n > limit:
		return 0, patch.ErrTooLarge
	case patch.Digest(sum.Sum(nil)) != d:
		return 0, ErrMismatch
	}
	return n, f.Sync()
}

// name gives a complete file its name, durably.
func (s *Store) name(tmp string, d patch.Digest) error {
	path := s.path(d)
	dir := filepath.Dir(path)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Open opens a blob for reading. If there is none, the error matches
// [fs.ErrNotExist].
func (s *Store) Open(d patch.Digest) (*os.File, error) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, wrap(d, err)
	}
	return f, nil
}

// Has tells whether there is a blob of that digest and length.
func (s *Store) Has(d patch.Digest, length int64) bool {
	info, err := os.Stat(s.path(d))
	return err == nil && info.Size() == length
}

// Remove deletes a blob. It is no error if there is none.
func (s *Store) Remove(d patch.Digest) error {
	if err := os.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrap(d, err)
	}
	return nil
}

// Older calls fn for each blob that was last put before a time, until fn fails.
func (s *Store) Older(before time.Time, fn func(patch.Digest) error) error {
	return filepath.WalkDir(s.dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d, ok := older(e, before); ok {
			return fn(d)
		}
		return nil
	})
}

// older returns the digest of a blob that was put before a time. What is no
// blob, or is gone since its folder was read, is not older.
func older(e fs.DirEntry, before time.Time) (patch.Digest, bool) {
	d, err := patch.ParseDigest(e.Name())
	if err != nil || e.IsDir() {
		return patch.Digest{}, false
	}
	info, err := e.Info()
	return d, err == nil && info.ModTime().Before(before)
}

// Ping returns an error if the folder cannot be read.
func (s *Store) Ping() error {
	_, err := os.Stat(s.tmp)
	return err
}

func wrap(d patch.Digest, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("cannot keep file %v: %w", d, err)
}
