package kernelimage_test

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"livepatch/internal/elftest"
	"livepatch/internal/patch"
	"livepatch/publisher/internal/kernelimage"
)

const (
	release = "6.1.0-53-amd64"
	banner  = release + " (builder@example) #1 SMP Debian 6.1.187-1"
	buildID = "00112233445566778899aabbccddeeff00112233"
)

func vmlinux() []byte { return elftest.Vmlinux(banner, buildID) }

// withLength appends the length of the content, as the kernel's build does for
// every format but gzip, whose own trailer has it.
func withLength(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, uint32(len(vmlinux())))
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	must(w.Write(b))
	check(w.Close())
	return buf.Bytes()
}

// zstded compresses as a stream, which does not tell the length, or as a file.
func zstded(b []byte, stream bool, o ...zstd.EOption) []byte {
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, o...)
	check(err)
	if !stream {
		return w.EncodeAll(b, nil)
	}
	must(w.Write(b))
	check(w.Flush())
	check(w.Close())
	return buf.Bytes()
}

func lz4ed(b []byte, legacy bool) []byte {
	var buf bytes.Buffer
	w := lz4.NewWriter(&buf)
	check(w.Apply(lz4.LegacyOption(legacy)))
	must(w.Write(b))
	check(w.Close())
	return buf.Bytes()
}

func must(_ int, err error) { check(err) }

// check is for writers into memory, which do not fail.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// zboot wraps a payload as drivers/firmware/efi/libstub does.
func zboot(payload []byte) []byte {
	b := make([]byte, 64)
	copy(b, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(b[8:], 64)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	return append(b, payload...)
}

func testdata(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadFindsBuildID(t *testing.T) {
	xz := testdata(t, "vmlinux.xz") // made with: xz --check=crc32 --x86 --lzma2=dict=32MiB
	tests := map[string][]byte{
		"vmlinux":                         vmlinux(),
		"vmlinux in gzip":                 gzipped(vmlinux()),
		"vmlinux in zstd":                 zstded(vmlinux(), false),
		"vmlinux in lz4 with frames":      lz4ed(vmlinux(), false),
		"bzImage, gzip":                   elftest.BzImage(banner, gzipped(vmlinux())),
		"bzImage, xz with the x86 filter": elftest.BzImage(banner, withLength(xz)),
		"bzImage, zstd of a stream":       elftest.BzImage(banner, withLength(zstded(vmlinux(), true))),
		"bzImage, zstd with a checksum":   elftest.BzImage(banner, withLength(zstded(vmlinux(), true, zstd.WithEncoderCRC(true)))),
		"bzImage, zstd without checksum":  elftest.BzImage(banner, withLength(zstded(vmlinux(), false, zstd.WithEncoderCRC(false)))),
		"bzImage, lz4 legacy":             elftest.BzImage(banner, withLength(lz4ed(vmlinux(), true))),
		"bzImage, not compressed":         elftest.BzImage(banner, vmlinux()),
		"bzImage in gzip":                 gzipped(elftest.BzImage(banner, withLength(xz))),
		"EFI zboot":                       zboot(gzipped(vmlinux())),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := kernelimage.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			want := kernelimage.Image{
				Kernel:  patch.Kernel{Arch: "x86_64", Release: release, BuildID: buildID},
				Version: strings.TrimPrefix(banner, release+" "),
			}
			if got != want {
				t.Errorf("image = %+v, want %+v", got, want)
			}
		})
	}
}

func TestReadFindsNotes(t *testing.T) {
	big, little := binary.ByteOrder(binary.BigEndian), binary.ByteOrder(binary.LittleEndian)
	tests := map[string]struct {
		file elftest.File
		arch string
	}{
		"big-endian s390x": {elftest.File{Type: elf.ET_EXEC, Machine: elf.EM_S390, BigEnd: true, Sections: []elftest.Section{elftest.Note(big, buildID)}}, "s390x"},
		"only segments":    {elftest.File{Type: elf.ET_EXEC, Segments: true, Sections: []elftest.Section{elftest.Note(little, buildID)}}, "x86_64"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := kernelimage.Read(tc.file.Bytes())
			if err != nil || got.BuildID != buildID || got.Arch != tc.arch || got.Release != "" {
				t.Errorf("image = %+v, %v; want build-id %s, arch %s and no release", got, err, buildID, tc.arch)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	image := elftest.BzImage(banner, gzipped(vmlinux()))
	old := bytes.Clone(image)
	binary.LittleEndian.PutUint16(old[0x206:], 0x0207)
	noNote := elftest.File{Type: elf.ET_EXEC}
	badNote := elftest.File{Type: elf.ET_EXEC, Sections: []elftest.Section{{Name: ".notes", Type: elf.SHT_NOTE, Data: bytes.Repeat([]byte{0xff}, 64)}}}
	lz4Cut := lz4ed(vmlinux(), true)
	tests := map[string]struct {
		file []byte
		want error
	}{
		"nothing":                      {nil, kernelimage.ErrFormat},
		"a text":                       {[]byte("vmlinuz"), kernelimage.ErrFormat},
		"an arm64 Image":               {append(make([]byte, 0x38), "ARM\x64"...), kernelimage.ErrFormat},
		"half of a bzImage":            {image[:len(image)-len(image)/8], kernelimage.ErrTruncated},
		"a boot protocol of 2006":      {old, kernelimage.ErrFormat},
		"half of a vmlinux":            {vmlinux()[:200], kernelimage.ErrTruncated},
		"gzip that ends early":         {gzipped(vmlinux())[:50], kernelimage.ErrTruncated},
		"gzip with a wrong checksum":   {flip(gzipped(vmlinux()), -6), kernelimage.ErrTruncated},
		"xz that ends early":           {testdata(t, "vmlinux.xz")[:100], kernelimage.ErrTruncated},
		"zstd that ends early":         {zstded(vmlinux(), true)[:60], kernelimage.ErrTruncated},
		"lz4 that ends early":          {lz4Cut[:len(lz4Cut)-20], kernelimage.ErrTruncated},
		"a kernel without notes":       {noNote.Bytes(), kernelimage.ErrNoBuildID},
		"notes that are none":          {badNote.Bytes(), kernelimage.ErrNoBuildID},
		"a kernel for i386":            {elftest.File{Type: elf.ET_EXEC, Machine: elf.EM_386}.Bytes(), kernelimage.ErrFormat},
		"gzip in gzip in gzip in gzip": {gzipped(gzipped(gzipped(gzipped(vmlinux())))), kernelimage.ErrFormat},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := kernelimage.Read(tc.file); !errors.Is(err, tc.want) {
				t.Errorf("Read = %+v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func TestReadStopsAtTheLimit(t *testing.T) {
	const limit = 4 << 20
	tests := map[string][]byte{
		"100 bytes that become 4 MiB": zstdZeros(limit + 1),
		"zeros in gzip":               gzipped(make([]byte, limit+1)),
		"zeros in lz4":                lz4ed(make([]byte, limit+1), true),
		"zeros in a bzImage":          elftest.BzImage(banner, gzipped(make([]byte, limit+1))),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := kernelimage.ReadLimited(b, limit); !errors.Is(err, patch.ErrTooLarge) {
				t.Errorf("error = %v, want ErrTooLarge", err)
			}
		})
	}
}

// zstdZeros returns a frame of at least n zeros, in blocks that say "this byte,
// 128 Ki times".
func zstdZeros(n int) []byte {
	const block = 128 << 10
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38} // no content size, window of 128 KiB
	for ; n > 0; n -= block {
		header := uint32(block)<<3 | 1<<1
		if n <= block {
			header |= 1
		}
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 0)
	}
	return b
}

// flip changes one bit of a byte, counted from the end if at is negative.
func flip(b []byte, at int) []byte {
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	return b
}

func TestReadFile(t *testing.T) {
	if _, err := kernelimage.ReadFile(filepath.Join("testdata", "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	if im, err := kernelimage.ReadFile(filepath.Join("testdata", "vmlinux.xz")); err != nil || im.BuildID != buildID {
		t.Errorf("vmlinux.xz: %+v, %v", im, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(vmlinux())
	f.Add(elftest.BzImage(banner, vmlinux()))
	f.Add(elftest.BzImage(banner, gzipped(vmlinux())))
	f.Add(elftest.BzImage(banner, withLength(lz4ed(vmlinux(), true))))
	f.Add(elftest.BzImage(banner, withLength(zstded(vmlinux(), true))))
	f.Add(zboot(gzipped(vmlinux())))
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := kernelimage.Read(b)
		if err != nil {
			return
		}
		if _, err := patch.ParseBuildID(string(im.BuildID)); err != nil || im.Arch == "" {
			t.Errorf("accepted with %+v", im)
		}
	})
}
