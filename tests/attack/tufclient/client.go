package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
)

// maxRoots bounds how many roots one refresh takes, and is what internal/tuf takes
// in one update. The refresh goes on with the last of them (TUF specification,
// section 5.3.3).
const maxRoots = 64

// A client makes one update.
type client struct {
	dir                string // of what is trusted
	metadata           fetcher
	targetDir, targets string // a folder and a URL
	set                *tuf.Set
}

// newClient begins an update from what is stored.
func newClient(o *options, now time.Time) (*client, error) {
	metadata := fetcher{base: withSlash(o.metadataURL), client: newHTTPClient()}
	c := &client{dir: o.metadataDir, metadata: metadata, targetDir: o.targetDir, targets: withSlash(o.targetURL)}
	stored, err := c.stored()
	if err != nil {
		return nil, err
	}
	c.set, err = tuf.New(stored, now)
	return c, err
}

// stored reads what the update before this one left.
func (c *client) stored() (stored tuf.Stored, err error) {
	if stored.Root, err = readFile(c.path("root"), patch.MaxRoot); err != nil {
		return stored, fmt.Errorf("cannot read the trusted root: %w", err)
	}
	for name, file := range map[string]*[]byte{"timestamp": &stored.Timestamp, "snapshot": &stored.Snapshot} {
		if *file, err = readFile(c.path(name), patch.MaxSnapshot); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return stored, err
		}
	}
	return stored, nil
}

func (c *client) path(role string) string { return filepath.Join(c.dir, role+".json") }

// keep stores the metadata of a role, which is trusted from here on.
func (c *client) keep(role string, b []byte) error {
	return writeFile(c.path(role), b)
}

// refresh updates the roles at the top (sections 5.3 to 5.6). What it verified
// before it fails is kept.
func (c *client) refresh(ctx context.Context) error {
	if err := c.updateRoot(ctx); err != nil {
		return err
	}
	if err := c.updateTimestamp(ctx); err != nil {
		return err
	}
	if err := c.updateSnapshot(ctx); err != nil {
		return err
	}
	// A search that goes no further than targets.json.
	_, err := c.find(ctx, "", func(role string) bool { return role == "targets" })
	if errors.Is(err, patch.ErrNotFound) || errors.Is(err, errFarEnough) {
		return nil
	}
	return err
}

// updateRoot walks to the newest root (section 5.3).
func (c *client) updateRoot(ctx context.Context) error {
	for range maxRoots {
		b, err := c.metadata.get(ctx, fmt.Sprintf("%d.root.json", c.set.RootVersion()+1), patch.MaxRoot)
		if errors.Is(err, errNotThere) {
			break
		}
		if err != nil {
			return err
		}
		if err := c.set.Root(b); err != nil {
			return err
		}
		if err := c.keep("root", b); err != nil {
			return err
		}
	}
	return c.dropUnvouched()
}

// dropUnvouched removes what the root no longer vouches for, because it names
// other keys (section 5.3.11).
func (c *client) dropUnvouched() error {
	var root signedFile
	if err := json.Unmarshal(c.set.Stored().Root, &root); err != nil {
		return err
	}
	for _, name := range []string{"timestamp", "snapshot", "targets"} {
		var file signedFile
		b, err := readFile(c.path(name), patch.MaxRole)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &file); err == nil && root.Signed.Roles[name].mayHaveSigned(file) {
			continue
		}
		if err := os.Remove(c.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// A signedFile is as much of a metadata file, which was verified once, as it
// takes to see whose signatures it has.
type signedFile struct {
	Signed struct {
		Version int64          `json:"version"`
		Roles   map[string]who `json:"roles"`
	} `json:"signed"`
	Signatures []struct {
		KeyID string `json:"keyid"`
	} `json:"signatures"`
}

// A who is whose signatures a role needs.
type who struct {
	KeyIDs    []string `json:"keyids"`
	Threshold int      `json:"threshold"`
}

// mayHaveSigned tells whether enough of the keys have a signature on the file.
// Whether it is a good one is for internal/tuf to say.
func (w who) mayHaveSigned(f signedFile) bool {
	signed := map[string]bool{}
	for _, s := range f.Signatures {
		signed[s.KeyID] = true
	}
	n := 0
	for _, id := range w.KeyIDs {
		if signed[id] {
			n++
		}
	}
	return n >= w.Threshold
}

// updateTimestamp fetches timestamp.json (section 5.4).
func (c *client) updateTimestamp(ctx context.Context) error {
	b, err := c.metadata.get(ctx, "timestamp.json", patch.MaxTimestamp)
	if err != nil {
		return err
	}
	if err := c.set.Timestamp(b); err != nil {
		return err
	}
	return c.keep("timestamp", c.set.Stored().Timestamp)
}

// updateSnapshot takes the stored snapshot if the timestamp lists that one, and
// fetches it otherwise (section 5.5).
func (c *client) updateSnapshot(ctx context.Context) error {
	if c.set.Snapshot(c.set.Stored().Snapshot) == nil {
		return nil
	}
	b, err := c.metadata.get(ctx, c.file("snapshot", c.set.SnapshotVersion()), patch.MaxSnapshot)
	if err != nil {
		return err
	}
	if err := c.set.Snapshot(b); err != nil {
		return err
	}
	return c.keep("snapshot", b)
}

// file returns the name of a metadata file on the server.
func (c *client) file(role string, version int64) string {
	name := url.PathEscape(role) + ".json"
	if c.set.ConsistentSnapshot() {
		return fmt.Sprintf("%d.%s", version, name)
	}
	return name
}

// errFarEnough ends a search where refresh wants it to end.
var errFarEnough = errors.New("the search ends here")

// find looks for a target, in the roles that within allows, and keeps the
// metadata of the roles on the way.
func (c *client) find(ctx context.Context, target string, within func(role string) bool) (*tuf.Target, error) {
	s := &search{client: c, ctx: ctx, within: within, stale: map[string]bool{}}
	for {
		s.last = ""
		found, err := c.set.Find(target, s.load)
		if err := s.settle(target); err != nil {
			return nil, err
		}
		// A stored file that did not verify is not the server's last word.
		if err == nil || !s.local {
			return found, err
		}
		s.stale[s.last] = true
	}
}

// A search loads the metadata of one role after the other.
type search struct {
	client *client
	ctx    context.Context //nolint:containedctx // of one call of find, for a callback that has none
	within func(role string) bool
	stale  map[string]bool // stored files that did not verify

	last  string // role that was loaded last and is not known to be good
	bytes []byte
	local bool // it was not fetched
}

// load implements [tuf.Loader]. That it is called again means that what it
// returned before is good.
func (s *search) load(role string, version int64) ([]byte, error) {
	if err := s.good(); err != nil {
		return nil, err
	}
	if !s.within(role) {
		return nil, errFarEnough
	}
	b, err := s.client.storedRole(role, version)
	s.local = err == nil && !s.stale[role]
	if !s.local {
		b, err = s.client.metadata.get(s.ctx, s.client.file(role, version), patch.MaxRole)
	}
	if err == nil {
		s.last, s.bytes = role, b
	}
	return b, err
}

// good keeps the metadata of the role that was loaded last.
func (s *search) good() error {
	last, local := s.last, s.local
	s.last, s.local = "", false
	if last == "" || local {
		return nil
	}
	return s.client.keep(last, s.bytes)
}

// settle finds out whether the role that was loaded last is good: then a search
// does not ask for it again.
func (s *search) settle(target string) error {
	if s.last == "" {
		return nil
	}
	asked := ""
	_, _ = s.client.set.Find(target, func(role string, _ int64) ([]byte, error) {
		asked = role
		return nil, errFarEnough
	})
	if asked == s.last {
		return nil
	}
	return s.good()
}

// storedRole returns the stored metadata of a role, if it is of that version.
func (c *client) storedRole(role string, version int64) ([]byte, error) {
	b, err := readFile(c.path(role), patch.MaxRole)
	if err != nil {
		return nil, err
	}
	var file signedFile
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, err
	}
	if file.Signed.Version != version {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

// download stores a target, unless it is there already (section 5.7).
func (c *client) download(ctx context.Context, name string) error {
	target, err := c.find(ctx, name, func(string) bool { return true })
	if err != nil {
		return err
	}
	file := url.PathEscape(name)
	if strings.Trim(file, ".") == "" {
		return fmt.Errorf("%w: a file cannot have this name", patch.ErrInvalid)
	}
	file = filepath.Join(c.targetDir, file)
	if b, err := readFile(file, target.Length); err == nil && target.Check(b) == nil {
		return nil
	}
	from := fetcher{base: c.targets, client: c.metadata.client}
	b, err := from.get(ctx, targetPath(target, c.set.ConsistentSnapshot()), target.Length)
	if err != nil {
		return err
	}
	if err := target.Check(b); err != nil {
		return err
	}
	return writeFile(file, b)
}

// targetPath returns where a target lies below the base URL: with its hash in
// front of the last part of its path if snapshots are consistent.
func targetPath(t *tuf.Target, consistent bool) string {
	parts := strings.Split(t.Path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	if last := len(parts) - 1; consistent {
		parts[last] = hex.EncodeToString(t.Digest[:]) + "." + parts[last]
	}
	return strings.Join(parts, "/")
}

// writeFile replaces a file as a whole. It does not wait for the disk: nothing
// that this program stores is worth more than the test that it runs in.
func writeFile(name string, b []byte) error {
	temp := filepath.Join(filepath.Dir(name), ".new")
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, name)
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, limit)
}

// readAll reads at most limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", patch.ErrTooLarge, limit)
	}
	return b, err
}
