package lab

import (
	"bytes"
	"debug/elf"
	"fmt"

	"livepatch/internal/elftest"
	"livepatch/internal/patch"
)

// A Module is what is signed about a livepatch, and its file.
type Module struct {
	patch.Module
	Content []byte
}

// NewModule returns the nth livepatch for the kernel that runs.
func NewModule(n int) Module { return NewModuleFor(Running, n) }

// NewModuleFor returns the nth livepatch for a kernel.
func NewModuleFor(k patch.Kernel, n int) Module {
	m := patch.Module{
		Kernel:   k,
		Flavour:  "amd64",
		Name:     ModuleName(n),
		Version:  fmt.Sprintf("%d.1", n),
		Sequence: uint64(n),
		Notice:   fmt.Sprintf("LSN-%04d-1", n),
		Fixes:    []string{fmt.Sprintf("CVE-2026-%05d", n)},
	}
	return Module{m, Livepatch(m.Name, k.Release)}
}

// ModuleName returns the name of the nth livepatch for the kernel that runs.
func ModuleName(n int) string { return fmt.Sprintf("lkp_Debian_6_1_0_53_amd64_%d", n) }

// Livepatch returns the smallest file that is a livepatch of that name for a
// kernel of that release.
func Livepatch(name, release string) []byte {
	return ElfFile("livepatch=Y", "license=GPL", "name="+name, "vermagic="+release+" SMP preempt mod_unload modversions ")
}

// ElfFile returns a module whose .modinfo holds the fields, with ten kilobytes of
// code.
func ElfFile(fields ...string) []byte {
	nops := bytes.Repeat([]byte("\x0f\x1f\x44\x00\x00"), 2000)
	return elftest.File{Type: elf.ET_REL, Sections: []elftest.Section{
		elftest.Modinfo(fields...),
		{Name: ".text", Type: elf.SHT_PROGBITS, Data: nops},
	}}.Bytes()
}
