//go:build snap

package snap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
)

// makeTrust makes the folder that "make snap" packs: whom the snap trusts.
func makeTrust(dir string, root []byte) error {
	certificate, err := lab.ModuleCertificate()
	return errors.Join(err,
		os.WriteFile(filepath.Join(dir, "root.json"), root, 0o644),
		os.WriteFile(filepath.Join(dir, "livepatch-kmod.x509"), certificate, 0o644))
}

// pack makes the snap as "make snap" does, and returns its file.
func pack(ctx context.Context, dir, trust, version string, variables ...string) (string, error) {
	file := filepath.Join(dir, "canonical-livepatch_"+version+".snap")
	cmd := exec.CommandContext(ctx, "make", append([]string{"-C", here.Tree(), "snap", "TRUST=" + trust, "SNAP=" + file}, variables...)...)
	cmd.Env = append(os.Environ(), "SNAP_VERSION="+version)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot pack the snap: %w\n%s", err, out)
	}
	return file, nil
}

// A system is a service with a publisher outside, and the snap that trusts them.
type system struct {
	service   *lab.Service
	publisher *lab.Publisher
	trust     string // folder
}

func newSystem(t *testing.T) system {
	t.Helper()
	service, err := here.NewService(t.Context(), t.TempDir(), lab.ServiceOptions{Soak: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(service.Stop(), os.WriteFile(filepath.Join(saved, "service.txt"), []byte(service.Log()), 0o644))
		if err != nil {
			t.Error(err)
		}
	})
	publisher, err := here.NewPublisher(t.Context(), t.TempDir(), service)
	if err != nil {
		t.Fatal(err)
	}
	s := system{service, publisher, t.TempDir()}
	if err := makeTrust(s.trust, publisher.Root); err != nil {
		t.Fatal(err)
	}
	return s
}

// pack makes a version of the snap.
func (s system) pack(t *testing.T, version string, variables ...string) string {
	t.Helper()
	file, err := pack(t.Context(), t.TempDir(), s.trust, version, variables...)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// publish builds, signs and pushes a livepatch after which the kernel answers as
// it says.
func (s system) publish(t *testing.T, version, answer string) lab.Module {
	t.Helper()
	m, err := here.Build(t.Context(), lab.Patch{Source: "answer", Version: version, Answer: answer})
	if err != nil {
		t.Fatal(err)
	}
	err = s.publisher.Sign(t.Context(), m, version, "CVE-2026-1000"+version)
	if err == nil {
		err = s.publisher.Push(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// token returns a new token for one machine.
func (s system) token(t *testing.T) string {
	t.Helper()
	token, err := s.service.Admin(t.Context(), "token", "create")
	if err != nil {
		t.Fatal(err)
	}
	return token
}
