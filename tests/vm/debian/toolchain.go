package debian

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// tools are what a kernel's build system calls, besides the compiler, which the
// headers depend on.
var tools = []string{"make", "base-files", "dash", "bash", "coreutils", "findutils", "grep", "sed", "mawk", "diffutils", "libelf1", "libssl3"}

// AddToolchain gives the kernel of an image the headers to build modules with, and
// the compiler that built it, both of its own suite. They lie in a root of their
// own, where the packages are unpacked and not installed.
func (c *Cache) AddToolchain(ctx context.Context, img *Image) error {
	headers := "linux-headers-" + img.Kernel.Release
	a, err := openArchive(ctx, filepath.Join(c.dir, "apt-"+string(img.Suite)), img.Suite)
	if err != nil {
		return err
	}
	packages := append([]string{headers}, a.renamed(tools)...)
	parts := []any{generation, img.Suite, packages, img.Kernel.Version}
	dir, _, err := c.entry(ctx, string(img.Suite)+"-toolchain", parts, func(ctx context.Context, dir string) error {
		root := filepath.Join(dir, "root")
		if err := a.bootstrap(ctx, root, "extract", packages); err != nil {
			return err
		}
		return os.Symlink("mawk", filepath.Join(root, "usr/bin/awk")) // as mawk's installation would
	})
	if err != nil {
		return fmt.Errorf("cannot fetch the compiler for kernel %s: %w", img.Kernel.Release, err)
	}
	img.Kernel.Root = filepath.Join(dir, "root")
	img.Kernel.Headers = filepath.Join("/usr/src", headers)
	return nil
}

// renamed returns the packages as the suite calls them: with 64-bit times some
// libraries got new names.
func (a *archive) renamed(packages []string) []string {
	names := make([]string, len(packages))
	for i, p := range packages {
		if a.suite != Bookworm && (p == "libelf1" || p == "libssl3") {
			p += "t64"
		}
		names[i] = p
	}
	return names
}
