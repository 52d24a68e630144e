package repo

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A change is first written to one folder and flushed to the disk. Renaming
// this folder is the moment at which the change happens: what is found under
// the first name after a crash is thrown away, what is found under the second
// is moved to its place.
const (
	stagedDir = ".staged"
	commitDir = ".commit"
)

// A stage collects the files of one change. Its files have names relative to
// the repository.
type stage struct {
	r     *Repo
	files []string
	dirs  map[string]bool // made already
}

func (r *Repo) newStage() (*stage, error) {
	s := &stage{r: r, dirs: make(map[string]bool)}
	return s, os.Mkdir(filepath.Join(r.dir, stagedDir), 0o755)
}

// put adds a file to the change.
func (s *stage) put(name string, b []byte) error {
	s.r.crash("write " + name)
	full := filepath.Join(s.r.dir, stagedDir, name)
	if dir := filepath.Dir(full); !s.dirs[dir] {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		s.dirs[dir] = true
	}
	s.files = append(s.files, name)
	return os.WriteFile(full, b, 0o644)
}

// commit makes the change happen. If it returns an error before that moment,
// nothing has changed.
func (s *stage) commit() error {
	staged := filepath.Join(s.r.dir, stagedDir)
	if err := s.sync(staged); err != nil {
		return err
	}
	s.r.crash("commit")
	if err := os.Rename(staged, filepath.Join(s.r.dir, commitDir)); err != nil {
		return err
	}
	if err := syncPath(s.r.dir); err != nil {
		return err
	}
	return s.r.rollForward()
}

// manyFiles is when flushing the whole file system is cheaper than flushing
// each file: a vendor's first bins, a batch.
const manyFiles = 64

func (s *stage) sync(staged string) error {
	if len(s.files) > manyFiles {
		return syncFileSystem(staged)
	}
	var g errgroup.Group
	for _, name := range s.files {
		g.Go(func() error { return syncPath(filepath.Join(staged, name)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for dir := range s.dirs {
		if err := syncPath(dir); err != nil {
			return err
		}
	}
	return syncPath(staged)
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncFileSystem(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// recoverStage throws away what was not committed and finishes what was.
func (r *Repo) recoverStage() error {
	if err := os.RemoveAll(filepath.Join(r.dir, stagedDir)); err != nil {
		return err
	}
	return r.rollForward()
}

// rollForward moves the files of a committed change to their places. It can be
// interrupted and repeated.
func (r *Repo) rollForward() error {
	commit := filepath.Join(r.dir, commitDir)
	if _, err := os.Stat(commit); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var dirs []string
	err := filepath.WalkDir(commit, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(commit, name)
		if err != nil {
			return err
		}
		to := filepath.Join(r.dir, rel)
		if d.IsDir() {
			dirs = append(dirs, to)
			return os.MkdirAll(to, 0o755)
		}
		r.crash("place " + rel)
		return os.Rename(name, to)
	})
	if err != nil {
		return err
	}
	// The names must be on the disk in their new place before the folder that
	// tells of them is gone.
	for _, dir := range dirs {
		if err := syncPath(dir); err != nil {
			return err
		}
	}
	r.crash("forget")
	return os.RemoveAll(commit)
}
