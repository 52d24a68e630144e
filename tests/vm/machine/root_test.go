package machine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"livepatch/tests/vm/guest"
)

func TestPackedModulesAreUnpacked(t *testing.T) {
	// "a module", as xz packs it.
	const packed = "\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x0c\x00\x00\x00\x8f\x98\x41\x9c\x01\x00\x07\x61\x20\x6d\x6f\x64" +
		"\x75\x6c\x65\x00\x75\xac\xe2\x58\xf7\xa0\xfc\xe4\x00\x01\x20\x08\xbb\x19\xd9\xbb\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a"
	tests := map[string]struct{ name, content, want string }{
		"packed":   {"a.ko.xz", packed, "a module"},
		"plain":    {"a.ko", "a module", "a module"},
		"cut off":  {"a.ko.xz", packed[:40], ""},
		"not that": {"a.ko.xz", "a module", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), tc.name)
			if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readModule(file)
			if string(got) != tc.want && err == nil || (err == nil) != (tc.want != "") {
				t.Errorf("module = %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestADiskIsChangedOnlyIfItIsToBe(t *testing.T) {
	for keep, want := range map[bool]bool{false: true, true: false} {
		drive := strings.Join((&Root{Disk: "/a,b.img", Keep: keep}).args(), " ")
		if got := strings.Contains(drive, "snapshot=on"); got != want {
			t.Errorf("with Keep = %t the drive is %q", keep, drive)
		}
		if !strings.Contains(drive, "file=/a,,b.img") {
			t.Errorf("drive = %q, want the comma doubled", drive)
		}
	}
}

func TestFilesForARootAreCarriedBesideTheInitramfs(t *testing.T) {
	files := []File{{Path: "/etc/hosts"}, {Path: "root/x"}}
	var got []string
	for _, f := range overlay(files) {
		got = append(got, f.Path)
	}
	want := []string{guest.Overlay + "/etc/hosts", guest.Overlay + "/root/x"}
	if !slices.Equal(got, want) {
		t.Errorf("paths = %q, want %q", got, want)
	}
	if files[0].Path != "/etc/hosts" {
		t.Error("the caller's files were changed")
	}
}
