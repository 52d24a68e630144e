// Package elftest makes small ELF files for tests: modules and kernels that
// hold what readers look at, and nothing else.
package elftest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// A File describes an ELF file. Its zero value is an x86_64 file of type
// ET_NONE without sections.
type File struct {
	Type     elf.Type
	Machine  elf.Machine // 0 means EM_X86_64
	BigEnd   bool
	Sections []Section
	// Segments makes program headers of the notes instead of section headers.
	Segments bool
}

// A Section is a named piece of a file.
type Section struct {
	Name string
	Type elf.SectionType
	Data []byte
}

// Bytes returns the file: header, contents, section headers.
func (f File) Bytes() []byte {
	order := binary.ByteOrder(binary.LittleEndian)
	data := elf.ELFDATA2LSB
	if f.BigEnd {
		order, data = binary.BigEndian, elf.ELFDATA2MSB
	}
	machine := f.Machine
	if machine == 0 {
		machine = elf.EM_X86_64
	}
	sections := append([]Section{{}}, f.Sections...)
	names := strings.Builder{}
	for _, s := range sections {
		names.WriteString(s.Name + "\x00")
	}
	names.WriteString(".shstrtab\x00")
	sections = append(sections, Section{".shstrtab", elf.SHT_STRTAB, []byte(names.String())})

	const headerSize, sectionSize = 64, 64
	var body bytes.Buffer
	headers := make([]elf.Section64, len(sections))
	name := uint32(0)
	for i, s := range sections {
		headers[i] = elf.Section64{Name: name, Type: uint32(s.Type), Off: headerSize + uint64(body.Len()), Size: uint64(len(s.Data)), Addralign: 1}
		name += uint32(len(s.Name)) + 1
		body.Write(s.Data)
	}
	h := elf.Header64{
		Type: uint16(f.Type), Machine: uint16(machine), Version: 1,
		Shoff: headerSize + uint64(body.Len()), Ehsize: headerSize,
		Shentsize: sectionSize, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(data), 1
	var tail []any
	if f.Segments {
		tail = f.segments(&h, headers)
	} else {
		tail = []any{headers}
	}
	var out bytes.Buffer
	write(&out, order, h)
	out.Write(body.Bytes())
	for _, t := range tail {
		write(&out, order, t)
	}
	return out.Bytes()
}

// segments turns sections of notes into segments and drops the sections.
func (f File) segments(h *elf.Header64, headers []elf.Section64) []any {
	var progs []elf.Prog64
	for _, s := range headers {
		if elf.SectionType(s.Type) == elf.SHT_NOTE {
			progs = append(progs, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: s.Off, Filesz: s.Size, Memsz: s.Size, Align: 4})
		}
	}
	h.Phoff, h.Phentsize, h.Phnum = h.Shoff, 56, uint16(len(progs))
	h.Shoff, h.Shentsize, h.Shnum, h.Shstrndx = 0, 0, 0, 0
	return []any{progs}
}

func write(out *bytes.Buffer, order binary.ByteOrder, v any) {
	if err := binary.Write(out, order, v); err != nil {
		panic(err) // v has no fixed size: a mistake in this package
	}
}

// Modinfo returns a section .modinfo with fields such as "name=lp".
func Modinfo(fields ...string) Section {
	return Section{".modinfo", elf.SHT_PROGBITS, []byte(strings.Join(fields, "\x00") + "\x00")}
}

// Livepatch returns a livepatch module for x86_64.
func Livepatch(name, release string) []byte {
	return File{Type: elf.ET_REL, Sections: []Section{
		Modinfo("livepatch=Y", "license=GPL", "name="+name, "vermagic="+release+" SMP preempt mod_unload modversions "),
	}}.Bytes()
}

// Note returns a section with the notes of a kernel, one of which is the
// build-id, given in hexadecimal.
func Note(order binary.ByteOrder, buildID string) Section {
	id, err := hex.DecodeString(buildID)
	if err != nil {
		panic(err) // a mistake of the test
	}
	var b bytes.Buffer
	note(&b, order, 18, "Xen\x00", []byte("not this one"))
	note(&b, order, 3, "GNU\x00", id)
	return Section{".notes", elf.SHT_NOTE, b.Bytes()}
}

func note(b *bytes.Buffer, order binary.ByteOrder, kind uint32, name string, desc []byte) {
	write(b, order, []uint32{uint32(len(name)), uint32(len(desc)), kind})
	b.WriteString(name)
	b.Write(desc)
	b.Write(make([]byte, -len(desc)&3))
}

// Vmlinux returns a kernel for x86_64. Its banner is what follows "Linux
// version ".
func Vmlinux(banner, buildID string) []byte {
	return File{Type: elf.ET_EXEC, Sections: []Section{
		{".rodata", elf.SHT_PROGBITS, []byte("%s version %s\x00Linux version %s\x00Linux version " + banner + "\x00")},
		Note(binary.LittleEndian, buildID),
	}}.Bytes()
}

// BzImage returns a bzImage with that payload.
func BzImage(banner string, payload []byte) []byte {
	const setupSects = 3
	b := make([]byte, (setupSects+1)*512)
	le := binary.LittleEndian
	b[0x1f1] = setupSects
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x020f)
	le.PutUint16(b[0x20e:], 0x100) // at 0x300
	le.PutUint32(b[0x248:], 16)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	copy(b[0x300:], banner+"\x00")
	b = append(b, make([]byte, 16)...)
	return append(b, payload...)
}
