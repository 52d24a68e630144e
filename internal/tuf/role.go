package tuf

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
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

// An envelope is a metadata file whose signatures have not been looked at.
type envelope struct {
	signed     object
	payload    []byte            // canonical form of signed
	signatures map[string][]byte // by key id
}

// open reads an envelope and checks what every role has: type, specification
// version, version and expiry (section 4.2 and 4.3).
func open(b []byte, kind string, limit int) (*envelope, header, error) {
	if len(b) > limit {
		return nil, header{}, fmt.Errorf("%w: %d bytes, at most %d", patch.ErrTooLarge, len(b), limit)
	}
	v, err := parse(b)
	if err != nil {
		return nil, header{}, err
	}
	o, ok := v.(object)
	if !ok {
		return nil, header{}, malformed("not an object")
	}
	env := &envelope{signatures: map[string][]byte{}}
	if env.signed, err = get[object](o, "signed"); err != nil {
		return nil, header{}, err
	}
	env.payload = canonical(nil, env.signed)
	if err := env.readSignatures(o); err != nil {
		return nil, header{}, err
	}
	h, err := readHeader(env.signed, kind)
	return env, h, err
}

func (e *envelope) readSignatures(o object) error {
	list, err := get[[]any](o, "signatures")
	if err != nil {
		return err
	}
	for _, v := range list {
		s, ok := v.(object)
		if !ok {
			return malformed("signature is not an object")
		}
		id, err := get[string](s, "keyid")
		if err != nil {
			return err
		}
		sig, err := get[string](s, "sig")
		if err != nil {
			return err
		}
		if _, dup := e.signatures[id]; dup {
			return malformed("two signatures of key %s", id)
		}
		if e.signatures[id], err = hex.DecodeString(sig); err != nil {
			return malformed("signature of key %s is not hexadecimal", id)
		}
	}
	return nil
}

// A header is what every role says of itself.
type header struct {
	version int64
	expires time.Time
}

func readHeader(signed object, kind string) (h header, err error) {
	typ, err := get[string](signed, "_type")
	if err != nil {
		return h, err
	}
	if typ != kind {
		return h, malformed("is a %q, want a %q", typ, kind)
	}
	spec, err := get[string](signed, "spec_version")
	if err != nil {
		return h, err
	}
	if !strings.HasPrefix(spec, "1.") {
		return h, malformed("specification version is %q, want 1", spec)
	}
	if h.version, err = signed.positive("version"); err != nil {
		return h, err
	}
	exp, err := get[string](signed, "expires")
	if err != nil {
		return h, err
	}
	if h.expires, err = time.Parse("2006-01-02T15:04:05Z", exp); err != nil {
		return h, malformed("expiry is %q, want YYYY-MM-DDTHH:MM:SSZ", exp)
	}
	return h, nil
}

// fresh returns an error matching [patch.ErrExpired] if the role is no longer
// valid at now.
func (h header) fresh(name string, now time.Time) error {
	if !now.Before(h.expires) {
		return fmt.Errorf("%w: %s was valid until %s", patch.ErrExpired, name, h.expires.Format(time.RFC3339))
	}
	return nil
}

// A signers says whose signatures a role needs.
type signers struct {
	keys      map[string]ed25519.PublicKey // by key id
	threshold int64
}

// readSigners reads a ROLE object together with the keys that it names.
func readSigners(role, keys object) (signers, error) {
	s := signers{keys: map[string]ed25519.PublicKey{}}
	var err error
	if s.threshold, err = role.positive("threshold"); err != nil {
		return s, err
	}
	ids, err := role.strings("keyids")
	if err != nil {
		return s, err
	}
	for _, id := range ids {
		key, err := get[object](keys, id)
		if err != nil {
			return s, err
		}
		if s.keys[id], err = readKey(key); err != nil {
			return s, fmt.Errorf("key %s: %w", id, err)
		}
	}
	return s, nil
}

func readKey(o object) (ed25519.PublicKey, error) {
	for _, field := range []string{"keytype", "scheme"} {
		if s, err := get[string](o, field); err != nil || s != "ed25519" {
			return nil, malformed("%s is not ed25519", field)
		}
	}
	val, err := get[object](o, "keyval")
	if err != nil {
		return nil, err
	}
	public, err := get[string](val, "public")
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(public)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, malformed("public key is not %d bytes of hexadecimal", ed25519.PublicKeySize)
	}
	return key, nil
}

// verify returns nil if a threshold of distinct public keys signed env. Key ids
// do not count: two ids can name one key.
func (s signers) verify(name string, env *envelope) error {
	valid := map[string]bool{}
	for id, key := range s.keys {
		if ed25519.Verify(key, env.payload, env.signatures[id]) {
			valid[string(key)] = true
		}
	}
	if int64(len(valid)) < s.threshold {
		return fmt.Errorf("%w: %s has %d valid signatures, needs %d", patch.ErrUntrusted, name, len(valid), s.threshold)
	}
	return nil
}

// A root is trusted or about to be (section 4.3).
type root struct {
	header
	raw        []byte
	consistent bool
	roles      map[string]signers
}

func readRoot(b []byte) (*root, *envelope, error) {
	env, h, err := open(b, rootRole, patch.MaxRoot)
	if err != nil {
		return nil, nil, err
	}
	r := &root{header: h, raw: b, roles: map[string]signers{}}
	if r.consistent, err = get[bool](env.signed, "consistent_snapshot"); err != nil {
		return nil, nil, err
	}
	keys, err := get[object](env.signed, "keys")
	if err != nil {
		return nil, nil, err
	}
	roles, err := get[object](env.signed, "roles")
	if err != nil {
		return nil, nil, err
	}
	for _, name := range []string{rootRole, timestampRole, snapshotRole, targetsRole} {
		role, err := get[object](roles, name)
		if err != nil {
			return nil, nil, err
		}
		if r.roles[name], err = readSigners(role, keys); err != nil {
			return nil, nil, fmt.Errorf("role %s: %w", name, err)
		}
	}
	return r, env, nil
}

// A listing is what timestamp and snapshot say of other metadata files
// (sections 4.4 and 4.5).
type listing struct {
	header
	raw  []byte
	meta map[string]meta // by file name, "snapshot.json"
}

// A meta describes one metadata file.
type meta struct {
	version int64
	length  int64 // 0 if it is not said
	hashes  hashes
}

func readListing(b []byte, kind string, limit int) (*listing, *envelope, error) {
	env, h, err := open(b, kind, limit)
	if err != nil {
		return nil, nil, err
	}
	l := &listing{header: h, raw: b, meta: map[string]meta{}}
	all, err := get[object](env.signed, "meta")
	if err != nil {
		return nil, nil, err
	}
	for name, v := range all {
		o, ok := v.(object)
		if !ok {
			return nil, nil, malformed("entry %q is not an object", name)
		}
		if l.meta[name], err = readMeta(o); err != nil {
			return nil, nil, fmt.Errorf("entry %q: %w", name, err)
		}
	}
	return l, env, nil
}

func readMeta(o object) (m meta, err error) {
	if m.version, err = o.positive("version"); err != nil {
		return m, err
	}
	if o.has("length") {
		if m.length, err = o.positive("length"); err != nil {
			return m, err
		}
	}
	if o.has("hashes") {
		m.hashes, err = readHashes(o)
	}
	return m, err
}

// check returns an error matching [patch.ErrTampered] if b is not the file that
// m describes.
func (m meta) check(name string, b []byte) error {
	if m.length != 0 && m.length != int64(len(b)) || !m.hashes.match(b) {
		return fmt.Errorf("%w: %s", patch.ErrTampered, name)
	}
	return nil
}

// hashes maps the name of an algorithm to a hash.
type hashes map[string][]byte

func readHashes(o object) (hashes, error) {
	all, err := get[object](o, "hashes")
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, malformed(`"hashes" is empty`)
	}
	h := hashes{}
	for name := range all {
		s, err := get[string](all, name)
		if err != nil {
			return nil, err
		}
		size := map[string]int{"sha256": sha256.Size, "sha512": sha512.Size}[name]
		if h[name], err = hex.DecodeString(s); err != nil || size == 0 || len(h[name]) != size {
			return nil, malformed("hash %q is not a known one", name)
		}
	}
	return h, nil
}

// match tells whether b has every one of the hashes.
func (h hashes) match(b []byte) bool {
	ok := true
	for name, want := range h {
		var got []byte
		switch name {
		case "sha256":
			sum := sha256.Sum256(b)
			got = sum[:]
		case "sha512":
			sum := sha512.Sum512(b)
			got = sum[:]
		}
		ok = ok && subtle.ConstantTimeCompare(got, want) == 1
	}
	return ok
}

// A targets is the metadata of the top-level targets role or of a role below it
// (section 4.6).
type targets struct {
	header
	parent      string
	targets     object
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

func readTargets(b []byte) (*targets, *envelope, error) {
	env, h, err := open(b, targetsRole, patch.MaxRole)
	if err != nil {
		return nil, nil, err
	}
	t := &targets{header: h}
	if t.targets, err = get[object](env.signed, "targets"); err != nil {
		return nil, nil, err
	}
	if !env.signed.has("delegations") {
		return t, env, nil
	}
	del, err := get[object](env.signed, "delegations")
	if err != nil {
		return nil, nil, err
	}
	return t, env, t.readDelegations(del)
}

func (t *targets) readDelegations(del object) error {
	keys, err := get[object](del, "keys")
	if err != nil {
		return err
	}
	if del.has("roles") == del.has("succinct_roles") {
		return malformed("delegations need either roles or succinct_roles")
	}
	if del.has("succinct_roles") {
		t.succinct, err = readSuccinct(del, keys)
		return err
	}
	list, err := get[[]any](del, "roles")
	if err != nil || len(list) == 0 {
		return malformed("delegations have no roles")
	}
	seen := map[string]bool{rootRole: true, timestampRole: true, snapshotRole: true, targetsRole: true}
	for _, v := range list {
		o, ok := v.(object)
		if !ok {
			return malformed("delegated role is not an object")
		}
		d, err := readDelegation(o, keys)
		if err != nil {
			return err
		}
		if seen[d.name] {
			return malformed("role %q cannot be delegated twice", d.name)
		}
		seen[d.name] = true
		t.delegations = append(t.delegations, d)
	}
	return nil
}

func readDelegation(o, keys object) (d delegation, err error) {
	if d.name, err = get[string](o, "name"); err != nil {
		return d, err
	}
	if err = patch.CheckWord("a role", d.name); err != nil {
		return d, malformed("%v", err)
	}
	// Delegation by path_hash_prefixes is read differently by the field's
	// clients; succinct_roles do its work.
	if o.has("path_hash_prefixes") {
		return d, malformed("role %q has path_hash_prefixes", d.name)
	}
	if d.paths, err = o.strings("paths"); err != nil {
		return d, err
	}
	if d.terminating, err = get[bool](o, "terminating"); err != nil {
		return d, err
	}
	d.signers, err = readSigners(o, keys)
	return d, err
}

func readSuccinct(del, keys object) (*succinct, error) {
	o, err := get[object](del, "succinct_roles")
	if err != nil {
		return nil, err
	}
	s := &succinct{}
	if s.bits, err = o.positive("bit_length"); err != nil {
		return nil, err
	}
	if s.bits > 32 {
		return nil, malformed("bit_length is %d, want at most 32", s.bits)
	}
	if s.prefix, err = get[string](o, "name_prefix"); err != nil {
		return nil, err
	}
	if err := patch.CheckWord("a role", s.prefix); err != nil {
		return nil, malformed("%v", err)
	}
	s.signers, err = readSigners(o, keys)
	return s, err
}

// bin returns the name of the bin that is responsible for a path: the leftmost
// bits of its SHA-256, in as many hexadecimal digits as the last bin needs.
func (s *succinct) bin(target string) string {
	sum := sha256.Sum256([]byte(target))
	n := binary.BigEndian.Uint32(sum[:4]) >> (32 - s.bits)
	digits := (s.bits + 3) / 4
	return fmt.Sprintf("%s-%0*x", s.prefix, digits, n)
}

// covers tells whether the delegation is responsible for a path. A pattern and
// a path have as many parts as each other, and "*" does not cross a "/".
func (d delegation) covers(target string) bool {
	return slices.ContainsFunc(d.paths, func(pattern string) bool {
		return matches(strings.Split(pattern, "/"), strings.Split(target, "/"))
	})
}

// matches compares part by part, since a character class could match a "/". A
// pattern that is malformed matches nothing.
func matches(pattern, target []string) bool {
	if len(pattern) != len(target) {
		return false
	}
	for i := range pattern {
		if ok, err := path.Match(pattern[i], target[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// A Target is a file that the metadata vouches for.
type Target struct {
	Path   string
	Length int64
	Custom json.RawMessage // nil if there is none
	hashes hashes
}

// SHA256 returns the target's hash, which for us every target has.
func (t *Target) SHA256() (patch.Digest, error) {
	h, ok := t.hashes["sha256"]
	if !ok || len(t.hashes) != 1 {
		return patch.Digest{}, malformed("target %q needs sha256 and no other hash", t.Path)
	}
	return patch.Digest(h), nil
}

// Check returns an error matching [patch.ErrTampered] if b is not the target.
func (t *Target) Check(b []byte) error {
	if t.Length != int64(len(b)) || !t.hashes.match(b) {
		return fmt.Errorf("%w: %s", patch.ErrTampered, t.Path)
	}
	return nil
}

// find returns the entry for a path, or nil.
func (t *targets) find(target string) (*Target, error) {
	v, ok := t.targets[target]
	if !ok {
		return nil, nil
	}
	o, ok := v.(object)
	if !ok {
		return nil, malformed("target %q is not an object", target)
	}
	found := &Target{Path: target}
	var err error
	if found.Length, err = get[int64](o, "length"); err != nil {
		return nil, err
	}
	if found.Length < 0 {
		return nil, malformed("target %q is shorter than nothing", target)
	}
	if found.hashes, err = readHashes(o); err != nil {
		return nil, err
	}
	if o.has("custom") {
		custom, err := get[object](o, "custom")
		if err != nil {
			return nil, err
		}
		if found.Custom, err = json.Marshal(custom); err != nil {
			return nil, malformed("custom block: %v", err)
		}
	}
	return found, nil
}
