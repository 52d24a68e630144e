package hooks_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
// ours, one of them not in force, and one of somebody else's. In the end it
// writes down which of ours still returns at boot.
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
	switch mode {
	case "refuses":
		fake.Err = patch.ErrStalled
	case "refuses one that is absent":
		fake.Livepatches, fake.RemoveErr = fake.Livepatches[1:], patch.ErrStorage
	case "absent":
		fake.Livepatches = fake.Livepatches[1:]
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	fake.ServeOn(l)
	<-ended // the hook has done
	status, err := fake.Status(context.Background())
	if l := status.Returning(); err == nil && l != nil {
		return os.WriteFile(os.Getenv("LIVEPATCH_RETURNS"), []byte(l.Name), 0o600)
	}
	return nil
}

func TestLoaderIsStartedToRemove(t *testing.T) {
	tests := map[string]struct {
		names   []string
		err     string
		returns string // at boot
	}{
		"well":                       {[]string{"lkp_1"}, "", ""},
		"absent":                     {nil, "", ""},
		"refuses":                    {nil, patch.ErrStalled.Error(), ""},
		"refuses one that is absent": {nil, "cannot keep livepatch lkp_0 from returning at boot: ", "lkp_0"},
		"dies":                       {nil, "livepatch-loader", ""},
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
			returns := filepath.Join(t.TempDir(), "returns")
			a := hooks.Activation{
				Self: self, Folder: folder, Program: self,
				Environ: append(os.Environ(), "LIVEPATCH_TRY="+mode, "LIVEPATCH_RETURNS="+returns, "LISTEN_PID=1"), Stderr: os.Stderr,
			}
			names, err := a.RemoveOurs(t.Context())
			if !slices.Equal(names, tc.names) || tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("RemoveOurs = %q, %v; want %q, %q", names, err, tc.names, tc.err)
			}
			if b, _ := os.ReadFile(returns); string(b) != tc.returns {
				t.Errorf("%q returns at boot, want %q", b, tc.returns)
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
