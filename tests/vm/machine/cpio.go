package machine

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"
)

// A File is one file of the machine's first file system.
type File struct {
	Path string      // absolute, in the machine
	Mode fs.FileMode // permission bits, and fs.ModeSymlink for a link; 0 means 0o644
	// The content: Data, or else the file Source of the host. For a link, Data
	// is where it points.
	Data   []byte
	Source string
}

// content returns what is in the file.
func (f File) content() ([]byte, error) {
	if f.Source == "" {
		return f.Data, nil
	}
	return os.ReadFile(f.Source)
}

// writeCPIO writes an uncompressed archive in the "newc" format, which the kernel
// unpacks into its first root file system
// (Documentation/driver-api/early-userspace/buffer-format.rst). Folders that
// files need are made, and of two files with one path the later is taken.
func writeCPIO(w io.Writer, files []File) error {
	byPath := make(map[string]File)
	for _, f := range files {
		f.Path = strings.TrimPrefix(path.Clean(f.Path), "/")
		byPath[f.Path] = f
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if _, ok := byPath[dir]; !ok {
				byPath[dir] = File{Path: dir, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	paths := make([]string, 0, len(byPath))
	for p := range byPath {
		paths = append(paths, p)
	}
	sort.Strings(paths) // a folder comes before what is in it
	for i, p := range paths {
		if err := writeEntry(w, i+1, byPath[p]); err != nil {
			return fmt.Errorf("cannot put %s into initramfs: %w", p, err)
		}
	}
	return writeEntry(w, 0, File{Path: "TRAILER!!!"})
}

// writeEntry writes a header of 13 numbers in hexadecimal, the name and the
// content, both padded to four bytes.
func writeEntry(w io.Writer, inode int, f File) error {
	data, err := f.content()
	if err != nil {
		return err
	}
	name := f.Path + "\x00"
	var b bytes.Buffer
	fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, unixMode(f.Mode), 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
	b.WriteString(name)
	pad(&b)
	b.Write(data)
	pad(&b)
	_, err = w.Write(b.Bytes())
	return err
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}

// unixMode returns the mode as stat(2) has it.
func unixMode(m fs.FileMode) uint32 {
	perm := uint32(m.Perm())
	switch {
	case m&fs.ModeDir != 0:
		return 0o040000 | perm
	case m&fs.ModeSymlink != 0:
		return 0o120777
	case perm == 0:
		return 0o100644
	default:
		return 0o100000 | perm
	}
}
