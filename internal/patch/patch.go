// Package patch is the vocabulary that the four trust domains share: what a
// livepatch is for, where its signed records lie, and the conditions that
// callers branch on. It uses the standard library only, because the loader
// links it.
package patch

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// A Digest is the SHA-256 hash of a file.
//
// The zero Digest identifies nothing.
type Digest [32]byte

// ParseDigest reads a digest written as 64 hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return Digest{}, fmt.Errorf("cannot parse digest %.100q: %w", s, err)
	}
	if len(b) != len(Digest{}) {
		return Digest{}, fmt.Errorf("cannot use %d bytes as a digest, need %d", len(b), len(Digest{}))
	}
	return Digest(b), nil
}

// String returns the digest as 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// A Module is the custom block of a module's TUF target: what the vendor signed
// about the file, and what the loader compares with the machine.
type Module struct {
	Kernel
	Flavour  string   `json:"flavour"`  // "amd64", "generic", "aws"
	Name     string   `json:"name"`     // as in /proc/modules, "lkp_Debian_6_1_0_53_amd64_1"
	Version  string   `json:"version"`  // of the patch, "113.1"; shared by all kernels it was built for
	Sequence uint64   `json:"sequence"` // grows with every patch of one kernel; never below 1
	Notice   string   `json:"notice"`   // "LSN-0113-1"
	Fixes    []string `json:"fixes"`    // names of the vulnerabilities, "CVE-2025-68263"
	// SigningKey is the key that signed the module for the kernel's own check: the
	// subject key identifier of its certificate, in lower-case hexadecimal. Empty:
	// the module is unsigned, or was published before this was told.
	SigningKey string `json:"signing_key,omitempty"`
}

// MaxModuleName is the longest module name that Linux takes: MODULE_NAME_LEN
// less its NUL, on 64-bit machines (include/linux/moduleparam.h).
const MaxModuleName = 64 - 8 - 1

var (
	// word is what may stand in a path of the repository. It has no "/", so
	// that a name cannot leave its folder, and no glob character.
	word       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}$`)
	moduleName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)
	version    = regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,9}){0,3}$`)
	keyID      = regexp.MustCompile(`^([0-9a-f]{2}){1,64}$`)
)

// CheckWord returns an error unless s can be a vendor, release, flavour,
// architecture or tier: up to 128 letters, digits and "._+~-", the first a
// letter or digit.
func CheckWord(what, s string) error {
	if !word.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("cannot use %.100q as %s: %w", s, what, ErrInvalid)
	}
	return nil
}

// CheckModuleName returns an error unless s can be the name of a module in the
// kernel and of its folder in /sys/kernel/livepatch.
func CheckModuleName(s string) error {
	if len(s) > MaxModuleName || !moduleName.MatchString(s) {
		return fmt.Errorf("cannot use %.100q as a module name: %w", s, ErrInvalid)
	}
	return nil
}

// CheckVersion returns an error unless s is one to four numbers joined by dots.
func CheckVersion(s string) error {
	if !version.MatchString(s) {
		return fmt.Errorf("cannot use %.100q as a patch version: %w", s, ErrInvalid)
	}
	return nil
}

// CheckKeyID returns an error unless s can be a subject key identifier: up to 64
// bytes in lower-case hexadecimal, as the kernel shows them.
func CheckKeyID(s string) error {
	if !keyID.MatchString(s) {
		return fmt.Errorf("cannot use %.150q as a key identifier: %w", s, ErrInvalid)
	}
	return nil
}

// ParseModule reads a custom block. Fields that it does not know are ignored,
// so that a newer publisher can say more; fields that it needs must be there.
func ParseModule(b []byte) (Module, error) {
	var m Module
	if err := json.Unmarshal(b, &m); err != nil {
		return Module{}, fmt.Errorf("cannot read description of module: %w: %w", ErrMalformed, err)
	}
	if err := m.Validate(); err != nil {
		return Module{}, fmt.Errorf("cannot read description of module: %w", err)
	}
	return m, nil
}

// Validate returns an error matching [ErrInvalid] if a field is missing or
// cannot be what it is for.
func (m Module) Validate() error {
	if err := CheckWord("an architecture", m.Arch); err != nil {
		return err
	}
	if err := CheckWord("a kernel release", m.Release); err != nil {
		return err
	}
	if err := CheckWord("a flavour", m.Flavour); err != nil {
		return err
	}
	if _, err := ParseBuildID(string(m.BuildID)); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := CheckModuleName(m.Name); err != nil {
		return err
	}
	if err := CheckVersion(m.Version); err != nil {
		return err
	}
	if m.Sequence == 0 {
		return fmt.Errorf("cannot use 0 as a sequence number: %w", ErrInvalid)
	}
	if m.SigningKey != "" {
		return CheckKeyID(m.SigningKey)
	}
	return nil
}

// A Priority ranks a vulnerability as Ubuntu's security team does.
type Priority string

// The priorities, lowest first.
const (
	Negligible Priority = "negligible"
	Low        Priority = "low"
	Medium     Priority = "medium"
	High       Priority = "high"
	Critical   Priority = "critical"
)

// ParsePriority reads a priority.
func ParsePriority(s string) (Priority, error) {
	switch p := Priority(s); p {
	case Negligible, Low, Medium, High, Critical:
		return p, nil
	}
	return "", fmt.Errorf("cannot use %.100q as a priority, need negligible, low, medium, high or critical: %w", s, ErrInvalid)
}

// A Fix is one vulnerability that a patch closes, or cannot close.
type Fix struct {
	Name     string   `json:"name"` // "CVE-2025-68263"
	Priority Priority `json:"priority"`
	Summary  string   `json:"summary,omitempty"` // one sentence
	Bug      string   `json:"bug,omitempty"`     // "LP: #1851550"
}

// An Index is the per-kernel index: a target of its own, so that a machine
// fetches what concerns its kernel and nothing else.
type Index struct {
	Arch    string `json:"arch"`
	Release string `json:"release"`
	Flavour string `json:"flavour"`
	// KernelVersion is the distribution's full version: field 2 of
	// /proc/version_signature on Ubuntu, the package version on Debian.
	KernelVersion string `json:"kernel_version,omitempty"`
	// From and Until bound the support window, as dates ("2026-11-22", UTC).
	// Until is the last day.
	From  string `json:"from"`
	Until string `json:"until"`
	// Patches are in the order of their sequence numbers.
	Patches []IndexEntry `json:"patches"`
	// Unpatchable are vulnerabilities of this kernel that no livepatch can
	// close: the way out is the kernel that FixedIn names, and a reboot.
	Unpatchable []Unpatchable `json:"unpatchable,omitempty"`
}

// An IndexEntry is one patch for the kernel of an [Index].
type IndexEntry struct {
	Target   string  `json:"target"` // path of the module's target
	Name     string  `json:"name"`
	Version  string  `json:"version"`
	Sequence uint64  `json:"sequence"`
	BuildID  BuildID `json:"build_id"`
	Notice   string  `json:"notice"`
	Added    string  `json:"added"` // RFC 3339, UTC
	Fixes    []Fix   `json:"fixes"`
}

// An Unpatchable is a vulnerability that needs another kernel.
type Unpatchable struct {
	Fix
	FixedIn string `json:"fixed_in"` // kernel release to install
}

// ParseIndex reads a per-kernel index.
func ParseIndex(b []byte) (Index, error) {
	var ix Index
	if err := json.Unmarshal(b, &ix); err != nil {
		return Index{}, fmt.Errorf("cannot read kernel index: %w: %w", ErrMalformed, err)
	}
	for _, e := range ix.Patches {
		if err := CheckModuleName(e.Name); err != nil {
			return Index{}, fmt.Errorf("cannot read kernel index: %w", err)
		}
		if err := CheckVersion(e.Version); err != nil {
			return Index{}, fmt.Errorf("cannot read kernel index: %w", err)
		}
	}
	return ix, nil
}
