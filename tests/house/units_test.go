package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const units = "packaging/systemd"

// exposure bounds what systemd-analyze thinks of a unit's sandbox, in tenths: 0
// is a unit that may do nothing, 96 one without any sandbox. The numbers are
// repeated in docs/how-to/run-without-a-snap.md.
var exposure = map[string]string{
	"livepatch-loader.service":      "23",
	"livepatch-loader-boot.service": "23",
	"canonical-livepatchd.service":  "14",
}

// relaxed matches what systemd-analyze holds against a unit, and its sum.
var relaxed = regexp.MustCompile(`(?m)^.*(?:✗|→).*$`)

// executable matches the programs that units start. They are not installed where
// the test runs, and systemd-analyze insists on seeing them.
var executable = regexp.MustCompile(`/usr/lib/livepatch/[a-z-]+`)

// copyUnits returns a folder with the units, in which every program is one that
// this machine has.
func copyUnits(t *testing.T) (dir string, paths []string) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skipf("systemd-analyze is needed: %v", err)
	}
	dir = t.TempDir()
	found, err := filepath.Glob(filepath.Join(top, units, "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if ext := filepath.Ext(path); ext != ".service" && ext != ".socket" {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(to, executable.ReplaceAll(b, []byte("/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, to)
	}
	return dir, paths
}

// TestUnitsAreValid fails on any word of systemd-analyze: it exits with 0 for a
// key that it does not know, and a misspelt "NoNewPrivileges" protects nobody.
func TestUnitsAreValid(t *testing.T) {
	_, paths := copyUnits(t)
	if len(paths) != 4 {
		t.Fatalf("found %d units, want 4", len(paths))
	}
	out, err := sh(t, "systemd-analyze", append([]string{"verify", "--man=no"}, paths...)...)
	if err != nil || strings.TrimSpace(out) != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestUnitsAreSandboxed(t *testing.T) {
	dir, _ := copyUnits(t)
	howTo := read(t, "docs/how-to/run-without-a-snap.md")
	for unit, limit := range exposure {
		out, err := sh(t, "systemd-analyze", "security", "--offline=true", "--no-pager",
			"--threshold="+limit, filepath.Join(dir, unit))
		if err != nil {
			t.Errorf("%s is more exposed than %s tenths: %v\n%s", unit, limit, err, strings.Join(relaxed.FindAllString(out, -1), "\n"))
		}
		if said := limit[:1] + "." + limit[1:]; !strings.Contains(howTo, "| `"+unit+"` | "+said+" |") {
			t.Errorf("docs/how-to/run-without-a-snap.md does not say that %s has %s", unit, said)
		}
	}
}

// sandboxLine matches what belongs to the sandbox of a unit.
var sandboxLine = regexp.MustCompile(`(?m)^(?:CapabilityBoundingSet|AmbientCapabilities|Protect\w+|Private\w+|Restrict\w+|SystemCall\w+|NoNewPrivileges|IPAddressDeny|DevicePolicy|LockPersonality|MemoryDenyWriteExecute|RemoveIPC|KeyringMode|NoExecPaths|ExecPaths|MemoryMax|TasksMax|Limit\w+|UMask|StateDirectory\w*)=.*$`)

// The loader is one program with three ways to start it; a door that only one of
// its units closes is open.
func TestBothUnitsOfTheLoaderHaveOneSandbox(t *testing.T) {
	serve := sandbox(read(t, units+"/livepatch-loader.service"))
	boot := sandbox(read(t, units+"/livepatch-loader-boot.service"))
	if len(serve) < 20 {
		t.Fatalf("found %d lines of sandbox: the pattern of this test is wrong", len(serve))
	}
	for line := range serve {
		if !boot[line] {
			t.Errorf("livepatch-loader-boot.service lacks %s", line)
		}
	}
	for line := range boot {
		if !serve[line] {
			t.Errorf("livepatch-loader.service lacks %s", line)
		}
	}
}

func sandbox(unit string) map[string]bool {
	lines := map[string]bool{}
	for _, line := range sandboxLine.FindAllString(unit, -1) {
		lines[line] = true
	}
	return lines
}
