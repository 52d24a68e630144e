//go:build integration

package supply

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBuildIsReproducible builds everything twice, as two people would: in other
// folders, from files of another age, as another user with another home,
// temporary folder, umask, time zone and language, one of them with nothing
// cached. The programs have to be the same bytes.
//
// What stays alike is what a release names: the version of Go (and of the C
// compiler, where one takes part) and the modules that go.sum lists.
func TestBuildIsReproducible(t *testing.T) {
	files := strings.Split(strings.Trim(must(t, top, nil, "git", "ls-files", "-z", "-co", "--exclude-standard"), "\x00"), "\x00")
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "someone else", "and", "his folder")
	copyTree(t, one, files, time.Now())
	copyTree(t, two, files, time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC))

	must(t, one, []string{"TZ=UTC", "LC_ALL=C"}, "make", "build")
	must(t, two, strangersEnv(t, dir), "sh", "-c", "umask 077 && exec make build")

	want, got := sums(t, filepath.Join(one, "build", "bin")), sums(t, filepath.Join(two, "build", "bin"))
	for name, sum := range want {
		t.Logf("%s  %s", sum, name)
		if got[name] != sum {
			t.Errorf("%s is %s in one build and %s in the other; see where with: go tool nm, or diffoscope", name, sum, got[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d programs in one build, %d in the other", len(want), len(got))
	}
}

// strangersEnv is the environment of somebody who has the modules, and nothing
// else in common with who runs the test.
func strangersEnv(t *testing.T, dir string) []string {
	t.Helper()
	home, tmp, modules := filepath.Join(dir, "home"), filepath.Join(dir, "tmp"), filepath.Join(dir, "modules")
	for _, d := range []string{home, tmp} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// The same modules by another path: they are large, and go.sum says what
	// they are.
	if err := os.Symlink(strings.TrimSpace(must(t, top, nil, "go", "env", "GOMODCACHE")), modules); err != nil {
		t.Fatal(err)
	}
	return []string{
		"HOME=" + home, "TMPDIR=" + tmp, "GOTMPDIR=" + tmp, "GOCACHE=" + filepath.Join(dir, "cache"),
		"GOMODCACHE=" + modules, "GOPROXY=off", "GOENV=off", "USER=stranger", "LOGNAME=stranger",
		"TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "LANG=tr_TR.UTF-8", "SOURCE_DATE_EPOCH=1",
	}
}

// copyTree copies files of the tree, without its repository.
func copyTree(t *testing.T, to string, files []string, age time.Time) {
	t.Helper()
	for _, name := range files {
		from, into := filepath.Join(top, name), filepath.Join(to, name)
		info, err := os.Lstat(from)
		if os.IsNotExist(err) {
			continue // deleted, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := copyFile(from, into, info.Mode().Perm(), age); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(from, to string, mode fs.FileMode, age time.Time) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, b, mode); err != nil {
		return err
	}
	return os.Chtimes(to, age, age)
}

// sums returns the SHA-256 of each program in a folder.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, path := range programs(t, dir) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return all
}
