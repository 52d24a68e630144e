package uefi

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"testing"
)

// roomy is how many bytes of variables fit into the stores of these tests.
const roomy = 2048

// empty returns the image of a store without variables, as it lies in the flash.
func empty(room int) []byte {
	const volumeHeader = 72
	b := bytes.Repeat([]byte{erased}, volumeHeader+storeHeaderSize+room+100)
	copy(b[volumeSignature:], "_FVH")
	copy(b[volumeHeaderSize:], []byte{volumeHeader, 0})
	copy(b[volumeHeader:], storeFormat[:])
	size := storeHeaderSize + room
	copy(b[volumeHeader+storeSize:], []byte{byte(size), byte(size >> 8), 0, 0})
	return b
}

func parse(t *testing.T, image []byte) *Store {
	t.Helper()
	s, err := ParseStore(image)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func image(t *testing.T, s *Store) []byte {
	t.Helper()
	b, err := s.Image()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGUIDIsInTheOrderOfMemory(t *testing.T) {
	if got, want := hex.EncodeToString(Security[:]), "cbb219d73a3d9645a3bcdad00e67656f"; got != want {
		t.Errorf("vendor of db = %s, want %s", got, want)
	}
}

func TestVariablesAreReadAsTheyWereSet(t *testing.T) {
	s := parse(t, empty(roomy))
	s.Set(Variable{"db", Security, KeyAttributes, []byte("keys")})
	s.Set(Variable{"MokList", Shim, NonVolatile | BootService, []byte("odd")})
	s.Set(Variable{"db", Global, NonVolatile, nil})
	s.Set(Variable{"db", Security, KeyAttributes, []byte("other keys")})

	again := parse(t, image(t, s))
	if got := len(again.Variables()); got != 3 {
		t.Fatalf("variables = %d, want 3", got)
	}
	if got := again.Variables()[0].Attributes; got != KeyAttributes {
		t.Errorf("attributes of db = %#x, want %#x", got, KeyAttributes)
	}
	for _, want := range []struct {
		vendor GUID
		name   string
		data   string
	}{{Security, "db", "other keys"}, {Shim, "MokList", "odd"}, {Global, "db", ""}} {
		if got, ok := again.Get(want.vendor, want.name); !ok || string(got) != want.data {
			t.Errorf("%s = %q, %t, want %q", want.name, got, ok, want.data)
		}
	}
	if _, ok := again.Get(Global, "MokList"); ok {
		t.Error("a variable of one vendor is found at another")
	}
}

func TestVariableThatWasDeletedIsLeftOut(t *testing.T) {
	s := parse(t, empty(roomy))
	s.Set(Variable{"old", Global, NonVolatile, []byte("1")})
	s.Set(Variable{"new", Global, NonVolatile, []byte("2")})
	b := image(t, s)
	const deleted = stateAdded &^ 0x02 // one bit of the flash is cleared for that
	b[s.start+offsetState] = deleted
	if got := parse(t, b).Variables(); len(got) != 1 || got[0].Name != "new" {
		t.Errorf("variables = %v, want only the new one", got)
	}
}

func TestWhatIsNotChangedIsKept(t *testing.T) {
	s := parse(t, empty(roomy))
	s.Set(Variable{"db", Security, KeyAttributes, []byte("keys")})
	b := image(t, s)
	if !bytes.Equal(image(t, parse(t, b)), b) {
		t.Error("an image changes when it is read and written")
	}
}

func TestStoreThatIsFullIsRefused(t *testing.T) {
	s := parse(t, empty(100))
	s.Set(Variable{"db", Security, KeyAttributes, make([]byte, 100)})
	if _, err := s.Image(); err == nil {
		t.Error("more was written than there is room for")
	}
}

func TestWhatIsNoStoreIsRefused(t *testing.T) {
	s := parse(t, empty(roomy))
	s.Set(Variable{"db", Security, KeyAttributes, []byte("keys")})
	good := image(t, s)
	change := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	store := s.start - storeHeaderSize
	for name, b := range map[string][]byte{
		"nothing":                 nil,
		"another file":            []byte("not a flash image"),
		"another kind of volume":  change(volumeSignature, 'X'),
		"a header too long":       change(volumeHeaderSize, 0xff, 0xff),
		"another kind of store":   change(store, 0),
		"a store longer than all": change(store+storeSize, 0xff, 0xff, 0xff),
		"a store of no size":      change(store+storeSize, 0, 0, 0, 0),
		"a name too long":         change(s.start+offsetNameSize, 0xff, 0xff),
		"a name of half a letter": change(s.start+offsetNameSize, 1),
		"a name without end":      change(s.start+offsetNameSize, 4),
		"data too long":           change(s.start+offsetDataSize, 0xff, 0xff, 0xff, 0xff),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseStore(b); err == nil {
				t.Error("it was read")
			}
		})
	}
}

// TestSignatureLists compares with what the specification draws: kind, size of the
// list, of its header, of each signature; then owner and data of each.
func TestSignatureLists(t *testing.T) {
	cert := certificate(t)
	sum := sha256.Sum256(cert.RawTBSCertificate)
	owner := hex.EncodeToString(Owner[:])
	le := func(n int) string { return hex.EncodeToString([]byte{byte(n), byte(n >> 8), 0, 0}) }
	n := len(cert.Raw)
	if got, want := hex.EncodeToString(Certificate(cert)),
		"a159c0a5e494a74a87b5ab155c2bf072"+le(28+16+n)+le(0)+le(16+n)+owner+hex.EncodeToString(cert.Raw); got != want {
		t.Errorf("certificate = %s, want %s", got, want)
	}
	if got, want := hex.EncodeToString(Revocation(cert)),
		"92a4d23bc0967940b420fcf98ef103ed"+le(28+16+48)+le(0)+le(16+48)+owner+hex.EncodeToString(sum[:])+hex.EncodeToString(make([]byte, 16)); got != want {
		t.Errorf("revocation = %s, want %s", got, want)
	}
}

func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func FuzzParseStore(f *testing.F) {
	s, err := ParseStore(empty(200))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(empty(200))
	f.Add([]byte("_FVH"))
	s.Set(Variable{"db", Security, KeyAttributes, []byte("keys")})
	full, err := s.Image()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStore(b)
		if err != nil {
			return
		}
		// Fits, because it did before and nothing was added.
		again, err := s.Image()
		if err != nil {
			t.Fatal(err)
		}
		s2, err := ParseStore(again)
		if err != nil || len(s2.Variables()) != len(s.Variables()) {
			t.Errorf("an image that was written is not read: %v", err)
		}
	})
}
