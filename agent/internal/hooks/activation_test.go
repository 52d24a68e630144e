package hooks_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"livepatch/agent/internal/hooks"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/internal/patch"
)

// The test binary is also the program in between, and the loader that it becomes.
func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == hooks.Activator:
		os.Exit(hooks.Activate(os.Args[1:], os.Environ(), os.Stderr))
	case os.Getenv("LIVEPATCH_TRY") != "":
		if err := beLoader(os.Getenv("LIVEPATCH_TRY")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

// beLoader is a loader that was started as systemd would, with two livepatches of
// ours, one of them not in force, and one of somebody else's.
func beLoader(mode string) error {
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
		return fmt.Errorf("LISTEN_PID is %q", pid)
	}
	if mode == "dies" {
		return nil
	}
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	fake := loadertest.New(patch.Kernel{})
	fake.Livepatches = []loader.Livepatch{
		{Name: "lkp_1", State: loader.Enabled, Standing: loader.Accepted, Version: "1.1", Sequence: 1},
		{Name: "lkp_0", State: loader.Absent, Standing: loader.Accepted, Version: "0.1"},
		{Name: "kpatch_other", State: loader.Enabled},
	}
	if mode == "refuses" {
		fake.Err = patch.ErrStalled
	}
	fake.ServeOn(l)
	select {} // until the hook ends it
}

func TestLoaderIsStartedToRemove(t *testing.T) {
	tests := map[string]struct {
		names []string
		err   string
	}{
		"well":    {[]string{"lkp_1"}, ""},
		"refuses": {nil, patch.ErrStalled.Error()},
		"dies":    {nil, "livepatch-loader"},
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for mode, tc := range tests {
		t.Run(mode, func(t *testing.T) {
			folder, err := os.MkdirTemp("", "ac") // the paths of t.TempDir are too long for a socket
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(folder)
			a := hooks.Activation{
				Self: self, Folder: folder, Program: self,
				Environ: append(os.Environ(), "LIVEPATCH_TRY="+mode, "LISTEN_PID=1"), Stderr: os.Stderr,
			}
			names, err := a.RemoveOurs(t.Context())
			if !slices.Equal(names, tc.names) || tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("RemoveOurs = %q, %v; want %q, %q", names, err, tc.names, tc.err)
			}
			if left, _ := os.ReadDir(folder); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestActivateSaysWhatCannotBeStarted(t *testing.T) {
	var said strings.Builder
	if code := hooks.Activate([]string{"/nonexistent"}, nil, &said); code == 0 || !strings.Contains(said.String(), "cannot start /nonexistent") {
		t.Errorf("%d, %q", code, said.String())
	}
}
