package debian

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"livepatch/tests/vm/machine"
)

func TestTheHostsSourcesBecomeThoseOfAnySuite(t *testing.T) {
	const mirror, security = "http://mirror.test/debian/", "http://mirror.test/debian-security/"
	host := []source{
		{mirror, "bookworm", "main"}, {mirror, "bookworm", "contrib"}, {mirror, "bookworm-updates", "main"},
		{mirror, "bookworm-backports", "main"}, {security, "bookworm-security", "main"}, {"http://other.test/", "nodistro", "main"},
	}
	tests := map[Suite][]string{
		Bookworm: {
			"deb [signed-by=" + keyring + "] " + mirror + " bookworm main",
			"deb [signed-by=" + keyring + "] " + mirror + " bookworm-updates main",
			"deb [signed-by=" + keyring + "] " + security + " bookworm-security main",
		},
		Trixie: {
			"deb [signed-by=" + keyring + "] " + mirror + " trixie main",
			"deb [signed-by=" + keyring + "] " + mirror + " trixie-updates main",
			"deb [signed-by=" + keyring + "] " + security + " trixie-security main",
		},
		Sid: {"deb [signed-by=" + keyring + " check-valid-until=no] " + mirror + " sid main"},
	}
	for suite, want := range tests {
		t.Run(string(suite), func(t *testing.T) {
			a := &archive{suite: suite}
			if got := a.sourceList(host); !slices.Equal(got, want) {
				t.Errorf("sources = %q, want %q", got, want)
			}
		})
	}
}

func TestUnknownSuitesAreRefused(t *testing.T) {
	for _, s := range []string{"", "buster", "bookworm-security", "Sid"} {
		if got, err := ParseSuite(s); err == nil {
			t.Errorf("suite %q = %q, want an error", s, got)
		}
	}
}

func TestWhatIsInTheCacheIsNotMadeAgain(t *testing.T) {
	c := NewCache(t.TempDir())
	made := 0
	get := func(name string, parts any) string {
		t.Helper()
		dir, _, err := c.entry(t.Context(), name, parts, func(_ context.Context, dir string) error {
			made++
			return os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
			t.Error(err)
		}
		return dir
	}
	first := get("a", "one")
	if again := get("a", "one"); again != first || made != 1 {
		t.Errorf("the same parts gave %s after %s, and were made %d times", again, first, made)
	}
	other := get("b", "one")
	second := get("a", "two")
	if _, err := os.Stat(first); err == nil {
		t.Errorf("%s is still there, though %s took its place", first, second)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("%s is gone, though its name is another: %v", other, err)
	}
}

func TestWhatCouldNotBeMadeIsNotInTheCache(t *testing.T) {
	dir := t.TempDir()
	c, broken := NewCache(dir), errors.New("broken")
	fail := func(context.Context, string) error { return broken }
	if _, _, err := c.entry(t.Context(), "a", "one", fail); !errors.Is(err, broken) {
		t.Fatalf("error = %v, want %v", err, broken)
	}
	entries, err := filepath.Glob(filepath.Join(dir, "debian", "*"))
	if err != nil || !slices.Equal(entries, []string{filepath.Join(dir, "debian", "a.lock")}) {
		t.Errorf("the cache holds %q, want nothing but the lock (%v)", entries, err)
	}
}

func TestWhereAFileLiesIsNoPartOfAHash(t *testing.T) {
	write := func(content string) string {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	hash := func(r Recipe) string {
		t.Helper()
		parts, err := describe(r, map[string]string{"systemd": "252"})
		if err != nil {
			t.Fatal(err)
		}
		return string(parts)
	}
	with := func(source string) Recipe {
		return Recipe{Suite: Bookworm, Files: []machine.File{{Path: "/etc/x", Source: source}}}
	}
	here, there, other := with(write("same")), with(write("same")), with(write("other"))
	if hash(here) != hash(there) {
		t.Error("two recipes with one content in two files differ")
	}
	if hash(here) == hash(other) {
		t.Error("two recipes with two contents are the same")
	}
	if here.Files[0].Source == "" {
		t.Error("the caller's recipe was changed")
	}
}

func TestFilesArePutIntoARoot(t *testing.T) {
	root := t.TempDir()
	for _, f := range []machine.File{
		{Path: "/var/empty", Mode: os.ModeDir | 0o711},
		{Path: "/usr/bin/program", Mode: 0o755, Data: []byte("#!")},
		{Path: "/etc/plain", Data: []byte("old")},
		{Path: "/etc/plain", Data: []byte("new")},
		{Path: "/etc/link", Mode: os.ModeSymlink, Data: []byte("plain")},
	} {
		if err := put(root, f); err != nil {
			t.Fatal(err)
		}
	}
	modes := map[string]os.FileMode{"var/empty": os.ModeDir | 0o711, "usr/bin/program": 0o755, "etc/plain": 0o644}
	for path, want := range modes {
		if info, err := os.Stat(filepath.Join(root, path)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, want mode %v (%v)", path, info, want, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(root, "etc/link")); err != nil || string(got) != "new" {
		t.Errorf("the link leads to %q, want the file put last (%v)", got, err)
	}
}
