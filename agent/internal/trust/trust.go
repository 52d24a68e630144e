// Package trust runs the client workflow of The Update Framework, with go-tuf,
// and keeps the signed files it has verified.
//
// What lies in the cache is believed no more than what comes from the network:
// a file that was damaged is thrown away and fetched again, and nothing that can
// happen to the cache makes the agent stop for good.
package trust

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"livepatch/agent/internal/fetch"
	"livepatch/internal/durable"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// A Source is where signed files come from. [fetch.Client] is one.
type Source interface {
	// Metadata is documented at [fetch.Client.Metadata]. For a file that does
	// not exist the error matches [fetch.ErrAbsent].
	Metadata(ctx context.Context, name string, limit int64, etag string) (fetch.File, error)
}

// ErrOffline means that a file is needed that is not in the cache, while
// working without the service.
var ErrOffline = errors.New("signed file is not in the cache")

// A Keeper keeps the signed files of one repository in a folder. It is used by
// one goroutine at a time, of the process that holds the agent's lock.
type Keeper struct {
	dir      string // of current metadata, in go-tuf's layout
	rootsDir string // every root since the pinned one, as N.root.json
	memo     string // path of a memo
	pinned   []byte
}

// A memo remembers what an unchanged repository looks like to the service.
type memo struct {
	ETag       string       `json:"etag"`      // of timestamp.json
	Timestamp  patch.Digest `json:"timestamp"` // of the file that ETag is for
	Generation int64        `json:"generation"`
	Root       int64        `json:"root"` // version of the newest
}

// CheckRoot returns an error unless b is root metadata that can be trusted to
// begin with: signed by itself.
func CheckRoot(b []byte) error {
	err := guard(func() error {
		_, err := trustedmetadata.New(b)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot use root metadata: %w", translate(err))
	}
	return nil
}

// Open returns a keeper that keeps its files in dir and trusts the root
// metadata in pinned.
func Open(dir string, pinned []byte) (*Keeper, error) {
	if err := CheckRoot(pinned); err != nil {
		return nil, err
	}
	k := &Keeper{
		dir:      filepath.Join(dir, "metadata"),
		rootsDir: filepath.Join(dir, "roots"),
		memo:     filepath.Join(dir, "refresh.json"),
		pinned:   pinned,
	}
	for _, d := range []string{k.dir, k.rootsDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("cannot open cache: %w", err)
		}
		if err := durable.Sweep(d); err != nil {
			return nil, fmt.Errorf("cannot open cache: %w", err)
		}
	}
	return k, durable.Sweep(dir)
}

// Refresh brings the signed files up to date. generation is what the service
// says counts its changes: if that and timestamp.json are what they were, one
// conditional request is all that it costs.
//
// The context also bounds what the View fetches later.
func (k *Keeper) Refresh(ctx context.Context, src Source, generation int64) (*View, error) {
	chain, err := k.prepare()
	if err != nil {
		return nil, err
	}
	current, err := os.ReadFile(k.path(metadata.TIMESTAMP))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read cache: %w", err)
	}
	m := k.readMemo(current)
	got, err := src.Metadata(ctx, metadata.TIMESTAMP+".json", service.MaxTimestamp, m.ETag)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch timestamp: %w", err)
	}
	f := &fetcher{ctx: ctx, src: src, timestamp: got.Data, roots: map[int64][]byte{}}
	if got.NotModified {
		f.timestamp = current
		// A new root changes the generation: asking for one each time would
		// double the requests of the check-ins that bring nothing. Unless the
		// newest root is no longer in the cache.
		f.skipRoots = generation == m.Generation && chain[len(chain)-1].version == m.Root
	}
	v, err := k.run(f, chain)
	if err != nil {
		return nil, err
	}
	// Last: if anything above failed, the next refresh is not an unchanged one.
	return v, k.writeMemo(memo{got.ETag, sha256.Sum256(f.timestamp), generation, v.RootVersion()})
}

// Cached returns what the cache holds, while the service is away. It fails with
// [patch.ErrExpired] or [ErrOffline] if that is too old or not enough.
func (k *Keeper) Cached(ctx context.Context) (*View, error) {
	chain, err := k.prepare()
	if err != nil {
		return nil, err
	}
	current, err := os.ReadFile(k.path(metadata.TIMESTAMP))
	if err != nil {
		return nil, fmt.Errorf("cannot read cache: %w", ErrOffline)
	}
	return k.run(&fetcher{ctx: ctx, timestamp: current, skipRoots: true}, chain)
}

// run runs the workflow of TUF from the last root of the chain.
func (k *Keeper) run(f *fetcher, chain []root) (*View, error) {
	up, err := updater.New(&config.UpdaterConfig{
		MaxRootRotations:   256,
		MaxDelegations:     8,
		RootMaxLength:      service.MaxRoot,
		TimestampMaxLength: service.MaxTimestamp,
		SnapshotMaxLength:  service.MaxSnapshot,
		TargetsMaxLength:   service.MaxRole,
		Fetcher:            f,
		// The newest verified root: from the pinned one, a service that
		// withholds the roots after it could undo the revocation of a key.
		LocalTrustedRoot:  chain[len(chain)-1].data,
		LocalMetadataDir:  k.dir,
		LocalTargetsDir:   k.dir, // unused: targets are fetched by the caller
		RemoteMetadataURL: baseURL,
		RemoteTargetsURL:  baseURL,
	})
	if err != nil {
		return nil, translate(err)
	}
	err = guard(up.Refresh)
	// Roots that were verified count even if what follows them is not in order.
	if kerr := k.keepRoots(f.roots, up.GetTrustedMetadataSet().Root.Signed.Version); kerr != nil {
		return nil, kerr
	}
	v := &View{keeper: k, updater: up}
	if err != nil {
		return nil, v.explain(err)
	}
	return v, nil
}

func (k *Keeper) path(role string) string { return filepath.Join(k.dir, role+".json") }

// readMemo returns the memo if it is about the timestamp in the cache, else the
// zero memo.
func (k *Keeper) readMemo(timestamp []byte) memo {
	var m memo
	b, err := os.ReadFile(k.memo)
	if err != nil || json.Unmarshal(b, &m) != nil || m.Timestamp != sha256.Sum256(timestamp) {
		return memo{}
	}
	return m
}

func (k *Keeper) writeMemo(m memo) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(k.memo)
	if err == nil && string(old) == string(b) {
		return nil
	}
	return durable.WriteFile(k.memo, b, 0o600)
}

// guard turns a panic of go-tuf into an error: signed files of a wrong shape, a
// null where an object belongs, must not end the agent.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", patch.ErrMalformed, p)
		}
	}()
	return f()
}

// A View is the repository at one moment, all of it verified.
type View struct {
	keeper  *Keeper
	updater *updater.Updater
}

// A Target is what the signed files say of a file.
type Target struct {
	Path   string
	Length int64
	Digest patch.Digest
	Custom []byte // JSON; nil if there is none
}

// Remote returns where the service has the target, below its folder of targets.
func (t Target) Remote() string {
	dir, file := path.Split(t.Path)
	return dir + t.Digest.String() + "." + file
}

// Target looks up a target through the delegations that are responsible for its
// path, fetching what is missing. The error matches [patch.ErrNotFound] if
// there is no such target.
func (v *View) Target(name string) (Target, error) {
	var tf *metadata.TargetFiles
	err := guard(func() (err error) {
		tf, err = v.updater.GetTargetInfo(name)
		return err
	})
	if err != nil {
		if err.Error() == "target "+name+" not found" {
			return Target{}, fmt.Errorf("cannot find %q in the repository: %w", name, patch.ErrNotFound)
		}
		return Target{}, v.explain(err)
	}
	d, err := digestOf(tf)
	if err != nil {
		return Target{}, fmt.Errorf("cannot use target %q: %w", name, err)
	}
	t := Target{Path: name, Length: tf.Length, Digest: d}
	if tf.Custom != nil {
		t.Custom = *tf.Custom
	}
	return t, nil
}

func digestOf(tf *metadata.TargetFiles) (patch.Digest, error) {
	sum, ok := tf.Hashes["sha256"]
	if !ok || len(sum) != len(patch.Digest{}) {
		return patch.Digest{}, fmt.Errorf("no SHA-256 hash: %w", patch.ErrMalformed)
	}
	if tf.Length < 0 || tf.Length > service.MaxModule {
		return patch.Digest{}, fmt.Errorf("length is %d: %w", tf.Length, patch.ErrTooLarge)
	}
	return patch.Digest(sum), nil
}

// RootVersion returns the version of the root that everything was verified
// with.
func (v *View) RootVersion() int64 {
	return v.updater.GetTrustedMetadataSet().Root.Signed.Version
}

// Metadata are the signed files that prove what the rollouts say, byte for byte
// as the service sent them.
type Metadata struct {
	Timestamp, Snapshot, Targets, Rollout []byte
}

// Files are the signed files that prove one target and its rollout.
type Files struct {
	Metadata
	Vendor, Bin []byte
}

// Metadata returns the files that prove what the rollouts say. One of them must
// have been looked up.
func (v *View) Metadata() (Metadata, error) {
	var m Metadata
	err := v.read(map[string]*[]byte{
		metadata.TIMESTAMP: &m.Timestamp, metadata.SNAPSHOT: &m.Snapshot, metadata.TARGETS: &m.Targets, patch.RolloutRole: &m.Rollout,
	})
	return m, err
}

// read gets the files of roles from the cache.
func (v *View) read(files map[string]*[]byte) error {
	for role, data := range files {
		var err error
		if *data, err = os.ReadFile(v.keeper.path(role)); err != nil {
			return fmt.Errorf("cannot read cache: %w", err)
		}
	}
	return nil
}

// Files returns the files that prove the module at name and its rollout. Both
// must have been looked up.
func (v *View) Files(name string) (Files, error) {
	vendor, err := patch.VendorOf(name)
	if err != nil {
		return Files{}, err
	}
	role, ok := v.updater.GetTrustedMetadataSet().Targets[vendor]
	if !ok || role.Signed.Delegations == nil || role.Signed.Delegations.SuccinctRoles == nil {
		return Files{}, fmt.Errorf("cannot tell which file lists %q: vendor role %q has no bins: %w", name, vendor, patch.ErrMalformed)
	}
	bin := role.Signed.Delegations.SuccinctRoles.GetRolesForTarget(name)[0].Name
	m, err := v.Metadata()
	if err != nil {
		return Files{}, err
	}
	files := Files{Metadata: m}
	err = v.read(map[string]*[]byte{vendor: &files.Vendor, bin: &files.Bin})
	return files, err
}

// Prune removes cached roles that this view did not use, such as the bins of a
// kernel that no longer runs. Call it after the last look-up.
func (v *View) Prune() error {
	used := v.updater.GetTrustedMetadataSet().Targets
	entries, err := os.ReadDir(v.keeper.dir)
	if err != nil {
		return fmt.Errorf("cannot prune cache: %w", err)
	}
	for _, e := range entries {
		role, ok := strings.CutSuffix(e.Name(), ".json")
		if _, isUsed := used[role]; !ok || isUsed || role == metadata.ROOT || role == metadata.TIMESTAMP || role == metadata.SNAPSHOT {
			continue
		}
		if err := os.Remove(filepath.Join(v.keeper.dir, e.Name())); err != nil {
			return fmt.Errorf("cannot prune cache: %w", err)
		}
	}
	return nil
}

// explain turns an error of go-tuf into one of package patch. An expired
// timestamp comes first: go-tuf, finding that the snapshot in the cache must not
// be used with it, fetches another and reports only how that went.
func (v *View) explain(err error) error {
	set := v.updater.GetTrustedMetadataSet()
	if errors.Is(err, ErrOffline) && set.Timestamp != nil && set.Timestamp.Signed.IsExpired(set.RefTime) {
		return fmt.Errorf("timestamp expired on %s: %w", set.Timestamp.Signed.Expires.UTC().Format(time.DateTime+" UTC"), patch.ErrExpired)
	}
	return translate(err)
}
