package machine

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// note returns one ELF note.
func note(name string, kind uint32, desc []byte) []byte {
	var b []byte
	b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.NativeEndian.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, make([]byte, -len(name)&3)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}

var buildID = []byte("twenty bytes of sha1")

func debian() fstest.MapFS {
	files := map[string]string{
		"proc/sys/kernel/osrelease":      "6.1.0-53-amd64\n",
		"proc/sys/kernel/random/boot_id": "0b6a4a63-7b36-4a2e-8a0d-6e1f5a5c9d11\n",
		"proc/version": "Linux version 6.1.0-53-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld " +
			"(GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)\n",
		"proc/cpuinfo":     "processor\t: 0\nmodel name\t: QEMU Virtual CPU\n\nprocessor\t: 1\nmodel name\t: other\n",
		"proc/stat":        "cpu  1 2 3\nbtime 1763780000\n",
		"etc/os-release":   "NAME=Debian\nID=debian\n",
		"sys/kernel/notes": string(note("Linux", 257, []byte("abc"))) + string(note("GNU\x00", 3, buildID)),
	}
	m := fstest.MapFS{}
	for name, s := range files {
		m[name] = &fstest.MapFile{Data: []byte(s)}
	}
	return m
}

func TestReadDebian(t *testing.T) {
	got, err := Read(debian())
	if err != nil {
		t.Fatal(err)
	}
	want := Facts{
		Kernel:         patch.Kernel{Arch: kernel.Arch(), Release: "6.1.0-53-amd64", BuildID: patch.BuildID(hex.EncodeToString(buildID))},
		KernelVersion:  "6.1.170-3",
		DisplayVersion: "6.1.0-53-amd64",
		Distribution:   "debian",
		Vendor:         "debian",
		BootID:         "0b6a4a63-7b36-4a2e-8a0d-6e1f5a5c9d11",
		CPUModel:       "QEMU Virtual CPU",
		BootTime:       time.Unix(1763780000, 0).UTC(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadUbuntu(t *testing.T) {
	root := debian()
	root["proc/version_signature"] = &fstest.MapFile{Data: []byte("Ubuntu 6.8.0-1047.50-aws 6.8.12\n")}
	root["etc/os-release"] = &fstest.MapFile{Data: []byte("ID=\"linuxmint\"\n")}
	got, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel decides who patches it, not the distribution around it.
	if got.Vendor != "ubuntu" || got.DisplayVersion != "6.8.0-1047.50-aws" || got.KernelVersion != "6.8.0-1047.50-aws" {
		t.Errorf("vendor %q, shown as %q, version %q", got.Vendor, got.DisplayVersion, got.KernelVersion)
	}
	if got.Distribution != "linuxmint" {
		t.Errorf("distribution = %q", got.Distribution)
	}
}

// In a snap without a base there is no os-release, and in one with a base it is the
// base's.
func TestReadInASnap(t *testing.T) {
	for name, release := range map[string]string{"without a base": "", "with a base": "ID=ubuntu-core\n"} {
		t.Run(name, func(t *testing.T) {
			root := debian()
			delete(root, "etc/os-release")
			if release != "" {
				root["usr/lib/os-release"] = &fstest.MapFile{Data: []byte(release)}
			}
			got, err := Read(root)
			if err != nil || got.Vendor != "debian" || got.Distribution == "" {
				t.Errorf("vendor %q of distribution %q, %v", got.Vendor, got.Distribution, err)
			}
		})
	}
}

func TestReadNeedsWhatChoosesThePatch(t *testing.T) {
	tests := map[string]struct {
		file, content string // "" means no such file
		wantErr       string
	}{
		"no release":          {"proc/sys/kernel/osrelease", "", "which kernel runs"},
		"release with a path": {"proc/sys/kernel/osrelease", "../../etc", "which kernel runs"},
		"two lines":           {"proc/sys/kernel/osrelease", "a\nb\n", "need one line"},
		"no notes":            {"sys/kernel/notes", "", "which build of kernel 6.1.0-53-amd64"},
		"notes cut short":     {"sys/kernel/notes", string(note("GNU\x00", 3, buildID))[:30], "cannot find a build-id"},
		"no build-id":         {"sys/kernel/notes", string(note("Linux", 257, nil)), "cannot find a build-id"},
		"no boot-id":          {"proc/sys/kernel/random/boot_id", "", "tell boots apart"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			root := debian()
			delete(root, tc.file)
			if tc.content != "" {
				root[tc.file] = &fstest.MapFile{Data: []byte(tc.content)}
			}
			_, err := Read(root)
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("Read = %v, want %q", err, tc.wantErr)
			}
		})
	}
}

func TestReadToleratesTheRest(t *testing.T) {
	root := debian()
	for _, name := range []string{"proc/version", "proc/cpuinfo", "proc/stat", "etc/os-release"} {
		delete(root, name)
	}
	got, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	if got.Vendor != "" || got.CPUModel != "" || !got.BootTime.IsZero() || got.KernelVersion != "" {
		t.Errorf("got %+v", got)
	}
}

func FuzzVersions(f *testing.F) {
	f.Add([]byte("Ubuntu 6.8.0-1047.50-aws 6.8.12\n"))
	f.Add([]byte("Linux version 6 (x) #1 SMP Debian 6.1.170-3 (2026-05-08)"))
	f.Add([]byte("ID=debian\nmodel name : x\nbtime 12\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []string{signatureVersion(b), debianVersion(b), distribution(b)} {
			if v != "" && patch.CheckWord("a version", v) != nil {
				t.Errorf("%q leaves the parser", v)
			}
		}
		_ = cpuModel(b)
		_ = bootTime(b)
	})
}
