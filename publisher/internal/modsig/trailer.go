// Package modsig signs kernel modules for the kernel's own check, and reads such
// signatures. What machines rely on is the TUF metadata; this is what a kernel
// demands besides when it was started with Secure Boot, or with
// module.sig_enforce.
//
// A signed module is the module, a CMS signature of it in DER (RFC 5652), twelve
// bytes and a marker; see scripts/sign-file.c and kernel/module_signature.c of
// the kernel tree, whose signatures these equal byte by byte.
package modsig

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Conditions that callers branch on.
var (
	ErrUnsigned    = errors.New("module is not signed")
	ErrMalformed   = errors.New("signature of the module is malformed")
	ErrUnsupported = errors.New("kernels do not take such a signature")
	ErrMismatch    = errors.New("signature of the module does not verify")
	ErrOtherKey    = errors.New("module was signed with another key")
	ErrCertificate = errors.New("certificate is not one for kernel modules")
	ErrKey         = errors.New("key cannot sign kernel modules")
)

// marker ends a signed module (MODULE_SIG_STRING).
const marker = "~Module signature appended~\n"

const (
	trailerSize = 12
	idCMS       = 2 // PKEY_ID_PKCS7

	// maxSignature bounds what stands for the signature, in bytes. One with a
	// key of 4096 bits has less than 1 KiB.
	maxSignature = 64 << 10
)

// Split returns a module without its signature, and the signature, nil if there
// is none. Of a module that was signed twice the last signature counts, as for
// the kernel. The error matches [ErrMalformed]: the kernel would not load it.
func Split(module []byte) (body, signature []byte, err error) {
	rest, ok := bytes.CutSuffix(module, []byte(marker))
	if !ok {
		return module, nil, nil
	}
	if len(rest) < trailerSize {
		return nil, nil, fmt.Errorf("%w: there is nothing before its marker", ErrMalformed)
	}
	rest, trailer := rest[:len(rest)-trailerSize], rest[len(rest)-trailerSize:]
	if want := [8]byte{2: idCMS}; !bytes.Equal(trailer[:8], want[:]) {
		return nil, nil, fmt.Errorf("%w: its trailer begins with %x, want %x", ErrMalformed, trailer[:8], want)
	}
	n := binary.BigEndian.Uint32(trailer[8:])
	if n == 0 || n > maxSignature || int(n) >= len(rest) {
		return nil, nil, fmt.Errorf("%w: %d bytes of %d", ErrMalformed, n, len(rest))
	}
	at := len(rest) - int(n)
	return rest[:at], rest[at:], nil
}

// join is the opposite of [Split].
func join(body, signature []byte) []byte {
	trailer := [trailerSize]byte{2: idCMS}
	binary.BigEndian.PutUint32(trailer[8:], uint32(len(signature)))
	return bytes.Join([][]byte{body, signature, trailer[:], []byte(marker)}, nil)
}
