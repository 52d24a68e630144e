package machine

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/therootcompany/xz"
	"golang.org/x/sys/unix"
)

// A Kernel is a Debian kernel, unpacked from its packages. Nothing of it is
// installed on the host.
type Kernel struct {
	Release string `json:"release"` // as uname -r says, "6.1.0-56-amd64"
	Flavour string `json:"flavour"` // "amd64", "cloud-amd64"
	Version string `json:"version"` // of the package, "6.1.192-2"
	Headers string `json:"headers"` // the folder to build modules in
	// Root is the folder that Headers is a path in, and which has the compiler.
	// Empty means the host's.
	Root string `json:"root,omitempty"`
	// The rest is empty for a kernel that was fetched to build for, not to run.
	Image   string `json:"image"`    // the compressed image, as Debian ships it
	Modules string `json:"modules"`  // the folder of its modules
	BuildID string `json:"build_id"` // of vmlinux, in hexadecimal
	// VMLinux is the image, unpacked. It enters the kernel by the PVH note and
	// saves the guest the unpacking, which is half of the time until its prompt
	// where the processor is emulated.
	VMLinux string `json:"vmlinux"`
}

// Fetch downloads and unpacks the newest kernel of a flavour that the host's
// package sources have, or returns what an earlier call left in the folder cache.
// Without run, the headers are enough and the image is left out.
func Fetch(ctx context.Context, cache, flavour string, run bool) (*Kernel, error) {
	k, err := fetch(ctx, cache, flavour, run)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch kernel %s: %w", flavour, err)
	}
	return k, nil
}

func fetch(ctx context.Context, cache, flavour string, run bool) (*Kernel, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	known := filepath.Join(cache, fmt.Sprintf("kernel-%s-%t.json", flavour, run))
	lists, err := os.Stat(packageLists)
	if err != nil {
		return nil, err
	}
	k := new(Kernel)
	if b, err := os.ReadFile(known); err == nil && newerThan(known, lists.ModTime()) && json.Unmarshal(b, k) == nil && exists(k.Headers) {
		return k, nil
	}
	if k, err = resolve(ctx, cache, flavour, run); err != nil {
		return nil, err
	}
	b, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	return k, writeFile(known, b)
}

// packageLists changes when the host learns of new packages. Asking apt takes
// seconds, so it is asked again only then.
const packageLists = "/var/lib/apt/lists"

// resolve finds out which packages make the kernel, and unpacks them.
func resolve(ctx context.Context, cache, flavour string, run bool) (*Kernel, error) {
	headers, err := depends(ctx, "linux-headers-"+flavour, `linux-headers-[0-9].*-`+regexp.QuoteMeta(flavour))
	if err != nil {
		return nil, err
	}
	release := strings.TrimPrefix(headers, "linux-headers-")
	packages := []string{headers}
	for _, pattern := range []string{`linux-headers-.*-common`, `linux-kbuild-.*`} {
		p, err := depends(ctx, headers, pattern)
		if err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
	if run {
		packages = append(packages, "linux-image-"+release)
	}
	// One folder for all: the headers refer to their common part by "../".
	root := filepath.Join(cache, "kernels")
	for _, p := range packages {
		if err := unpack(ctx, cache, root, p); err != nil {
			return nil, err
		}
	}
	k := &Kernel{Release: release, Flavour: flavour, Headers: filepath.Join(root, "usr/src", headers)}
	if k.Version, err = packageVersion(cache, headers); err != nil {
		return nil, err
	}
	if err := relocateHeaders(k.Headers); err != nil {
		return nil, err
	}
	if !run {
		return k, nil
	}
	k.Image = filepath.Join(root, "boot", "vmlinuz-"+release)
	k.Modules = filepath.Join(root, "lib/modules", release)
	return k, k.unpackImage()
}

// lock keeps two processes from filling the cache at once.
func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// depends returns the package matching pattern that pkg depends on.
func depends(ctx context.Context, pkg, pattern string) (string, error) {
	out, err := command(ctx, "", "apt-cache", "depends", "--important", pkg)
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^ *Depends: (` + pattern + `)$`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("package %s depends on nothing like %s", pkg, pattern)
	}
	return string(m[1]), nil
}

// Unpack downloads packages and unpacks them, once for each version, all below
// one folder, which it returns. Nothing of them is installed on the host, and what
// they depend on is not looked for.
func Unpack(ctx context.Context, cache string, packages ...string) (root string, err error) {
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	root = filepath.Join(cache, "packages")
	for _, p := range packages {
		if err := unpack(ctx, cache, root, p); err != nil {
			return "", fmt.Errorf("cannot unpack package %s: %w", p, err)
		}
	}
	return root, nil
}

// unpack downloads a package and unpacks it below root, once for each version.
func unpack(ctx context.Context, cache, root, pkg string) error {
	stamp := filepath.Join(cache, "unpacked", pkg)
	out, err := command(ctx, "", "apt-cache", "policy", pkg)
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`Candidate: (\S+)`).FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("package sources have no %s", pkg)
	}
	version := string(m[1])
	if have, err := os.ReadFile(stamp); err == nil && string(have) == version {
		return nil
	}
	for _, dir := range []string{filepath.Dir(stamp), root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(cache, "download")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := command(ctx, dir, "apt-get", "download", "-q", pkg+"="+version); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get downloaded %d files for %s", len(debs), pkg)
	}
	if _, err := command(ctx, "", "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(version), 0o644)
}

func packageVersion(cache, pkg string) (string, error) {
	b, err := os.ReadFile(filepath.Join(cache, "unpacked", pkg))
	return string(b), err
}

// relocateHeaders makes the headers independent of where they lie: they expect
// their common part in /usr/src.
func relocateHeaders(dir string) error {
	file := filepath.Join(dir, "Makefile")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, bytes.ReplaceAll(b, []byte("include /usr/src/"), []byte("include ../")), 0o644)
}

// command runs a program and returns what it prints.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("cannot run %s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return out, nil
}

// unpackImage takes vmlinux out of the compressed image and its build-id out of
// vmlinux.
func (k *Kernel) unpackImage() error {
	k.VMLinux = filepath.Join(filepath.Dir(k.Image), "vmlinux-"+k.Release)
	if info, err := os.Stat(k.Image); err == nil && newerThan(k.VMLinux, info.ModTime()) {
		return k.readBuildID()
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return err
	}
	elfImage, err := payload(image)
	if err != nil {
		return fmt.Errorf("cannot unpack %s: %w", k.Image, err)
	}
	if err := writeFile(k.VMLinux, elfImage); err != nil {
		return err
	}
	return k.readBuildID()
}

// newerThan tells whether a file is there and was written after t.
func newerThan(file string, t time.Time) bool {
	info, err := os.Stat(file)
	return err == nil && info.ModTime().After(t)
}

// writeFile writes a file that is either whole or not there.
func writeFile(file string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// payload returns the vmlinux inside a bzImage, whose header says where it
// begins and how long it is (Documentation/x86/boot.rst, "payload_offset").
// Debian's amd64 kernels are packed with xz.
func payload(image []byte) ([]byte, error) {
	const (
		setupSectors  = 0x1f1
		magic         = 0x202
		payloadOffset = 0x248
		payloadLength = 0x24c
	)
	if len(image) < payloadLength+4 || string(image[magic:magic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	sectors := int(image[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int(binary.LittleEndian.Uint32(image[payloadOffset:]))
	length := int(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start+length > len(image) {
		return nil, errors.New("image is cut short")
	}
	r, err := xz.NewReader(bytes.NewReader(image[start:start+length]), 0)
	if err != nil {
		return nil, err
	}
	r.Multistream(false) // what follows is the unpacked size
	return io.ReadAll(r)
}

// readBuildID reads the GNU build-id note of vmlinux.
func (k *Kernel) readBuildID() error {
	f, err := elf.Open(k.VMLinux)
	if err != nil {
		return err
	}
	defer f.Close()
	section := f.Section(".notes")
	if section == nil {
		return fmt.Errorf("cannot read build-id of %s: it has no notes", k.VMLinux)
	}
	notes, err := section.Data()
	if err != nil {
		return err
	}
	const header = "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"
	i := bytes.Index(notes, []byte(header))
	if i < 0 || len(notes) < i+len(header)+20 {
		return fmt.Errorf("cannot find build-id of %s", k.VMLinux)
	}
	k.BuildID = hex.EncodeToString(notes[i+len(header):][:20])
	return nil
}

// exists tells whether there is such a file.
func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}
