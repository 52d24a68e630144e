package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFilesOfATestReplaceThoseOfTheRoot(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write := func(dir, name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	link := func(dir, name, target string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(to, "etc/hosts", "old", 0o644)
	write(to, "etc/kept", "kept", 0o600)
	link(to, "etc/resolv.conf", "../run/resolv.conf")
	write(from, "etc/hosts", "new", 0o644)
	write(from, "etc/resolv.conf", "nobody", 0o644)
	write(from, "root/program", "#!", 0o755)
	link(from, "etc/link", "hosts")

	if err := copyTree(from, to); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"etc/hosts": "new", "etc/kept": "kept", "etc/resolv.conf": "nobody", "root/program": "#!", "etc/link": "new"}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != text {
			t.Errorf("%s holds %q, want %q (%v)", name, got, text, err)
		}
	}
	if info, err := os.Stat(filepath.Join(to, "root/program")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program is %v, want mode 0755 (%v)", info, err)
	}
}

func TestATestWithoutFilesChangesNothing(t *testing.T) {
	if err := copyTree(filepath.Join(t.TempDir(), "none"), t.TempDir()); err != nil {
		t.Error(err)
	}
}
