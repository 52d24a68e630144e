// Package measure fetches as a machine does, and counts bytes. Its benchmarks
// print what a service costs:
//
//	go test -run '^$' -bench . ./server/internal/measure
//
// BenchmarkFirstFetch measures a service of its own on 5000 kernels with three
// patches each, or the one that -service and -ca name.
package measure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// A File is a metadata file that was fetched.
type File struct {
	Name  string
	Bytes int64 // of the body on the wire, compressed
}

// A Fetch is what a machine fetches of metadata that has nothing but a root.
type Fetch []File

// Bytes returns the size of all bodies.
func (f Fetch) Bytes() int64 {
	var sum int64
	for _, file := range f {
		sum += file.Bytes
	}
	return sum
}

// A client fetches metadata.
type client struct {
	http    *http.Client
	base    string
	fetched Fetch
}

// FirstFetch fetches from the service at base what leads to the current patch
// of a vendor's kernel: timestamp, snapshot, targets, vendor, rollout, and the
// bins of the kernel's index and of its newest module. It looks for a newer
// root, too, and does not verify anything.
func FirstFetch(ctx context.Context, h *http.Client, base, vendor, release, arch string) (Fetch, error) {
	c := &client{http: h, base: base}
	if err := c.first(ctx, vendor, patch.IndexPath(vendor, release, arch)); err != nil {
		return nil, fmt.Errorf("cannot fetch metadata of kernel %s: %w", release, err)
	}
	return c.fetched, nil
}

func (c *client) first(ctx context.Context, vendor, index string) error {
	if err := c.get(ctx, "2.root.json", nil); err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	timestamp, snapshot := metadata.Timestamp(), metadata.Snapshot()
	if err := c.get(ctx, "timestamp.json", timestamp); err != nil {
		return err
	}
	if err := c.get(ctx, versioned("snapshot", timestamp.Signed.Meta), snapshot); err != nil {
		return err
	}
	role := func(name string) (*metadata.TargetsType, error) {
		m := metadata.Targets()
		err := c.get(ctx, versioned(name, snapshot.Signed.Meta), m)
		return &m.Signed, err
	}
	for _, name := range []string{metadata.TARGETS, patch.RolloutRole} {
		if _, err := role(name); err != nil {
			return err
		}
	}
	v, err := role(vendor)
	if err != nil {
		return err
	}
	if v.Delegations == nil || v.Delegations.SuccinctRoles == nil {
		return fmt.Errorf("role %q has no bins", vendor)
	}
	bin := func(path string) string { return v.Delegations.SuccinctRoles.GetRolesForTarget(path)[0].Name }
	listing, err := role(bin(index))
	if err != nil {
		return err
	}
	module, err := c.newest(ctx, listing, index)
	if err != nil || bin(module) == bin(index) {
		return err
	}
	_, err = role(bin(module))
	return err
}

// newest returns the path of the newest module that an index names.
func (c *client) newest(ctx context.Context, listing *metadata.TargetsType, path string) (string, error) {
	target, ok := listing.Targets[path]
	if !ok {
		return "", fmt.Errorf("there is no %q", path)
	}
	vendor, file, _ := strings.Cut(path, "/")
	body, _, err := c.fetch(ctx, fmt.Sprintf("%s%s/%x.%s", service.PathTargets, vendor, []byte(target.Hashes["sha256"]), file))
	if err != nil {
		return "", err
	}
	ix, err := patch.ParseIndex(body)
	if err != nil || len(ix.Patches) == 0 {
		return "", errors.Join(err, errors.New("index names no patch"))
	}
	return slices.MaxFunc(ix.Patches, func(a, b patch.IndexEntry) int { return int(a.Sequence) - int(b.Sequence) }).Target, nil
}

func versioned(role string, meta map[string]*metadata.MetaFiles) string {
	if f, ok := meta[role+".json"]; ok {
		return fmt.Sprintf("%d.%s.json", f.Version, role)
	}
	return role + ".json" // which the service does not have
}

var errNotFound = errors.New("service does not have it")

// get fetches a metadata file into m, and counts it.
func (c *client) get(ctx context.Context, name string, m any) error {
	body, n, err := c.fetch(ctx, service.PathMetadata+name)
	c.fetched = append(c.fetched, File{name, n})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return json.Unmarshal(body, m)
}

// fetch returns a body, and how many bytes it was on the wire.
func (c *client) fetch(ctx context.Context, path string) (body []byte, wire int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept-Encoding", "gzip") // by hand, or the transport would unpack it unseen
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	counted := &counter{r: io.LimitReader(resp.Body, service.MaxRole)}
	var r io.Reader = counted
	if resp.Header.Get("Content-Encoding") == "gzip" {
		if r, err = gzip.NewReader(counted); err != nil {
			return nil, 0, err
		}
	}
	body, err = io.ReadAll(io.LimitReader(r, service.MaxRole))
	switch {
	case resp.StatusCode == http.StatusNotFound:
		err = errNotFound
	case resp.StatusCode != http.StatusOK:
		err = fmt.Errorf("service answered %s", resp.Status)
	}
	return body, counted.n, err
}

// A counter counts what is read of r.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
