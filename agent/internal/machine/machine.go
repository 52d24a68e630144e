// Package machine reads what the agent tells the service about the machine it
// runs on, and what status shows of it.
//
// Everything comes from the files of the kernel and the distribution, below a
// root that is an argument: os.DirFS("/") on a real machine, a map in a test.
package machine

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"time"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// Facts are what is known of the machine. A field that could not be read is
// its zero value, unless [Read] says otherwise.
type Facts struct {
	Kernel        patch.Kernel
	KernelVersion string // the distribution's full version; see [patch.Index]
	// DisplayVersion is what status calls the kernel: field 2 of
	// /proc/version_signature where that exists, else the release.
	DisplayVersion string
	Distribution   string // ID of os-release, "debian"
	Vendor         string // TUF role that signs this machine's patches, "debian"
	BootID         string
	CPUModel       string
	BootTime       time.Time
}

// Read returns the facts of the machine whose root is root. The release of the
// kernel, its build-id and the boot-id must be readable: without them no patch
// can be chosen. If it is only the build-id that cannot be read, as before a plug
// of the snap is connected, the other facts come with the error.
func Read(root fs.FS) (Facts, error) {
	f := Facts{Kernel: patch.Kernel{Arch: kernel.Arch()}}
	var err error
	if f.Kernel.Release, err = line(root, "proc/sys/kernel/osrelease"); err != nil {
		return Facts{}, fmt.Errorf("cannot tell which kernel runs: %w", err)
	}
	if err := patch.CheckWord("a kernel release", f.Kernel.Release); err != nil {
		return Facts{}, fmt.Errorf("cannot tell which kernel runs: %w", err)
	}
	if f.BootID, err = line(root, "proc/sys/kernel/random/boot_id"); err != nil {
		return Facts{}, fmt.Errorf("cannot tell boots apart: %w", err)
	}
	f.readVersions(root)
	f.CPUModel = cpuModel(slurp(root, "proc/cpuinfo"))
	f.BootTime = bootTime(slurp(root, "proc/stat"))
	notes, err := fs.ReadFile(root, "sys/kernel/notes")
	if err == nil {
		f.Kernel.BuildID, err = patch.BuildIDFromNotes(notes)
	}
	if err != nil {
		return f, fmt.Errorf("cannot tell which build of kernel %s runs: %w", f.Kernel.Release, err)
	}
	return f, nil
}

// readVersions fills in what differs from distribution to distribution. Who made
// the kernel is read from the kernel: inside a snap there is no os-release, or it is
// that of the snap's base, and a distribution may run the kernel of another.
func (f *Facts) readVersions(root fs.FS) {
	f.DisplayVersion = f.Kernel.Release
	if v := signatureVersion(slurp(root, "proc/version_signature")); v != "" {
		f.Vendor, f.KernelVersion, f.DisplayVersion = "ubuntu", v, v
	} else if v := debianVersion(slurp(root, "proc/version")); v != "" {
		f.Vendor, f.KernelVersion = "debian", v
	}
	f.Distribution = cmp.Or(distribution(slurp(root, "etc/os-release")), distribution(slurp(root, "usr/lib/os-release")), f.Vendor)
	f.Vendor = cmp.Or(f.Vendor, f.Distribution)
}

// DebianArch returns the architecture as Debian names it, "amd64", which is
// what status shows.
func DebianArch() string {
	if runtime.GOARCH == "ppc64le" {
		return "ppc64el"
	}
	return runtime.GOARCH
}

// line returns the only line of a small file.
func line(root fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(b))
	if s == "" || strings.ContainsAny(s, "\n\x00") {
		return "", fmt.Errorf("cannot use %s: it holds %q, need one line", name, truncate(s))
	}
	return s, nil
}

// slurp returns the content of a file that may be missing: the first 64 KiB, for
// /proc/cpuinfo of a large machine is long and its first processor is enough.
func slurp(root fs.FS, name string) []byte {
	f, err := root.Open(name)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // nothing was written
	b := make([]byte, 64<<10)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		n += m
		if err != nil || m == 0 {
			break
		}
	}
	return b[:n]
}

func truncate(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// distribution returns the ID of an os-release file in lower case, or "".
func distribution(b []byte) string {
	v, ok := field(b, "ID", "=")
	if !ok {
		return ""
	}
	v = strings.ToLower(strings.Trim(v, `"'`))
	if patch.CheckWord("a vendor", v) != nil {
		return ""
	}
	return v
}

// cpuModel returns the name of the first processor in /proc/cpuinfo.
func cpuModel(b []byte) string {
	v, _ := field(b, "model name", ":")
	return truncate(v)
}

// field returns the value of the first line "key<sep>value".
func field(b []byte, key, sep string) (string, bool) {
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		k, v, ok := strings.Cut(sc.Text(), sep)
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

// signatureVersion returns field 2 of /proc/version_signature,
// "Ubuntu 6.8.0-47.47-generic 6.8.12", or "".
func signatureVersion(b []byte) string {
	fields := strings.Fields(string(b))
	if len(fields) < 2 || patch.CheckWord("a kernel version", fields[1]) != nil {
		return ""
	}
	return fields[1]
}

// debianVersion returns the version of the kernel package from /proc/version,
// where it follows "Debian" in the part that begins with "#": "6.1.170-3" in
// "Linux version 6.1.0-53-amd64 (…) (…) #1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)".
func debianVersion(b []byte) string {
	_, build, ok := strings.Cut(string(b), "#")
	if !ok {
		return ""
	}
	fields := strings.Fields(build)
	for i, f := range fields {
		if f == "Debian" && i+1 < len(fields) && patch.CheckWord("a kernel version", fields[i+1]) == nil {
			return fields[i+1]
		}
	}
	return ""
}

// bootTime returns the time of boot from the line btime of /proc/stat. Unlike
// the uptime it does not need the present time, and unlike a difference it does
// not move when the clock is set while the agent runs.
func bootTime(b []byte) time.Time {
	v, ok := field(b, "btime", " ")
	if !ok {
		return time.Time{}
	}
	var sec int64
	if _, err := fmt.Sscanf(v, "%d", &sec); err != nil || sec <= 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0).UTC()
}
