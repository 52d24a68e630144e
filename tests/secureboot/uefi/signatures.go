package uefi

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"slices"
)

// Kinds of what a signature list holds.
var (
	certX509       = guid(0xa5c059a1, 0x94e4, 0x4aa7, 0x87b5ab155c2bf072)
	certX509SHA256 = guid(0x3bd2a492, 0x96c0, 0x4079, 0xb420fcf98ef103ed)
)

// Owner is who has enrolled what [Certificate] and [Revocation] return.
var Owner = guid(0x6c697665, 0x7061, 0x7463, 0x682d746573742d31)

// Certificate returns a signature list with a certificate, as in PK, KEK, db and
// MokList.
func Certificate(cert *x509.Certificate) []byte { return list(certX509, cert.Raw) }

// Revocation returns a signature list, as in dbx, that revokes a certificate by the
// hash of its signed part, for all times.
func Revocation(cert *x509.Certificate) []byte {
	sum := sha256.Sum256(cert.RawTBSCertificate)
	var always [16]byte // an EFI_TIME of zero
	return list(certX509SHA256, slices.Concat(sum[:], always[:]))
}

// list returns a signature list with one signature.
func list(kind GUID, data []byte) []byte {
	const header = 28
	size := len(Owner) + len(data)
	b := slices.Clone(kind[:])
	b = binary.LittleEndian.AppendUint32(b, uint32(header+size))
	b = binary.LittleEndian.AppendUint32(b, 0) // no header of this kind
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	return slices.Concat(b, Owner[:], data)
}
