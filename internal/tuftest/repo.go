// Package tuftest builds TUF repositories for tests: good ones, and ones that
// are wrong in exactly one place.
//
// It shares no code with what it tests: it signs with the standard library and
// has its own canonical JSON. Production code must not import it.
package tuftest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Key signs metadata.
type Key struct {
	ID      string
	private ed25519.PrivateKey
}

// A memory holds what was computed before: tests sign the same files again and
// again. It forgets everything once it holds maxMemory things, because a fuzz
// test that runs for hours signs without end.
type memory[K comparable, V any] struct {
	mu sync.Mutex
	m  map[K]V
}

const maxMemory = 1 << 15

func (c *memory[K, V]) get(key K, compute func() V) V {
	c.mu.Lock()
	v, ok := c.m[key]
	c.mu.Unlock()
	if ok {
		return v
	}
	v = compute()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxMemory {
		c.m = map[K]V{}
	}
	c.m[key] = v
	return v
}

type signing struct {
	key     string
	payload [sha256.Size]byte
}

var (
	keys       memory[string, Key]
	signatures memory[signing, string]
)

// NewKey returns the key that belongs to a name: the same at every call.
func NewKey(name string) Key {
	return keys.get(name, func() Key {
		seed := sha256.Sum256([]byte(name))
		k := Key{private: ed25519.NewKeyFromSeed(seed[:])}
		id := sha256.Sum256(Canonical(k.Object()))
		k.ID = hex.EncodeToString(id[:])
		return k
	})
}

// Object returns the public half as it stands in metadata.
func (k Key) Object() Object {
	public := k.private.Public().(ed25519.PublicKey)
	return Object{
		"keytype": "ed25519",
		"scheme":  "ed25519",
		"keyval":  Object{"public": hex.EncodeToString(public)},
	}
}

// Sign returns the signature of payload as it stands in metadata.
func (k Key) Sign(payload []byte) Object {
	sig := signatures.get(signing{k.ID, sha256.Sum256(payload)}, func() string {
		return hex.EncodeToString(ed25519.Sign(k.private, payload))
	})
	return Object{"keyid": k.ID, "sig": sig}
}

// Keys returns the "keys" block of a root or of delegations.
func Keys(keys ...Key) Object {
	o := Object{}
	for _, k := range keys {
		o[k.ID] = k.Object()
	}
	return o
}

// Threshold returns the "keyids" and "threshold" of a role.
func Threshold(n int, keys ...Key) Object {
	ids := []any{}
	for _, k := range keys {
		ids = append(ids, k.ID)
	}
	return Object{"keyids": ids, "threshold": n}
}

// A Role is a metadata file before it is signed.
type Role struct {
	Signed  Object
	Signers []Key
	// Edit, if set, returns what is signed in place of Signed: an [Object], or
	// [Pairs] or a [Literal]. It must not change its argument.
	Edit func(signed Object) any
	// Forge, if set, returns what is written in place of the envelope, after
	// signing. It must not change its argument.
	Forge func(envelope Object) any
	// Rewrite, if set, has the last word on the bytes of the file.
	Rewrite func([]byte) []byte
}

// Bytes returns the signed file.
func (r *Role) Bytes() []byte {
	var signed any = r.Signed
	if r.Edit != nil {
		signed = r.Edit(r.Signed)
	}
	payload := Canonical(signed)
	signatures := []any{}
	for _, k := range r.Signers {
		signatures = append(signatures, k.Sign(payload))
	}
	envelope := Object{"signed": signed, "signatures": signatures}
	var file any = envelope
	if r.Forge != nil {
		file = r.Forge(envelope)
	}
	b := Encode(file)
	if r.Rewrite != nil {
		b = r.Rewrite(b)
	}
	return b
}

// Version returns the version that Signed says.
func (r *Role) Version() int { return r.Signed["version"].(int) }

// Bump raises the version by one.
func (r *Role) Bump() { r.Signed["version"] = r.Version() + 1 }

// Expire sets the expiry.
func (r *Role) Expire(at time.Time) { r.Signed["expires"] = at.UTC().Format("2006-01-02T15:04:05Z") }

// Clone returns a copy that shares the hooks.
func (r *Role) Clone() *Role {
	c := *r
	c.Signed = Copy(r.Signed).(Object)
	c.Signers = slices.Clone(r.Signers)
	return &c
}

// A Repo is a repository as our publisher and server make it: root and targets
// need two of three offline keys; targets delegates "rollout/*" to the server's
// rollout key and "<vendor>/*" to a vendor role, whose hash bins its builder and
// approver sign.
type Repo struct {
	Roots   []*Role          // Roots[0] is version 1
	Roles   map[string]*Role // all but root
	Content map[string][]byte
	// HashBins makes the snapshot say length and hash of every role below it.
	HashBins bool

	now time.Time
}

// New returns a repository with one vendor, "debian", and no target, in which
// everything is version 1 and fresh at the time now.
func New(now time.Time) *Repo { return withBits(now, 2) }

// withBits is New for a vendor with 2^bits bins.
func withBits(now time.Time, bits int) *Repo {
	r := &Repo{Roles: map[string]*Role{}, Content: map[string][]byte{}, now: now}
	root, tgt := trio("root"), trio("targets")
	snapshot, timestamp, rollout := NewKey("snapshot"), NewKey("timestamp"), NewKey("rollout")

	all := slices.Concat(root, tgt, []Key{snapshot, timestamp})
	r.Roots = []*Role{r.role("root", 365, root[:2], Object{
		"consistent_snapshot": true,
		"keys":                Keys(all...),
		"roles": Object{
			"root":      Threshold(2, root...),
			"targets":   Threshold(2, tgt...),
			"snapshot":  Threshold(1, snapshot),
			"timestamp": Threshold(1, timestamp),
		},
	})}
	r.Roles["timestamp"] = r.role("timestamp", 1, []Key{timestamp}, Object{"meta": Object{}})
	r.Roles["snapshot"] = r.role("snapshot", 2, []Key{snapshot}, Object{"meta": Object{}})
	r.Roles["targets"] = r.role("targets", 180, tgt[:2], Object{"targets": Object{}})
	r.Roles["rollout"] = r.role("targets", 1, []Key{rollout}, Object{"targets": Object{}})
	r.Delegate("targets", Delegation("rollout", Threshold(1, rollout), true, "rollout/*"), rollout)
	r.AddVendor("debian", bits)
	return r
}

func trio(name string) []Key {
	return []Key{NewKey(name + " 1"), NewKey(name + " 2"), NewKey(name + " 3")}
}

func (r *Repo) role(kind string, days int, signers []Key, fields Object) *Role {
	role := &Role{Signed: fields, Signers: slices.Clone(signers)}
	maps.Copy(fields, Object{"_type": kind, "spec_version": "1.0.31", "version": 1})
	role.Expire(r.now.AddDate(0, 0, days))
	return role
}

// AddRole adds a role below targets that lists nothing and lives for 30 days.
func (r *Repo) AddRole(name string, signers ...Key) *Role {
	r.Roles[name] = r.role("targets", 30, signers, Object{"targets": Object{}})
	return r.Roles[name]
}

// AddVendor adds a vendor with 2^bits empty bins. Its keys are "<vendor> builder"
// and "<vendor> approver".
func (r *Repo) AddVendor(vendor string, bits int) {
	keys := []Key{NewKey(vendor + " builder"), NewKey(vendor + " approver")}
	succinct := Threshold(2, keys...)
	maps.Copy(succinct, Object{"bit_length": bits, "name_prefix": vendor})
	r.AddRole(vendor, keys...).Signed["delegations"] = Object{"keys": Keys(keys...), "succinct_roles": succinct}
	for n := range 1 << bits {
		r.AddRole(binName(vendor, bits, uint32(n)), keys...)
	}
	r.Delegate("targets", Delegation(vendor, Threshold(2, keys...), true, vendor+"/*"), keys...)
}

// Delegation returns one entry of the "roles" of delegations.
func Delegation(name string, threshold Object, terminating bool, paths ...string) Object {
	list := []any{}
	for _, p := range paths {
		list = append(list, p)
	}
	d := Object{"name": name, "terminating": terminating, "paths": list}
	maps.Copy(d, threshold)
	return d
}

// Delegate appends an entry to the delegations of a role, and its keys.
func (r *Repo) Delegate(from string, entry Object, keys ...Key) {
	signed := r.Roles[from].Signed
	if signed["delegations"] == nil {
		signed["delegations"] = Object{"keys": Object{}, "roles": []any{}}
	}
	del := signed["delegations"].(Object)
	maps.Copy(del["keys"].(Object), Keys(keys...))
	del["roles"] = append(del["roles"].([]any), entry)
}

// Bin returns the name of the bin that is responsible for a target of a vendor.
func (r *Repo) Bin(target string) string {
	vendor, _, _ := strings.Cut(target, "/")
	bits := Path{"delegations", "succinct_roles", "bit_length"}.Get(r.Roles[vendor].Signed).(int)
	sum := sha256.Sum256([]byte(target))
	return binName(vendor, bits, binary.BigEndian.Uint32(sum[:4])>>(32-bits))
}

func binName(vendor string, bits int, n uint32) string {
	return fmt.Sprintf("%s-%0*x", vendor, (bits+3)/4, n)
}

// AddTarget puts a file into the repository, into the bin of its vendor or into
// the rollout role as its path says. custom may be nil.
func (r *Repo) AddTarget(target string, content []byte, custom any) {
	role := "rollout"
	if !strings.HasPrefix(target, "rollout/") {
		role = r.Bin(target)
	}
	r.AddTargetTo(role, target, content, custom)
}

// AddTargetTo puts a file into the repository under a role of the test's choice.
func (r *Repo) AddTargetTo(role, target string, content []byte, custom any) {
	r.Roles[role].Signed["targets"].(Object)[target] = TargetEntry(content, custom)
	r.Content[target] = content
}

// TargetEntry returns what metadata says of a target. custom may be nil.
func TargetEntry(content []byte, custom any) Object {
	sum := sha256.Sum256(content)
	entry := Object{"length": len(content), "hashes": Object{"sha256": hex.EncodeToString(sum[:])}}
	if custom != nil {
		entry["custom"] = Generic(custom)
	}
	return entry
}

// Root returns the newest root.
func (r *Repo) Root() *Role { return r.Roots[len(r.Roots)-1] }

// AddRoot appends the next version of root, which says what the one before says
// and is signed by the same keys, and returns it to be changed.
func (r *Repo) AddRoot() *Role {
	next := r.Root().Clone()
	next.Bump()
	r.Roots = append(r.Roots, next)
	return next
}

// Grant makes a root say that a threshold of keys signs a role.
func Grant(root *Role, role string, n int, keys ...Key) {
	maps.Copy(root.Signed["keys"].(Object), Keys(keys...))
	root.Signed["roles"].(Object)[role] = Threshold(n, keys...)
}

// Publish raises the versions of the given roles and of snapshot and timestamp.
func (r *Repo) Publish(roles ...string) {
	for _, name := range append(roles, "snapshot", "timestamp") {
		r.Roles[name].Bump()
	}
}

// Clone returns a copy whose roles can be changed without changing r's.
func (r *Repo) Clone() *Repo {
	c := *r
	c.Roots = nil
	for _, root := range r.Roots {
		c.Roots = append(c.Roots, root.Clone())
	}
	c.Roles = map[string]*Role{}
	for name, role := range r.Roles {
		c.Roles[name] = role.Clone()
	}
	c.Content = maps.Clone(r.Content)
	return &c
}

// Files are the files of a repository.
type Files struct {
	Roots   [][]byte          // Roots[0] is version 1
	Roles   map[string][]byte // by name of the role, all but root
	Content map[string][]byte // by path of the target
}

// Files signs everything. Snapshot and timestamp list what there is, before
// their own edits.
func (r *Repo) Files() Files {
	f := Files{Roles: map[string][]byte{}, Content: maps.Clone(r.Content)}
	for _, root := range r.Roots {
		f.Roots = append(f.Roots, root.Bytes())
	}
	listed := Object{}
	for name, role := range r.Roles {
		if name == "snapshot" || name == "timestamp" {
			continue
		}
		f.Roles[name] = role.Bytes()
		listed[name+".json"] = Listing(role.Version(), nil)
		if r.HashBins {
			listed[name+".json"] = Listing(role.Version(), f.Roles[name])
		}
	}
	r.Roles["snapshot"].Signed["meta"] = listed
	f.Roles["snapshot"] = r.Roles["snapshot"].Bytes()
	r.Roles["timestamp"].Signed["meta"] = Object{
		"snapshot.json": Listing(r.Roles["snapshot"].Version(), f.Roles["snapshot"]),
	}
	f.Roles["timestamp"] = r.Roles["timestamp"].Bytes()
	return f
}

// Listing returns what snapshot and timestamp say of a file: its version, and
// its length and hash unless b is nil.
func Listing(version int, b []byte) Object {
	o := Object{"version": version}
	if b != nil {
		o["length"] = len(b)
		o["hashes"] = TargetEntry(b, nil)["hashes"]
	}
	return o
}

// Load returns the file of a role below root. The version is ignored, as a
// server that cheats would. A role that is not there gives [fs.ErrNotExist].
func (f Files) Load(role string, _ int64) ([]byte, error) {
	b, ok := f.Roles[role]
	if !ok {
		return nil, fmt.Errorf("cannot open %s.json: %w", role, fs.ErrNotExist)
	}
	return b, nil
}

// Get returns the file of a name as it is asked for over HTTP below metadata/:
// "timestamp.json", "2.root.json", "7.debian-0.json".
func (f Files) Get(name string) ([]byte, error) {
	name = strings.TrimSuffix(name, ".json")
	var version int
	if number, role, ok := strings.Cut(name, "."); ok {
		if _, err := fmt.Sscanf(number, "%d", &version); err != nil {
			return nil, fmt.Errorf("cannot open %q: %w", name, fs.ErrNotExist)
		}
		name = role
	}
	if name != "root" {
		return f.Load(name, int64(version))
	}
	if version < 1 || version > len(f.Roots) {
		return nil, fmt.Errorf("cannot open root %d: %w", version, fs.ErrNotExist)
	}
	return f.Roots[version-1], nil
}
