// Command snap packs the snap from the recipe snapcraft.yaml, without snapcraft:
// it lays out the tree, derives meta/snap.yaml from the recipe, and has
// mksquashfs(1) make a file of it. Two runs make the same file.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

func main() {
	err := run(os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "snap: error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("snap", flag.ContinueOnError)
	var s sources
	recipe := flags.String("recipe", "snapcraft.yaml", "the `file`")
	flags.StringVar(&s.bin, "bin", "build/bin", "`folder` with the programs")
	flags.StringVar(&s.trust, "trust", "", "`folder` with root.json, livepatch-kmod.x509 and perhaps metadata")
	flags.StringVar(&s.cas, "certificates", "/etc/ssl/certs/ca-certificates.crt", "`file` with certificate authorities")
	flags.StringVar(&s.license, "license", "LICENSE", "the `file`")
	version := flags.String("version", "", "`version` of the snap")
	arch := flags.String("arch", "amd64", "`architecture` as Debian names it")
	user := flags.String("system-user", "snap_daemon", "`name` of the agent's user; _daemon_ needs snapd 2.61")
	date := flags.Int64("date", 0, "`seconds` since 1970 that every file is dated with")
	tree := flags.String("tree", "", "lay out the tree in this `folder` for snapcraft, and pack nothing")
	out := flags.String("out", "", "`file` to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*recipe)
	if err != nil {
		return err
	}
	if text, err = withUser(text, *user); err != nil {
		return err
	}
	meta, hooks, err := derive(text, *version, *arch)
	if err != nil {
		return err
	}
	if *tree != "" { // snapcraft moves the hooks to meta, and writes snap.yaml
		return layOut(*tree, s, hooks, "snap/hooks")
	}
	if *out == "" {
		return errors.New("cannot pack: -out is missing")
	}
	dir, err := os.MkdirTemp(filepath.Dir(*out), ".snap")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), layOut(dir, s, hooks, "meta/hooks")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "meta/snap.yaml"), meta, 0o644); err != nil {
		return err
	}
	return pack(dir, *out, *date)
}

// pack makes a squashfs of a tree, as snapd wants it: everything root's, and
// compressed with xz.
func pack(dir, out string, date int64) error {
	part := out + ".part"
	defer os.Remove(part)
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	seconds := strconv.FormatInt(date, 10)
	cmd := exec.Command("mksquashfs", dir, part, "-noappend", "-comp", "xz", "-all-root", "-no-xattrs", "-no-fragments",
		"-no-progress", "-quiet", "-mkfs-time", seconds, "-all-time", seconds)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // SOURCE_DATE_EPOCH and the options above exclude each other
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot pack with mksquashfs: %w: %s", err, bytes.TrimSpace(said))
	}
	return os.Rename(part, out)
}
