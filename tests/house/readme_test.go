//go:build integration

package house

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// byHand matches the session of the README.
var byHand = regexp.MustCompile("(?s)## By hand.*?```sh\n(.*?)```")

// TestTheSessionOfTheReadmeWorks types it, with other ports.
func TestTheSessionOfTheReadmeWorks(t *testing.T) {
	m := byHand.FindStringSubmatch(read(t, "README.md"))
	if m == nil {
		t.Fatal("the README has no session: the pattern of this test is wrong")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	for _, program := range []string{"server/cmd/livepatch-server", "server/cmd/livepatch-admin", "publisher/cmd/livepatch-publish"} {
		if out, err := sh(t, "go", "build", "-o", bin+"/", filepath.Join(top, program)+"/"); err != nil {
			t.Fatalf("cannot build %s: %v\n%s", program, err, out)
		}
	}
	session := strings.NewReplacer("8443", freePort(t), "9443", freePort(t)).Replace(m[1])
	if strings.Contains(session, "8443") {
		t.Fatal("a port of the README is left in the session")
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", `trap 'kill %1; wait' EXIT; `+session)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the session of the README fails: %v\n%s", err, out)
	}
	for _, want := range []string{"Everything verifies.", "Published "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the session does not say %q:\n%s", want, out)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "root.json")); err != nil || info.Size() == 0 {
		t.Errorf("the session leaves no root for machines: %v", err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
