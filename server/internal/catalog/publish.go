package catalog

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/store"
)

// ErrUntrusted means that a publication does not verify. The error around it
// says which file and why.
var ErrUntrusted = errors.New("publication does not verify")

// A change is what a verified publication writes. Only verify makes one.
type change struct {
	base     int64 // State.Publication that it was verified against
	files    []store.File
	targets  []store.Target
	kernels  []store.Kernel
	gone     []store.Kernel   // Role and Path of kernels that are no longer listed
	versions map[version]bool // patch versions that the bins list
}

// A version is a patch version of a vendor.
type version struct{ vendor, version string }

// Publish verifies a set of metadata files and makes them current together,
// with the roles that the server signs. Files that the service has already are
// no error, so that a publisher may repeat a request whose answer was lost.
//
// The error matches [patch.ErrInvalid], [ErrUntrusted], [store.ErrConflict] or
// [store.ErrUnavailable]; nothing was changed then.
func (c *Catalog) Publish(ctx context.Context, p service.Publication) (service.Published, error) {
	files, err := parseFiles(p)
	if err != nil {
		return service.Published{}, fmt.Errorf("cannot publish: %w", err)
	}
	change, err := c.verify(ctx, files)
	if err != nil {
		return service.Published{}, fmt.Errorf("cannot publish: %w", err)
	}
	if len(change.files) > 0 {
		if err := c.commit(ctx, change); err != nil {
			return service.Published{}, fmt.Errorf("cannot publish: %w", err)
		}
		c.Published()
	}
	view := c.view.Load()
	return service.Published{
		SnapshotVersion: view.roles[metadata.SNAPSHOT].Version,
		Generation:      view.generation,
	}, nil
}

// An offline is a metadata file as a publisher sent it.
type offline struct {
	role    string
	version int64
	body    []byte
}

func (f offline) digest() patch.Digest { return sha256.Sum256(f.body) }

// parseFiles reads the names of a publication's files: roots in the order of
// their versions, then the other roles, each once.
func parseFiles(p service.Publication) ([]offline, error) {
	files := make([]offline, 0, len(p.Files))
	seen := map[string]bool{}
	for name, body := range p.Files {
		role, version, err := parseName(name)
		switch {
		case err != nil:
			return nil, err
		case online(role):
			return nil, fmt.Errorf("%w: %q is signed by the server", patch.ErrInvalid, name)
		case len(body) > maxSize(role):
			return nil, fmt.Errorf("%w: %q has %d bytes, at most %d are allowed", patch.ErrTooLarge, name, len(body), maxSize(role))
		case seen[role] && role != metadata.ROOT:
			return nil, fmt.Errorf("%w: two versions of %q", patch.ErrInvalid, role)
		}
		seen[role] = true
		files = append(files, offline{role, version, body})
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: no files", patch.ErrInvalid)
	}
	slices.SortFunc(files, func(a, b offline) int {
		switch {
		case a.role == b.role:
			return int(a.version - b.version)
		case a.role == metadata.ROOT || b.role != metadata.ROOT && a.role < b.role:
			return -1
		default:
			return 1
		}
	})
	return files, nil
}

// commit writes a change and signs what follows from it, in one transaction.
func (c *Catalog) commit(ctx context.Context, ch *change) error {
	var decided []store.Decision
	now := c.Now()
	err := c.db.Update(ctx, func(tx store.Tx) error {
		state, err := tx.State(ctx)
		if err != nil {
			return err
		}
		if state.Publication != ch.base {
			return store.ErrConflict
		}
		if err := write(ctx, tx, ch, c.soak, now); err != nil {
			return err
		}
		decided, err = c.sign(ctx, tx, now)
		return err
	})
	if err != nil {
		return err
	}
	c.logDecisions(ctx, decided)
	// It is published; whether the publisher still waits does not matter.
	return c.reload(context.WithoutCancel(ctx))
}

func write(ctx context.Context, tx store.Tx, ch *change, soak time.Duration, now time.Time) error {
	for _, f := range ch.files {
		if err := tx.PutFile(ctx, f); err != nil {
			return err
		}
	}
	for _, t := range ch.targets {
		if err := tx.PublishTarget(ctx, t); errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("%w: target %q (sha256 %v, %d bytes) was not uploaded", ErrUntrusted, t.Path, t.Digest, t.Length)
		} else if err != nil {
			return err
		}
	}
	for _, k := range ch.gone {
		if err := tx.DeleteKernel(ctx, k.Role, k.Path); err != nil {
			return err
		}
	}
	for _, k := range ch.kernels {
		if err := tx.PutKernel(ctx, k); err != nil {
			return err
		}
	}
	for v := range ch.versions {
		if err := tx.AddRollout(ctx, store.Rollout{
			Vendor: v.vendor, Version: v.version, State: patch.Running, Salt: rand.Text(),
			Soak: soak, Created: now, Updated: now,
		}); err != nil {
			return err
		}
	}
	return tx.CountPublication(ctx)
}
