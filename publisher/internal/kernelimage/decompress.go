package kernelimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// maxWindow bounds what a decompressor may keep of its output, in bytes: the
// kernel's build uses "zstd -22 --ultra", which needs 128 MiB.
const maxWindow = 128 << 20

// compressions maps the first bytes of a file to the reader of its format.
var compressions = []struct {
	name, magic string
	open        func(b []byte) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"lz4", "\x02\x21\x4c\x18", openLZ4Legacy},
	{"lz4", "\x04\x22\x4d\x18", func(b []byte) (io.Reader, error) { return lz4.NewReader(bytes.NewReader(b)), nil }},
}

// decompress returns what b was made from. It stops at the end of the
// compressed stream: the kernel's build appends the length to it, 4 bytes that
// belong to no format.
func decompress(b []byte, limit int64) ([]byte, error) {
	for _, c := range compressions {
		if !bytes.HasPrefix(b, []byte(c.magic)) {
			continue
		}
		r, err := c.open(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrTruncated, c.name, err)
		}
		return readCapped(r, limit)
	}
	return nil, fmt.Errorf("%w: it is neither a vmlinux nor a bzImage, nor compressed with gzip, xz, zstd or lz4", ErrFormat)
}

func openGzip(b []byte) (io.Reader, error) {
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	return zr, nil
}

func openXZ(b []byte) (io.Reader, error) {
	// A stream ends with "YZ". What is appended to it cannot, for that would be
	// a length above the limit; but the reader would take it for padding if it
	// begins with a zero.
	if end := len(b) - 4; !bytes.HasSuffix(b, []byte("YZ")) && end > 0 && bytes.HasSuffix(b[:end], []byte("YZ")) {
		b = b[:end]
	}
	zr, err := xz.NewReader(bytes.NewReader(b), maxWindow)
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	return zr, nil
}

// openZstd reads one frame. The decoder would go on after its end and fail, so
// the end is looked for first.
func openZstd(b []byte) (io.Reader, error) {
	b, err := zstdFrame(b)
	if err != nil {
		return nil, err
	}
	zr, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(MaxLength))
	if err != nil {
		return nil, err
	}
	return zr, nil
}

// zstdFrame returns the first frame of b (RFC 8878, section 3.1.1). The length
// of a block is in the upper 21 bits of its 3-byte header.
func zstdFrame(b []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return nil, err
	}
	const rle = 1 // a block that is one byte, repeated
	end := h.HeaderSize
	for last := false; !last; {
		if len(b)-end < 3 {
			return nil, io.ErrUnexpectedEOF
		}
		header := int(b[end]) | int(b[end+1])<<8 | int(b[end+2])<<16
		last = header&1 == 1
		size := header >> 3
		if header>>1&3 == rle {
			size = 1
		}
		end += 3 + size
	}
	if h.HasCheckSum {
		end += 4
	}
	if end > len(b) {
		return nil, io.ErrUnexpectedEOF
	}
	return b[:end], nil
}

// lz4Block is what a block of the legacy format holds when decompressed; only
// the last may hold less.
const lz4Block = 8 << 20

// openLZ4Legacy reads the format that the kernel uses: the magic, then blocks
// with their compressed length before them, without an end mark. What remains
// and is too short for another block is the appended length.
func openLZ4Legacy(b []byte) (io.Reader, error) {
	return &lz4Legacy{in: b[4:], block: make([]byte, lz4Block)}, nil
}

type lz4Legacy struct {
	in    []byte // blocks still to come
	block []byte
	out   []byte // the rest of the block that is being read
}

// Read implements [io.Reader].
func (z *lz4Legacy) Read(p []byte) (int, error) {
	for len(z.out) == 0 {
		if len(z.in) <= 4 {
			return 0, io.EOF
		}
		size := binary.LittleEndian.Uint32(z.in)
		if uint64(size) > uint64(len(z.in)-4) {
			return 0, fmt.Errorf("lz4: %w", io.ErrUnexpectedEOF)
		}
		n, err := lz4.UncompressBlock(z.in[4:4+size], z.block)
		if err != nil {
			return 0, err
		}
		z.in, z.out = z.in[4+size:], z.block[:n]
	}
	n := copy(p, z.out)
	z.out = z.out[n:]
	return n, nil
}
