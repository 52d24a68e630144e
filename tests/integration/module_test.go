//go:build integration

package integration

import (
	"bytes"
	"debug/elf"
	"fmt"

	"livepatch/internal/elftest"
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

// elfFile returns a module whose .modinfo holds the fields, with ten kilobytes of
// code.
func elfFile(fields ...string) []byte {
	nops := bytes.Repeat([]byte("\x0f\x1f\x44\x00\x00"), 2000)
	return elftest.File{Type: elf.ET_REL, Sections: []elftest.Section{
		elftest.Modinfo(fields...),
		{Name: ".text", Type: elf.SHT_PROGBITS, Data: nops},
	}}.Bytes()
}
