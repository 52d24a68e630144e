package trust

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"livepatch/agent/internal/fetch"
	"livepatch/internal/durable"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// ErrGap means that the service lacks roots before the pinned one, which somebody
// needs who trusts an older one.
var ErrGap = errors.New("service does not have every root")

// earlier returns the roots from one version on that come before the pinned one, from
// the cache or else from the service, and keeps them. A newer version of this program
// brings a newer root to pin; who was not updated with it, or has a memory, still
// trusts an older one, and takes no step but to the next version (section 5.3 of the
// specification of TUF).
func (k *Keeper) earlier(ctx context.Context, src Source, from, pinned int64) ([][]byte, error) {
	kept, err := k.lineage(from, pinned, func(version int64) ([]byte, error) { return os.ReadFile(k.rootPath(version)) })
	if err == nil {
		return kept, nil
	}
	roots, err := k.lineage(from, pinned, func(version int64) ([]byte, error) { return fetchRoot(ctx, src, version) })
	if err != nil {
		return nil, fmt.Errorf("cannot learn how root %d leads to root %d: %w", from-1, pinned, err)
	}
	for i, b := range roots {
		if err := durable.WriteFile(k.rootPath(from+int64(i)), b, 0o600); err != nil {
			return nil, fmt.Errorf("cannot keep root: %w", err)
		}
	}
	return roots, nil
}

// fetchRoot gets one root from the service, which may be nil.
func fetchRoot(ctx context.Context, src Source, version int64) ([]byte, error) {
	name := fmt.Sprintf("%d.%s.json", version, metadata.ROOT)
	if src == nil {
		return nil, fmt.Errorf("%s: %w", name, ErrOffline)
	}
	got, err := src.Metadata(ctx, name, service.MaxRoot, "")
	if errors.Is(err, fetch.ErrAbsent) {
		err = fmt.Errorf("%w: %w", ErrGap, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", name, err)
	}
	return got.Data, nil
}

// lineage gets the roots from one version on that come before the pinned one. Each is
// signed by the one before, but for the first: only who asked for it can judge that.
func (k *Keeper) lineage(from, pinned int64, get func(version int64) ([]byte, error)) ([][]byte, error) {
	var roots [][]byte
	for version := from; version < pinned; version++ {
		b, err := get(version)
		if err != nil {
			return nil, err
		}
		roots = append(roots, b)
	}
	err := guard(func() error { return leads(from, append(roots[:len(roots):len(roots)], k.pinned)) })
	if err != nil {
		return nil, translate(err)
	}
	return roots, nil
}

// leads returns an error unless the roots, the first of which has that version, follow
// from each other.
func leads(from int64, roots [][]byte) error {
	set, err := trustedmetadata.New(roots[0])
	if err != nil {
		return err
	}
	if is := set.Root.Signed.Version; is != from {
		return fmt.Errorf("%w: %d.root.json is version %d", patch.ErrMalformed, from, is)
	}
	for _, b := range roots[1:] {
		if _, err := set.UpdateRoot(b); err != nil {
			return err
		}
	}
	return nil
}

// ForgetEarlier drops the roots before the pinned one, to be fetched anew. It is for
// when somebody has refused them: the first of them may be forged, which nobody can
// tell who does not trust the root before it.
func (k *Keeper) ForgetEarlier() error {
	set, err := trustedmetadata.New(k.pinned)
	if err != nil {
		return translate(err)
	}
	entries, err := os.ReadDir(k.rootsDir)
	if err != nil {
		return fmt.Errorf("cannot read cache: %w", err)
	}
	for _, e := range entries {
		version, ok := rootVersion(e.Name())
		if !ok || version >= set.Root.Signed.Version {
			continue
		}
		if err := os.Remove(filepath.Join(k.rootsDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot clean cache: %w", err)
		}
	}
	return nil
}
