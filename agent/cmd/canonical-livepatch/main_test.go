package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain makes the test binary the program itself, under whatever name it is
// started.
func TestMain(m *testing.M) {
	if os.Getenv("LIVEPATCH_TRY") != "" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// The name that it is started under decides what it is, and only in a snap.
func TestName(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		name string
		args []string
		snap string
		code int
		say  string
	}{
		"the command":              {"canonical-livepatch", []string{"--version"}, "", 0, "canonical-livepatch "},
		"the command in a snap":    {"canonical-livepatch", []string{"--version"}, "x1", 0, "canonical-livepatch "},
		"a hook":                   {"configure", nil, "x1", 1, "cannot read the configuration that snapd has: snapd does not answer"},
		"a hook that never fails":  {"remove", nil, "x1", 0, "note: a livepatch that was applied stays in the kernel until the next reboot"},
		"a hook for a plug":        {"connect-plug-kernel-module-control", nil, "x1", 0, "note: cannot tell the daemon"},
		"no hook":                  {"configure", []string{"--version"}, "", 0, "canonical-livepatch "},
		"what becomes the loader":  {"activate-loader", []string{"/nonexistent"}, "x1", 1, "cannot start /nonexistent"},
		"no loader out of a snap":  {"activate-loader", []string{"/nonexistent"}, "", 2, "there is no such command"},
		"a hook that there is not": {"install", []string{"--version"}, "x1", 0, "canonical-livepatch "},
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			program := filepath.Join(dir, tc.name)
			if err := os.Symlink(self, program); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), program, tc.args...)
			cmd.Env = []string{"LIVEPATCH_TRY=1", "SNAP=" + tc.snap, "SNAP_DATA=" + dir, "SNAP_COMMON=" + dir, "HOME=" + dir}
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != tc.code || !strings.Contains(string(out), tc.say) {
				t.Errorf("code %d, said %q; want %d, %q", code, out, tc.code, tc.say)
			}
		})
	}
}
