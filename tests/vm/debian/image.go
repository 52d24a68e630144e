package debian

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"livepatch/tests/vm/machine"
)

// generation is part of the hash of what is made here. It goes up whenever this
// package makes something else of the same recipe.
const generation = 2

// diskMB is the size of a disk in MiB. The file is sparse.
const diskMB = 4096

// quiet are units that every disk does without: nobody logs in, nothing is
// updated, and each of them would cost an emulated machine time.
var quiet = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
	"getty@tty1.service", "serial-getty@ttyS0.service", "getty-static.service", "systemd-timesyncd.service",
	"systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-random-seed.service", "systemd-networkd.service",
	"systemd-pcrmachine.service", "systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service", "systemd-tpm2-clear.service",
	"ldconfig.service", "systemd-hwdb-update.service", "systemd-firstboot.service", "man-db.timer", "logrotate.timer",
}

// files are on every disk.
var files = []machine.File{
	{Path: "/etc/hostname", Data: []byte("machine\n")},
	{Path: "/etc/machine-id", Data: []byte("6c6976657061746368746573746d6163\n")},
	{Path: "/etc/fstab", Data: []byte("/dev/vda / ext4 defaults 0 0\n")},
	{Path: "/etc/systemd/journald.conf.d/test.conf", Data: []byte("[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nSystemMaxUse=64M\n")},
	{Path: "/etc/systemd/system.conf.d/test.conf", Data: []byte("[Manager]\nShowStatus=no\nDefaultTimeoutStartSec=600\n")},
	{Path: "/var/log/journal", Mode: fs.ModeDir | 0o755},
}

// Image returns the disk of a recipe, which it makes if the cache does not have it.
func (c *Cache) Image(ctx context.Context, name string, r Recipe) (*Image, error) {
	img, err := c.image(ctx, name, r)
	if err != nil {
		return nil, fmt.Errorf("cannot make disk %s of Debian %s: %w", name, r.Suite, err)
	}
	return img, nil
}

func (c *Cache) image(ctx context.Context, name string, r Recipe) (*Image, error) {
	r.Packages = append(slices.Clone(base), r.Packages...)
	r.Mask = append(slices.Clone(quiet), r.Mask...)
	r.Files = append(slices.Clone(files), r.Files...)
	a, err := openArchive(ctx, filepath.Join(c.dir, "apt-"+string(r.Suite)), r.Suite)
	if err != nil {
		return nil, err
	}
	versions, err := a.resolve(ctx, r.Packages)
	if err != nil {
		return nil, err
	}
	parts, err := describe(r, versions)
	if err != nil {
		return nil, err
	}
	dir, hash, err := c.entry(ctx, string(r.Suite)+"-"+name, parts, func(ctx context.Context, dir string) error {
		return a.makeDisk(ctx, dir, r)
	})
	if err != nil {
		return nil, err
	}
	img := &Image{Suite: r.Suite, Disk: filepath.Join(dir, "disk.img"), Versions: versions, hash: hash}
	img.Kernel, err = readKernel(dir, versions)
	return img, err
}

// describe returns all that a disk depends on.
func describe(r Recipe, versions map[string]string) ([]byte, error) {
	content := make(map[string][]byte)
	r.Files = slices.Clone(r.Files)
	for i, f := range r.Files {
		if f.Source == "" {
			continue
		}
		b, err := os.ReadFile(f.Source)
		if err != nil {
			return nil, err
		}
		content[f.Path] = b
		r.Files[i].Source = "" // where it lies does not matter
	}
	described := struct {
		Generation int
		Recipe     Recipe
		Content    map[string][]byte
		Versions   map[string]string
	}{generation, r, content, versions}
	return json.Marshal(described)
}

// makeDisk bootstraps a system and writes the folder of an [Image].
func (a *archive) makeDisk(ctx context.Context, dir string, r Recipe) error {
	root := filepath.Join(dir, "root")
	defer os.RemoveAll(root)
	if err := a.bootstrap(ctx, root, "minbase", r.Packages); err != nil {
		return err
	}
	for _, unit := range r.Mask {
		link := filepath.Join(root, "etc/systemd/system", unit)
		if err := errors.Join(os.RemoveAll(link), os.Symlink("/dev/null", link)); err != nil {
			return err
		}
	}
	for _, f := range r.Files {
		if err := put(root, f); err != nil {
			return err
		}
	}
	for _, c := range r.Commands {
		if _, err := command(ctx, root, nil, "/bin/sh", "-ec", c); err != nil {
			return err
		}
	}
	if err := takeKernel(root, dir); err != nil {
		return err
	}
	disk := filepath.Join(dir, "disk.img")
	_, err := command(ctx, "", nil, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=1", "-d", root, disk, fmt.Sprintf("%dM", diskMB))
	return err
}

// bootstrap makes a root file system with packages.
func (a *archive) bootstrap(ctx context.Context, root, variant string, packages []string) error {
	if os.Geteuid() != 0 {
		return errors.New("mmdebstrap needs root; run it once with sudo, what it makes is kept in the cache")
	}
	args := []string{
		"--quiet", "--mode=root", "--format=directory", "--variant=" + variant, "--include=" + strings.Join(packages, ","),
		`--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=force-unsafe-io",
		string(a.suite), root, a.sourcesFile(),
	}
	// INITRD=No: the hooks of the kernel's package make no initramfs. We have ours.
	_, err := command(ctx, "", []string{"INITRD=No"}, "mmdebstrap", args...)
	return err
}

// put writes a file into a root.
func put(root string, f machine.File) error {
	path := filepath.Join(root, f.Path)
	if f.Mode.IsDir() {
		return os.MkdirAll(path, f.Mode.Perm())
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.RemoveAll(path)); err != nil {
		return err
	}
	if f.Mode&fs.ModeSymlink != 0 {
		return os.Symlink(string(f.Data), path)
	}
	data := f.Data
	if f.Source != "" {
		var err error
		if data, err = os.ReadFile(f.Source); err != nil {
			return err
		}
	}
	mode := f.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	return errors.Join(os.WriteFile(path, data, mode), os.Chmod(path, mode))
}

// takeKernel moves the kernel out of a root: QEMU starts it, and the root has no
// use for it. Its modules stay there, and the initramfs needs some of them too.
func takeKernel(root, dir string) error {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("there are %d kernels in the root, want 1", len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if err := os.Rename(images[0], filepath.Join(dir, "vmlinuz-"+release)); err != nil {
		return err
	}
	modules := filepath.Join(root, "lib/modules", release)
	return os.CopyFS(filepath.Join(dir, "modules", release), os.DirFS(modules))
}

// readKernel returns the kernel of an image's folder. QEMU starts it as it is
// packed, for each suite packs it in another way.
func readKernel(dir string, versions map[string]string) (*machine.Kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("there are %d kernels in %s, want 1", len(images), dir)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return &machine.Kernel{
		Release: release, Flavour: flavour, Version: versions["linux-image-"+release],
		Image: images[0], VMLinux: images[0], Modules: filepath.Join(dir, "modules", release),
	}, nil
}
