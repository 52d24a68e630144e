package measure_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/api"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/measure"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/store"
)

var (
	base    = flag.String("service", "", "measure the service at this `URL`")
	ca      = flag.String("ca", "", "`file` of its CA")
	vendor  = flag.String("vendor", "debian", "`name` of a vendor that it has")
	release = flag.String("release", "6.1.0-53-amd64", "`release` of a kernel that it covers")
)

// The goals of a repository with kernels × patches.
const (
	kernels, patches = 5000, 3
	maxFirstFetch    = 10 << 10
	maxStart         = 2 * time.Second
)

// sample is how many of the 1024 bins are filled. They hold as much as they
// would if all were, and the snapshot lists all of them, so that a fetch from
// these bins is as large as in the whole.
const sample = 96

// sampled tells whether a target lies in a bin that is filled.
func sampled(r *tuftest.Repo, path string) bool {
	var n int
	_, err := fmt.Sscanf(r.Bin(path), "large-%x", &n)
	return err == nil && n < sample
}

// makeLarge publishes kernels × patches, and returns the kernels whose fetch is
// as large as in the whole. The targets are put where uploads put
// them, but without waiting for the disk for each of them.
func makeLarge(t testing.TB) (dir layout.Dir, filled []patch.Kernel) {
	t.Helper()
	dir = servicetest.Create(t)
	s := servicetest.Open(t, dir)
	r := tuftest.New(time.Now())
	r.AddVendor("large", 10)
	for n := range kernels {
		for p := 1; p < patches; p++ {
			addPatch(r, n, p)
		}
		if addPatch(r, n, patches) {
			filled = append(filled, servicetest.Kernel(n))
		}
	}
	addTargets(t, s, r)
	if _, err := s.Catalog.Publish(t.Context(), servicetest.Publication(r)); err != nil {
		t.Fatal(err)
	}
	return dir, filled
}

// addPatch adds patch p of kernel n, and with the last one the kernel's index.
// It tells whether both lie in bins that are filled.
func addPatch(r *tuftest.Repo, n, p int) bool {
	k := servicetest.Kernel(n)
	sum := sha256.Sum256(fmt.Append(nil, "notice ", p))
	m := patch.Module{
		Kernel: k, Flavour: "amd64", Name: fmt.Sprintf("lkp_Debian_6_1_0_%d_amd64_%d", n, p), Version: fmt.Sprintf("%d.1", p),
		Sequence: uint64(p), Notice: fmt.Sprintf("LSN-%04d-1", p),
	}
	ix := patch.Index{
		Arch: k.Arch, Release: k.Release, Flavour: "amd64", KernelVersion: fmt.Sprintf("6.1.%d-1", n), From: "2026-01-01", Until: "2099-12-31",
	}
	for i := range 6 {
		m.Fixes = append(m.Fixes, fmt.Sprintf("CVE-2026-%d", 10000+int(sum[i])))
	}
	module := patch.ModulePath("large", m)
	// Contents differ, as those of real modules do: hashes cannot be compressed.
	if sampled(r, module) {
		r.AddTarget(module, fmt.Append(nil, "module ", n, p), m)
	}
	if p < patches {
		return false
	}
	for q := 1; q <= patches; q++ {
		ix.Patches = append(ix.Patches, patch.IndexEntry{Target: module, Name: m.Name, Version: m.Version, Sequence: uint64(q), BuildID: k.BuildID})
	}
	b, err := json.Marshal(ix)
	if err != nil {
		panic(err) // an index can always be marshalled
	}
	index := patch.IndexPath("large", k.Release, k.Arch)
	if sampled(r, index) {
		r.AddTarget(index, b, nil)
	}
	return sampled(r, index) && sampled(r, module)
}

// addTargets puts the contents of a repository where uploads put them.
func addTargets(t testing.TB, s *servicetest.Service, r *tuftest.Repo) {
	t.Helper()
	targets := make([]store.Target, 0, len(r.Content))
	for path, content := range r.Content {
		d := patch.Digest(sha256.Sum256(content))
		name := hex.EncodeToString(d[:])
		file := filepath.Join(string(s.Dir), "blobs", name[:2], name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		targets = append(targets, store.Target{Path: path, Digest: d, Length: int64(len(content)), Uploaded: time.Now()})
	}
	s.AddTargets(t, targets)
}

func TestFirstFetchAndStartOfALargeService(t *testing.T) {
	dir, filled := makeLarge(t)
	begin := time.Now()
	s := servicetest.Open(t, dir)
	if err := s.Catalog.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > maxStart {
		t.Errorf("start took %v, want at most %v", took, maxStart)
	} else {
		t.Logf("start took %v", took)
	}
	srv := s.Listen(t, s.API())
	var worst measure.Fetch
	var sum, fetches int64
	for _, k := range filled {
		f, err := measure.FirstFetch(t.Context(), srv.Client(), srv.URL, "large", k.Release, k.Arch)
		if err != nil {
			t.Fatal(err)
		}
		fetches, sum = fetches+1, sum+f.Bytes()
		if f.Bytes() > worst.Bytes() {
			worst = f
		}
	}
	if fetches < 10 || sum/fetches > maxFirstFetch {
		t.Errorf("first fetch is %d bytes on average of %d, want at most %d", sum/max(fetches, 1), fetches, maxFirstFetch)
	}
	t.Logf("first fetch is %d bytes on average of %d, at most %d: %v", sum/max(fetches, 1), fetches, worst.Bytes(), worst)
}

func TestFirstFetchFails(t *testing.T) {
	s := servicetest.New(t)
	srv := s.Listen(t, s.API())
	if f, err := measure.FirstFetch(t.Context(), srv.Client(), srv.URL, "debian", "r", "x86_64"); err == nil {
		t.Errorf("fetched %v of nothing", f)
	}
	s.Publish(t, tuftest.New(time.Now()))
	if f, err := measure.FirstFetch(t.Context(), srv.Client(), srv.URL, "debian", "r", "x86_64"); err == nil {
		t.Errorf("fetched %v of a kernel that is not covered", f)
	}
}

// BenchmarkFirstFetch measures the service that -service names.
func BenchmarkFirstFetch(b *testing.B) {
	if *base == "" {
		b.Skip("no -service is named; TestFirstFetchAndStartOfALargeService measures one of its own")
	}
	pem, err := os.ReadFile(*ca)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableCompression: true}}
	var f measure.Fetch
	for b.Loop() {
		if f, err = measure.FirstFetch(b.Context(), h, *base, *vendor, *release, "x86_64"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(f.Bytes()), "bytes")
	b.Logf("%v", f)
}

// BenchmarkCheckIn measures an unchanged check-in without the network: CPU of
// the process in "cpu-µs/op".
func BenchmarkCheckIn(b *testing.B) {
	s := servicetest.New(b)
	s.Publish(b, tuftest.New(time.Now()))
	facts := service.Facts{Kernel: servicetest.Kernel(53), BootID: "b"}
	e, err := s.Desk.Enrol(b.Context(), s.Token(b, store.Auth), service.EnrolRequest{
		MachineID: "0123456789abcdef0123456789abcdef", Version: "1", Facts: facts,
	}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	body, err := json.Marshal(service.CheckIn{Version: "1", Facts: facts})
	if err != nil {
		b.Fatal(err)
	}
	config := s.API()
	config.Log = servicetest.Silent()
	h := api.New(config).Handler()
	cpu := cpuTime(b)
	for b.Loop() {
		r := httptest.NewRequest(http.MethodPost, service.PathCheckIn, bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+e.MachineToken)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatalf("answered %d %s", w.Code, w.Body)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkNotModified measures the answer to a machine that has the current
// timestamp.
func BenchmarkNotModified(b *testing.B) {
	s := servicetest.New(b)
	s.Publish(b, tuftest.New(time.Now()))
	config := s.API()
	config.Log = servicetest.Silent()
	h := api.New(config).Handler()
	get := func(tag string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, service.PathMetadata+"timestamp.json", nil)
		r.Header.Set("Accept-Encoding", "gzip")
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	tag := get("").Header().Get("Etag")
	for b.Loop() {
		if w := get(tag); w.Code != http.StatusNotModified {
			b.Fatalf("answered %d", w.Code)
		}
	}
}

// BenchmarkHandshakeAndCheckIn is a check-in as machines do it, each on a
// connection of its own. Both ends are counted.
func BenchmarkHandshakeAndCheckIn(b *testing.B) {
	s := servicetest.New(b)
	config := s.API()
	config.Log = servicetest.Silent()
	srv := s.Listen(b, config)
	facts := service.Facts{Kernel: servicetest.Kernel(53), BootID: "b"}
	e, err := s.Desk.Enrol(b.Context(), s.Token(b, store.Auth), service.EnrolRequest{
		MachineID: "0123456789abcdef0123456789abcdef", Version: "1", Facts: facts,
	}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	body, err := json.Marshal(service.CheckIn{Version: "1", Facts: facts})
	if err != nil {
		b.Fatal(err)
	}
	h := srv.Client()
	h.Transport.(*http.Transport).DisableKeepAlives = true
	for b.Loop() {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, srv.URL+service.PathCheckIn, bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+e.MachineToken)
		resp, err := h.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
