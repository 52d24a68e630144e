//go:build integration

package integration

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"

	"livepatch/internal/patch"
)

// A module is what is signed about a livepatch, and its file.
type module struct {
	patch.Module
	content []byte
}

// newModule returns the nth livepatch for the kernel that runs.
func newModule(n int) module { return newModuleFor(running, n) }

func newModuleFor(k patch.Kernel, n int) module {
	m := patch.Module{
		Kernel:   k,
		Flavour:  "amd64",
		Name:     moduleName(n),
		Version:  fmt.Sprintf("%d.1", n),
		Sequence: uint64(n),
		Notice:   fmt.Sprintf("LSN-%04d-1", n),
		Fixes:    []string{fmt.Sprintf("CVE-2026-%05d", n)},
	}
	return module{m, livepatch(m.Name, k.Release)}
}

func moduleName(n int) string { return fmt.Sprintf("lkp_Debian_6_1_0_53_amd64_%d", n) }

// livepatch returns the smallest file that is a livepatch of that name for a
// kernel of that release.
func livepatch(name, release string) []byte {
	return elfFile("livepatch=Y", "license=GPL", "name="+name, "vermagic="+release+" SMP preempt mod_unload modversions ")
}

// elfFile returns a relocatable ELF file whose .modinfo holds the fields, and some
// code, so that files of two modules differ and have a size.
func elfFile(fields ...string) []byte {
	modinfo := []byte(strings.Join(fields, "\x00") + "\x00")
	text := bytes.Repeat([]byte("\x0f\x1f\x44\x00\x00"), 2000)
	names := []byte("\x00.modinfo\x00.text\x00.shstrtab\x00")
	const header = 64
	at := func(parts ...[]byte) uint64 {
		n := uint64(header)
		for _, p := range parts {
			n += uint64(len(p))
		}
		return n
	}
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: at(), Size: uint64(len(modinfo)), Addralign: 1},
		{Name: 10, Type: uint32(elf.SHT_PROGBITS), Off: at(modinfo), Size: uint64(len(text)), Addralign: 1},
		{Name: 16, Type: uint32(elf.SHT_STRTAB), Off: at(modinfo, text), Size: uint64(len(names)), Addralign: 1},
	}
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: header,
		Shoff: at(modinfo, text, names), Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var out bytes.Buffer
	for _, part := range []any{h, modinfo, text, names, sections} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			panic(err) // all of them have a fixed size
		}
	}
	return out.Bytes()
}
