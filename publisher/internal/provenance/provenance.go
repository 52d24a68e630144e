// Package provenance reads and makes statements of how a module was built:
// in-toto statements v1 with SLSA provenance v1 as their predicate, in DSSE
// envelopes that a key of the module's vendor has signed.
//
// Nothing that enters a kernel depends on it. It is for people and their tools,
// who want to know afterwards who built a module, from which sources.
package provenance

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/version"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/sign"
)

// MaxSize bounds an envelope, in bytes: the service takes no more of what is not
// a module.
const MaxSize = service.MaxIndex

const (
	payloadType   = "application/vnd.in-toto+json"
	predicateType = "https://slsa.dev/provenance/v1"
	buildType     = "urn:livepatch:add:v1" // of statements that Make makes
)

// Conditions that callers branch on.
var (
	ErrMalformed = errors.New("file is not an in-toto statement with SLSA provenance in a DSSE envelope")
	ErrSubject   = errors.New("provenance is of something else")
	ErrUnsigned  = errors.New("no key of the vendor has signed the provenance")
	ErrSource    = errors.New("source is not valid")
)

// A Source is something that a module was built from.
type Source struct {
	URI    string `json:"uri"`
	Digest string `json:"digest"` // "gitCommit:0123…"
}

// A Summary is what a statement says, as far as people ask first.
type Summary struct {
	Builder   string   `json:"builder"`
	BuildType string   `json:"build_type"`
	Sources   []Source `json:"sources"`
	Signed    []string `json:"signed"` // IDs of the keys of the vendor that have
}

// Path returns where the provenance of a module lies, beside it:
// "debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.intoto.json".
func Path(module string) string { return strings.TrimSuffix(module, ".ko") + Suffix }

// Suffix ends the path of a provenance.
const Suffix = ".intoto.json"

// Module returns the path of the module that a provenance lies beside.
func Module(path string) string { return strings.TrimSuffix(path, Suffix) + ".ko" }

// Check reads an envelope and returns what it says. It must be about the module
// with that digest. The error matches [ErrMalformed] or [ErrSubject].
//
// Keys of who that have signed are named in the summary; there may be none: a
// vendor's keys are replaced, and what they have signed stays. For a new
// provenance see [Summary.Vouched].
func Check(ctx context.Context, b []byte, module patch.Digest, who authority.Authority) (Summary, error) {
	e, statement, err := open(b)
	if err != nil {
		return Summary{}, err
	}
	if !slices.ContainsFunc(statement.GetSubject(), func(s *intoto.ResourceDescriptor) bool {
		return strings.EqualFold(s.GetDigest()["sha256"], module.String())
	}) {
		return Summary{}, fmt.Errorf("%w: no subject has the SHA-256 %s", ErrSubject, module)
	}
	predicate, err := readPredicate(statement)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{
		Builder: predicate.GetRunDetails().GetBuilder().GetId(), BuildType: predicate.GetBuildDefinition().GetBuildType(),
		Sources: []Source{}, Signed: signed(ctx, e, who),
	}
	for _, d := range predicate.GetBuildDefinition().GetResolvedDependencies() {
		s.Sources = append(s.Sources, Source{URI: cmp.Or(d.GetUri(), d.GetName()), Digest: strongest(d.GetDigest())})
	}
	return s, nil
}

// Vouched returns an error matching [ErrUnsigned] if no key of the vendor has
// signed.
func (s Summary) Vouched() error {
	if len(s.Signed) == 0 {
		return ErrUnsigned
	}
	return nil
}

func open(b []byte) (*dsse.Envelope, *intoto.Statement, error) {
	if len(b) > MaxSize {
		return nil, nil, fmt.Errorf("%w: %w: %d bytes, at most %d", ErrMalformed, patch.ErrTooLarge, len(b), MaxSize)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if e.PayloadType != payloadType {
		return nil, nil, fmt.Errorf("%w: its payload is a %q", ErrMalformed, e.PayloadType)
	}
	payload, err := e.DecodeB64Payload()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var statement intoto.Statement
	// Fields that are not known are to be ignored (in-toto attestation,
	// "Parsing rules").
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, &statement); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	err = statement.Validate()
	if err == nil && statement.GetType() != intoto.StatementTypeUri {
		err = fmt.Errorf("type is %q, want %q", statement.GetType(), intoto.StatementTypeUri)
	}
	if err == nil && statement.GetPredicateType() != predicateType {
		err = fmt.Errorf("predicate is %q, want %q", statement.GetPredicateType(), predicateType)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return &e, &statement, nil
}

func readPredicate(statement *intoto.Statement) (*slsa.Provenance, error) {
	b, err := protojson.Marshal(statement.GetPredicate())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var p slsa.Provenance
	err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, &p)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return &p, nil
}

// strongest returns a digest that a person can compare.
func strongest(digests map[string]string) string {
	for _, name := range append([]string{"gitCommit", "sha256"}, slices.Sorted(maps.Keys(digests))...) {
		if d := digests[name]; d != "" {
			return name + ":" + d
		}
	}
	return ""
}

// signed returns the IDs of those keys that have signed the envelope.
func signed(ctx context.Context, e *dsse.Envelope, who authority.Authority) []string {
	ids := []string{}
	for _, id := range who.IDs {
		if who.Key(id) == nil {
			continue
		}
		verifier, err := dsse.NewEnvelopeVerifier(key{id: id, public: who.Key(id)})
		if err != nil {
			continue
		}
		if _, err := verifier.Verify(ctx, e); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// A key is a vendor's, as package dsse wants one.
type key struct {
	id     string
	public ed25519.PublicKey
	signer sign.Signer // nil if it only verifies
}

// Verify implements [dsse.Verifier].
func (k key) Verify(_ context.Context, message, sig []byte) error {
	if !ed25519.Verify(k.public, message, sig) {
		return sign.ErrFaulty
	}
	return nil
}

// Sign implements [dsse.Signer].
func (k key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return sign.Message(ctx, k.signer, message)
}

// KeyID implements [dsse.Verifier].
func (k key) KeyID() (string, error) { return k.id, nil }

// Public implements [dsse.Verifier].
func (k key) Public() crypto.PublicKey { return k.public }

// Facts are what is known of a build by who publishes its module.
type Facts struct {
	Module      patch.Module
	Digest      patch.Digest // of the module
	Description patch.Digest // of the file that describes it
	Builder     string       // URI; "" for the key that signs
	Sources     []Source
	Now         time.Time
}

// Make makes a provenance of what is known when a module is added, and has it
// signed. It says no more than that: who signed saw this module, with this
// description, and names these sources.
func Make(ctx context.Context, f Facts, signer sign.Signer) ([]byte, error) {
	b, err := assemble(ctx, f, signer)
	if err != nil {
		return nil, fmt.Errorf("cannot make provenance: %w", err)
	}
	return b, nil
}

func assemble(ctx context.Context, f Facts, signer sign.Signer) ([]byte, error) {
	id, err := sign.KeyID(signer.Public())
	if err != nil {
		return nil, err
	}
	statement, err := f.statement(id)
	if err != nil {
		return nil, err
	}
	payload, err := compact(statement)
	if err != nil {
		return nil, err
	}
	es, err := dsse.NewEnvelopeSigner(key{id: id, public: signer.Public(), signer: signer})
	if err != nil {
		return nil, err
	}
	e, err := es.SignPayload(ctx, payloadType, payload)
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

func (f Facts) statement(keyID string) (*intoto.Statement, error) {
	parameters, err := structpb.NewStruct(map[string]any{
		"description": map[string]any{"digest": map[string]any{"sha256": f.Description.String()}},
		"kernel":      f.Module.Release, "arch": f.Module.Arch, "buildId": string(f.Module.BuildID), "version": f.Module.Version,
	})
	if err != nil {
		return nil, err
	}
	p := &slsa.Provenance{
		BuildDefinition: &slsa.BuildDefinition{BuildType: buildType, ExternalParameters: parameters},
		RunDetails: &slsa.RunDetails{
			Builder: &slsa.Builder{
				Id: cmp.Or(f.Builder, "urn:livepatch:key:"+keyID), Version: map[string]string{"livepatch-publish": version.String()},
			},
			Metadata: &slsa.BuildMetadata{FinishedOn: timestamppb.New(f.Now)},
		},
	}
	for _, s := range f.Sources {
		algorithm, digest, _ := strings.Cut(s.Digest, ":")
		p.BuildDefinition.ResolvedDependencies = append(p.BuildDefinition.ResolvedDependencies,
			&intoto.ResourceDescriptor{Uri: s.URI, Digest: map[string]string{algorithm: digest}})
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	b, err := compact(p)
	if err != nil {
		return nil, err
	}
	predicate := &structpb.Struct{}
	if err := protojson.Unmarshal(b, predicate); err != nil {
		return nil, err
	}
	return &intoto.Statement{
		Type: intoto.StatementTypeUri, PredicateType: predicateType, Predicate: predicate,
		Subject: []*intoto.ResourceDescriptor{{Name: f.Module.Name + ".ko", Digest: map[string]string{"sha256": f.Digest.String()}}},
	}, nil
}

// compact is protojson without the white space that it adds at random.
func compact(m proto.Message) ([]byte, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Compact(&out, b)
	return out.Bytes(), err
}

// ParseSource reads a source written as URI=ALGORITHM:HEX,
// "git+https://example.com/patches=gitCommit:0123…".
func ParseSource(s string) (Source, error) {
	i := strings.LastIndex(s, "=")
	if i < 1 {
		return Source{}, fmt.Errorf("%w: %q, want URI=ALGORITHM:HEX", ErrSource, s)
	}
	uri, digest := s[:i], s[i+1:]
	algorithm, value, _ := strings.Cut(digest, ":")
	d := &intoto.ResourceDescriptor{Uri: uri, Digest: map[string]string{algorithm: value}}
	if _, known := intoto.HashAlgorithms[algorithm]; !known {
		return Source{}, fmt.Errorf("%w: %q: algorithm is %q, want gitCommit or sha256", ErrSource, s, algorithm)
	}
	if _, err := hex.DecodeString(value); err != nil || value == "" {
		return Source{}, fmt.Errorf("%w: %q: digest is %q, want hexadecimal digits", ErrSource, s, value)
	}
	if err := d.Validate(); err != nil {
		return Source{}, fmt.Errorf("%w: %q: %w", ErrSource, s, err)
	}
	return Source{URI: uri, Digest: digest}, nil
}
