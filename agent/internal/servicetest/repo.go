// Package servicetest is a service for tests: a signed repository and the API
// for machines, over TLS, which can be made to misbehave.
package servicetest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
)

// Vendor is the vendor whose patches a [Repo] has.
const Vendor = "debian"

const (
	binBits = 2
	binFmt  = Vendor + "-%x"
)

// A Repo is a TUF repository in memory, with all of its keys.
type Repo struct {
	mu sync.Mutex

	keys     map[string][]ed25519.PrivateKey // by role
	versions map[string]int64                // by role, of the last publication
	roots    [][]byte

	patches    map[string]module        // by target path
	rollouts   map[string]patch.Rollout // by target path
	index      map[string]patch.Index   // by target path
	files      map[string][]byte        // metadata by name
	targets    map[string][]byte        // by remote path
	generation int64
	lifetime   time.Duration // of what is signed next
	now        func() time.Time
}

type module struct {
	patch.Module
	content []byte
}

// NewRepo returns a repository with nothing in it, published once.
func NewRepo() *Repo {
	r := &Repo{
		keys:     map[string][]ed25519.PrivateKey{},
		versions: map[string]int64{},
		patches:  map[string]module{},
		rollouts: map[string]patch.Rollout{},
		index:    map[string]patch.Index{},
		files:    map[string][]byte{},
		targets:  map[string][]byte{},
		lifetime: 24 * time.Hour,
		now:      time.Now,
	}
	for role, n := range map[string]int{"root": 3, "targets": 3, Vendor: 2, "snapshot": 1, "timestamp": 1, patch.RolloutRole: 1} {
		r.keys[role] = newKeys(n)
	}
	r.RotateRoot("")
	r.Publish()
	return r
}

func newKeys(n int) []ed25519.PrivateKey {
	keys := make([]ed25519.PrivateKey, n)
	for i := range keys {
		_, key, err := ed25519.GenerateKey(nil)
		must(err)
		keys[i] = key
	}
	return keys
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Root returns the first root: the one to pin.
func (r *Repo) Root() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.roots[0]
}

// Generation counts the publications.
func (r *Repo) Generation() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generation
}

// RotateRoot publishes a new root, in which the role has other keys. The role ""
// changes nothing.
func (r *Repo) RotateRoot(role string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	signers := r.keys["root"]
	if role != "" {
		r.keys[role] = newKeys(len(r.keys[role]))
	}
	m := metadata.Root(r.now().Add(365 * 24 * time.Hour))
	m.Signed.ConsistentSnapshot = true
	m.Signed.Version = int64(len(r.roots) + 1)
	for name, threshold := range map[string]int{"root": 2, "targets": 2, "snapshot": 1, "timestamp": 1} {
		m.Signed.Roles[name] = &metadata.Role{Threshold: threshold}
		for _, k := range r.keys[name] {
			must(m.Signed.AddKey(publicKey(k), name))
		}
	}
	if role == "root" {
		signers = append(slices.Clone(signers), r.keys["root"]...)
	}
	b := sign(m, signers...)
	r.roots = append(r.roots, b)
	r.files[fmt.Sprintf("%d.root.json", m.Signed.Version)] = b
	r.generation++
}

// SetLifetime sets how long what is signed from now on is valid.
func (r *Repo) SetLifetime(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lifetime = d
}

// Add puts a patch into the repository, at the end of the index of its kernel,
// with a rollout. Publish makes it visible.
func (r *Repo) Add(m patch.Module, content []byte, rollout patch.Rollout, change ...func(*patch.IndexEntry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	target := patch.ModulePath(Vendor, m)
	r.patches[target] = module{m, content}
	r.rollouts[patch.RolloutPath(Vendor, m.Version)] = rollout
	e := patch.IndexEntry{
		Target: target, Name: m.Name, Version: m.Version, Sequence: m.Sequence, BuildID: m.BuildID, Notice: m.Notice,
		Added: r.now().Add(-time.Hour).UTC().Format(time.RFC3339),
	}
	for _, f := range m.Fixes {
		e.Fixes = append(e.Fixes, patch.Fix{Name: f, Priority: patch.High, Summary: "A hole in " + f + "."})
	}
	for _, c := range change {
		c(&e)
	}
	p := patch.IndexPath(Vendor, m.Release, m.Arch)
	ix, ok := r.index[p]
	if !ok {
		ix = patch.Index{Arch: m.Arch, Release: m.Release, Flavour: m.Flavour,
			From: "2020-01-01", Until: r.now().AddDate(1, 0, 0).UTC().Format(time.DateOnly)}
	}
	ix.Patches = append(ix.Patches, e)
	r.index[p] = ix
}

// SetIndex replaces the index of a kernel.
func (r *Repo) SetIndex(ix patch.Index) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index[patch.IndexPath(Vendor, ix.Release, ix.Arch)] = ix
}

// SetRollout replaces the rollout of a version.
func (r *Repo) SetRollout(version string, rollout patch.Rollout) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rollouts[patch.RolloutPath(Vendor, version)] = rollout
}

// Everyone is a rollout that lets all machines in, with a soak of an hour.
func Everyone() patch.Rollout {
	return patch.Rollout{State: patch.Running, SoakSeconds: 3600,
		Tiers: map[string]patch.Stage{"stable": {Share: patch.Everyone}}}
}

// Publish signs everything anew, each role in its next version.
func (r *Repo) Publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	expires := r.now().Add(r.lifetime)
	bins := make([]*metadata.Metadata[metadata.TargetsType], 1<<binBits)
	for i := range bins {
		bins[i] = metadata.Targets(expires)
	}
	succinct := &metadata.SuccinctRoles{BitLength: binBits, NamePrefix: Vendor, Threshold: 2}
	add := func(target string, content []byte, custom any) {
		name := succinct.GetRolesForTarget(target)[0].Name
		for i, b := range bins {
			if fmt.Sprintf(binFmt, i) == name {
				b.Signed.Targets[target] = r.target(target, content, custom)
			}
		}
	}
	for target, m := range r.patches {
		add(target, m.content, m.Module)
	}
	for target, ix := range r.index {
		b, err := json.Marshal(ix)
		must(err)
		add(target, b, nil)
	}
	roles := []string{}
	for i, b := range bins {
		roles = append(roles, fmt.Sprintf(binFmt, i))
		r.put(roles[i], b, r.keys[Vendor])
	}

	vendor := metadata.Targets(expires)
	vendor.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, SuccinctRoles: succinct}
	succinct.KeyIDs = register(vendor.Signed.Delegations.Keys, r.keys[Vendor])
	r.put(Vendor, vendor, r.keys[Vendor])

	rollout := metadata.Targets(expires)
	for target, ro := range r.rollouts {
		rollout.Signed.Targets[target] = r.target(target, nil, ro)
	}
	r.put(patch.RolloutRole, rollout, r.keys[patch.RolloutRole])

	top := metadata.Targets(expires)
	keys := map[string]*metadata.Key{}
	top.Signed.Delegations = &metadata.Delegations{Keys: keys, Roles: []metadata.DelegatedRole{
		{Name: patch.RolloutRole, KeyIDs: register(keys, r.keys[patch.RolloutRole]), Threshold: 1, Terminating: true, Paths: []string{"rollout/*"}},
		{Name: Vendor, KeyIDs: register(keys, r.keys[Vendor]), Threshold: 2, Terminating: true, Paths: []string{Vendor + "/*"}},
	}}
	r.put("targets", top, r.keys["targets"])
	r.online(expires)
	r.generation++
}

// Resign makes a new timestamp and nothing else, as a server does before the old
// one expires. It is not a publication.
func (r *Repo) Resign() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timestamp(r.now().Add(r.lifetime))
}

// online signs snapshot and timestamp for what the other roles are now.
func (r *Repo) online(expires time.Time) {
	snapshot := metadata.Snapshot(expires)
	for role, v := range r.versions {
		if role != "snapshot" && role != "timestamp" {
			snapshot.Signed.Meta[role+".json"] = metadata.MetaFile(v)
		}
	}
	r.put("snapshot", snapshot, r.keys["snapshot"])
	r.timestamp(expires)
}

func (r *Repo) timestamp(expires time.Time) {
	b := r.files[fmt.Sprintf("%d.snapshot.json", r.versions["snapshot"])]
	sum := sha256.Sum256(b)
	timestamp := metadata.Timestamp(expires)
	timestamp.Signed.Meta["snapshot.json"] = &metadata.MetaFiles{
		Version: r.versions["snapshot"], Length: int64(len(b)), Hashes: metadata.Hashes{"sha256": sum[:]}}
	r.versions["timestamp"]++
	timestamp.Signed.Version = r.versions["timestamp"]
	r.files["timestamp.json"] = sign(timestamp, r.keys["timestamp"]...)
}

// put signs a role in its next version.
func (r *Repo) put(role string, m any, keys []ed25519.PrivateKey) {
	r.versions[role]++
	var b []byte
	switch m := m.(type) {
	case *metadata.Metadata[metadata.TargetsType]:
		m.Signed.Version = r.versions[role]
		b = sign(m, keys...)
	case *metadata.Metadata[metadata.SnapshotType]:
		m.Signed.Version = r.versions[role]
		b = sign(m, keys...)
	}
	r.files[fmt.Sprintf("%d.%s.json", r.versions[role], role)] = b
}

// target describes a target and makes it available.
func (r *Repo) target(name string, content []byte, custom any) *metadata.TargetFiles {
	sum := sha256.Sum256(content)
	tf := &metadata.TargetFiles{Length: int64(len(content)), Hashes: metadata.Hashes{"sha256": sum[:]}}
	if custom != nil {
		b, err := json.Marshal(custom)
		must(err)
		raw := json.RawMessage(b)
		tf.Custom = &raw
	}
	dir, file := path.Split(name)
	r.targets[dir+hex.EncodeToString(sum[:])+"."+file] = content
	return tf
}

// Metadata returns a metadata file, or nil.
func (r *Repo) Metadata(name string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files[name]
}

// Current returns the name of the newest file of a role: "3.targets.json".
func (r *Repo) Current(role string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if role == "timestamp" {
		return "timestamp.json"
	}
	return fmt.Sprintf("%d.%s.json", r.versions[role], role)
}

// SetMetadata replaces a file, nil removes it: for what no honest publisher
// would publish.
func (r *Repo) SetMetadata(name string, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b == nil {
		delete(r.files, name)
		return
	}
	r.files[name] = b
}

// Target returns the content of a target by its remote path, or nil.
func (r *Repo) Target(remote string) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.targets[remote]
	return b, ok
}

// State returns a copy of what is served, to go back to later.
func (r *Repo) State() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.files)
}

// Restore serves an earlier state again.
func (r *Repo) Restore(files map[string][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = maps.Clone(files)
}

// Edit signs a role again, unversioned, after change: with the first n of its
// keys, and with the first of them twice if twice is set.
func (r *Repo) Edit(name, role string, n int, twice bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, err := metadata.Targets().FromBytes(r.files[name])
	must(err)
	m.ClearSignatures()
	keys := r.keys[role][:n]
	for _, k := range keys {
		addSignature(m, k)
	}
	if twice {
		m.Signatures = append(m.Signatures, m.Signatures[0])
	}
	b, err := m.ToBytes(false)
	must(err)
	r.files[name] = b
}

func publicKey(k ed25519.PrivateKey) *metadata.Key {
	key, err := metadata.KeyFromPublicKey(k.Public())
	must(err)
	return key
}

func register(keys map[string]*metadata.Key, private []ed25519.PrivateKey) []string {
	var ids []string
	for _, k := range private {
		key := publicKey(k)
		id, err := key.ID()
		must(err)
		keys[id] = key
		ids = append(ids, id)
	}
	return ids
}

func sign[T metadata.Roles](m *metadata.Metadata[T], keys ...ed25519.PrivateKey) []byte {
	for _, k := range keys {
		addSignature(m, k)
	}
	b, err := m.ToBytes(false)
	must(err)
	return b
}

func addSignature[T metadata.Roles](m *metadata.Metadata[T], k ed25519.PrivateKey) {
	s, err := signature.LoadSigner(k, crypto.Hash(0))
	must(err)
	_, err = m.Sign(s)
	must(err)
}
