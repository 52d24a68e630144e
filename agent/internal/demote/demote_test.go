package demote_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"livepatch/agent/internal/demote"
)

// user is who the process becomes.
const user = 65534

func TestMain(m *testing.M) {
	dir := os.Getenv("LIVEPATCH_TRY")
	if dir == "" {
		os.Exit(m.Run())
	}
	fmt.Println(try(dir))
	os.Exit(0)
}

// try is what the process of a test does as another user.
func try(dir string) error {
	f := folders(dir)
	if err := demote.Prepare(f, user); err != nil {
		return err
	}
	if err := demote.To(user); err != nil {
		return err
	}
	groups, err := os.Getgroups()
	if err != nil || len(groups) > 0 || os.Getgid() != user || os.Getegid() != user {
		return fmt.Errorf("groups %v, %d, %d, %w", groups, os.Getgid(), os.Getegid(), err)
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	for _, set := range []string{"CapPrm", "CapEff", "CapAmb", "CapInh"} {
		if !strings.Contains(string(status), set+":\t0000000000000000\n") {
			return fmt.Errorf("%s is left: %w\n%s", set, err, status)
		}
	}
	own := f.Own[0]
	if err := os.WriteFile(filepath.Join(own, "file"), nil, 0o600); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(own, "file"), filepath.Join(own, "token")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(f.Share, "mine"), nil, 0o600); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(own), "token")); err != nil {
		return fmt.Errorf("the link does not lead to the file: %w", err)
	}
	root := filepath.Join(filepath.Dir(own), "loader")
	for what, err := range map[string]error{
		"root's folder was renamed":   os.Rename(root, root+"2"),
		"root's folder was read":      only(os.ReadDir(root)),
		"a file was made beside it":   os.WriteFile(root+".beside", nil, 0o600),
		"the socket was removed":      os.Remove(filepath.Join(f.Enter, "sock")),
		"its folder was written to":   os.WriteFile(filepath.Join(f.Enter, "file"), nil, 0o600),
		"the own folder was replaced": os.Rename(own, own+"2"),
	} {
		if err == nil {
			return fmt.Errorf("%s", what)
		}
	}
	if _, err := os.Stat(filepath.Join(f.Enter, "sock")); err != nil {
		return err
	}
	return fmt.Errorf("ok")
}

func only(_ []os.DirEntry, err error) error { return err }

func folders(dir string) demote.Folders {
	common := filepath.Join(dir, "common")
	return demote.Folders{
		Own:   []string{filepath.Join(common, "agent"), filepath.Join(dir, "data", "run")},
		Enter: filepath.Join(common, "loader-socket"),
		Share: filepath.Join(common, "waiting"),
		Links: map[string]string{filepath.Join(common, "token"): "agent/token"},
	}
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
}

func TestUserGetsItsOwnAndNothingElse(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	for open := dir; open != os.TempDir() && open != "/"; open = filepath.Dir(open) {
		if err := os.Chmod(open, 0o755); err != nil { // the folders of tests are closed to others
			t.Fatal(err)
		}
	}
	f := folders(dir)
	for path, mode := range map[string]fs.FileMode{ // as snapd, systemd and the loader make them
		filepath.Join(dir, "common"): 0o755, filepath.Join(dir, "data"): 0o755, f.Enter: 0o755, filepath.Join(dir, "common/loader"): 0o700,
	} {
		if err := os.MkdirAll(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(f.Enter, "sock"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second start finds everything as it is
		cmd := exec.CommandContext(t.Context(), binary(t))
		cmd.Env = append(os.Environ(), "LIVEPATCH_TRY="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "ok" {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for path, want := range map[string]string{
		f.Own[0]: "drwxr-xr-x 65534:65534", f.Own[1]: "drwxr-xr-x 65534:65534", f.Enter: "drwxr-x--- 0:65534", f.Share: "drwxrwx--- 0:65534",
		filepath.Dir(f.Own[0]): "drwxr-xr-x 0:0",
	} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%v %d:%d", info.Mode(), stat.Uid, stat.Gid); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// binary returns the test's program, where others may run it.
func binary(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestFolderOfSomebodyElseIsRefused(t *testing.T) {
	asRoot(t)
	tests := map[string]func(path string) error{
		"somebody else's": func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			return os.Chown(path, user-1, user)
		},
		"a link":    func(path string) error { return os.Symlink(os.TempDir(), path) },
		"no folder": func(path string) error { return os.WriteFile(path, nil, fs.FileMode(0o600)) },
	}
	for name, make := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := folders(dir)
			if err := os.MkdirAll(filepath.Dir(f.Own[0]), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := make(f.Own[0]); err != nil {
				t.Fatal(err)
			}
			if err := demote.Prepare(f, user); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestFileInPlaceOfALinkStays(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	f := folders(dir)
	for path := range f.Links {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := demote.Prepare(f, user); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
			t.Errorf("%q, %v", b, err)
		}
	}
}
