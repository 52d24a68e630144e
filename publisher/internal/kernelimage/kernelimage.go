// Package kernelimage reads which kernel a kernel image file holds: its
// architecture, its release and the GNU build-id of its vmlinux, the same that
// the running kernel shows in /sys/kernel/notes.
//
// It reads an uncompressed vmlinux, an x86 bzImage (Documentation/arch/x86/boot.rst
// in the kernel tree), an EFI zboot image, and each of them as a whole or its
// payload compressed with gzip, xz, zstd or lz4.
package kernelimage

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/module"
)

// MaxLength bounds an image, and what it decompresses to, in bytes. A Debian
// 6.1 vmlinux is 60 MB without debug information.
const MaxLength = 256 << 20

// Reasons to refuse a file.
var (
	ErrFormat    = errors.New("file is not a kernel image that can be read")
	ErrTruncated = errors.New("kernel image is truncated or corrupt")
	ErrNoBuildID = errors.New("kernel image has no build-id")
)

// An Image is what is known of a kernel image.
type Image struct {
	patch.Kernel        // Release is "" if the image does not say
	Version      string // what follows the release in the banner, may be ""
}

// ReadFile reads the image in the file of that name.
func ReadFile(name string) (Image, error) {
	f, err := os.Open(name)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	b, err := readCapped(f, MaxLength)
	if err != nil {
		return Image{}, err
	}
	return Read(b)
}

// Read reads an image. Errors match [ErrFormat], [ErrTruncated],
// [ErrNoBuildID] or [patch.ErrTooLarge].
func Read(b []byte) (Image, error) { return read(b, MaxLength) }

// read is Read with a limit on what is decompressed, in bytes.
func read(b []byte, limit int64) (Image, error) {
	// An image can be wrapped twice, as in a compressed file of a bzImage; no
	// tool wraps deeper than three times.
	var banner string
	for range 4 {
		if bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
			return readVmlinux(b, banner)
		}
		var err error
		switch {
		case isBzImage(b):
			b, banner, err = openBzImage(b, limit)
		case isZboot(b):
			b, err = openZboot(b, limit)
		default:
			b, err = decompress(b, limit)
		}
		if err != nil {
			return Image{}, err
		}
	}
	return Image{}, fmt.Errorf("%w: it is compressed more than three times", ErrFormat)
}

func readVmlinux(b []byte, banner string) (Image, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	arch, err := module.Arch(f)
	if err != nil {
		return Image{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	id, err := buildID(f)
	if err != nil {
		return Image{}, err
	}
	if banner == "" {
		banner = findBanner(b)
	}
	release, version := splitBanner(banner)
	return Image{Kernel: patch.Kernel{Arch: arch, Release: release, BuildID: id}, Version: version}, nil
}

// maxBanner bounds the text that a kernel says its version with, in bytes.
const maxBanner = 1024

// findBanner returns the text after "Linux version " in a vmlinux, "" if it is
// not there.
func findBanner(b []byte) string {
	prefix := []byte("Linux version ")
	for {
		i := bytes.Index(b, prefix)
		if i < 0 {
			return ""
		}
		b = b[i+len(prefix):]
		// The same words stand in formats of messages, followed by "%s".
		if len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
			return text(b)
		}
	}
}

// text returns the NUL-terminated string at the start of b, or "" if it is
// longer than a banner can be.
func text(b []byte) string {
	b = b[:min(len(b), maxBanner)]
	s, _, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return ""
	}
	return string(bytes.TrimSpace(s))
}

// splitBanner takes the release from "6.1.0-53-amd64 (debian-kernel@…) #1 SMP".
func splitBanner(banner string) (release, version string) {
	r, v, _ := bytes.Cut([]byte(banner), []byte(" "))
	if patch.CheckWord("a kernel release", string(r)) != nil {
		return "", ""
	}
	return string(r), string(v)
}

// readCapped reads all of r, or fails with [patch.ErrTooLarge].
func readCapped(r io.Reader, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	n, err := buf.ReadFrom(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	if n > limit {
		return nil, fmt.Errorf("%w: kernel image exceeds %d bytes", patch.ErrTooLarge, limit)
	}
	return buf.Bytes(), nil
}
