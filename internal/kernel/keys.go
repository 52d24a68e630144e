package kernel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// secureBootVariable is UEFI's own variable (specification, section 3.3), as
// efivarfs shows it: four bytes of attributes, then the value.
const secureBootVariable = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// secureBoot tells whether the firmware started this kernel with Secure Boot:
// nil if it does not say, false where there is no UEFI.
func secureBoot(fsys fs.FS) *bool {
	b, err := fs.ReadFile(fsys, secureBootVariable)
	if errors.Is(err, fs.ErrNotExist) {
		// Asked only now: a confined loader may read the variable and nothing else.
		if _, err := fs.Stat(fsys, "sys/firmware/efi"); errors.Is(err, fs.ErrNotExist) {
			return new(bool)
		}
	}
	if err != nil || len(b) != 5 || b[4] > 1 {
		return nil
	}
	on := b[4] == 1
	return &on
}

// Bounds on what is told of keys, so that a report has its place in a message. A
// kernel with more keys than that tells of none.
const (
	maxKeys      = 512
	maxKeyDigits = 128 // of an identifier or a hash, in hexadecimal
)

// permWrite is the right of whoever possesses a key to change it
// (KEY_POS_WRITE). A certificate has it in every keyring but .blacklist, where
// certs/blacklist.c gives what is revoked the rights to be seen and found only.
const permWrite = 0x04000000

// moduleKeys returns the public keys that the kernel has certificates of, by
// their subject key identifiers, and what it has on its blacklist: "tbs:" and the
// hash of a certificate's signed part, or "key:" and a subject key identifier.
// Both are in order, lower-case hexadecimal, and nil if they cannot be told.
//
// The argument is /proc/keys, which shows root the keys of all system keyrings,
// though not which key is in which: .builtin_trusted_keys, .machine and .platform
// among others. That a key is here is thus necessary and not sufficient. Hashes
// of revoked programs ("bin:") are hundreds, and none is of a module.
func moduleKeys(proc string) (trusted, revoked []string) {
	for line := range strings.Lines(proc) {
		k, ok := parseKey(line)
		switch {
		case !ok:
		case k.kind == "blacklist" && strings.HasPrefix(k.description, "tbs:"):
			if isHex(k.description[len("tbs:"):]) {
				revoked = append(revoked, k.description)
			}
		case k.kind == "asymmetri": // the kernel cuts it off after 9 letters
			id := certificateID(k.description)
			if id != "" && k.perm&permWrite == 0 {
				revoked = append(revoked, "key:"+id)
			} else if id != "" {
				trusted = append(trusted, id)
			}
		}
	}
	return bounded(trusted), bounded(revoked)
}

func bounded(keys []string) []string {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	if len(keys) > maxKeys {
		return nil
	}
	return keys
}

// A key is a line of /proc/keys.
type key struct {
	perm        uint64
	kind        string
	description string
}

// parseKey reads a line of /proc/keys, whose fields are identifier, flags, use
// count, life, rights, uid, gid, type and description
// (Documentation/security/keys/core.rst). It tells whether this is a key of the
// system that is in force: others may have made a key of any description, but not
// as root.
func parseKey(line string) (key, bool) {
	var fields [8]string
	rest := line
	for i := range fields {
		rest = strings.TrimLeft(rest, " ")
		var ok bool
		if fields[i], rest, ok = strings.Cut(rest, " "); !ok {
			return key{}, false
		}
	}
	flags, rights, uid, gid := fields[1], fields[4], fields[5], fields[6]
	perm, err := strconv.ParseUint(rights, 16, 32)
	// Instantiated, and neither revoked, dead, negative nor invalidated.
	if err != nil || uid != "0" || gid != "0" || !strings.HasPrefix(flags, "I") || strings.ContainsAny(flags, "RDNi") {
		return key{}, false
	}
	return key{perm: perm, kind: fields[7], description: strings.TrimSpace(rest)}, true
}

// certificateID returns the subject key identifier from the description of an
// X.509 key, "Debian Secure Boot CA: 6ccece7e…ea1: X509.rsa bb419ea1 []", as
// crypto/asymmetric_keys/x509_public_key.c and asymmetric_type.c make it; "" for
// keys of other kinds. Of a certificate without an identifier it is the serial
// number.
func certificateID(description string) string {
	i := strings.LastIndex(description, ": X509.")
	if i < 0 {
		return ""
	}
	id := description[:i]
	id = id[strings.LastIndexByte(id, ' ')+1:]
	if !isHex(id) {
		return ""
	}
	return id
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != "" && len(s) <= maxKeyDigits && s == strings.ToLower(s)
}

// readKeys reads /proc/keys, which is as long as users make it: each may have
// hundreds of keys of their own.
func readKeys(fsys fs.FS) string {
	b, err := fs.ReadFile(fsys, "proc/keys")
	if err != nil || len(b) > maxKeysFile || bytes.IndexByte(b, 0) >= 0 {
		return ""
	}
	return string(b)
}

// maxKeysFile bounds /proc/keys, in bytes.
const maxKeysFile = 4 << 20
