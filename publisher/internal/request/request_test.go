package request_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/request"
	"livepatch/publisher/internal/sign"
)

var now = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

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

// people is a keyring.
type people []person

func (r people) Held(_ context.Context, ids []string) ([]string, error) {
	var held []string
	for _, p := range r {
		if slices.Contains(ids, p.id()) {
			held = append(held, p.id())
		}
	}
	return held, nil
}

func (r people) Signer(_ context.Context, id string) (sign.Signer, error) {
	for _, p := range r {
		if p.id() == id {
			return p, nil
		}
	}
	return nil, errors.New("no such key")
}

// everybody knows each other by name.
func everybody(id string) string {
	for _, p := range (people{"r1", "r2", "r3", "r4", "t1", "t2", "b", "a", "b2"}) {
		if p.id() == id {
			return string(p)
		}
	}
	return authority.Short(id)
}

func (r people) Name(id string) string { return everybody(id) }

// A fixture is a repository with a vendor that has 256 bins, one of which is
// looked at.
type fixture struct {
	t       testing.TB
	root    *authority.Root
	targets *authority.Targets
	vendor  *authority.Targets
	bin     *authority.Targets
	inForce request.Files
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, inForce: request.Files{}}
	expires := now.AddDate(0, 0, 90)
	f.root, f.targets, f.vendor, f.bin = metadata.Root(expires), metadata.Targets(expires), metadata.Targets(expires), metadata.Targets(expires)
	for role, names := range map[string]people{"root": {"r1", "r2", "r3"}, "targets": {"t1", "t2"}, "snapshot": {"s"}, "timestamp": {"ts"}} {
		for _, p := range names {
			must(t, f.root.Signed.AddKey(key(t, p), role))
		}
		f.root.Signed.Roles[role].Threshold = min(2, len(names))
	}
	two := []string{person("b").id(), person("a").id()}
	keys := map[string]*metadata.Key{two[0]: key(t, "b"), two[1]: key(t, "a")}
	f.targets.Signed.Delegations = &metadata.Delegations{Keys: keys, Roles: []metadata.DelegatedRole{
		{Name: "debian", KeyIDs: two, Threshold: 2, Terminating: true, Paths: []string{"debian/*"}},
	}}
	f.vendor.Signed.Delegations = &metadata.Delegations{Keys: maps.Clone(keys), SuccinctRoles: &metadata.SuccinctRoles{
		KeyIDs: two, Threshold: 2, BitLength: 8, NamePrefix: "debian",
	}}
	f.inForce["1.root.json"] = encode(t, f.root, "r1", "r2")
	f.inForce["1.targets.json"] = encode(t, f.targets, "t1", "t2")
	f.inForce["1.debian.json"] = encode(t, f.vendor, "b", "a")
	f.inForce["1.debian-00.json"] = encode(t, f.bin, "b", "a")
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func key(t testing.TB, p person) *metadata.Key {
	t.Helper()
	k, err := sign.Key(p.Public())
	must(t, err)
	return k
}

func encode[T metadata.Roles](t testing.TB, m *metadata.Metadata[T], names ...person) []byte {
	t.Helper()
	var signers []sign.Signer
	for _, p := range names {
		signers = append(signers, p)
	}
	b, err := sign.Encode(t.Context(), m, signers)
	must(t, err)
	return b
}

// patched is a change of the bin: a module is added, and b has signed.
func (f *fixture) patched(signed ...person) request.Request {
	f.t.Helper()
	target, err := metadata.TargetFile().FromBytes("debian/x.ko", []byte("module"), "sha256")
	must(f.t, err)
	f.bin.Signed.Targets["debian/x.ko"] = target
	f.bin.Signed.Version = 2
	return request.Request{InForce: maps.Clone(f.inForce), Change: request.Files{"2.debian-00.json": encode(f.t, f.bin, signed...)}}
}

// rotated is a change of the root: r3 goes, r4 comes.
func (f *fixture) rotated(signed ...person) request.Request {
	f.t.Helper()
	must(f.t, f.root.Signed.RevokeKey(person("r3").id(), "root"))
	must(f.t, f.root.Signed.AddKey(key(f.t, "r4"), "root"))
	f.root.Signed.Version = 2
	return request.Request{InForce: request.Files{"1.root.json": f.inForce["1.root.json"]}, Change: request.Files{"2.root.json": encode(f.t, f.root, signed...)}}
}

// travel sends a request to another machine.
func travel(t testing.TB, r request.Request) *request.Review {
	t.Helper()
	b, err := r.Encode()
	must(t, err)
	r, err = request.ParseRequest(b)
	must(t, err)
	v, err := request.Open(r)
	must(t, err)
	return v
}

func TestTwoPeopleSign(t *testing.T) {
	tests := map[string]struct {
		r           func(*fixture) request.Request
		second      people
		wantSigned  int
		wantMissing int
	}{
		"a bin":                       {func(f *fixture) request.Request { return f.patched("b") }, people{"a"}, 1, 0},
		"a bin, nobody before":        {func(f *fixture) request.Request { return f.patched() }, people{"a"}, 1, 1},
		"a bin, and both are here":    {func(f *fixture) request.Request { return f.patched() }, people{"a", "b"}, 2, 0},
		"a bin that has all":          {func(f *fixture) request.Request { return f.patched("a", "b") }, people{"a", "b"}, 0, 0},
		"a bin, by a stranger":        {func(f *fixture) request.Request { return f.patched("b") }, people{"r1"}, 0, 1},
		"a root, who counts twice":    {func(f *fixture) request.Request { return f.rotated("r1") }, people{"r2"}, 1, 0},
		"a root, who counts for one":  {func(f *fixture) request.Request { return f.rotated("r1") }, people{"r3"}, 1, 1},
		"a root, the new one and r3":  {func(f *fixture) request.Request { return f.rotated("r1") }, people{"r3", "r4"}, 2, 0},
		"a root, the best are chosen": {func(f *fixture) request.Request { return f.rotated() }, people{"r3", "r4", "r1", "r2"}, 2, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := tc.r(newFixture(t))
			second := travel(t, r)
			answer, err := second.Sign(t.Context(), tc.second)
			must(t, err)
			if len(answer.Signatures) != tc.wantSigned {
				t.Errorf("%d signatures, want %d", len(answer.Signatures), tc.wantSigned)
			}
			b, err := answer.Encode()
			must(t, err)
			answer, err = request.ParseAnswer(b)
			must(t, err)
			first, err := request.Open(r)
			must(t, err)
			must(t, first.Take(answer))
			must(t, first.Take(answer)) // it came twice
			lacks, err := first.Lacks()
			must(t, err)
			if len(lacks) != tc.wantMissing {
				t.Errorf("lacks = %+v, want %d", lacks, tc.wantMissing)
			}
			if first.ID() != second.ID() {
				t.Error("signatures have changed the ID")
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(f *fixture) request.Request
		want   error
	}{
		"nothing to sign": {func(f *fixture) request.Request { return request.Request{InForce: f.inForce} }, request.ErrMalformed},
		"a change after it was signed": {func(f *fixture) request.Request {
			r := f.patched("b")
			r.Change["2.debian-00.json"] = []byte(strings.Replace(string(r.Change["2.debian-00.json"]), `"length":6`, `"length":7`, 1))
			return r
		}, request.ErrTampered},
		"a signature of somebody else": {func(f *fixture) request.Request { return f.patched("r1") }, request.ErrTampered},
		"a bin in the place of another": {func(f *fixture) request.Request {
			r := f.patched("b")
			r.Change["2.debian-01.json"] = r.Change["2.debian-00.json"]
			delete(r.Change, "2.debian-00.json")
			return r
		}, request.ErrUnverified}, // its first version would be 1
		"a version left out": {func(f *fixture) request.Request {
			f.bin.Signed.Version = 3
			return request.Request{InForce: f.inForce, Change: request.Files{"3.debian-00.json": encode(f.t, f.bin, "b")}}
		}, request.ErrUnverified},
		"another version than the name says": {func(f *fixture) request.Request {
			r := f.patched("b")
			r.Change["3.debian-00.json"] = r.Change["2.debian-00.json"]
			delete(r.Change, "2.debian-00.json")
			return r
		}, request.ErrMalformed},
		"two versions of a role": {func(f *fixture) request.Request {
			r := f.patched("b")
			f.bin.Signed.Version = 3
			r.Change["3.debian-00.json"] = encode(f.t, f.bin, "b")
			return r
		}, request.ErrMalformed},
		"a role that nobody delegates to": {func(f *fixture) request.Request {
			f.bin.Signed.Version = 1
			return request.Request{InForce: f.inForce, Change: request.Files{"1.ubuntu.json": encode(f.t, f.bin, "b")}}
		}, request.ErrUnverified},
		"a delegator that is missing": {func(f *fixture) request.Request {
			r := f.patched("b")
			delete(r.InForce, "1.debian.json")
			return r
		}, request.ErrUnverified},
		"a delegator that one person signed": {func(f *fixture) request.Request {
			r := f.patched("b")
			r.InForce["1.debian.json"] = encode(f.t, f.vendor, "b")
			return r
		}, request.ErrUnverified},
		"a root that strangers signed": {func(f *fixture) request.Request {
			r := f.patched("b")
			r.InForce["1.root.json"] = encode(f.t, f.root, "a", "b")
			return r
		}, request.ErrUnverified},
		"no root": {func(f *fixture) request.Request {
			r := f.patched("b")
			delete(r.InForce, "1.root.json")
			return r
		}, request.ErrUnverified},
		"a root left out": {func(f *fixture) request.Request {
			r := f.patched("b")
			f.root.Signed.Version = 3
			r.InForce["3.root.json"] = encode(f.t, f.root, "r1", "r2")
			return r
		}, request.ErrUnverified},
		"a threshold that nobody can reach": {func(f *fixture) request.Request {
			f.root.Signed.Roles["root"].Threshold = 4
			return f.rotated("r1")
		}, request.ErrUnverified},
		"a threshold of none": {func(f *fixture) request.Request {
			f.root.Signed.Roles["root"].Threshold = 0
			return f.rotated("r1")
		}, request.ErrUnverified},
		"a field that would not be shown": {func(f *fixture) request.Request {
			f.bin.Signed.UnrecognizedFields = map[string]any{"x-more": 1}
			return f.patched("b")
		}, request.ErrMalformed},
		"a key that says more": {func(f *fixture) request.Request {
			f.root.Signed.Keys[person("r1").id()].UnrecognizedFields = map[string]any{"x-more": 1}
			return f.rotated("r2")
		}, request.ErrMalformed},
		"no JSON": {func(f *fixture) request.Request { return with(f, "2.debian-00.json", "<html>") }, request.ErrMalformed},
		"null": {func(f *fixture) request.Request {
			return with(f, "2.root.json", `{"signed":{"_type":"root","keys":null,"roles":{"root":null}},"signatures":null}`)
		}, request.ErrMalformed},
		"a terminal's escape sequence": {func(f *fixture) request.Request {
			r := f.patched()
			custom := json.RawMessage(`{"a":"\u001b[2J"}`)
			f.bin.Signed.Targets["debian/x.ko"].Custom = &custom
			r.Change["2.debian-00.json"] = encode(f.t, f.bin)
			return r
		}, request.ErrMalformed},
		"a key of seven bytes": {func(f *fixture) request.Request {
			f.root.Signed.Keys[person("r1").id()].Value.PublicKey = "00112233445566"
			return f.rotated("r2")
		}, request.ErrMalformed},
		"a key under another ID": {func(f *fixture) request.Request {
			f.root.Signed.Keys[person("r1").id()] = key(f.t, "r2")
			return f.rotated("r2")
		}, request.ErrMalformed},
		"a name that is a path": {func(f *fixture) request.Request { return with(f, "../2.root.json", "{}") }, request.ErrMalformed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := request.Open(tc.change(newFixture(t))); !errors.Is(err, tc.want) {
				t.Errorf("Open = %v, want %v", err, tc.want)
			}
		})
	}
}

func with(f *fixture, name, content string) request.Request {
	r := f.patched("b")
	r.Change[name] = []byte(content)
	return r
}

func TestTakeRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(a *request.Answer)
		want   error
	}{
		"another request":              {func(a *request.Answer) { a.ID = strings.Repeat("0", 64) }, request.ErrOther},
		"a role that is not asked for": {func(a *request.Answer) { a.Signatures[0].Role = "root" }, request.ErrTampered},
		"a key that may not sign":      {func(a *request.Answer) { a.Signatures[0].KeyID = person("r1").id() }, request.ErrTampered},
		"a bit that was changed":       {func(a *request.Answer) { a.Signatures[0].Sig[0] ^= 1 }, request.ErrTampered},
		"a signature that is empty":    {func(a *request.Answer) { a.Signatures[0].Sig = nil }, request.ErrTampered},
		"a good one and a bad one": {func(a *request.Answer) {
			a.Signatures = append(a.Signatures, request.Signature{Role: "debian-00", KeyID: person("r1").id(), Sig: a.Signatures[0].Sig})
		}, request.ErrTampered},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newFixture(t).patched("b")
			answer, err := travel(t, r).Sign(t.Context(), people{"a"})
			must(t, err)
			tc.change(&answer)
			first, err := request.Open(r)
			must(t, err)
			if err := first.Take(answer); !errors.Is(err, tc.want) {
				t.Errorf("Take = %v, want %v", err, tc.want)
			}
			lacks, err := first.Lacks()
			if err != nil || len(lacks) != 1 || len(lacks[0].Signed) != 1 {
				t.Errorf("lacks = %+v, %v; want what was missing before", lacks, err)
			}
		})
	}
}

// Whatever byte of a request is changed on its way, either it is found, or what
// would be signed is still what was asked for.
func TestTamperingIsFound(t *testing.T) {
	good := newFixture(t).patched("b")
	b, err := good.Encode()
	must(t, err)
	id, err := good.ID()
	must(t, err)
	found := 0
	for i := 0; i < len(b); i += 53 {
		bad := slices.Clone(b)
		bad[i] ^= 1
		r, err := request.ParseRequest(bad)
		if err == nil {
			_, err = request.Open(r)
		}
		if err != nil {
			found++
			continue
		}
		if got, err := r.ID(); err != nil || got != id {
			t.Errorf("byte %d was changed, and ID %s is accepted for %s, %v", i, got, id, err)
		}
	}
	if found == 0 {
		t.Error("nothing was found")
	}
}

func TestParseRefuses(t *testing.T) {
	r := newFixture(t).patched("b")
	b, err := r.Encode()
	must(t, err)
	id, err := r.ID()
	must(t, err)
	edit := func(old, new string) []byte { return []byte(strings.Replace(string(b), old, new, 1)) }
	tests := map[string]struct {
		b    []byte
		want error
	}{
		"another ID":       {edit(id, strings.Repeat("0", 64)), request.ErrTampered},
		"another kind":     {edit("signature-request", "signature-answer"), request.ErrMalformed},
		"a later format":   {edit(`"format":1`, `"format":2`), request.ErrMalformed},
		"an unknown field": {edit(`"format":1`, `"format":1,"more":1`), request.ErrMalformed},
		"something behind": {append(slices.Clone(b), "{}"...), request.ErrMalformed},
		"nothing":          {nil, request.ErrMalformed},
		"half of it":       {b[:len(b)/2], request.ErrMalformed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := request.ParseRequest(tc.b); !errors.Is(err, tc.want) {
				t.Errorf("ParseRequest = %v, want %v", err, tc.want)
			}
		})
	}
	if _, err := request.ParseAnswer(b); !errors.Is(err, request.ErrMalformed) {
		t.Errorf("ParseAnswer of a request = %v, want ErrMalformed", err)
	}
}

func TestFollowsFrom(t *testing.T) {
	f := newFixture(t)
	v := travel(t, f.patched("b"))
	if err := v.FollowsFrom(f.inForce["1.root.json"]); err != nil {
		t.Error(err)
	}
	f.root.Signed.Expires = now
	if err := v.FollowsFrom(encode(t, f.root, "r1", "r2")); !errors.Is(err, request.ErrUnverified) {
		t.Errorf("another root: %v, want ErrUnverified", err)
	}
	if err := v.FollowsFrom([]byte("{}")); err == nil {
		t.Error("no root: no error")
	}
}

func TestUnsigned(t *testing.T) {
	if got := travel(t, newFixture(t).patched()).Unsigned(); !slices.Equal(got, []string{"debian-00"}) {
		t.Errorf("Unsigned = %q", got)
	}
	if got := travel(t, newFixture(t).patched("b")).Unsigned(); len(got) > 0 {
		t.Errorf("Unsigned = %q, want none", got)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, r := range []request.Request{newFixture(f).patched("b"), newFixture(f).rotated("r1"), newFixture(f).patched()} {
		b, err := r.Encode()
		must(f, err)
		f.Add(b)
	}
	f.Add([]byte(`{"format":1,"kind":"signature-request","id":"","change":{"1.root.json":"e30="}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := request.ParseRequest(b)
		if err != nil {
			return
		}
		v, err := request.Open(r)
		if err != nil {
			return
		}
		if _, err := v.Describe(everybody, now); err != nil {
			t.Errorf("request was opened and cannot be described: %v", err)
		}
		if _, err := v.Change(); err != nil {
			t.Errorf("request was opened and cannot be written: %v", err)
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	r := newFixture(f).patched("b")
	v := travel(f, r)
	a, err := v.Sign(f.Context(), people{"a"})
	must(f, err)
	b, err := a.Encode()
	must(f, err)
	f.Add(b)
	f.Add([]byte(`{"format":1,"kind":"signature-answer","id":"","signatures":[{"role":"root","keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := request.ParseAnswer(b)
		if err != nil {
			return
		}
		first, err := request.Open(r)
		must(t, err)
		if first.Take(a) != nil {
			return
		}
		for _, s := range a.Signatures {
			if s.KeyID != person("a").id() && s.KeyID != person("b").id() {
				t.Errorf("signature of %s was taken", s.KeyID)
			}
		}
	})
}
