package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// confined are what the test binary does behind confineTo, which leaves it one
// folder, if LIVEPATCH_TRY names one of them; nobody gets out again.
var confined = map[string]struct {
	try  func(folder string) error
	want string
}{
	"starting a program":        {func(string) error { return exec.Command("/bin/true").Run() }, "permission denied"},
	"writing elsewhere":         {func(dir string) error { return os.WriteFile(dir+".beside", nil, 0o600) }, "permission denied"},
	"removing a file elsewhere": {func(dir string) error { return os.Remove(filepath.Join(filepath.Dir(dir), "other")) }, "permission denied"},
	"writing to its own folder": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), nil, 0o600) }, "ok"},
	"reading what all may read": {func(string) error { _, err := os.ReadFile("/etc/passwd"); return err }, "ok"},
}

// tryConfined is the process of such a try.
func tryConfined(name, folder string) {
	err := confineTo(folder)
	if err == nil {
		err = confined[name].try(folder)
	}
	if err == nil {
		err = fmt.Errorf("ok")
	}
	fmt.Println(err)
}

func TestAgentIsConfined(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "agent.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, tc := range confined {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			folder := filepath.Join(dir, "own")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), binary)
			cmd.Env = append(os.Environ(), "LIVEPATCH_TRY="+name, "LIVEPATCH_FOLDER="+folder)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), tc.want) {
				t.Errorf("%s: %q, %v; want %q", name, out, err, tc.want)
			}
		})
	}
}

// The program itself enters the sandbox before it serves.
func TestAgentGainsNoPrivilege(t *testing.T) {
	w := newWorld(t)
	d := w.start()
	defer w.stop(d)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil || !strings.Contains(string(b), "\nNoNewPrivs:\t1\n") {
		t.Errorf("%v; status:\n%s", err, b)
	}
}
