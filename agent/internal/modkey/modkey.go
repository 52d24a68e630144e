// Package modkey knows, before a module is fetched, whether the kernel will take
// its signature, and says what to do if not.
//
// It decides nothing that security rests on: the kernel checks by itself, and the
// loader hands it what the metadata vouches for. It saves a machine from trying
// what cannot work, and its owner from guessing.
package modkey

import (
	"slices"

	"livepatch/agent/internal/loader"
)

// A Verdict says how a kernel stands to the key of a module.
type Verdict string

// The verdicts. They are part of the JSON format of status.
const (
	Unknown  Verdict = "unknown"      // which keys the kernel has cannot be told
	Unsigned Verdict = "unsigned"     // there is no key
	Missing  Verdict = "not-enrolled" // the kernel does not have the key
	Revoked  Verdict = "revoked"      // the key is on the kernel's blacklist
	Enrolled Verdict = "enrolled"     // the kernel has the key
)

// Judge says how a kernel stands to a key, named by its subject key identifier in
// lower-case hexadecimal. Whether the kernel demands signatures at all is another
// matter. The certificate is the one that was shipped; of the zero Certificate,
// or one of another key, no hash can be on the blacklist.
func Judge(k loader.Kernel, key string, cert Certificate) Verdict {
	switch {
	case key == "":
		return Unsigned
	case slices.Contains(k.RevokedKeys, "key:"+key), key == cert.KeyID && cert.isIn(k.RevokedKeys):
		return Revoked
	case len(k.ModuleKeys) == 0:
		return Unknown
	case slices.Contains(k.ModuleKeys, key):
		return Enrolled
	}
	return Missing
}
