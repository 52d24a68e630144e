package tuf

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"livepatch/internal/patch"
)

// The top-level roles (TUF specification, section 2.1).
const (
	rootRole      = "root"
	timestampRole = "timestamp"
	snapshotRole  = "snapshot"
	targetsRole   = "targets"
)

var topLevel = []string{rootRole, timestampRole, snapshotRole, targetsRole}

// An envelope is a metadata file whose signatures have not been looked at
// (sections 4.2 and 4.3).
type envelope struct {
	raw        []byte
	signed     object
	payload    []byte            // canonical form of signed
	signatures map[string][]byte // by key id
	version    int64
	expires    time.Time
}

// open reads what every role has.
func open(b []byte, kind string, limit int) (*envelope, *reader, error) {
	if len(b) > limit {
		return nil, nil, fmt.Errorf("%w: %d bytes, at most %d", patch.ErrTooLarge, len(b), limit)
	}
	v, err := parse(b)
	if err != nil {
		return nil, nil, err
	}
	r := &reader{}
	o, _ := v.(object)
	e := &envelope{raw: b, signed: field[object](r, o, "signed"), signatures: map[string][]byte{}}
	e.payload = canonical(nil, e.signed)
	for _, v := range field[[]any](r, o, "signatures") {
		s, _ := v.(object)
		id := field[string](r, s, "keyid")
		if _, dup := e.signatures[id]; dup {
			r.fail("two signatures of key %s", id)
		}
		e.signatures[id] = r.hex(s, "sig")
	}
	if typ := field[string](r, e.signed, "_type"); typ != kind {
		r.fail("is a %q, want a %q", typ, kind)
	}
	if spec := field[string](r, e.signed, "spec_version"); !strings.HasPrefix(spec, "1.") {
		r.fail("specification version is %q, want 1", spec)
	}
	e.version = r.positive(e.signed, "version")
	// Parse would also take a fraction of a second and an hour of one digit.
	const layout = "2006-01-02T15:04:05Z"
	expires := field[string](r, e.signed, "expires")
	if e.expires, err = time.Parse(layout, expires); err != nil || e.expires.Format(layout) != expires {
		r.fail("expiry is %q, want YYYY-MM-DDTHH:MM:SSZ", expires)
	}
	return e, r, r.err
}

// fresh returns an error matching [patch.ErrExpired] if the role is no longer
// valid at now.
func (e *envelope) fresh(name string, now time.Time) error {
	if !now.Before(e.expires) {
		return fmt.Errorf("%w: %s was valid until %s", patch.ErrExpired, name, e.expires.Format(time.RFC3339))
	}
	return nil
}

// A signers says whose signatures a role needs.
type signers struct {
	keys      map[string]ed25519.PublicKey // by key id
	threshold int64
}

// signers reads a ROLE object and picks the keys that it names.
func (r *reader) signers(role object, keys map[string]ed25519.PublicKey) signers {
	s := signers{keys: map[string]ed25519.PublicKey{}, threshold: r.positive(role, "threshold")}
	for _, id := range r.strings(role, "keyids") {
		if s.keys[id] = keys[id]; s.keys[id] == nil {
			r.fail("key %s is missing", id)
		}
	}
	return s
}

// keys reads all keys of o, whether or not a role names them.
func (r *reader) keys(o object) map[string]ed25519.PublicKey {
	all, keys := field[object](r, o, "keys"), map[string]ed25519.PublicKey{}
	for id := range all {
		key := field[object](r, all, id)
		if field[string](r, key, "keytype") != "ed25519" || field[string](r, key, "scheme") != "ed25519" {
			r.fail("key %s is not an ed25519 key", id)
		}
		val := field[object](r, key, "keyval")
		if keys[id] = r.hex(val, "public"); len(keys[id]) != ed25519.PublicKeySize {
			r.fail("key %s has not %d bytes", id, ed25519.PublicKeySize)
		}
	}
	return keys
}

// verify returns nil if a threshold of distinct public keys signed e. Key ids
// do not count: two ids can name one key.
func (s signers) verify(name string, e *envelope) error {
	valid := map[string]bool{}
	for id, key := range s.keys {
		if ed25519.Verify(key, e.payload, e.signatures[id]) {
			valid[string(key)] = true
		}
	}
	if s.threshold < 1 || int64(len(valid)) < s.threshold {
		return fmt.Errorf("%w: %s has %d valid signatures, needs %d", patch.ErrUntrusted, name, len(valid), s.threshold)
	}
	return nil
}

// A root is trusted or about to be (section 4.3).
type root struct {
	*envelope
	consistent bool
	roles      map[string]signers
}

func readRoot(b []byte) (*root, error) {
	e, r, err := open(b, rootRole, patch.MaxRoot)
	if err != nil {
		return nil, err
	}
	next := &root{e, field[bool](r, e.signed, "consistent_snapshot"), map[string]signers{}}
	keys, roles := r.keys(e.signed), field[object](r, e.signed, "roles")
	if len(roles) != len(topLevel) {
		r.fail("root has %d roles, want %d", len(roles), len(topLevel))
	}
	for _, name := range topLevel {
		next.roles[name] = r.signers(field[object](r, roles, name), keys)
	}
	return next, r.err
}

// A listing is what timestamp and snapshot say of other metadata files
// (sections 4.4 and 4.5).
type listing struct {
	*envelope
	meta map[string]meta // by file name, "snapshot.json"
}

// A meta describes one metadata file.
type meta struct {
	version int64
	length  int64         // 0 if it is not said
	digest  *patch.Digest // nil if it is not said
}

func readListing(b []byte, kind string, limit int) (*listing, error) {
	e, r, err := open(b, kind, limit)
	if err != nil {
		return nil, err
	}
	l := &listing{e, map[string]meta{}}
	for name, v := range field[object](r, e.signed, "meta") {
		o, _ := v.(object)
		m := meta{version: r.positive(o, "version")}
		if r.has(o, "length") {
			m.length = r.positive(o, "length")
		}
		if r.has(o, "hashes") {
			digest := r.digest(o)
			m.digest = &digest
		}
		l.meta[name] = m
	}
	return l, r.err
}

// check returns an error matching [patch.ErrTampered] if b is not the file that
// m describes.
func (m meta) check(name string, b []byte) error {
	if m.length != 0 && m.length != int64(len(b)) || m.digest != nil && *m.digest != sha256.Sum256(b) {
		return fmt.Errorf("%w: %s", patch.ErrTampered, name)
	}
	return nil
}

// digest returns the SHA-256 of "hashes", which must hold no other.
func (r *reader) digest(o object) (d patch.Digest) {
	all := field[object](r, o, "hashes")
	b := r.hex(all, "sha256")
	if len(b) != len(d) || len(all) != 1 {
		r.fail(`"hashes" has to be one SHA-256`)
	}
	copy(d[:], b)
	return d
}

// A targets is the metadata of the top-level targets role or of a role below it
// (section 4.6).
type targets struct {
	*envelope
	parent      string
	targets     map[string]*Target // by path
	delegations []delegation
	succinct    *succinct
}

// A delegation makes one role responsible for paths.
type delegation struct {
	signers
	name        string
	paths       []string
	terminating bool
}

// A succinct delegates to 2^bits hash bins (TAP 15).
type succinct struct {
	signers
	bits   int64
	prefix string
}

func readTargets(b []byte) (*targets, error) {
	e, r, err := open(b, targetsRole, patch.MaxRole)
	if err != nil {
		return nil, err
	}
	t := &targets{envelope: e, targets: map[string]*Target{}}
	for path, v := range field[object](r, e.signed, "targets") {
		o, _ := v.(object)
		t.targets[path] = r.target(path, o)
	}
	if r.has(e.signed, "delegations") {
		r.delegations(t, field[object](r, e.signed, "delegations"))
	}
	return t, r.err
}

func (r *reader) delegations(t *targets, del object) {
	keys := r.keys(del)
	if r.has(del, "succinct_roles") {
		o := field[object](r, del, "succinct_roles")
		t.succinct = &succinct{r.signers(o, keys), r.positive(o, "bit_length"), r.role(o, "name_prefix")}
		if t.succinct.bits > 32 {
			r.fail("bit_length is %d, want at most 32", t.succinct.bits)
		}
		if r.has(del, "roles") {
			r.fail("delegations have both roles and succinct_roles")
		}
		return
	}
	seen := slices.Clone(topLevel)
	for _, v := range field[[]any](r, del, "roles") {
		o, _ := v.(object)
		d := delegation{r.signers(o, keys), r.role(o, "name"), r.strings(o, "paths"), field[bool](r, o, "terminating")}
		// Delegation by path_hash_prefixes is read differently by the field's
		// clients, and so are patterns with classes and escapes.
		if r.has(o, "path_hash_prefixes") || strings.ContainsAny(strings.Join(d.paths, ""), `[\`) || slices.Contains(seen, d.name) {
			r.fail("role %q has path_hash_prefixes, a pattern with more than * and ?, or is delegated twice", d.name)
		}
		seen = append(seen, d.name)
		t.delegations = append(t.delegations, d)
	}
	if len(t.delegations) == 0 {
		r.fail("delegations have no roles")
	}
}

// role returns a field that names a role or the beginning of such names.
func (r *reader) role(o object, name string) string {
	s := field[string](r, o, name)
	if patch.CheckWord("a role", s) != nil {
		r.fail("%q cannot be the name of a role", s)
	}
	return s
}

// bin returns the name of the bin that is responsible for a path: the leftmost
// bits of its SHA-256, in as many hexadecimal digits as the last bin needs.
func (s *succinct) bin(target string) string {
	sum := sha256.Sum256([]byte(target))
	n := binary.BigEndian.Uint32(sum[:4]) >> (32 - s.bits)
	return fmt.Sprintf("%s-%0*x", s.prefix, (s.bits+3)/4, n)
}

// covers tells whether the delegation is responsible for a path. "*" and "?" do
// not match a "/".
func (d delegation) covers(target string) bool {
	return slices.ContainsFunc(d.paths, func(pattern string) bool {
		ok, err := path.Match(pattern, target)
		return ok && err == nil
	})
}

// A Target is a file that the metadata vouches for.
type Target struct {
	Path   string
	Length int64
	Digest patch.Digest
	Custom json.RawMessage // nil if there is none
}

// Check returns an error matching [patch.ErrTampered] if b is not the target.
func (t *Target) Check(b []byte) error {
	if t.Length != int64(len(b)) || t.Digest != sha256.Sum256(b) {
		return fmt.Errorf("%w: %s", patch.ErrTampered, t.Path)
	}
	return nil
}

func (r *reader) target(path string, o object) *Target {
	t := &Target{Path: path, Length: field[int64](r, o, "length"), Digest: r.digest(o)}
	if t.Length < 0 {
		r.fail("target %q is shorter than nothing", path)
	}
	if r.has(o, "custom") {
		var err error
		if t.Custom, err = json.Marshal(field[object](r, o, "custom")); err != nil {
			r.fail("custom block: %v", err)
		}
	}
	return t
}
