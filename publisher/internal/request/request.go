// Package request lets people sign together who are not at one machine. A
// [Request] is a change of a repository that waits for signatures: the metadata
// to be signed and the metadata that is in force. An [Answer] is the
// signatures that came of it. Nothing else travels.
//
// Whoever is asked for a signature opens the request as a [Review], which
// checks everything that can be checked without the repository, and says in
// words what would be signed.
package request

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/service"
	"livepatch/publisher/internal/authority"
)

// Conditions that callers branch on.
var (
	ErrMalformed  = errors.New("file is not a request for signatures, or the answer to one")
	ErrTampered   = errors.New("request was changed on its way")
	ErrUnverified = errors.New("request does not verify")
	ErrOther      = errors.New("answer is for another request")
)

// MaxSize bounds a request, in bytes: what changes and what is in force, each
// at most a publication.
const MaxSize = 2 * service.MaxPublication

const format = 1

// Files are metadata files by their names, "3.debian-3ff.json".
type Files map[string][]byte

// A Request is a change of a repository as it travels.
type Request struct {
	// Change holds the next version of each role that changes, with the
	// signatures that it has so far.
	Change Files
	// InForce holds every root, and of the roles that change and of those that
	// delegate to them the version before.
	InForce Files
}

// wire is a request or an answer as a file.
type wire struct {
	Format     int         `json:"format"`
	Kind       string      `json:"kind"`
	ID         string      `json:"id"`
	Change     Files       `json:"change,omitempty"`
	InForce    Files       `json:"in_force,omitempty"`
	Signatures []Signature `json:"signatures,omitempty"`
}

const (
	kindRequest = "signature-request"
	kindAnswer  = "signature-answer"
)

// A Signature is one of an [Answer].
type Signature struct {
	Role  string `json:"role"`
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// An Answer is what somebody signed of a request.
type Answer struct {
	ID         string // of the request
	Signatures []Signature
}

var fileName = regexp.MustCompile(`^([1-9][0-9]{0,17})\.([a-z][a-z0-9-]{0,63})\.json$`)

// parseName splits "3.debian-3ff.json".
func parseName(name string) (role string, version int64, err error) {
	m := fileName.FindStringSubmatch(name)
	if m == nil {
		return "", 0, fmt.Errorf("%w: %q is not the name of a metadata file", ErrMalformed, name)
	}
	version, err = strconv.ParseInt(m[1], 10, 64)
	return m[2], version, err
}

func nameOf(role string, version int64) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}

// Encode returns the request as a file. It must be one that [Open] accepts.
func (r Request) Encode() ([]byte, error) {
	id, err := r.ID()
	if err != nil {
		return nil, err
	}
	return encode(wire{Kind: kindRequest, ID: id, Change: r.Change, InForce: r.InForce})
}

// Encode returns the answer as a file.
func (a Answer) Encode() ([]byte, error) {
	return encode(wire{Kind: kindAnswer, ID: a.ID, Signatures: a.Signatures})
}

func encode(w wire) ([]byte, error) {
	w.Format = format
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("cannot encode %s: %w", w.Kind, err)
	}
	return append(b, '\n'), nil
}

// ParseRequest reads a request. It is not verified yet; see [Open]. The error
// matches [ErrMalformed], or [ErrTampered] if the request is not what its ID
// says.
func ParseRequest(b []byte) (Request, error) {
	w, err := parse(b, kindRequest)
	if err != nil {
		return Request{}, fmt.Errorf("cannot read request: %w", err)
	}
	r := Request{Change: w.Change, InForce: w.InForce}
	id, err := r.ID()
	if err != nil {
		return Request{}, fmt.Errorf("cannot read request: %w", err)
	}
	if id != w.ID {
		return Request{}, fmt.Errorf("cannot read request: %w: its ID is %s, want %s", ErrTampered, w.ID, id)
	}
	return r, nil
}

// ParseAnswer reads an answer. Errors match [ErrMalformed].
func ParseAnswer(b []byte) (Answer, error) {
	w, err := parse(b, kindAnswer)
	if err != nil {
		return Answer{}, fmt.Errorf("cannot read answer: %w", err)
	}
	return Answer{ID: w.ID, Signatures: w.Signatures}, nil
}

func parse(b []byte, kind string) (wire, error) {
	var w wire
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return wire{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return wire{}, fmt.Errorf("%w: something follows it", ErrMalformed)
	}
	if w.Format != format || w.Kind != kind {
		return wire{}, fmt.Errorf("%w: it is a %q of format %d, want a %q of format %d", ErrMalformed, w.Kind, w.Format, kind, format)
	}
	return w, nil
}

// ID returns the fingerprint of what is to be signed, 64 hexadecimal digits. It
// stays the same while signatures come in, so that people can compare it over
// the telephone.
func (r Request) ID() (string, error) {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(r.Change)) {
		f, err := parseFile(name, r.Change[name])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(f.payload))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// A file is one metadata file of a request, parsed.
type file struct {
	role       string
	version    int64
	root       *authority.Root    // of role root
	targets    *authority.Targets // of all others
	payload    []byte
	signatures []metadata.Signature
}

// parseFile reads a metadata file and checks that it is what its name says.
func parseFile(name string, body []byte) (f *file, err error) {
	defer func() { // go-tuf 2.4.2 panics on null in the place of an object
		if recover() != nil {
			f, err = nil, fmt.Errorf("%w: %s holds null in the place of an object", ErrMalformed, name)
		}
	}()
	f = &file{}
	if f.role, f.version, err = parseName(name); err != nil {
		return nil, err
	}
	if len(body) > service.MaxRole {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrMalformed, name, len(body), service.MaxRole)
	}
	if err := f.parse(body); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMalformed, name, err)
	}
	if v := f.signedVersion(); v != f.version {
		return nil, fmt.Errorf("%w: %s holds version %d", ErrMalformed, name, v)
	}
	return f, nil
}

func (f *file) parse(body []byte) (err error) {
	if f.role == metadata.ROOT {
		if f.root, err = metadata.Root().FromBytes(body); err != nil {
			return err
		}
		if err := authority.CheckRoot(f.root); err != nil {
			return err
		}
		f.signatures = f.root.Signatures
		f.payload, err = authority.Payload(f.root)
		return err
	}
	if f.targets, err = metadata.Targets().FromBytes(body); err != nil {
		return err
	}
	if err := authority.CheckTargets(f.targets); err != nil {
		return err
	}
	f.signatures = f.targets.Signatures
	f.payload, err = authority.Payload(f.targets)
	return err
}

func (f *file) signedVersion() int64 {
	if f.root != nil {
		return f.root.Signed.Version
	}
	return f.targets.Signed.Version
}

// authority returns who may sign a role that this one delegates to.
func (f *file) authority(role string) (authority.Authority, error) {
	if f.root != nil {
		return authority.InRoot(f.root, role)
	}
	return authority.InTargets(f.targets, role)
}

// verify lets go-tuf decide whether a role below this one is trusted.
func (f *file) verify(below *file) error {
	below.seal()
	if f.root == nil {
		return f.targets.VerifyDelegate(below.role, below.targets)
	}
	if below.root != nil {
		return f.root.VerifyDelegate(below.role, below.root)
	}
	return f.root.VerifyDelegate(below.role, below.targets)
}

// seal puts the signatures into the metadata.
func (f *file) seal() {
	if f.root != nil {
		f.root.Signatures = f.signatures
	} else {
		f.targets.Signatures = f.signatures
	}
}

// body returns the file with its signatures.
func (f *file) body() ([]byte, error) {
	f.seal()
	if f.root != nil {
		return f.root.ToBytes(false)
	}
	return f.targets.ToBytes(false)
}
