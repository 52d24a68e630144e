package keys_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/sign"
)

func TestAPublicHalfTravels(t *testing.T) {
	mine, theirs := store(t), store(t)
	k := create(t, mine, "root-2")
	public, err := mine.Get("root-2")
	if err != nil {
		t.Fatal(err)
	}
	b, err := public.Export()
	if err != nil || strings.Contains(string(b), "secret") {
		t.Fatalf("Export = %s, %v", b, err)
	}
	arrived, err := keys.ParsePublic(b)
	if err != nil {
		t.Fatal(err)
	}
	adopted, err := theirs.Adopt(arrived.Name, arrived.Key, "")
	if err != nil || adopted.ID != public.ID || !adopted.Key.Equal(k.Public()) || adopted.Kind != keys.Others {
		t.Errorf("Adopt = %+v, %v", adopted, err)
	}
	if _, err := theirs.Open("root-2", passphrase); !errors.Is(err, keys.ErrElsewhere) {
		t.Errorf("Open of somebody else's key = %v, want ErrElsewhere", err)
	}
	if _, err := theirs.Adopt("root-2", k.Public(), ""); !errors.Is(err, keys.ErrExists) {
		t.Errorf("Adopt over another = %v, want ErrExists", err)
	}
	if st, err := os.Stat(file(theirs, "root-2")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", st, err)
	}
}

func TestParsePublicRefuses(t *testing.T) {
	s := store(t)
	create(t, s, "root-1")
	whole, err := os.ReadFile(file(s, "root-1"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := s.Get("root-1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := public.Export()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(old, new string) []byte { return []byte(strings.Replace(string(b), old, new, 1)) }
	tests := map[string][]byte{
		"a private half":        whole,
		"a place":               edit(`"name"`, `"at":"pkcs11:x","name"`),
		"another ID":            edit(public.ID, strings.Repeat("0", 64)),
		"a short key":           edit(public.ID, "00"),
		"a name that is a path": edit(`"root-1"`, `"../root-1"`),
		"no name":               edit(`"root-1"`, `""`),
		"nothing":               nil,
		"null":                  []byte("null"),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if p, err := keys.ParsePublic(b); err == nil {
				t.Errorf("ParsePublic = %+v, want an error", p)
			}
		})
	}
}

// A drawer is a backend whose keys are made of their URIs.
type drawer struct {
	opened []string
	err    error
}

func (d *drawer) Open(_ context.Context, name, uri string) (sign.Signer, error) {
	d.opened = append(d.opened, name)
	if d.err != nil {
		return nil, d.err
	}
	seed := sha256.Sum256([]byte(uri))
	return drawn{name, ed25519.NewKeyFromSeed(seed[:])}, nil
}

type drawn struct {
	name    string
	private ed25519.PrivateKey
}

func (d drawn) Name() string              { return d.name }
func (d drawn) Public() ed25519.PublicKey { return d.private.Public().(ed25519.PublicKey) }
func (d drawn) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(d.private, message), nil
}

func TestAKeyElsewhereIsOpenedWhereItIs(t *testing.T) {
	s, d := store(t), &drawer{}
	ring := keys.NewRing(s, nil, map[string]keys.Backend{"drawer": d})
	public, err := ring.Adopt(t.Context(), "root-1", "drawer:one")
	if err != nil || public.Kind != keys.Foreign || public.At != "drawer:one" {
		t.Fatalf("Adopt = %+v, %v", public, err)
	}
	held, err := ring.Held(t.Context(), []string{public.ID})
	if err != nil || len(held) != 1 || len(d.opened) != 1 {
		t.Errorf("Held = %q, %v, opened %q; want it without opening it again", held, err, d.opened)
	}
	for range 2 {
		signer, err := ring.Signer(t.Context(), public.ID)
		if err != nil || !signer.Public().Equal(public.Key) || signer.Name() != "root-1" {
			t.Errorf("Signer = %v, %v", signer, err)
		}
	}
	if len(d.opened) != 2 {
		t.Errorf("opened %d times, want once to adopt it and once to sign", len(d.opened))
	}
	if got := ring.Name(public.ID); got != "root-1" {
		t.Errorf("Name = %q", got)
	}
	if got := ring.Name(strings.Repeat("ab", 32)); got != "abababababab" {
		t.Errorf("Name of a stranger = %q, want the start of its ID", got)
	}
}

func TestRingRefusesKeysElsewhere(t *testing.T) {
	s := store(t)
	d := &drawer{}
	ring := keys.NewRing(s, nil, map[string]keys.Backend{"drawer": d})
	public, err := ring.Adopt(t.Context(), "root-1", "drawer:one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Adopt(t.Context(), "root-2", "usb:one"); !errors.Is(err, keys.ErrScheme) {
		t.Errorf("a place that is not known: %v, want ErrScheme", err)
	}
	fresh := func(d *drawer) *keys.Ring { return keys.NewRing(s, nil, map[string]keys.Backend{"drawer": d}) }
	if _, err := fresh(&drawer{err: sign.ErrAbsent}).Signer(t.Context(), public.ID); !errors.Is(err, sign.ErrAbsent) {
		t.Errorf("a drawer that is locked: %v, want ErrAbsent", err)
	}
	b, err := os.ReadFile(file(s, "root-1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file(s, "root-1"), []byte(strings.Replace(string(b), "drawer:one", "drawer:two", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh(&drawer{}).Signer(t.Context(), public.ID); !errors.Is(err, keys.ErrCorrupt) {
		t.Errorf("another key at its place: %v, want ErrCorrupt", err)
	}
}

// What somebody else has cannot sign here, and is no reason to ask for anything.
func TestSomebodyElsesKeyIsNotHeld(t *testing.T) {
	s, other := store(t), store(t)
	theirs, err := s.Adopt("root-2", create(t, other, "root-2").Public(), "")
	if err != nil {
		t.Fatal(err)
	}
	mine := create(t, s, "root-1")
	id, err := sign.KeyID(mine.Public())
	if err != nil {
		t.Fatal(err)
	}
	nobody := &asked{}
	ring := keys.NewRing(s, nobody.prompt, nil)
	held, err := ring.Held(t.Context(), []string{theirs.ID, id})
	if err != nil || !slices.Equal(held, []string{id}) {
		t.Errorf("Held = %q, %v; want my own alone", held, err)
	}
	if got, err := ring.Ensure(t.Context(), "root-2"); err != nil || got.ID != theirs.ID {
		t.Errorf("Ensure = %+v, %v; want the public half", got, err)
	}
	if _, err := ring.Signer(t.Context(), theirs.ID); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("Signer = %v, want ErrNotFound", err)
	}
	if len(nobody.times) > 0 {
		t.Errorf("asked for %q", nobody.times)
	}
}

func FuzzParsePublic(f *testing.F) {
	f.Add([]byte(`{"name":"root-2","keyid":"","public":""}`))
	f.Add([]byte(`{"name":"k","keyid":"00","public":"00112233","at":"pkcs11:x"}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := keys.ParsePublic(b)
		if err != nil {
			return
		}
		if id, err := sign.KeyID(p.Key); err != nil || id != p.ID || p.At != "" {
			t.Errorf("%q was read as %+v", b, p)
		}
	})
}
