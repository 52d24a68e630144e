// Package repo keeps a TUF repository in a folder on the operator's disk: what
// is signed offline (root, targets, vendors, their bins) and the targets.
//
//	repo.json                          lifetimes of roles
//	metadata/3.debian-3ff.json         version 3 of role debian-3ff; old versions stay
//	targets/debian/<sha256>.<file>     modules and kernel indexes
//
// A change is made as a whole or not at all, see stage.go. Whoever changes or
// reads a repository holds its lock. What is on the disk is verified before
// it is signed anew: who can write to the folder but has no keys must not get
// a signature by waiting for the next one.
package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/request"
)

// Conditions that callers branch on.
var (
	ErrNone     = errors.New("no repository")
	ErrExists   = errors.New("repository exists already")
	ErrLocked   = errors.New("repository is in use by another process")
	ErrCorrupt  = errors.New("repository is damaged or was changed by something else")
	ErrVendor   = errors.New("no such vendor")
	ErrNotFound = errors.New("not in the repository")
	ErrTaken    = errors.New("published already, with other content")
	ErrSequence = errors.New("sequence number does not grow")
	ErrPending  = errors.New("a change waits for signatures")
	ErrDeferred = errors.New("change is kept until others have signed it")
	ErrForeign  = errors.New("repository is somebody else's")
	ErrNoChange = errors.New("no change waits for signatures")
)

// A Keyring finds the keys that a role needs.
type Keyring = request.Keyring

// A Repo is an open repository. Every method sees one moment, the one that
// Open got, as now. It is used by one goroutine.
type Repo struct {
	dir    string
	now    time.Time
	config config
	lock   *os.File

	versions map[string]int64 // newest version of each role
	loaded   map[string]*authority.Targets
	root     *authority.Root

	metadataOnly bool // targets are not here, see OpenForeign

	// Defer makes a change that lacks signatures wait for them, see Pending,
	// instead of failing. The error of the change matches [ErrDeferred] then.
	Defer bool

	// crash is called before each step of a change that a power cut could
	// come before. Tests panic in it.
	crash func(step string)
}

// config is the content of repo.json.
type config struct {
	Format       int       `json:"format"`
	LifetimeDays lifetimes `json:"lifetime_days"`
}

// lifetimes are in days.
type lifetimes struct {
	Root    int `json:"root"`
	Targets int `json:"targets"`
	Vendor  int `json:"vendor"`
	Bin     int `json:"bin"`
}

const (
	format     = 1
	configFile = "repo.json"
	lockFile   = ".lock"
)

func defaultConfig() config {
	return config{Format: format, LifetimeDays: lifetimes{Root: 365, Targets: 180, Vendor: 90, Bin: 30}}
}

// Open opens the repository in a folder and finishes or undoes a change that
// was interrupted. The caller must Close it.
func Open(dir string, now time.Time) (*Repo, error) {
	r, err := open(dir, now)
	if err != nil {
		return nil, fmt.Errorf("cannot open repository %q: %w", dir, err)
	}
	return r, nil
}

func open(dir string, now time.Time) (*Repo, error) {
	r, err := lock(dir, now)
	if err != nil {
		return nil, err
	}
	err = r.read()
	if err == nil {
		err = r.dropStale()
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// lock takes the lock of a repository, whether there is one in dir or not yet,
// and recovers it.
func lock(dir string, now time.Time) (*Repo, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(ErrLocked, f.Close())
	}
	r := &Repo{dir: dir, now: now.UTC().Truncate(time.Second), lock: f, crash: func(string) {}}
	if err := r.recoverStage(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot recover: %w", err), r.Close())
	}
	return r, nil
}

// Close gives the repository free for others.
func (r *Repo) Close() error {
	if r.lock == nil {
		return nil // it is not ours
	}
	return r.lock.Close()
}

// read reads the configuration and which files there are.
func (r *Repo) read() error {
	b, err := os.ReadFile(filepath.Join(r.dir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNone
	}
	if err != nil {
		return err
	}
	if r.config, err = parseConfig(b); err != nil {
		return fmt.Errorf("cannot read %s: %w", configFile, err)
	}
	r.forget()
	r.versions, err = r.listVersions()
	return err
}

func parseConfig(b []byte) (config, error) {
	var c config
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return config{}, err
	}
	if c.Format != format {
		return config{}, fmt.Errorf("format is %d, want %d", c.Format, format)
	}
	l := c.LifetimeDays
	for name, days := range map[string]int{"root": l.Root, "targets": l.Targets, "vendor": l.Vendor, "bin": l.Bin} {
		if days < 1 || days > 3650 {
			return config{}, fmt.Errorf("lifetime_days.%s is %d, want 1 to 3650", name, days)
		}
	}
	return c, nil
}

// forget drops what was loaded, after it was changed in vain.
func (r *Repo) forget() {
	r.root = nil
	r.loaded = make(map[string]*authority.Targets)
}

var metadataName = regexp.MustCompile(`^([1-9][0-9]{0,17})\.([a-z][a-z0-9-]*)\.json$`)

func (r *Repo) listVersions() (map[string]int64, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, "metadata"))
	if err != nil {
		return nil, err
	}
	versions := make(map[string]int64)
	for _, e := range entries {
		m := metadataName.FindStringSubmatch(e.Name())
		if m == nil || isOnline(m[2]) {
			continue
		}
		v, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return nil, err
		}
		versions[m[2]] = max(versions[m[2]], v)
	}
	return versions, nil
}

// Versions returns the newest version of each role.
func (r *Repo) Versions() map[string]int64 {
	all := make(map[string]int64, len(r.versions))
	for role, v := range r.versions {
		all[role] = v
	}
	return all
}

// FileName returns how a version of a role is called: "3.debian-3ff.json".
func FileName(role string, version int64) string {
	return fmt.Sprintf("%d.%s.json", version, role)
}

// Metadata returns one version of a role, as it is on the disk. The error
// matches [fs.ErrNotExist] if it is not there.
func (r *Repo) Metadata(role string, version int64) ([]byte, error) {
	return readCapped(filepath.Join(r.dir, "metadata", FileName(role, version)), service.MaxRole)
}

// readCapped reads a file of at most limit bytes.
func readCapped(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("cannot read %s: %w", name, patch.ErrTooLarge)
	}
	return b, nil
}

// Root returns the newest root, verified by itself: a repository that got
// another root has one that its keys are not in.
func (r *Repo) Root() (*authority.Root, error) {
	if r.root != nil {
		return r.root, nil
	}
	b, err := r.Metadata(metadata.ROOT, r.versions[metadata.ROOT])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m, err := parseRoot(b)
	if err != nil {
		return nil, fmt.Errorf("%w: root: %w", ErrCorrupt, err)
	}
	if err := m.VerifyDelegate(metadata.ROOT, m); err != nil {
		return nil, fmt.Errorf("%w: root: %w", ErrCorrupt, err)
	}
	r.root = m
	return m, nil
}

// load returns the newest version of targets, of a vendor or of a bin, verified
// by the role above it.
func (r *Repo) load(role string) (*authority.Targets, error) {
	if m, ok := r.loaded[role]; ok {
		return m, nil
	}
	b, err := r.Metadata(role, r.versions[role])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m, err := parseTargets(b)
	if err != nil {
		return nil, fmt.Errorf("%w: role %s: %w", ErrCorrupt, role, err)
	}
	if m.Signed.Version != r.versions[role] {
		return nil, fmt.Errorf("%w: role %s: version is %d in the file and %d in its name", ErrCorrupt, role, m.Signed.Version, r.versions[role])
	}
	if err := r.verifyDelegate(role, m); err != nil {
		return nil, fmt.Errorf("%w: role %s: %w", ErrCorrupt, role, err)
	}
	if err := r.verifyPlace(role, m); err != nil {
		return nil, fmt.Errorf("%w: role %s: %w", ErrCorrupt, role, err)
	}
	r.loaded[role] = m
	return m, nil
}

// verifyPlace checks that a bin holds only what belongs into it. Metadata does
// not name its role and a vendor's bins share their keys, so that one bin under
// the name of another has a good signature.
func (r *Repo) verifyPlace(role string, m *authority.Targets) error {
	vendor, _, ok := strings.Cut(role, "-")
	if !ok {
		return nil
	}
	for target := range m.Signed.Targets {
		bin, err := r.binOf(vendor, target)
		if err != nil {
			return err
		}
		if bin != role {
			return fmt.Errorf("it holds %s, which belongs to %s", target, bin)
		}
	}
	return nil
}

func (r *Repo) verifyDelegate(role string, m *authority.Targets) error {
	parent := authority.Parent(role)
	if parent == metadata.ROOT {
		root, err := r.Root()
		if err != nil {
			return err
		}
		return root.VerifyDelegate(role, m)
	}
	above, err := r.load(parent)
	if err != nil {
		return err
	}
	return above.VerifyDelegate(role, m)
}

// lifetime returns how long a role is valid after it was signed.
func (r *Repo) lifetime(role string) time.Duration {
	if life := onlineLives[role]; life != 0 {
		return life
	}
	l := r.config.LifetimeDays
	days := l.Vendor
	switch {
	case role == metadata.ROOT:
		days = l.Root
	case role == metadata.TARGETS:
		days = l.Targets
	case strings.Contains(role, "-"):
		days = l.Bin
	}
	return time.Duration(days) * 24 * time.Hour
}

// Expires returns when a role runs out.
func (r *Repo) Expires(role string) (time.Time, error) {
	m, err := r.load(role)
	if err != nil {
		return time.Time{}, err
	}
	return m.Signed.Expires, nil
}

// Vendors returns the names of the vendors, in the order of their delegations.
func (r *Repo) Vendors() ([]string, error) {
	targets, err := r.load(metadata.TARGETS)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range targets.Signed.Delegations.Roles {
		if d.Name != patch.RolloutRole {
			names = append(names, d.Name)
		}
	}
	return names, nil
}

// bins returns how a vendor's targets are distributed.
func (r *Repo) bins(vendor string) (*metadata.SuccinctRoles, error) {
	// A vendor that is being added has no version yet.
	if r.loaded[vendor] == nil && (r.versions[vendor] == 0 || authority.Parent(vendor) != metadata.TARGETS) {
		return nil, fmt.Errorf("%w: %q", ErrVendor, vendor)
	}
	m, err := r.load(vendor)
	if err != nil {
		return nil, err
	}
	d := m.Signed.Delegations
	if d == nil || d.SuccinctRoles == nil {
		return nil, fmt.Errorf("%w: role %s delegates to no bins", ErrCorrupt, vendor)
	}
	// Somebody else's repository must not make us list 2^32 names.
	if n := d.SuccinctRoles.BitLength; n < 1 || n > MaxBits {
		return nil, fmt.Errorf("%w: role %s delegates to 2^%d bins, want at most 2^%d", ErrCorrupt, vendor, n, MaxBits)
	}
	return d.SuccinctRoles, nil
}

// binOf returns the role that is responsible for a target of the vendor.
func (r *Repo) binOf(vendor, target string) (string, error) {
	b, err := r.bins(vendor)
	if err != nil {
		return "", err
	}
	return b.GetRolesForTarget(target)[0].Name, nil
}

// TargetFile returns where the content of a target lies below the folder of
// targets: "debian/<sha256>.<file>".
func TargetFile(target string, t *metadata.TargetFiles) (string, error) {
	sum := t.Hashes["sha256"]
	if len(sum) != len(patch.Digest{}) {
		return "", fmt.Errorf("%w: target %s has no sha256", ErrCorrupt, target)
	}
	if _, err := patch.VendorOf(target); err != nil {
		return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return path.Join(path.Dir(target), sum.String()+"."+path.Base(target)), nil
}

// OpenTarget opens the content of a target, by the name that TargetFile gave.
func (r *Repo) OpenTarget(file string) (*os.File, error) {
	return os.Open(filepath.Join(r.dir, "targets", filepath.FromSlash(file)))
}

// content returns the verified content of a target.
func (r *Repo) content(target string, t *metadata.TargetFiles) ([]byte, error) {
	file, err := TargetFile(target, t)
	if err != nil {
		return nil, err
	}
	b, err := readCapped(filepath.Join(r.dir, "targets", filepath.FromSlash(file)), service.MaxModule)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := t.VerifyLengthHashes(b); err != nil {
		return nil, fmt.Errorf("%w: target %s: %w", ErrCorrupt, target, err)
	}
	return b, nil
}

// Index returns a vendor's index for a kernel, or an error matching
// [ErrNotFound].
func (r *Repo) Index(vendor, release, arch string) (patch.Index, error) {
	target := patch.IndexPath(vendor, release, arch)
	bin, err := r.binOf(vendor, target)
	if err != nil {
		return patch.Index{}, err
	}
	m, err := r.load(bin)
	if err != nil {
		return patch.Index{}, err
	}
	t, ok := m.Signed.Targets[target]
	if !ok {
		return patch.Index{}, fmt.Errorf("kernel %s (%s): %w", release, arch, ErrNotFound)
	}
	b, err := r.content(target, t)
	if err != nil {
		return patch.Index{}, err
	}
	ix, err := patch.ParseIndex(b)
	if err != nil {
		return patch.Index{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return ix, nil
}

// OnlineKeyIDs returns the IDs of the keys that the server must sign with, by
// role.
func (r *Repo) OnlineKeyIDs() (map[string][]string, error) {
	root, err := r.Root()
	if err != nil {
		return nil, err
	}
	rollout, err := r.authority(patch.RolloutRole)
	if err != nil {
		return nil, err
	}
	return map[string][]string{
		metadata.SNAPSHOT:  root.Signed.Roles[metadata.SNAPSHOT].KeyIDs,
		metadata.TIMESTAMP: root.Signed.Roles[metadata.TIMESTAMP].KeyIDs,
		patch.RolloutRole:  rollout.IDs,
	}, nil
}
