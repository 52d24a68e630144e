package loader_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/internal/patch"
	"livepatch/internal/peercred"
	"livepatch/internal/rpcerr"
)

var kernel = patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: "00112233445566778899aabbccddeeff00112233"}

// serve returns a loader and a client of it.
func serve(t *testing.T) (*loadertest.Fake, *loader.Client) {
	t.Helper()
	fake := loadertest.New(kernel)
	socket := filepath.Join(t.TempDir(), "loader.sock")
	stop, err := fake.Serve(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return fake, loader.New(socket)
}

func TestStatusArrivesWhole(t *testing.T) {
	fake, client := serve(t)
	d := patch.Digest(sha256.Sum256(nil))
	off := false
	want := loader.Status{
		RootVersion: 7,
		Kernel: loader.Kernel{Kernel: kernel, BootID: "b", LivepatchSupported: true, FtraceEnabled: true, ModulesDisabled: true, SignatureEnforced: true,
			Lockdown: "integrity", SecureBoot: &off, ModuleKeys: []string{"0a0b", "0c"}, RevokedKeys: []string{"key:0c", "tbs:0d"},
			Taints: []loader.Taint{{Bit: 12, Letter: "O", Meaning: "out of tree", Modules: []string{"zfs"}}}},
		Livepatches: []loader.Livepatch{
			{Name: "ours", State: loader.Enabling, Standing: loader.Trial, Version: "1.2", Sequence: 3, Digest: d, Inserted: time.Unix(1e9, 0).UTC(),
				Blockers: []loader.Blocker{{TID: 1, Comm: "init", State: "S (sleeping)"}}, BlockerCount: 40},
			{Name: "theirs", State: loader.Enabled},
			{Name: "gone", State: loader.Absent, Standing: loader.Quarantined},
		},
	}
	fake.Do(func(f *loadertest.Fake) {
		f.Kernel, f.Livepatches, f.RootVersion = want.Kernel, want.Livepatches, want.RootVersion
	})
	got, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for i, live := range []bool{true, true, false} {
		if got.Livepatches[i].Live() != live {
			t.Errorf("%s: live = %v", got.Livepatches[i].Name, !live)
		}
	}
}

// request returns a request for a module of n bytes.
func request(t *testing.T, n int) (loader.Request, []byte) {
	t.Helper()
	module := make([]byte, n)
	_, _ = rand.Read(module)
	m := patch.Module{Kernel: kernel, Flavour: "amd64", Name: "lkp_1", Version: "1.1", Sequence: 1}
	bin, err := json.Marshal(map[string]any{"signed": map[string]any{"targets": map[string]any{
		"debian/x.ko": map[string]any{"hashes": map[string]string{"sha256": fmt.Sprintf("%x", sha256.Sum256(module))}, "custom": m}}}})
	if err != nil {
		t.Fatal(err)
	}
	return loader.Request{Target: "debian/x.ko", Metadata: loader.Metadata{Roots: [][]byte{[]byte(`{"signed":{"version":2}}`), []byte(`{"signed":{"version":3}}`)}, Timestamp: []byte("timestamp"),
		Snapshot: []byte("snapshot"), Targets: []byte("targets"), Rollout: []byte("rollout")}, Vendor: []byte("vendor"), Bin: bin, Module: bytes.NewReader(module), Wait: time.Minute}, module
}

func TestApplySendsEverythingAsItIs(t *testing.T) {
	for _, n := range []int{0, 1, 64 << 10, 64<<10 + 1, 3 << 20} {
		t.Run(fmt.Sprint(n, " bytes"), func(t *testing.T) {
			fake, client := serve(t)
			r, module := request(t, n)
			result, err := client.Apply(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if result.Livepatch.Name != "lkp_1" || result.Pending || result.Already {
				t.Errorf("result = %+v", result)
			}
			fake.Do(func(f *loadertest.Fake) {
				got := f.Applied[0]
				if !bytes.Equal(got.Content, module) {
					t.Error("module has changed on the way")
				}
				got.Module, got.Content, r.Module = nil, nil, nil
				if diff := cmp.Diff(r, got.Request); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestApplyReportsThatTheTransitionGoesOn(t *testing.T) {
	fake, client := serve(t)
	fake.Do(func(f *loadertest.Fake) { f.Slow = true })
	r, _ := request(t, 10)
	result, err := client.Apply(t.Context(), r)
	if err != nil || !result.Pending || result.Livepatch.State != loader.Enabling {
		t.Errorf("result = %+v, %v", result, err)
	}
}

func TestErrorsKeepTheirMeaning(t *testing.T) {
	fake, client := serve(t)
	for _, want := range []error{patch.ErrBusy, patch.ErrUntrusted, patch.ErrWrongKernel, patch.ErrStorage} {
		fake.Do(func(f *loadertest.Fake) { f.Err = fmt.Errorf("cannot do it: %w", want) })
		r, _ := request(t, 10)
		_, err := client.Apply(t.Context(), r)
		if !errors.Is(err, want) || rpcerr.Reason(err) != rpcerr.Reason(want) {
			t.Errorf("Apply = %v, want %v", err, want)
		}
		if _, err := client.Status(t.Context()); !errors.Is(err, want) {
			t.Errorf("Status = %v, want %v", err, want)
		}
		if _, err := client.Remove(t.Context(), "x"); !errors.Is(err, want) {
			t.Errorf("Remove = %v, want %v", err, want)
		}
	}
}

func TestAcceptAndRemove(t *testing.T) {
	fake, client := serve(t)
	fake.Do(func(f *loadertest.Fake) {
		f.Livepatches = []loader.Livepatch{{Name: "a", State: loader.Enabled, Standing: loader.Trial}}
	})
	l, err := client.Accept(t.Context(), "a")
	if err != nil || l.Standing != loader.Accepted {
		t.Errorf("Accept = %+v, %v", l, err)
	}
	l, err = client.Remove(t.Context(), "a")
	if err != nil || l.State != loader.Absent {
		t.Errorf("Remove = %+v, %v", l, err)
	}
	if _, err := client.Accept(t.Context(), "b"); !errors.Is(err, patch.ErrNotFound) {
		t.Errorf("Accept of what is not there = %v", err)
	}
}

func TestLoaderIsAway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "loader.sock")
	_, err := loader.New(socket).Status(t.Context())
	if !errors.Is(err, loader.ErrAway) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a socket: %v", err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = loader.New(socket).Status(t.Context())
	if !errors.Is(err, loader.ErrAway) || strings.Contains(err.Error(), "\n") {
		t.Errorf("nothing listens: %v", err)
	}
}

func TestLoaderThatRefusesThisUser(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "loader.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(peercred.Credentials(1, func(peercred.Info) bool { return false })))
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	// Where the connection ends before the client has said its first word, who
	// closed it cannot be told.
	err = loader.ErrAway
	for range 20 {
		if !errors.Is(err, loader.ErrAway) {
			break
		}
		_, err = loader.New(socket).Status(t.Context())
	}
	if !errors.Is(err, loader.ErrForbidden) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Status = %v", err)
	}
}

func TestCancelledWhileApplying(t *testing.T) {
	_, client := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := request(t, 10)
	r.Module = io.MultiReader(r.Module, readerFunc(func([]byte) (int, error) { cancel(); return 0, nil }), iotest.ErrReader(io.EOF))
	if _, err := client.Apply(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply = %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) {
	n, err := f(b)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func TestModuleThatCannotBeRead(t *testing.T) {
	fake, client := serve(t)
	r, _ := request(t, 10)
	r.Module = iotest.ErrReader(errors.New("input/output error"))
	_, err := client.Apply(t.Context(), r)
	if err == nil || !strings.Contains(err.Error(), "cannot read module from the cache") {
		t.Errorf("Apply = %v", err)
	}
	fake.Do(func(f *loadertest.Fake) {
		if len(f.Applied) != 0 {
			t.Error("half a module was handed over")
		}
	})
}
