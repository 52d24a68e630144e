package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"livepatch/internal/durable"
	"livepatch/internal/service"
	"livepatch/publisher/internal/request"
)

// A change that lacks signatures lies in this folder, as it would lie on the
// stage. It waits there until others have signed it; nothing else can be changed
// meanwhile.
const pendingDir = ".pending"

// keep makes the files of the stage a change that waits. What it returns is an
// error matching [ErrDeferred] if all went well: the change was not made.
func (s *stage) keep() error {
	staged := filepath.Join(s.r.dir, stagedDir)
	if err := s.sync(staged); err != nil {
		return err
	}
	if err := os.Rename(staged, filepath.Join(s.r.dir, pendingDir)); err != nil {
		return err
	}
	if err := syncPath(s.r.dir); err != nil {
		return err
	}
	return ErrDeferred
}

func (r *Repo) isPending() bool {
	_, err := os.Lstat(filepath.Join(r.dir, pendingDir))
	return err == nil
}

// Pending returns the change that waits for signatures, to be sent to those who
// can give them. The error matches [ErrNoChange] if there is none.
func (r *Repo) Pending() (request.Request, error) {
	if !r.isPending() {
		return request.Request{}, ErrNoChange
	}
	dir := filepath.Join(r.dir, pendingDir, "metadata")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return request.Request{}, err
	}
	change := make(request.Files)
	var roles []string
	for _, e := range entries {
		if leftover(e.Name()) {
			continue
		}
		b, err := readCapped(filepath.Join(dir, e.Name()), service.MaxRole)
		if err != nil {
			return request.Request{}, err
		}
		m := metadataName.FindStringSubmatch(e.Name())
		if m == nil {
			return request.Request{}, fmt.Errorf("%w: %s/metadata/%s", ErrCorrupt, pendingDir, e.Name())
		}
		change[e.Name()] = b
		roles = append(roles, m[2])
	}
	inForce, err := r.inForce(roles)
	return request.Request{Change: change, InForce: inForce}, err
}

// Complete adds what others have signed to the change that waits, and makes the
// change if nothing is missing any more. Otherwise the signatures are kept and
// the error matches both [ErrDeferred] and [sign.ErrMissing]. An answer that is
// not for this change is refused as a whole.
func (r *Repo) Complete(ctx context.Context, keys Keyring, answers ...request.Answer) error {
	pending, err := r.Pending()
	if err != nil {
		return err
	}
	review, err := request.Open(pending)
	if err != nil {
		return err
	}
	for _, a := range answers {
		if err := review.Take(a); err != nil {
			return err
		}
	}
	lacks, err := review.Lacks()
	if err != nil {
		return err
	}
	if missing := missing(lacks, keys.Name); missing != nil {
		return errors.Join(r.keepSignatures(review), fmt.Errorf("%w: %w", ErrDeferred, missing))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.complete(review)
}

// keepSignatures writes the signatures that came in. Each file is whole by
// itself, whenever the power goes.
func (r *Repo) keepSignatures(review *request.Review) error {
	files, err := review.Change()
	if err != nil {
		return err
	}
	for name, b := range files {
		if err := durable.WriteFile(filepath.Join(r.dir, pendingDir, "metadata", name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// complete makes the change that waits, with the signatures of a review. A power
// cut before the moment of commitment leaves it waiting; one after it leaves a
// copy that the next Open throws away.
func (r *Repo) complete(review *request.Review) error {
	err := r.commitPending(review)
	if err != nil {
		return errors.Join(err, os.RemoveAll(filepath.Join(r.dir, stagedDir)))
	}
	r.forget()
	if r.versions, err = r.listVersions(); err != nil {
		return err
	}
	return r.Discard()
}

// leftover tells whether a file was being written when the power went.
func leftover(name string) bool { return strings.HasPrefix(name, ".") }

func (r *Repo) commitPending(review *request.Review) error {
	files, err := review.Change()
	if err != nil {
		return err
	}
	s, err := r.newStage()
	if err != nil {
		return err
	}
	from := filepath.Join(r.dir, pendingDir)
	err = filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || leftover(d.Name()) {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(rel, "metadata"+string(filepath.Separator)) {
			return s.put(rel, files[filepath.Base(rel)])
		}
		b, err := readCapped(name, service.MaxModule)
		if err != nil {
			return err
		}
		return s.put(rel, b)
	})
	if err != nil {
		return err
	}
	return s.commit()
}

// Discard gives up the change that waits. Signatures that somebody has made
// for it remain good: what must not be published any more has to be followed by
// another version.
func (r *Repo) Discard() error {
	if !r.isPending() {
		return ErrNoChange
	}
	// Half of a change must not be taken for one: under the name of the stage
	// it is thrown away even if the power goes.
	staged := filepath.Join(r.dir, stagedDir)
	if err := os.Rename(filepath.Join(r.dir, pendingDir), staged); err != nil {
		return err
	}
	return os.RemoveAll(staged)
}

// dropStale throws away what is left of a change that was made, if the power
// went before it could be.
func (r *Repo) dropStale() error {
	entries, err := os.ReadDir(filepath.Join(r.dir, pendingDir, "metadata"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(r.dir, "metadata", e.Name())); err == nil {
			return r.Discard()
		}
	}
	return nil
}
