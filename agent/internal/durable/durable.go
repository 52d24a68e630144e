// Package durable writes files so that whoever reads them, after a crash or a
// power cut too, finds the old content or the new, never a part of either.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tempPrefix marks files that were being written. Only the holder of the
// agent's lock writes below its data folder, so at start all of them are
// leftovers.
const tempPrefix = ".tmp-"

// A File is being written. It has to be ended by Commit or Abort.
type File struct {
	*os.File
}

// Create begins a file in dir with permissions perm.
func Create(dir string, perm fs.FileMode) (*File, error) {
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(perm); err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return nil, err
	}
	return &File{f}, nil
}

// Commit makes the content durable and gives the file its name, in the folder
// it was created in. If it fails, nothing has changed.
func (f *File) Commit(name string) error {
	// The data before the name: the other order could leave, after a power cut,
	// the name with nothing behind it.
	if err := f.Sync(); err != nil {
		f.Abort()
		return err
	}
	if err := f.Close(); err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	dir := filepath.Dir(f.Name())
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncDir(dir)
}

// Abort throws the file away.
func (f *File) Abort() {
	// Nothing depends on either: a leftover is swept at the next start.
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// WriteFile replaces the content of a file.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(filepath.Dir(path), perm)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if _, err := f.Write(data); err != nil {
		f.Abort()
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := f.Commit(filepath.Base(path)); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// Remove deletes a file so that it stays deleted. A file that does not exist is
// success.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Sweep removes what an interrupted Create left in dir.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // opened for reading
	return d.Sync()
}
