package provenance_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/provenance"
	"livepatch/publisher/internal/sign"
)

// A person is a key made of a name.
type person string

func (p person) private() ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(p))
	return ed25519.NewKeyFromSeed(seed[:])
}
func (p person) Name() string              { return string(p) }
func (p person) Public() ed25519.PublicKey { return p.private().Public().(ed25519.PublicKey) }
func (p person) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(p.private(), message), nil
}

func (p person) id() string {
	id, err := sign.KeyID(p.Public())
	if err != nil {
		panic(err) // it has the right length
	}
	return id
}

// vendor returns the authority of a vendor with these keys.
func vendor(t testing.TB, people ...person) authority.Authority {
	t.Helper()
	root := metadata.Root()
	for _, p := range people {
		key, err := sign.Key(p.Public())
		if err == nil {
			err = root.Signed.AddKey(key, metadata.TARGETS)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	who, err := authority.InRoot(root, metadata.TARGETS)
	if err != nil {
		t.Fatal(err)
	}
	return who
}

const (
	builder  = person("builder")
	approver = person("approver")
	stranger = person("stranger")
)

var module = patch.Digest(sha256.Sum256([]byte("module")))

func facts() provenance.Facts {
	return provenance.Facts{
		Module: patch.Module{Kernel: patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: "0011"}, Name: "lkp_x_1", Version: "113.1"},
		Digest: module, Description: patch.Digest(sha256.Sum256([]byte("description"))),
		Sources: []provenance.Source{{URI: "git+https://example.com/patches", Digest: "gitCommit:" + strings.Repeat("0a", 20)}},
		Now:     time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC),
	}
}

func made(t testing.TB, f provenance.Facts, p person) []byte {
	t.Helper()
	b, err := provenance.Make(t.Context(), f, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatIsMadeIsRead(t *testing.T) {
	b := made(t, facts(), builder)
	got, err := provenance.Check(t.Context(), b, module, vendor(t, builder, approver))
	if err != nil {
		t.Fatal(err)
	}
	want := provenance.Summary{
		Builder: "urn:livepatch:key:" + builder.id(), BuildType: "urn:livepatch:add:v1",
		Sources: facts().Sources, Signed: []string{builder.id()},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	if err := got.Vouched(); err != nil {
		t.Error(err)
	}
	if again := made(t, facts(), builder); string(again) != string(b) {
		t.Error("the same facts give other bytes")
	}
}

func TestWhoSigned(t *testing.T) {
	tests := map[string]struct {
		by   person
		who  []person
		want error
	}{
		"a key of the vendor":       {approver, []person{builder, approver}, nil},
		"a stranger":                {stranger, []person{builder, approver}, provenance.ErrUnsigned},
		"a key that was taken away": {builder, []person{approver}, provenance.ErrUnsigned},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := provenance.Check(t.Context(), made(t, facts(), tc.by), module, vendor(t, tc.who...))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Vouched(); !errors.Is(err, tc.want) {
				t.Errorf("Vouched = %v, want %v", err, tc.want)
			}
		})
	}
}

// slsaExample is what builders of the field write, with fields of their own.
const slsaExample = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a.ko","digest":{"sha256":"%s"}}],
"predicateType":"https://slsa.dev/provenance/v1","predicate":{"buildDefinition":{"buildType":"https://example.com/build/v1",
"externalParameters":{"ref":"refs/heads/main"},"resolvedDependencies":[{"uri":"git+https://example.com/linux","digest":{"gitCommit":"%s"}}]},
"runDetails":{"builder":{"id":"https://example.com/builder"},"metadata":{"invocationId":"42"}},"x-own":{"a":1}}}`

// envelope signs a payload as somebody.
func envelope(t testing.TB, payload, kind string, p person) []byte {
	t.Helper()
	sig := ed25519.Sign(p.private(), dsse.PAE(kind, []byte(payload)))
	b, err := json.Marshal(dsse.Envelope{
		PayloadType: kind, Payload: base64.StdEncoding.EncodeToString([]byte(payload)),
		Signatures: []dsse.Signature{{KeyID: p.id(), Sig: base64.StdEncoding.EncodeToString(sig)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const inToto = "application/vnd.in-toto+json"

func TestAForeignBuildersProvenanceIsRead(t *testing.T) {
	commit := strings.Repeat("1b", 20)
	b := envelope(t, fmt.Sprintf(slsaExample, module, commit), inToto, builder)
	got, err := provenance.Check(t.Context(), b, module, vendor(t, builder))
	want := provenance.Summary{
		Builder: "https://example.com/builder", BuildType: "https://example.com/build/v1",
		Sources: []provenance.Source{{URI: "git+https://example.com/linux", Digest: "gitCommit:" + commit}}, Signed: []string{builder.id()},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Check: %v (-want +got):\n%s", err, diff)
	}
}

func TestCheckRefuses(t *testing.T) {
	good := fmt.Sprintf(slsaExample, module, strings.Repeat("1b", 20))
	replace := func(old, new string) []byte {
		if !strings.Contains(good, old) {
			t.Fatalf("the example has no %s", old)
		}
		return envelope(t, strings.Replace(good, old, new, 1), inToto, builder)
	}
	tests := map[string]struct {
		b    []byte
		want error
	}{
		"another module":               {replace(module.String(), strings.Repeat("00", 32)), provenance.ErrSubject},
		"a statement without subject":  {replace(`{"name":"a.ko","digest":{"sha256":"`+module.String()+`"}}`, ""), provenance.ErrMalformed},
		"an older form of a statement": {replace("Statement/v1", "Statement/v0.1"), provenance.ErrMalformed},
		"another predicate":            {replace("slsa.dev/provenance/v1", "slsa.dev/provenance/v0.2"), provenance.ErrMalformed},
		"no builder":                   {replace(`"id":"https://example.com/builder"`, ""), provenance.ErrMalformed},
		"another payload":              {envelope(t, good, "text/plain", builder), provenance.ErrMalformed},
		"a statement without envelope": {[]byte(good), provenance.ErrMalformed},
		"nothing":                      {nil, provenance.ErrMalformed},
		"null":                         {[]byte("null"), provenance.ErrMalformed},
		"more than the service takes":  {make([]byte, provenance.MaxSize+1), patch.ErrTooLarge},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if s, err := provenance.Check(t.Context(), tc.b, module, vendor(t, builder)); !errors.Is(err, tc.want) {
				t.Errorf("Check = %+v, %v; want %v", s, err, tc.want)
			}
		})
	}
}

func TestParseSource(t *testing.T) {
	got, err := provenance.ParseSource("git+https://example.com/a?b=c=gitCommit:" + strings.Repeat("0a", 20))
	if err != nil || got.URI != "git+https://example.com/a?b=c" || got.Digest != "gitCommit:"+strings.Repeat("0a", 20) {
		t.Errorf("ParseSource = %+v, %v", got, err)
	}
	for _, s := range []string{"", "a", "=sha256:00", "a=sha256:xy", "a=sha256:00", "a=crc32:00", "a=gitCommit", "a=sha256:"} {
		if got, err := provenance.ParseSource(s); !errors.Is(err, provenance.ErrSource) {
			t.Errorf("ParseSource(%q) = %+v, %v; want ErrSource", s, got, err)
		}
	}
}

func TestPathsBelongTogether(t *testing.T) {
	const target = "debian/lkp_x_1.x86_64.ko"
	if got := provenance.Path(target); got != "debian/lkp_x_1.x86_64.intoto.json" || provenance.Module(got) != target {
		t.Errorf("Path = %q, and back %q", got, provenance.Module(got))
	}
	if _, err := patch.VendorOf(provenance.Path(target)); err != nil {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(made(f, facts(), builder))
	f.Add(envelope(f, fmt.Sprintf(slsaExample, module, strings.Repeat("1b", 20)), inToto, builder))
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":null}`))
	f.Add([]byte("null"))
	who := vendor(f, builder, approver)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := provenance.Check(t.Context(), b, module, who)
		if err == nil && (s.Builder == "" || slices.Contains(s.Signed, stranger.id())) {
			t.Errorf("%q was read as %+v", b, s)
		}
	})
}
