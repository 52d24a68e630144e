// Package servicetest makes services for tests: the real thing on a folder that
// goes away with the test, for repositories of package tuftest. Production code
// must not import it.
package servicetest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/api"
	"livepatch/server/internal/blob"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/certs"
	"livepatch/server/internal/controller"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/ops"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// A Service is an open service.
type Service struct {
	Dir     layout.Dir
	Log     *Log // at level debug
	DB      *sqlite.DB
	Blobs   *blob.Store
	Catalog *catalog.Catalog
	Desk    *enrolment.Desk
	Metrics *ops.Metrics
	Rule    *controller.Controller // runs until the test is over, or StopRule is called
	// StopRule ends it: a test that sleeps for days would otherwise wait for each second.
	StopRule func()
}

// A Log keeps what is logged. It is safe for concurrent use.
type Log struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

// Write implements [io.Writer].
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(b)
}

// String returns all that was logged so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

// Soak is how long patches of a test's service stay on trial.
const Soak = time.Hour

// New makes an empty service whose online keys are those of a [tuftest.Repo].
func New(t testing.TB) *Service {
	t.Helper()
	return Open(t, Create(t))
}

// Create makes the folder of such a service and leaves it closed.
func Create(t testing.TB) layout.Dir {
	t.Helper()
	dir := layout.Dir(filepath.Join(t.TempDir(), "service"))
	if err := os.MkdirAll(filepath.Join(string(dir), "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, role := range signer.Roles {
		writeKey(t, filepath.Join(string(dir), "keys", role+".key"), role)
	}
	if _, err := dir.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// writeKey writes the key that tuftest knows by a name.
func writeKey(t testing.TB, path, name string) {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Open opens the service in a folder until the test is over, as a server that
// starts would.
func Open(t testing.TB, dir layout.Dir) *Service {
	t.Helper()
	s := &Service{Dir: dir, Log: &Log{}, Metrics: ops.NewMetrics()}
	keys, err := dir.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if s.Blobs, err = dir.Blobs(); err != nil {
		t.Fatal(err)
	}
	if s.DB, err = dir.Database(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.DB.Close(); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewJSONHandler(s.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if s.Catalog, err = catalog.Open(t.Context(), log, s.DB, s.Blobs, signer.New(keys), Soak); err != nil {
		t.Fatal(err)
	}
	s.Desk = enrolment.New(s.DB)
	s.run(t, log)
	return s
}

// run runs the rule until the test is over.
func (s *Service) run(t testing.TB, log *slog.Logger) {
	t.Helper()
	var err error
	s.Rule, err = controller.New(controller.Config{
		Log: log, DB: s.DB, Params: rollout.Defaults(), Tiers: controller.Tiers(), SignFiles: s.Catalog.Refresh, Now: time.Now,
		Metrics: s.Metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Catalog.Published = s.Rule.Poke
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Rule.Run(ctx)
	}()
	s.StopRule = sync.OnceFunc(func() {
		stop()
		<-done
	})
	t.Cleanup(s.StopRule)
}

// Reopen opens the catalog with other keys and returns the error.
func (s *Service) Reopen(t testing.TB, keys signer.Keys) error {
	t.Helper()
	_, err := catalog.Open(t.Context(), slog.New(slog.DiscardHandler), s.DB, s.Blobs, signer.New(keys), Soak)
	return err
}

// API returns the configuration of an interface to the service.
func (s *Service) API() api.Config {
	return api.Config{
		Log:     slog.New(slog.NewJSONHandler(s.Log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Catalog: s.Catalog, Desk: s.Desk, Metrics: s.Metrics, Interval: time.Hour,
		Rule: s.Rule, Now: time.Now,
	}
}

// Listen serves the API over TLS until the test is over, with a certificate of
// the kind that dev-ca makes.
func (s *Service) Listen(t testing.TB, c api.Config) *httptest.Server {
	t.Helper()
	if err := certs.MakeDev(s.Dir.TLS(), []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(s.Dir.Cert(), s.Dir.Key())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(api.New(c).Handler())
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// Token makes a token of a kind in force.
func (s *Service) Token(t testing.TB, kind store.Kind) string {
	t.Helper()
	_, secret, err := s.Desk.Issue(t.Context(), store.Token{Kind: kind, Tier: "stable"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Kernel describes the kernel number n of a test: "6.1.0-<n>-amd64".
func Kernel(n int) patch.Kernel {
	build := sha256.Sum256(fmt.Append(nil, "kernel ", n))
	id, err := patch.BuildIDFromBytes(build[:20])
	if err != nil {
		panic(err) // 20 bytes are a build-id
	}
	return patch.Kernel{Arch: "x86_64", Release: fmt.Sprintf("6.1.0-%d-amd64", n), BuildID: id}
}

// AddPatch adds patch number p of kernel number n to a repository, with the
// kernel's index: versions are "<p>.1". It returns the paths of both targets.
func AddPatch(r *tuftest.Repo, n, p int) (module, index string) {
	k := Kernel(n)
	ix := patch.Index{
		Arch: k.Arch, Release: k.Release, Flavour: "amd64", KernelVersion: fmt.Sprintf("6.1.%d-1", n),
		From: "2026-01-01", Until: "2099-12-31",
	}
	index = patch.IndexPath("debian", k.Release, k.Arch)
	if old, ok := r.Content[index]; ok {
		if err := json.Unmarshal(old, &ix); err != nil {
			panic(err) // written below
		}
	}
	m := patch.Module{
		Kernel: k, Flavour: "amd64", Name: fmt.Sprintf("lkp_Debian_6_1_0_%d_amd64_%d", n, p),
		Version: fmt.Sprintf("%d.1", p), Sequence: uint64(p), Notice: fmt.Sprintf("LSN-%04d-1", p),
		Fixes: []string{fmt.Sprintf("CVE-2026-%d", 10000+p)},
	}
	module = patch.ModulePath("debian", m)
	r.AddTarget(module, fmt.Append(nil, "module ", p), m)
	ix.Patches = append(ix.Patches, patch.IndexEntry{
		Target: module, Name: m.Name, Version: m.Version, Sequence: m.Sequence, BuildID: k.BuildID,
		Notice: m.Notice, Added: "2026-11-22T03:00:00Z", Fixes: []patch.Fix{{Name: m.Fixes[0], Priority: patch.High}},
	})
	b, err := json.Marshal(ix)
	if err != nil {
		panic(err) // an index can always be marshalled
	}
	r.AddTarget(index, b, nil)
	return module, index
}

// Publication returns the offline files of a repository: all that the service
// needs if it has nothing, and those of the roles named, if any are.
func Publication(r *tuftest.Repo, roles ...string) service.Publication {
	files := r.Files()
	p := service.Publication{Files: map[string][]byte{}}
	if len(roles) == 0 {
		for i, b := range files.Roots {
			p.Files[fmt.Sprintf("%d.root.json", i+1)] = b
		}
		for role := range maps.Keys(files.Roles) {
			roles = append(roles, role)
		}
	}
	for _, role := range roles {
		if role == "root" {
			p.Files[fmt.Sprintf("%d.root.json", r.Root().Version())] = files.Roots[len(files.Roots)-1]
		} else if role != "snapshot" && role != "timestamp" && role != "rollout" {
			p.Files[fmt.Sprintf("%d.%s.json", r.Roles[role].Version(), role)] = files.Roles[role]
		}
	}
	return p
}

// Upload uploads the targets of a repository.
func (s *Service) Upload(t testing.TB, r *tuftest.Repo) {
	t.Helper()
	for path, content := range r.Content {
		if err := s.Catalog.Upload(t.Context(), path, sha256.Sum256(content), bytes.NewReader(content), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
}

// Publish uploads and publishes roles of a repository, all if none is named.
func (s *Service) Publish(t testing.TB, r *tuftest.Repo, roles ...string) service.Published {
	t.Helper()
	s.Upload(t, r)
	p, err := s.Catalog.Publish(context.WithoutCancel(t.Context()), Publication(r, roles...))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// AddTargets keeps the names of blobs that a test has put by itself, all in one
// transaction.
func (s *Service) AddTargets(t testing.TB, targets []store.Target) {
	t.Helper()
	pool, err := sql.Open("sqlite", filepath.Join(string(s.Dir), "livepatch.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tx, err := pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for _, target := range targets {
		if _, err := tx.ExecContext(t.Context(), "INSERT INTO targets (path, digest, length, uploaded_at) VALUES (?, ?, ?, ?)",
			target.Path, target.Digest[:], target.Length, target.Uploaded.Unix()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// Silent returns a logger for measurements.
func Silent() *slog.Logger { return slog.New(slog.DiscardHandler) }
