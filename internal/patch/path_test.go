package patch_test

import (
	"errors"
	"path"
	"strings"
	"testing"

	"livepatch/internal/patch"
)

func TestPaths(t *testing.T) {
	if got, want := patch.ModulePath("debian", good()), "debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.ko"; got != want {
		t.Errorf("ModulePath = %q, want %q", got, want)
	}
	if got, want := patch.IndexPath("debian", "6.1.0-53-amd64", "x86_64"), "debian/6.1.0-53-amd64.x86_64.index.json"; got != want {
		t.Errorf("IndexPath = %q, want %q", got, want)
	}
	if got, want := patch.RolloutPath("debian", "113.1"), "rollout/debian_113.1"; got != want {
		t.Errorf("RolloutPath = %q, want %q", got, want)
	}
}

func TestVendorOf(t *testing.T) {
	good := map[string]string{
		"debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.ko": "debian",
		"ubuntu/6.8.0-45-generic.x86_64.index.json":    "ubuntu",
		"a/b": "a",
	}
	for target, want := range good {
		if got, err := patch.VendorOf(target); got != want || err != nil {
			t.Errorf("VendorOf(%q) = %q, %v, want %q", target, got, err, want)
		}
	}
	bad := []string{
		"", "/", "debian", "debian/", "/debian/a.ko", "debian//a.ko", "debian/a/b.ko", "debian/../ubuntu/a.ko", "debian/..", "debian/.",
		"../debian/a.ko", "./debian/a.ko", "debian/./a.ko", "debian/.a.ko", "debian/a..ko", "..", "../..", `debian\a.ko`, `debian/..\a.ko`,
		"debian/a.ko/", "debian/a.ko\x00", "debian/a.ko\n", "debian/%2e%2e", "debian/%2fetc", "debian/a ko", " debian/a.ko", "debian/~",
		"rollout/debian_113.1", "rollout/x", "déb/a.ko", "debian/a\u2215b", "debian/\u202ea", "debian／a.ko", "debian/a?b", "debian/a#b", "debian/*",
		"http://debian/a.ko", "debian/" + strings.Repeat("a", 129), strings.Repeat("a", 129) + "/a",
	}
	for _, target := range bad {
		if got, err := patch.VendorOf(target); got != "" || !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("VendorOf(%q) = %q, %v, want %v", target, got, err, patch.ErrInvalid)
		}
	}
}

// FuzzVendorOf: a path that is taken has two parts and stays where it is.
func FuzzVendorOf(f *testing.F) {
	for _, seed := range []string{
		"debian/a.ko", "debian/../a", "../a", "rollout/a_1", "a//b", "/a/b", `a\..\b`, "a/b\x00", "A/%2e%2e", "a/..b", "a./b.", "rollout./b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		vendor, err := patch.VendorOf(target)
		if err != nil {
			if vendor != "" || !errors.Is(err, patch.ErrInvalid) {
				t.Errorf("VendorOf(%q) = %q, %v", target, vendor, err)
			}
			return
		}
		if path.Clean(target) != target || path.IsAbs(target) || path.Dir(target) != vendor || strings.Count(target, "/") != 1 ||
			strings.Contains(target, "..") || strings.ContainsAny(target, "\\%\x00 \n*?[#:") || vendor == patch.RolloutRole {
			t.Errorf("VendorOf took %q", target)
		}
	})
}

// checkPath fails the test unless a path belongs to the vendor. It may be refused
// where two dots meet, or for its length.
func checkPath(t *testing.T, target, vendor string) {
	t.Helper()
	got, err := patch.VendorOf(target)
	refusable := strings.Contains(target, "..") || len(path.Base(target)) > 128
	if err == nil && got != vendor || err != nil && !refusable {
		t.Errorf("VendorOf(%q) = %q, %v, want %q", target, got, err, vendor)
	}
}

// FuzzPaths: valid parts make a path of the vendor that they name.
func FuzzPaths(f *testing.F) {
	f.Add("debian", "6.1.0-53-amd64", "x86_64", "lkp_1", "113.1")
	f.Add("..", "../..", "/", "a/b", "1/2")
	f.Add("rollout", "a", "b", "c", "1")
	f.Add("a.", "b.", "c.", "d", "1.2.3.4")
	f.Fuzz(func(t *testing.T, vendor, release, arch, name, version string) {
		if patch.CheckWord("a vendor", vendor) != nil || vendor == patch.RolloutRole {
			return
		}
		archOK := patch.CheckWord("an architecture", arch) == nil
		if archOK && patch.CheckWord("a release", release) == nil {
			checkPath(t, patch.IndexPath(vendor, release, arch), vendor)
		}
		if archOK && patch.CheckModuleName(name) == nil {
			checkPath(t, patch.ModulePath(vendor, patch.Module{Kernel: patch.Kernel{Arch: arch}, Name: name}), vendor)
		}
		if patch.CheckVersion(version) != nil {
			return
		}
		rollout := patch.RolloutPath(vendor, version)
		if _, err := patch.VendorOf(rollout); err == nil || path.Dir(rollout) != patch.RolloutRole {
			t.Errorf("RolloutPath(%q, %q) = %q", vendor, version, rollout)
		}
		// The last "_" separates the two, so no other pair has this path.
		file := path.Base(rollout)
		if i := strings.LastIndexByte(file, '_'); file[:i] != vendor || file[i+1:] != version {
			t.Errorf("RolloutPath(%q, %q) = %q is ambiguous", vendor, version, rollout)
		}
	})
}
