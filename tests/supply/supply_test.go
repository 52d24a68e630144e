//go:build integration

// Package supply tests what stands between the source and a machine that runs
// it: that anybody who builds the source gets the same bytes, that the bill of
// materials lists what was linked, and that a known vulnerability is found.
package supply

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// top is the root of the tree, seen from this package.
const top = "../.."

// run runs a program in a folder, with variables added to the environment, and
// returns what it printed on both streams.
func run(t *testing.T, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is run for what has to work. It returns stdout.
func must(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return string(out)
}

// script returns the absolute path of one of the tree's scripts.
func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(top, "scripts", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// programs returns the paths of the programs that "make build" made.
func programs(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 6 {
		t.Fatalf("%s holds %q, want all programs: run make build", dir, strings.Join(found, " "))
	}
	return found
}
