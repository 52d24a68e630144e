package push

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"livepatch/internal/service"
	"livepatch/publisher/internal/sign"
)

const (
	parallel = 8 // uploads at a time
	rootRole = "root"

	// smallTarget is up to how many bytes a target is sent without asking
	// whether the service has it.
	smallTarget = 16 << 10
)

// A Repository is what is pushed. Package repo implements it.
type Repository interface {
	// Roles returns all roles.
	Roles() []string
	// Versions returns the newest version of each role.
	Versions() map[string]int64
	// Metadata returns a version of a role; the error matches fs.ErrNotExist
	// if it is not there.
	Metadata(role string, version int64) ([]byte, error)
	// TargetFiles returns where the targets of a version of a role lie.
	TargetFiles(role string, version int64) ([]string, error)
	// OpenTarget opens one of them.
	OpenTarget(file string) (*os.File, error)
	// OnlineKeyIDs returns the IDs of the keys of the service, by role.
	OnlineKeyIDs() (map[string][]string, error)
}

// A Result tells what was pushed.
type Result struct {
	Roles    int // whose new version was published
	Uploaded int // targets that the service had not
	service.Published
}

// Push makes the service publish the newest version of every role. If the
// service has all of them, nothing is sent and the Result is zero.
func (c *Client) Push(ctx context.Context, r Repository) (Result, error) {
	state, err := c.State(ctx)
	if err != nil {
		return Result{}, err
	}
	if err := c.check(ctx, r, state); err != nil {
		return Result{}, err
	}
	roles, err := newer(r, state)
	if err != nil || len(roles) == 0 {
		return Result{}, err
	}
	targets, err := missing(r, state, roles)
	if err != nil {
		return Result{}, err
	}
	uploaded, err := c.upload(ctx, r, targets)
	if err != nil {
		return Result{}, err
	}
	published, err := c.publish(ctx, r, state, roles)
	return Result{Roles: len(roles), Uploaded: uploaded, Published: published}, err
}

// check returns an error matching [ErrForeign] if the service was set up for
// another repository: it could not sign for this one.
func (c *Client) check(ctx context.Context, r Repository, state service.PublishState) error {
	want, err := r.OnlineKeyIDs()
	if err != nil {
		return err
	}
	for role, ids := range want {
		public, err := hex.DecodeString(state.OnlineKeys[role])
		if err != nil {
			return fmt.Errorf("cannot read the service's key for %s: %w", role, err)
		}
		id, err := sign.KeyID(public)
		if err != nil {
			return fmt.Errorf("cannot read the service's key for %s: %w", role, err)
		}
		if !slices.Contains(ids, id) {
			return fmt.Errorf("%w: its key for %s is not the one that this repository trusts", ErrForeign, role)
		}
	}
	return c.checkRoot(ctx, r, state.RootVersion)
}

// checkRoot compares the service's root with the same version here.
func (c *Client) checkRoot(ctx context.Context, r Repository, version int64) error {
	if version == 0 {
		return nil
	}
	if here := r.Versions()[rootRole]; version > here {
		return fmt.Errorf("%w: version %d of root, here is %d", ErrConflict, version, here)
	}
	ours, err := r.Metadata(rootRole, version)
	if err != nil {
		return err
	}
	theirs, err := c.do(ctx, http.MethodGet, service.PathMetadata+fileName(rootRole, version), nil)
	if err != nil {
		return fmt.Errorf("cannot get root of the service: %w", err)
	}
	if !bytes.Equal(ours, theirs) {
		return fmt.Errorf("%w: its version %d of root is another", ErrForeign, version)
	}
	return nil
}

func fileName(role string, version int64) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}

// has returns the version of a role that the service has.
func has(state service.PublishState, role string) int64 {
	if role == rootRole {
		return state.RootVersion
	}
	return state.Versions[role]
}

// newer returns the roles of which the service has an older version.
func newer(r Repository, state service.PublishState) ([]string, error) {
	var roles []string
	versions := r.Versions()
	for _, role := range r.Roles() {
		switch here, there := versions[role], has(state, role); {
		case there > here:
			return nil, fmt.Errorf("%w: version %d of %s, here is %d", ErrConflict, there, role, here)
		case here > there:
			roles = append(roles, role)
		}
	}
	return roles, nil
}

// missing returns the targets of the new versions that were not yet in the
// versions the service has.
func missing(r Repository, state service.PublishState, roles []string) ([]string, error) {
	versions := r.Versions()
	var files []string
	for _, role := range roles {
		if role == rootRole {
			continue
		}
		now, err := r.TargetFiles(role, versions[role])
		if err != nil {
			return nil, err
		}
		before, err := targetsBefore(r, role, has(state, role))
		if err != nil {
			return nil, err
		}
		for _, file := range now {
			if !slices.Contains(before, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// targetsBefore returns the targets of the version that the service has, none
// if that version is not here any more.
func targetsBefore(r Repository, role string, version int64) ([]string, error) {
	if version == 0 {
		return nil, nil
	}
	files, err := r.TargetFiles(role, version)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return files, err
}

// upload sends the targets that the service has not, and tells how many.
func (c *Client) upload(ctx context.Context, r Repository, files []string) (int, error) {
	var sent atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, file := range files {
		g.Go(func() error {
			did, err := c.uploadOne(ctx, r, file)
			if err != nil {
				return fmt.Errorf("cannot upload %s: %w", file, err)
			}
			if did {
				sent.Add(1)
			}
			return nil
		})
	}
	err := g.Wait()
	return int(sent.Load()), err
}

func (c *Client) uploadOne(ctx context.Context, r Repository, file string) (bool, error) {
	b, err := fileBody(r, file)
	if err != nil {
		return false, err
	}
	if b.length > smallTarget {
		// Not knowing is no reason to stop: the upload is idempotent.
		if _, err := c.do(ctx, http.MethodHead, service.PathTargets+file, nil); err == nil {
			return false, nil
		}
	}
	_, err = c.do(ctx, http.MethodPut, service.PathPublishTargets+file, b)
	return true, err
}

func fileBody(r Repository, file string) (*body, error) {
	f, err := r.OpenTarget(file)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return &body{
		kind: "application/octet-stream", length: st.Size(),
		open: func() (io.ReadCloser, error) { return r.OpenTarget(file) },
	}, nil
}

// publish sends the new metadata: of root every version that the service has
// not, for machines follow the chain; of the others the newest.
func (c *Client) publish(ctx context.Context, r Repository, state service.PublishState, roles []string) (service.Published, error) {
	versions := r.Versions()
	p := service.Publication{Files: make(map[string][]byte)}
	for _, role := range roles {
		first := versions[role]
		if role == rootRole {
			first = state.RootVersion + 1
		}
		for v := first; v <= versions[role]; v++ {
			b, err := r.Metadata(role, v)
			if err != nil {
				return service.Published{}, err
			}
			p.Files[fileName(role, v)] = b
		}
	}
	return c.post(ctx, p)
}

func (c *Client) post(ctx context.Context, p service.Publication) (service.Published, error) {
	var done service.Published
	b, err := jsonBody(p)
	if err != nil {
		return done, err
	}
	answer, err := c.do(ctx, http.MethodPost, service.PathPublishMetadata, b)
	if err != nil {
		return done, fmt.Errorf("cannot publish: %w", err)
	}
	if err := json.Unmarshal(answer, &done); err != nil {
		return done, fmt.Errorf("cannot read the answer of the service: %w", err)
	}
	return done, nil
}
