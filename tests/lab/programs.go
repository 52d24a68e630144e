package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bin holds the programs, built once for all tests.
var bin string

// The programs under test. The loader's is its test binary, which takes its
// system calls to a kernel made of files and is the loader in everything else.
const (
	serverBin  = "livepatch-server"
	AdminBin   = "livepatch-admin"
	publishBin = "livepatch-publish"
	AgentBin   = "canonical-livepatchd"
	CLIBin     = "canonical-livepatch"
	LoaderBin  = "livepatch-loader"

	// SelfBin is this test, where other users can run it.
	SelfBin = "self"
)

// Main builds the programs, runs the tests and returns what to exit with.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "livepatch-bin-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755) // other users run what is in it
	}
	if err == nil {
		bin = dir
		start := time.Now()
		err = errors.Join(build(context.Background(), dir), copySelf(filepath.Join(dir, SelfBin)))
		fmt.Printf("built the programs in %v\n", time.Since(start).Round(time.Millisecond))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot prepare tests:", err)
		return 1
	}
	defer closeShared()
	return m.Run()
}

// build builds the programs as they are shipped, without cgo.
func build(ctx context.Context, dir string) error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"build", "-trimpath", "-tags", "grpcnotrace", "-o", dir + "/", "./server/cmd/...", "./publisher/cmd/...",
			"./agent/cmd/canonical-livepatchd", "./agent/cmd/canonical-livepatch"},
		{"test", "-c", "-trimpath", "-tags", "grpcnotrace", "-o", filepath.Join(dir, LoaderBin), "./loader/cmd/livepatch-loader"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = top
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

func copySelf(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
