package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"livepatch/tests/vm/guest"
)

// Tools are the programs that machines need, built once.
type Tools struct {
	init    string // tests/vm/init
	forward string // tests/vm/cmd/forward
	busybox string

	once    sync.Once
	applets []string
	err     error
}

// NewTools builds the harness's own programs into dir with the Go tool. Packages
// are found from the module of the working directory.
func NewTools(ctx context.Context, dir string) (*Tools, error) {
	if err := Build(ctx, dir, "livepatch/tests/vm/init", "livepatch/tests/vm/cmd/forward"); err != nil {
		return nil, err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("cannot find busybox: %w", err)
	}
	return &Tools{init: filepath.Join(dir, "init"), forward: filepath.Join(dir, "forward"), busybox: busybox}, nil
}

// Build builds Go programs as they are shipped: static, without the paths of this
// machine.
func Build(ctx context.Context, dir string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// files returns the files that every machine has.
func (t *Tools) files() ([]File, error) {
	t.once.Do(func() {
		out, err := exec.Command(t.busybox, "--list").Output()
		t.applets, t.err = strings.Fields(string(out)), err
	})
	if t.err != nil {
		return nil, fmt.Errorf("cannot list what busybox can do: %w", t.err)
	}
	files := []File{
		{Path: "/init", Mode: 0o755, Source: t.init},
		{Path: "/bin/busybox", Mode: 0o755, Source: t.busybox},
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost\n")},
		{Path: "/root/.profile"},
	}
	for _, name := range t.applets {
		if name != "busybox" {
			files = append(files, File{Path: "/bin/" + name, Mode: os.ModeSymlink, Data: []byte("busybox")})
		}
	}
	return files, nil
}

// initramfs is the file of a machine's folder with its first file system.
const initramfs = "initramfs"

// makeInitramfs writes the machine's first file system.
func makeInitramfs(opts Options) error {
	files, err := opts.Tools.files()
	if opts.Root != nil {
		files, opts.Files, err = opts.Tools.rootFiles(), overlay(opts.Files), nil
	}
	if err != nil {
		return err
	}
	names := drivers
	if opts.Firmware != nil {
		names = append(slices.Clone(drivers), "efivarfs")
	}
	modules, err := moduleFiles(opts.Kernel.Modules, names)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, m := range modules {
		p := "/lib/modules/" + strings.TrimSuffix(filepath.Base(m), ".xz")
		image, err := readModule(m)
		if err != nil {
			return err
		}
		files = append(files, File{Path: p, Data: image})
		fmt.Fprintln(&list, p)
	}
	config, err := json.MarshalIndent(opts.Config, "", "\t")
	if err != nil {
		return err
	}
	files = append(files,
		File{Path: guest.ModulesFile, Data: []byte(list.String())},
		File{Path: guest.ConfigFile, Data: config})
	files = append(files, opts.Files...)
	f, err := os.Create(filepath.Join(opts.Dir, initramfs))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeCPIO(f, files); err != nil {
		return err
	}
	return f.Close()
}

// MakeDisk makes an empty ext4 file system, of blocks of 4 KiB as on a disk of the
// usual size. The file is sparse.
func MakeDisk(ctx context.Context, file string, megabytes int) error {
	size := fmt.Sprintf("%dM", megabytes)
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", file, size)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin")
	if cmd.Err != nil { // not in the caller's PATH
		cmd.Path, cmd.Err = "/sbin/mkfs.ext4", nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make disk: %w: %s", err, out)
	}
	return nil
}
