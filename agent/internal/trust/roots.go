package trust

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"livepatch/internal/durable"
)

// A root is root metadata that was reached from the pinned one.
type root struct {
	version int64
	data    []byte
}

// Roots returns the roots with versions above the given one, in order: what
// somebody who trusts that version needs to trust the newest. Of those before the
// pinned root, the ones that are not in the cache come from src, which may be nil.
func (k *Keeper) Roots(ctx context.Context, src Source, above int64) ([][]byte, error) {
	chain, err := k.chain()
	if err != nil {
		return nil, err
	}
	var roots [][]byte
	if pinned := chain[0].version; above+1 < pinned {
		if roots, err = k.earlier(ctx, src, max(above, 0)+1, pinned); err != nil {
			return nil, err
		}
	}
	for _, r := range chain {
		if r.version > above {
			roots = append(roots, r.data)
		}
	}
	return roots, nil
}

// chain returns the pinned root and those after it as far as the cache has them
// and each is signed by the one before and by itself. What does not verify was
// damaged on the disk; it is removed with all that follows it.
func (k *Keeper) chain() ([]root, error) {
	set, err := trustedmetadata.New(k.pinned)
	if err != nil {
		return nil, translate(err)
	}
	chain := []root{{set.Root.Signed.Version, k.pinned}}
	for {
		next := chain[len(chain)-1].version + 1
		data, err := os.ReadFile(k.rootPath(next))
		if errors.Is(err, fs.ErrNotExist) {
			return chain, k.removeRootsFrom(next)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read cache: %w", err)
		}
		err = guard(func() error {
			_, err := set.UpdateRoot(data)
			return err
		})
		if err != nil {
			return chain, k.removeRootsFrom(next)
		}
		chain = append(chain, root{next, data})
	}
}

func (k *Keeper) rootPath(version int64) string {
	return filepath.Join(k.rootsDir, strconv.FormatInt(version, 10)+".root.json")
}

// removeRootsFrom removes the roots from a version on.
func (k *Keeper) removeRootsFrom(version int64) error {
	entries, err := os.ReadDir(k.rootsDir)
	if err != nil {
		return fmt.Errorf("cannot read cache: %w", err)
	}
	for _, e := range entries {
		n, err := strconv.ParseInt(strings.TrimSuffix(e.Name(), ".root.json"), 10, 64)
		if err == nil && n < version {
			continue
		}
		if err := os.Remove(filepath.Join(k.rootsDir, e.Name())); err != nil {
			return fmt.Errorf("cannot clean cache: %w", err)
		}
	}
	return nil
}

// keepRoots stores the fetched roots up to the version that was verified.
func (k *Keeper) keepRoots(fetched map[int64][]byte, verified int64) error {
	versions := make([]int64, 0, len(fetched))
	for v := range fetched {
		if v <= verified {
			versions = append(versions, v)
		}
	}
	slices.Sort(versions)
	for _, v := range versions {
		if err := durable.WriteFile(k.rootPath(v), fetched[v], 0o600); err != nil {
			return fmt.Errorf("cannot keep root: %w", err)
		}
	}
	return nil
}

// prepare makes the cache fit for go-tuf and returns the chain of roots.
//
// go-tuf takes a local file that does not parse, or that its role's keys cannot
// be found for, for the end of all work, and not for a file to fetch again. Such
// files, which a power cut can leave, are removed here. A file that is merely
// signed by others, older or expired stays: go-tuf replaces it, and until then
// it is the floor under which nothing newer may fall.
func (k *Keeper) prepare() ([]root, error) {
	chain, err := k.chain()
	if err != nil {
		return nil, err
	}
	newest, err := metadata.Root().FromBytes(chain[len(chain)-1].data)
	if err != nil {
		return nil, translate(err)
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read cache: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(k.dir, e.Name())
		if usable(newest, e.Name(), name) {
			continue
		}
		if err := os.RemoveAll(name); err != nil {
			return nil, fmt.Errorf("cannot clean cache: %w", err)
		}
	}
	return chain, nil
}

// usable tells whether go-tuf can digest a cached file.
func usable(r *metadata.Metadata[metadata.RootType], file, name string) bool {
	b, err := os.ReadFile(name)
	if err != nil {
		return false
	}
	ok := false
	return guard(func() error { ok = parses(r, file, b); return nil }) == nil && ok
}

// parses is usable for a file's content. go-tuf may panic in it.
func parses(r *metadata.Metadata[metadata.RootType], file string, b []byte) bool {
	switch role := strings.TrimSuffix(file, ".json"); role {
	case file: // a leftover of go-tuf, "tuf_tmp123"
		return false
	case metadata.ROOT:
		return true // written by go-tuf and never read
	case metadata.TIMESTAMP:
		m, err := metadata.Timestamp().FromBytes(b)
		if err != nil || m.Signed.Meta["snapshot.json"] == nil {
			return false
		}
		return digestible(r.VerifyDelegate(role, m))
	case metadata.SNAPSHOT:
		m, err := metadata.Snapshot().FromBytes(b)
		if err != nil {
			return false
		}
		for _, info := range m.Signed.Meta {
			if info == nil {
				return false
			}
		}
		return digestible(r.VerifyDelegate(role, m))
	default:
		_, err := metadata.Targets().FromBytes(b)
		return err == nil
	}
}

// digestible tells whether go-tuf goes on after err.
func digestible(err error) bool {
	return err == nil || errors.Is(err, &metadata.ErrUnsignedMetadata{})
}
