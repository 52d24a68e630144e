package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// A Source is a kernel module to build: one C file.
type Source struct {
	File string // the C file
	Name string // of the module, as the kernel is to know it
	// Define are macros for the preprocessor, NAME or NAME=VALUE.
	Define []string
}

// PatchName returns the name that a vendor's patch for this kernel has:
// "lkp_Debian_6_1_0_56_amd64_2".
func (k *Kernel) PatchName(version string) string {
	return "lkp_Debian_" + strings.Map(func(r rune) rune {
		if strings.ContainsRune(".-+~", r) {
			return '_'
		}
		return r
	}, k.Release+"_"+version)
}

// BuildModule builds a module against the kernel's headers and returns its file.
// What was built before is used again while neither source nor kernel changes.
func (k *Kernel) BuildModule(ctx context.Context, cache string, src Source) (string, error) {
	file, err := k.buildModule(ctx, cache, src)
	if err != nil {
		return "", fmt.Errorf("cannot build module %s for kernel %s: %w", src.Name, k.Release, err)
	}
	return file, nil
}

// recipe is part of what a module that was built before is known by. It goes up
// whenever buildModule changes what it makes.
const recipe = 2

func (k *Kernel) buildModule(ctx context.Context, cache string, src Source) (string, error) {
	code, err := os.ReadFile(src.File)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%s\n%s\n%s\n%s", recipe, k.Release, k.Version, src.Name, kbuild(src), code))
	dir := filepath.Join(cache, "modules", src.Name+"-"+hex.EncodeToString(sum[:8]))
	ko := filepath.Join(dir, src.Name+".ko")
	if exists(ko) {
		return ko, nil
	}
	if err := k.checkCompiler(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	work, err := k.workDir(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, src.Name+".c"), code, 0o644); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(work, "Kbuild"), kbuild(src), 0o644); err != nil {
		return "", err
	}
	// An unknown symbol is a warning here, because a module that needs one is
	// among the tests.
	if err := k.make(ctx, work); err != nil {
		return "", err
	}
	// Without its debug information a module is of the size that is published.
	if _, err := command(ctx, work, "strip", "--strip-debug", src.Name+".ko"); err != nil {
		return "", err
	}
	if err := os.Rename(work, dir); err != nil && !exists(ko) {
		return "", err
	}
	return ko, nil
}

// workDir makes a folder to build in: below parent, or where the compiler sees it.
func (k *Kernel) workDir(parent string) (string, error) {
	if k.Root != "" {
		parent = filepath.Join(k.Root, "build")
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(parent, ".build")
}

// inRoot runs a command in another root. What the build needs of /dev and /proc is there for
// the time of the command, and for nobody else: the mount is in a namespace.
const inRoot = `for d in dev proc; do mkdir -p "$0/$d" && mount --rbind "/$d" "$0/$d" || exit; done; exec chroot "$0" "$@"`

// make builds the module in a folder.
func (k *Kernel) make(ctx context.Context, work string) error {
	args := []string{"make", "-s", "-C", k.Headers, "M=" + work, "KBUILD_MODPOST_WARN=1", "modules"}
	if k.Root != "" {
		args[4] = "M=" + strings.TrimPrefix(work, k.Root)
		args = append([]string{"unshare", "--mount", "--map-root-user", "sh", "-c", inRoot, k.Root}, args...)
	}
	_, err := command(ctx, work, args[0], args[1:]...)
	return err
}

func kbuild(src Source) []byte {
	b := fmt.Appendf(nil, "obj-m := %s.o\n", src.Name)
	for _, d := range src.Define {
		b = fmt.Appendf(b, "ccflags-y += '-D%s'\n", d)
	}
	return b
}

// checkCompiler returns an error unless the compiler that built the kernel is
// here: a module built by another one may not fit.
func (k *Kernel) checkCompiler() error {
	if k.Root != "" { // its packages go together
		return nil
	}
	config, err := os.ReadFile(filepath.Join(k.Headers, ".config"))
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`(?m)^CONFIG_CC_VERSION_TEXT="(\S+)`).FindSubmatch(config)
	if m == nil {
		return fmt.Errorf("the kernel's configuration names no compiler")
	}
	if _, err := exec.LookPath(string(m[1])); err != nil {
		return fmt.Errorf("it was built with %s, which is not installed; run tests/vm/setup.sh", m[1])
	}
	return nil
}
