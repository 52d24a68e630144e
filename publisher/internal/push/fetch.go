package push

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// maxRoots bounds how many versions of the root are fetched.
const maxRoots = 1024

// NewReader returns a client without a token, which can fetch what everybody
// can.
func NewReader(o Options) (*Client, error) { return newClient(o) }

// Fetch copies the signed metadata that a service, or a mirror of one, serves
// into the folder "metadata" of dir: all roots, and the newest version of each
// other role. Nothing is verified; that is for who reads the copy.
func (c *Client) Fetch(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "metadata"), 0o755); err != nil {
		return err
	}
	if err := c.fetchRoots(ctx, dir); err != nil {
		return err
	}
	b, err := c.fetch(ctx, dir, "timestamp.json")
	if err != nil {
		return err
	}
	timestamp, err := parse[metadata.TimestampType]("timestamp.json", b)
	if err != nil {
		return err
	}
	meta := timestamp.Signed.Meta["snapshot.json"]
	if meta == nil {
		return fmt.Errorf("cannot read timestamp.json: %w: it names no snapshot", patch.ErrMalformed)
	}
	name := fileName(metadata.SNAPSHOT, meta.Version)
	if b, err = c.fetch(ctx, dir, name); err != nil {
		return err
	}
	snapshot, err := parse[metadata.SnapshotType](name, b)
	if err != nil {
		return err
	}
	return c.fetchRoles(ctx, dir, snapshot.Signed.Meta)
}

func (c *Client) fetchRoots(ctx context.Context, dir string) error {
	for v := int64(1); v <= maxRoots; v++ {
		_, err := c.fetch(ctx, dir, fileName(rootRole, v))
		var status *StatusError
		if errors.As(err, &status) && status.Status == http.StatusNotFound && v > 1 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("cannot fetch roots: %w: there are more than %d", patch.ErrTooLarge, maxRoots)
}

func (c *Client) fetchRoles(ctx context.Context, dir string, meta map[string]*metadata.MetaFiles) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for role, file := range meta {
		// The name becomes one of a file: it must not leave the folder.
		if err := patch.CheckWord("a metadata file", role); err != nil {
			return err
		}
		if file == nil {
			return fmt.Errorf("cannot read the snapshot: %w: nothing is said of %s", patch.ErrMalformed, role)
		}
		g.Go(func() error {
			_, err := c.fetch(ctx, dir, strconv.FormatInt(file.Version, 10)+"."+role)
			return err
		})
	}
	return g.Wait()
}

// fetch gets one file and keeps it.
func (c *Client) fetch(ctx context.Context, dir, name string) ([]byte, error) {
	b, err := c.do(ctx, http.MethodGet, service.PathMetadata+name, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", name, err)
	}
	return b, os.WriteFile(filepath.Join(dir, "metadata", name), b, 0o644)
}

func parse[T metadata.Roles](name string, b []byte) (m *metadata.Metadata[T], err error) {
	defer func() { // go-tuf 2.4.2 panics on null in the place of an object
		if recover() != nil {
			m, err = nil, fmt.Errorf("cannot read %s: %w", name, patch.ErrMalformed)
		}
	}()
	m, err = new(metadata.Metadata[T]).FromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w: %w", name, patch.ErrMalformed, err)
	}
	return m, nil
}
