package machine

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/therootcompany/xz"
)

// drivers are the modules that a machine needs to have a disk, a network card
// and a control port. Those they depend on follow from the files.
var drivers = []string{"virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "crc32c_generic", "ext4"}

// optional is a driver that newer kernels do without.
const optional = "crc32c_generic"

// moduleFiles returns the files of the modules in names below dir and of all
// that they need, each after those it needs. Modules that are built into the
// kernel have no file and are left out.
//
// The dependencies are read from the modules themselves, because modules.dep is
// made when a kernel is installed, and ours is only unpacked.
func moduleFiles(dir string, names []string) ([]string, error) {
	files, err := findModules(dir)
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	var order []string
	seen := make(map[string]bool)
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		file, ok := files[name]
		if !ok {
			if strings.Contains(strings.ReplaceAll(string(builtin), "-", "_"), "/"+name+".ko\n") {
				return nil
			}
			if name == optional {
				return nil
			}
			return fmt.Errorf("cannot find module %s in %s", name, dir)
		}
		needs, err := dependencies(file)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// findModules maps the name of each module below dir to its file. The kernel
// takes "-" in a file's name as "_".
func findModules(dir string) (map[string]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(strings.TrimSuffix(d.Name(), ".xz"), ".ko"); ok && err == nil {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	return files, err
}

// dependencies returns the names of the modules that a module file asks for in
// its .modinfo.
func dependencies(file string) ([]string, error) {
	image, err := readModule(file)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("cannot read module %s: %w", file, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("cannot read module %s: it has no .modinfo", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("cannot read module %s: %w", file, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(strings.ReplaceAll(string(list), "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// readModule returns a module as the kernel wants it: Debian's newer ones are packed.
func readModule(file string) ([]byte, error) {
	image, err := os.ReadFile(file)
	if err != nil || !strings.HasSuffix(file, ".xz") {
		return image, err
	}
	r, err := xz.NewReader(bytes.NewReader(image), 0)
	if err != nil {
		return nil, fmt.Errorf("cannot unpack module %s: %w", file, err)
	}
	if image, err = io.ReadAll(r); err != nil {
		return nil, fmt.Errorf("cannot unpack module %s: %w", file, err)
	}
	return image, nil
}
