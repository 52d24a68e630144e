package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/agent/internal/servicetest"
	"livepatch/agent/internal/status"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

const bootID = "0b6a4a63-7b36-4a2e-8a0d-6e1f5a5c9d11"

var (
	kernel  = patch.Kernel{Arch: facts.Arch(), Release: "6.1.0-53-amd64", BuildID: "7477656e7479206279746573206f662073686131"}
	module1 = module("1.1", 1)
	module2 = module("2.1", 2)
)

// module returns the description of a patch for kernel.
func module(version string, sequence uint64) patch.Module {
	return patch.Module{Kernel: kernel, Flavour: "amd64", Name: "lkp_Debian_6_1_0_53_amd64_" + strings.ReplaceAll(version, ".", "_"), Version: version,
		Sequence: sequence, Notice: "LSN-" + version, Fixes: []string{"CVE-2026-" + version}}
}

// contentOf returns the content of the module of a version.
func contentOf(version string) []byte { return bytes.Repeat([]byte("module "+version+" "), 1000) }

// kernelFiles returns a machine made of files.
func kernelFiles() fstest.MapFS {
	id := []byte("twenty bytes of sha1")
	var notes []byte
	for _, n := range []uint32{4, uint32(len(id)), 3} {
		notes = binary.NativeEndian.AppendUint32(notes, n)
	}
	notes = append(append(notes, "GNU\x00"...), id...)
	return fstest.MapFS{
		"proc/sys/kernel/osrelease":      {Data: []byte(kernel.Release + "\n")},
		"proc/sys/kernel/random/boot_id": {Data: []byte(bootID + "\n")},
		"proc/stat":                      {Data: []byte("btime 946684000\n")},
		"etc/os-release":                 {Data: []byte("ID=debian\n")},
		"sys/kernel/notes":               {Data: notes},
	}
}

// A logBuffer may be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A world is an agent with everything around it, in memory.
type world struct {
	*Agent
	t      *testing.T
	dir    string
	kernel fstest.MapFS
	repo   *servicetest.Repo
	fake   *loadertest.Fake
	svc    *memService
	log    *logBuffer
	boots  int
	root   []byte // that the program pins
}

// newWorld returns a world whose repository has module1 for everyone.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), kernel: kernelFiles(), repo: servicetest.NewRepo(), fake: loadertest.New(kernel), log: &logBuffer{}}
	w.root = w.repo.Root()
	w.repo.Add(module1, contentOf("1.1"), servicetest.Everyone())
	w.repo.Publish()
	w.svc = &memService{repo: w.repo, answer: service.CheckInAnswer{IntervalSeconds: 3600, Tier: "stable"}}
	w.reopen(func(config.Config) (Service, error) { return w.svc, nil })
	return w
}

// reopen makes a new agent of the same files, as after a restart.
func (w *world) reopen(connect func(config.Config) (Service, error)) {
	w.t.Helper()
	a, err := New(Options{
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Data: w.dir, Root: w.root, Kernel: w.kernel,
		Loader: w.fake, Connect: connect, Version: "v1.2.3",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Agent = a
}

// restart is reopen with the same service.
func (w *world) restart() { w.reopen(w.connect) }

func (w *world) enable() {
	w.t.Helper()
	if _, err := w.Enable(w.t.Context(), servicetest.AuthToken); err != nil {
		w.t.Fatal(err)
	}
}

// run runs the agent until the test, or the bubble, ends.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	return func() { cancel(); <-done }
}

// now makes one check, as Run does.
func (w *world) now() error { return w.check(w.t.Context(), false) }

// patch returns what status says of the running kernel.
func (w *world) patch() status.Livepatch {
	s, _ := w.Status(false)
	return s.Kernels[0].Livepatch
}

// wantPatch fails the test unless the patch is in this state.
func (w *world) wantPatch(state status.State, version string) {
	w.t.Helper()
	p := w.patch()
	if p.State != state || p.Version != version {
		w.t.Errorf("patch %q is %q (%s), want %q %q", p.Version, p.State, p.PatchError, version, state)
	}
}

// tree returns the content of all files of the agent, but for those that say
// when something was tried.
func (w *world) tree() map[string]string {
	w.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == stateFile {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(w.dir, path)
		files[name] = string(b)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return files
}

// memService is a service without a network, for bubbles of fake time.
type memService struct {
	repo *servicetest.Repo

	mu       sync.Mutex
	answer   service.CheckInAnswer
	err      error // of every call
	skew     time.Duration
	times    []time.Time // of check-ins, answered or not
	checkIns []service.CheckIn
	forgot   int
	targets  int           // how many were fetched
	hold     chan struct{} // if not nil, check-ins wait for it
	full     bool          // no machine may begin with a patch
}

func (s *memService) set(change func(*memService)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *memService) Enrol(_ context.Context, token string, r service.EnrolRequest) (service.Enrolment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return service.Enrolment{}, s.err
	case token != servicetest.AuthToken || len(r.MachineID) != 32:
		return service.Enrolment{}, &fetch.Error{Kind: fetch.ErrToken, Status: 401, Text: "the service does not know the token"}
	}
	sum := sha256.Sum256([]byte(r.MachineID + time.Now().String()))
	return service.Enrolment{MachineToken: hex.EncodeToString(sum[:16]), Tier: s.answer.Tier}, nil
}

func (s *memService) Forget(context.Context, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgot++
	return s.err
}

func (s *memService) CheckIn(ctx context.Context, _ string, r service.CheckIn) (service.CheckInAnswer, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return service.CheckInAnswer{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times = append(s.times, time.Now())
	if s.err != nil {
		return service.CheckInAnswer{}, s.err
	}
	s.checkIns = append(s.checkIns, r)
	a := s.answer
	a.Generation = s.repo.Generation()
	if !s.full {
		a.Go = servicetest.Go(r)
	}
	return a, nil
}

func (s *memService) Metadata(_ context.Context, name string, _ int64, etag string) (fetch.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fetch.File{}, s.err
	}
	b := s.repo.Metadata(name)
	if b == nil {
		return fetch.File{}, &fetch.Error{Kind: fetch.ErrAbsent, Status: 404, Text: "service does not have " + name}
	}
	sum := sha256.Sum256(b)
	tag := hex.EncodeToString(sum[:])
	if tag == etag {
		return fetch.File{ETag: tag, NotModified: true}, nil
	}
	return fetch.File{Data: b, ETag: tag}, nil
}

func (s *memService) Target(_ context.Context, path string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.targets++
	b, ok := s.repo.Target(path)
	if !ok {
		return nil, &fetch.Error{Kind: fetch.ErrAbsent, Status: 404, Text: "service does not have " + path}
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *memService) Skew() (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.skew, s.err == nil
}

func (*memService) Base() string { return "https://livepatch.test" }
func (*memService) Close()       {}

// events returns the events of all check-ins, as "kind version reason".
func (s *memService) events() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	seen := map[string]bool{}
	for _, c := range s.checkIns {
		for _, e := range c.Events {
			if !seen[e.ID] {
				all = append(all, strings.Join(strings.Fields(string(e.Kind)+" "+e.Version+" "+e.Reason), " "))
			}
			seen[e.ID] = true
		}
	}
	return all
}

// count returns how many check-ins there were, answered or not.
func (s *memService) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.times)
}

// down makes the service unreachable.
func (s *memService) down() {
	s.set(func(s *memService) {
		s.err = &fetch.Error{Kind: fetch.ErrConnRefused, Text: "connection to livepatch.test:443 refused"}
	})
}

func (s *memService) up() { s.set(func(s *memService) { s.err = nil }) }

// inKernel returns our patch in the kernel, or the zero one.
func (w *world) inKernel() loader.Livepatch {
	var l loader.Livepatch
	w.fake.Do(func(f *loadertest.Fake) {
		if c := current(&loader.Status{Livepatches: f.Livepatches}); c != nil {
			l = *c
		}
	})
	return l
}
