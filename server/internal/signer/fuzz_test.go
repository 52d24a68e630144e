package signer

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// FuzzParseKey reads any content of a key file: it is an ed25519 key that can
// sign, or an error.
func FuzzParseKey(f *testing.F) {
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der[:len(der)-1]}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: pemType}))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := parseKey(b)
		if (err == nil) != (len(key) == ed25519.PrivateKeySize) {
			t.Fatalf("key of %d bytes, %v", len(key), err)
		}
		if err == nil && !ed25519.Verify(key.Public().(ed25519.PublicKey), b, ed25519.Sign(key, b)) {
			t.Error("key cannot sign")
		}
	})
}
