// Package module reads a kernel module file: what it says of itself and the
// kernel it was built for. It reads ELF headers and .modinfo, nothing else.
package module

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"strings"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// Reasons to refuse a file that is not what it should be.
var (
	ErrNotELF    = errors.New("file is not an ELF module")
	ErrTruncated = errors.New("file is truncated or corrupt")
	ErrNoField   = errors.New("module does not say")
)

// maxModinfo bounds .modinfo, in bytes. Those of Debian 6.1 stay below 16 KiB.
const maxModinfo = 1 << 20

// Info is what a module says of itself.
type Info struct {
	Arch    string // as printed by uname -m
	Release string // first word of the vermagic
	Name    string // as in /proc/modules
	Length  int64  // of the file, in bytes
	Digest  patch.Digest
}

// Read reads a livepatch module. Errors match [patch.ErrTooLarge],
// [ErrNotELF], [ErrTruncated], [patch.ErrNotLivepatch] or [ErrNoField].
func Read(b []byte) (Info, error) {
	if len(b) > service.MaxModule {
		return Info{}, fmt.Errorf("%w: %d bytes, at most %d", patch.ErrTooLarge, len(b), service.MaxModule)
	}
	f, err := open(b)
	if err != nil {
		return Info{}, err
	}
	arch, err := Arch(f)
	if err != nil {
		return Info{}, err
	}
	fields, err := modinfo(f)
	if err != nil {
		return Info{}, err
	}
	info := Info{Arch: arch, Length: int64(len(b)), Digest: sha256.Sum256(b)}
	return info, info.fill(fields)
}

// open reads the ELF headers of a relocatable file and checks that every
// section lies inside it.
func open(b []byte) (*elf.File, error) {
	if !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return nil, ErrNotELF
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	if f.Type != elf.ET_REL {
		return nil, fmt.Errorf("%w: ELF type is %v, want ET_REL", ErrNotELF, f.Type)
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOBITS && (s.Offset > uint64(len(b)) || s.FileSize > uint64(len(b))-s.Offset) {
			return nil, fmt.Errorf("%w: section %q ends after the file", ErrTruncated, s.Name)
		}
	}
	return f, nil
}

// Arch returns what uname -m prints on the machine that f is for.
func Arch(f *elf.File) (string, error) {
	type target struct {
		machine elf.Machine
		class   elf.Class
		data    elf.Data
	}
	arches := map[target]string{
		{elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB}:  "x86_64",
		{elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB}: "aarch64",
		{elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB}:    "s390x",
		{elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB}:   "ppc64le",
	}
	arch, ok := arches[target{f.Machine, f.Class, f.Data}]
	if !ok {
		return "", fmt.Errorf("%w: %v %v %v, want x86_64, aarch64, s390x or ppc64le", ErrNotELF, f.Machine, f.Class, f.Data)
	}
	return arch, nil
}

// modinfo returns the values of each field of .modinfo.
func modinfo(f *elf.File) (map[string][]string, error) {
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%w: it has no section .modinfo", ErrNotELF)
	}
	if s.FileSize > maxModinfo || s.Flags&elf.SHF_COMPRESSED != 0 {
		return nil, fmt.Errorf("%w: .modinfo is compressed or longer than %d bytes", ErrNotELF, maxModinfo)
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	return parseModinfo(b), nil
}

// parseModinfo splits "key=value\0key=value\0". Strings without "=" are
// padding.
func parseModinfo(b []byte) map[string][]string {
	fields := make(map[string][]string)
	for entry := range bytes.SplitSeq(b, []byte{0}) {
		if key, value, ok := strings.Cut(string(entry), "="); ok {
			fields[key] = append(fields[key], value)
		}
	}
	return fields
}

// fill takes what is needed from the fields of .modinfo.
func (info *Info) fill(fields map[string][]string) error {
	if live := fields["livepatch"]; len(live) != 1 || live[0] != "Y" {
		return fmt.Errorf("%w: .modinfo has no livepatch=Y", patch.ErrNotLivepatch)
	}
	vermagic, err := one(fields, "vermagic")
	if err != nil {
		return err
	}
	release, _, _ := strings.Cut(vermagic, " ")
	if err := patch.CheckWord("a kernel release", release); err != nil {
		return fmt.Errorf("cannot read vermagic %q: %w", vermagic, err)
	}
	name, err := one(fields, "name")
	if err != nil {
		return err
	}
	if err := patch.CheckModuleName(name); err != nil {
		return err
	}
	info.Release, info.Name = release, name
	return nil
}

// one returns the value of a field that must be there once: the kernel reads
// the first of several, another reader might read the last.
func one(fields map[string][]string, key string) (string, error) {
	switch values := fields[key]; len(values) {
	case 1:
		return values[0], nil
	case 0:
		return "", fmt.Errorf("%w: .modinfo has no %s", ErrNoField, key)
	default:
		return "", fmt.Errorf("%w: .modinfo has %d times %s", ErrNoField, len(values), key)
	}
}
