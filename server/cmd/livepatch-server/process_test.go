package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/certs"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/store"
)

// The tests of this file run this test binary as livepatch-server: a process of
// its own, that can be killed.
const runAsServer = "LIVEPATCH_TEST_RUN_AS_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(runAsServer) != "" {
		main()
	}
	os.Exit(m.Run())
}

// serverCommand returns a livepatch-server that is not started.
func serverCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), runAsServer+"=1")
	return cmd
}

// A process is a server that listens.
type process struct {
	t       *testing.T
	cmd     *exec.Cmd
	url     string
	ops     string
	client  *http.Client
	done    chan struct{} // closed when it has left
	err     error         // of Wait, once it has
	log     bytes.Buffer  // once it has
	killed  sync.Once
	address string
}

// spawn starts a command that ends in a server of dir, and waits until it
// listens.
func spawn(t *testing.T, dir layout.Dir, cmd *exec.Cmd) *process {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, done: make(chan struct{})}
	listening := make(chan [2]string, 1)
	go p.read(stderr, listening)
	t.Cleanup(p.kill)
	select {
	case a := <-listening:
		p.address = a[0]
		p.url, p.ops = "https://"+a[0], "http://"+a[1]
	case <-p.done:
		t.Fatalf("server left: %v: %s", p.err, p.log.String())
	case <-time.After(30 * time.Second):
		t.Fatal("server does not listen")
	}
	p.client = &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots(t, dir)}},
	}
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

func start(t *testing.T, dir layout.Dir, args ...string) *process {
	t.Helper()
	return spawn(t, dir, serverCommand(append([]string{
		"serve", "-dir", string(dir), "-listen", "127.0.0.1:0", "-ops-listen", "127.0.0.1:0",
	}, args...)...))
}

func (p *process) read(stderr io.Reader, listening chan<- [2]string) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		var line struct{ Msg, Addr, OpsAddr string }
		raw := bytes.Replace(lines.Bytes(), []byte("ops_addr"), []byte("OpsAddr"), 1)
		if json.Unmarshal(raw, &line) == nil && line.Msg == "Listening" {
			listening <- [2]string{line.Addr, line.OpsAddr}
		}
		p.log.Write(append(lines.Bytes(), '\n'))
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// kill is kill -9.
func (p *process) kill() {
	p.killed.Do(func() {
		_ = p.cmd.Process.Kill() // it may have left by itself
		<-p.done
	})
}

func roots(t *testing.T, dir layout.Dir) *x509.CertPool {
	t.Helper()
	ca, err := os.ReadFile(dir.CA())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return pool
}

// newDir makes a service with a certificate.
func newDir(t *testing.T) layout.Dir {
	t.Helper()
	dir := servicetest.Create(t)
	if err := certs.MakeDev(dir.TLS(), []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// token makes a token while no server runs.
func token(t *testing.T, dir layout.Dir, kind store.Kind) (secret string) {
	t.Helper()
	t.Run("token", func(t *testing.T) { secret = servicetest.Open(t, dir).Token(t, kind) })
	return secret
}

// send sends JSON, or bytes as they are, and decodes the answer.
func (p *process) send(method, path, token string, in, out any) (int, error) {
	body, ok := in.([]byte)
	if !ok {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequest(method, p.url+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	return resp.StatusCode, err
}

func (p *process) get(path string, out any) error {
	status, err := p.send("GET", path, "", []byte(nil), out)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answered %d", path, status)
	}
	return err
}

var facts = service.Facts{Kernel: servicetest.Kernel(1), BootID: "b"}

// TestKillWhileMachinesEnrol kills the server again and again while machines
// enrol and report. What was acknowledged is there afterwards.
func TestKillWhileMachinesEnrol(t *testing.T) {
	dir := newDir(t)
	auth := token(t, dir, store.Auth)
	var mu sync.Mutex
	tokens := map[string]string{} // machine token by machine ID
	events := map[string]bool{}   // "machine event"
	for round := range 4 {
		p := start(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					id := fmt.Sprintf("%08x%08x%016x", round, worker, n)
					var e service.Enrolment
					status, err := p.send("POST", service.PathMachines, auth, service.EnrolRequest{MachineID: id, Version: "1", Facts: facts}, &e)
					if err != nil || status != http.StatusCreated {
						return
					}
					mu.Lock()
					tokens[id] = e.MachineToken
					mu.Unlock()
					report := service.CheckIn{Version: "1", Facts: facts, Events: []service.Event{{ID: "e", Kind: "applied", At: time.Now()}}}
					if status, err := p.send("POST", service.PathCheckIn, e.MachineToken, report, nil); err != nil || status != http.StatusOK {
						return
					}
					mu.Lock()
					events[id] = true
					mu.Unlock()
				}
			})
		}
		wait(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(events) >= 10*(round+1)
		})
		time.Sleep(time.Duration(7*round) * time.Millisecond) // somewhere between two answers
		p.kill()
		cancel()
		wg.Wait()
	}
	s := servicetest.Open(t, dir)
	for id, secret := range tokens {
		if who, err := s.Desk.Identify(t.Context(), secret); err != nil || who.Machine != id {
			t.Errorf("machine %s: %+v, %v", id, who, err)
		}
		if got, err := s.DB.Events(t.Context(), id); events[id] && (err != nil || len(got) != 1) {
			t.Errorf("machine %s has %d events, %v", id, len(got), err)
		}
	}
	t.Logf("%d machines, %d events", len(tokens), len(events))
}

// wait waits until done says so.
func wait(t *testing.T, done func() bool) {
	t.Helper()
	for begin := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("it takes too long")
		}
	}
}

// TestKillWhilePublishing kills the server while a publisher publishes. What was
// acknowledged is current afterwards, and nothing is there in part.
func TestKillWhilePublishing(t *testing.T) {
	dir := newDir(t)
	publisher := token(t, dir, store.Publisher)
	r := tuftest.New(time.Now())
	acknowledged, generation := 0, int64(0)
	for round := range 4 {
		p := start(t, dir)
		if round == 0 {
			if status, err := p.send("POST", service.PathPublishMetadata, publisher, servicetest.Publication(r), nil); err != nil || status != http.StatusOK {
				t.Fatalf("first publication: %d, %v", status, err)
			}
		}
		checkRepository(t, p, acknowledged, generation)
		for begin := acknowledged; ; {
			if acknowledged == begin+3 {
				time.AfterFunc(time.Duration(3+11*round)*time.Millisecond, p.kill)
			}
			n := acknowledged + 1
			next := addPatch(r, n)
			var done service.Published
			if !next.send(p, publisher, &done) {
				break
			}
			acknowledged, generation = n, done.Generation
		}
		p.kill()
	}
	if acknowledged < 12 {
		t.Fatalf("only %d publications, want 3 in each round", acknowledged)
	}
	checkRepository(t, start(t, dir), acknowledged, generation)
	t.Logf("%d publications", acknowledged)
}

// A step is a publication with the targets that it needs.
type step struct {
	content map[string][]byte
	files   service.Publication
}

// addPatch adds patch n unless an attempt before has, and returns how to
// publish it.
func addPatch(r *tuftest.Repo, n int) step {
	before := len(r.Content)
	module, index := servicetest.AddPatch(r, n, n)
	roles := []string{r.Bin(module)}
	if other := r.Bin(index); other != roles[0] {
		roles = append(roles, other)
	}
	if len(r.Content) > before {
		r.Publish(roles...)
	}
	return step{map[string][]byte{module: r.Content[module], index: r.Content[index]}, servicetest.Publication(r, roles...)}
}

func (s step) send(p *process, token string, done *service.Published) bool {
	for path, content := range s.content {
		if status, err := p.send("PUT", target(service.PathPublishTargets, path, content), token, content, nil); err != nil || status/100 != 2 {
			return false
		}
	}
	status, err := p.send("POST", service.PathPublishMetadata, token, s.files, done)
	return err == nil && status == http.StatusOK
}

func target(prefix, path string, content []byte) string {
	vendor, file, _ := strings.Cut(path, "/")
	return fmt.Sprintf("%s%s/%x.%s", prefix, vendor, sha256.Sum256(content), file)
}

// checkRepository fetches everything that the timestamp leads to.
func checkRepository(t *testing.T, p *process, patches int, generation int64) {
	t.Helper()
	var timestamp metadata.Metadata[metadata.TimestampType]
	var snapshot metadata.Metadata[metadata.SnapshotType]
	if err := p.get(service.PathMetadata+"timestamp.json", &timestamp); err != nil {
		t.Fatal(err)
	}
	version := timestamp.Signed.Meta["snapshot.json"].Version
	if err := p.get(fmt.Sprintf("%s%d.snapshot.json", service.PathMetadata, version), &snapshot); err != nil {
		t.Fatal(err)
	}
	modules := 0
	for name, file := range snapshot.Signed.Meta {
		var m metadata.Metadata[metadata.TargetsType]
		if err := p.get(fmt.Sprintf("%s%d.%s", service.PathMetadata, file.Version, name), &m); err != nil {
			t.Fatal(err)
		}
		for path, f := range m.Signed.Targets {
			vendor, name, _ := strings.Cut(path, "/")
			if vendor == patch.RolloutRole {
				continue
			}
			if status, err := p.send("GET", fmt.Sprintf("%s%s/%x.%s", service.PathTargets, vendor, []byte(f.Hashes["sha256"]), name), "", []byte(nil), nil); err != nil || status != http.StatusOK {
				t.Errorf("%s: %d, %v", path, status, err)
			}
			if strings.HasSuffix(path, ".ko") {
				modules++
			}
		}
	}
	// One more may have become current before its acknowledgement was lost.
	if modules < patches || modules > patches+1 {
		t.Errorf("%d modules are current, %d were acknowledged", modules, patches)
	}
	if got := p.metric("livepatch_generation"); got < float64(generation) {
		t.Errorf("generation = %v, %d was acknowledged", got, generation)
	}
}

// metrics returns all metrics as Prometheus reads them.
func (p *process) metrics() string {
	p.t.Helper()
	resp, err := http.Get(p.ops + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// metric returns the value of one metric, named with its labels.
func (p *process) metric(name string) (value float64) {
	p.t.Helper()
	for line := range strings.Lines(p.metrics()) {
		if _, err := fmt.Sscanf(line, name+" %g", &value); err == nil {
			return value
		}
	}
	p.t.Fatalf("no metric %s", name)
	return 0
}

func TestRunningServerSignsDecisions(t *testing.T) {
	dir := newDir(t)
	publisher, auth := token(t, dir, store.Publisher), token(t, dir, store.Auth)
	p := start(t, dir)
	if p.metric("livepatch_controller_leads") != 1 {
		t.Error("the only server does not run the rule")
	}
	r := tuftest.New(time.Now())
	var done service.Published
	if status, err := p.send("POST", service.PathPublishMetadata, publisher, servicetest.Publication(r), &done); err != nil || status != http.StatusOK {
		t.Fatalf("publication: %d, %v", status, err)
	}
	if !addPatch(r, 1).send(p, publisher, &done) {
		t.Fatal("patch was not published")
	}
	// A machine that the patch is for: without one there is nothing to say of the rollout.
	machine := service.EnrolRequest{MachineID: fmt.Sprintf("%032x", 1), Version: "1", Facts: facts}
	if status, err := p.send("POST", service.PathMachines, auth, machine, nil); err != nil || status != http.StatusCreated {
		t.Fatalf("enrolment: %d, %v", status, err)
	}
	wait(t, func() bool { return strings.Contains(p.metrics(), "livepatch_rollout_verdict_age_seconds{") })
	db, err := dir.Database(t.Context()) // as livepatch-admin does
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	epoch, err := catalog.Decide(t.Context(), db, store.Decision{
		Vendor: "debian", Version: "1.1", State: patch.Halted, At: time.Now(), By: "alice (uid 1000)",
	})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	wait(t, func() bool {
		s, err := db.Counters(t.Context())
		return err == nil && s.SignedEpoch >= epoch
	})
	wait(t, func() bool { return p.metric("livepatch_generation") > float64(done.Generation) })
	t.Logf("decision was signed after %v", time.Since(begin)) // a second, and a bit
	for _, role := range []string{"root", "targets", "debian", "debian-*", "rollout", "snapshot", "timestamp"} {
		if left := p.metric(`livepatch_role_remaining_life_ratio{role="` + role + `"}`); left < 0.9 {
			t.Errorf("%s has %.2f of its life left, and was just published", role, left)
		}
	}
	if resp, err := http.Get(p.ops + "/readyz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("not ready: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	checkDocumentedMetrics(t, p.metrics())
	p.kill()
	if want := `"decided_by":"alice (uid 1000)"`; !strings.Contains(p.log.String(), want) {
		t.Errorf("no %s in the log: %s", want, p.log.String())
	}
}

func TestShutdownFinishesRequests(t *testing.T) {
	dir := newDir(t)
	publisher := token(t, dir, store.Publisher)
	p := start(t, dir)
	content := bytes.Repeat([]byte("x"), 100_000)
	r, w := io.Pipe()
	req, err := http.NewRequest(http.MethodPut, p.url+target(service.PathPublishTargets, "debian/x.ko", content), r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+publisher)
	answered := make(chan error, 1)
	go func() {
		resp, err := p.client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				err = fmt.Errorf("upload answered %d", resp.StatusCode)
			}
		}
		answered <- err
	}()
	if _, err := w.Write(content[:50_000]); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { // until the server has begun to write it down
		left, err := os.ReadDir(filepath.Join(string(dir), "blobs", "tmp"))
		return err == nil && len(left) > 0
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { // until it takes no more
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if _, err := w.Write(content[50_000:]); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	select {
	case <-p.done:
	case <-time.After(25 * time.Second):
		t.Fatal("server does not end")
	}
	if p.err != nil {
		t.Errorf("server left with %v: %s", p.err, p.log.String())
	}
}

func TestCertificateIsRenewedBySignal(t *testing.T) {
	dir := newDir(t)
	p := start(t, dir)
	serial := func() string {
		conn, err := tls.Dial("tcp", p.address, &tls.Config{RootCAs: roots(t, dir)})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	if err := certs.MakeDev(dir.TLS(), []string{"127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { return serial() != before })
}

func TestTokensNeedTLS(t *testing.T) {
	dir := newDir(t)
	auth := token(t, dir, store.Auth)
	p := start(t, dir)
	p.url = "http://" + p.address
	status, err := p.send("POST", service.PathMachines, auth, service.EnrolRequest{MachineID: strings.Repeat("0", 32), Version: "1", Facts: facts}, nil)
	if status != http.StatusBadRequest {
		t.Errorf("plain HTTP answered %d, %v", status, err)
	}
	// The ops listener is plain, and knows no tokens.
	p.url = p.ops
	status, err = p.send("POST", service.PathMachines, auth, service.EnrolRequest{}, nil)
	if status != http.StatusNotFound {
		t.Errorf("ops listener answered %d, %v", status, err)
	}
	_, err = tls.Dial("tcp", p.address, &tls.Config{RootCAs: roots(t, dir), MaxVersion: tls.VersionTLS12})
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.2: %v", err)
	}
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	p := start(t, dir)
	conn, err := tls.Dial("tcp", p.address, &tls.Config{RootCAs: roots(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	go func() {
		for _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nX-Slow: "); err == nil; _, err = io.WriteString(conn, "x") {
			time.Sleep(200 * time.Millisecond)
		}
	}()
	if err := conn.SetReadDeadline(begin.Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(conn)
	if took := time.Since(begin); errors.Is(err, os.ErrDeadlineExceeded) || took > 25*time.Second {
		t.Errorf("still open after %v: %v", took, err)
	}
}

func TestHugeHeadersAreRefused(t *testing.T) {
	dir := newDir(t)
	p := start(t, dir)
	req, err := http.NewRequest(http.MethodGet, p.url+service.PathSupported, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Huge", strings.Repeat("x", 64<<10))
	p.client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("answered %d", resp.StatusCode)
	}
}

// TestFullDisk runs the server on a disk of 4 MB that only it sees: in a mount
// namespace, and a user namespace unless the test is root.
func TestFullDisk(t *testing.T) {
	dir := newDir(t)
	auth, publisher := token(t, dir, store.Auth), token(t, dir, store.Publisher)
	small := layout.Dir(filepath.Join(t.TempDir(), "small"))
	if err := os.Mkdir(string(small), 0o700); err != nil {
		t.Fatal(err)
	}
	script := `mount -t tmpfs -o size=4m,mode=700 tmpfs "$2" && cp -a "$1"/. "$2" && shift && dir=$1 && shift &&
		exec "$@" serve -dir "$dir" -listen 127.0.0.1:0 -ops-listen 127.0.0.1:0`
	cmd := exec.Command("sh", "-ec", script, "sh", string(dir), string(small), os.Args[0])
	cmd.Env = append(os.Environ(), runAsServer+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	p := spawn(t, dir, cmd)

	var e service.Enrolment
	if status, err := p.send("POST", service.PathMachines, auth, service.EnrolRequest{MachineID: strings.Repeat("0", 32), Version: "1", Facts: facts}, &e); err != nil || status != http.StatusCreated {
		t.Fatalf("enrolment: %d, %v", status, err)
	}
	refused := func(name string, status int, err error, answer service.Error) {
		t.Helper()
		if err != nil || status != http.StatusServiceUnavailable || answer.Code != service.CodeUnavailable {
			t.Errorf("%s answered %d %+v, %v", name, status, answer, err)
		}
	}
	big := bytes.Repeat([]byte("module"), 1<<20)
	var answer service.Error
	status, err := p.send("PUT", target(service.PathPublishTargets, "debian/x.ko", big), publisher, big, &answer)
	refused("upload", status, err, answer)

	// What the failed upload took is free again, and is filled with small ones.
	for n := 0; status != http.StatusServiceUnavailable || n == 0; n++ {
		content := bytes.Repeat([]byte{byte(n), byte(n >> 8)}, 32<<10)
		status, err = p.send("PUT", target(service.PathPublishTargets, "debian/x.ko", content), publisher, content, nil)
		if err != nil || n > 1000 || n < 10 && status != http.StatusCreated {
			t.Fatalf("upload %d answered %d, %v", n, status, err)
		}
	}
	kept := 0
	for n := 0; ; n++ {
		events := make([]service.Event, 40)
		for i := range events {
			events[i] = service.Event{ID: fmt.Sprint(n, "-", i), Kind: "failed", At: time.Now(), Message: strings.Repeat("m", 1000)}
		}
		status, err = p.send("POST", service.PathCheckIn, e.MachineToken, service.CheckIn{Version: "1", Facts: facts, Events: events}, &answer)
		if err != nil || n > 1000 {
			t.Fatalf("check-in answered %d, %v", status, err)
		}
		if status != http.StatusOK {
			break
		}
		kept += len(events)
	}
	refused("check-in", status, err, answer)

	inside := layout.Dir(fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, small))
	if left, err := os.ReadDir(filepath.Join(string(inside), "blobs", "tmp")); err != nil || len(left) > 0 {
		t.Errorf("half of an upload is left: %v, %v", left, err)
	}
	status, err = p.send("PUT", target(service.PathPublishTargets, "debian/x.ko", big), publisher, big, &answer)
	refused("second upload", status, err, answer)
	if err := p.get(service.PathSupported, nil); err != nil {
		t.Errorf("reading: %v", err)
	}
	t.Logf("%d events were kept", kept)
}

func TestServerRefusesToStart(t *testing.T) {
	tests := map[string]struct {
		spoil func(t *testing.T, dir layout.Dir)
		args  []string
		want  []string // in the two lines
	}{
		"no service": {
			spoil: func(t *testing.T, dir layout.Dir) { remove(t, dir, "livepatch.db") },
			want:  []string{"error: cannot serve: cannot use", "hint: create it with: livepatch-server init"},
		},
		"no certificate": {
			spoil: func(t *testing.T, dir layout.Dir) { remove(t, dir, "tls") },
			want:  []string{"error: cannot serve: there is no TLS certificate", "hint: the service speaks HTTPS only"},
		},
		"no keys": {
			spoil: func(t *testing.T, dir layout.Dir) { remove(t, dir, "keys") },
			want:  []string{"error: cannot serve: cannot use", "hint: create it with"},
		},
		"key that others can read": {
			spoil: func(t *testing.T, dir layout.Dir) {
				if err := os.Chmod(filepath.Join(string(dir), "keys", "timestamp.key"), 0o644); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"error: cannot serve: cannot load key of timestamp: key file is open to others", "hint: if nobody else has read it: chmod 600"},
		},
		"address in use": {
			spoil: func(*testing.T, layout.Dir) {},
			args:  []string{"-listen", "127.0.0.1:1"},
			want:  []string{"error: cannot serve"},
		},
		"certificate without key": {
			spoil: func(*testing.T, layout.Dir) {},
			args:  []string{"-cert", "x"},
			want:  []string{"error: cannot serve: -cert and -key go together"},
		},
		"interval of nothing": {
			spoil: func(*testing.T, layout.Dir) {},
			args:  []string{"-check-interval", "0s"},
			want:  []string{"error: cannot serve: -check-interval is 0s"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			tc.spoil(t, dir)
			if name == "address in use" {
				lis, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer lis.Close()
				tc.args[1] = lis.Addr().String()
				tc.want = append(tc.want, "address already in use", "hint: another program listens there")
			}
			var stdout, stderr bytes.Buffer
			cmd := serverCommand(append([]string{"serve", "-dir", string(dir), "-listen", "127.0.0.1:0", "-ops-listen", ""}, tc.args...)...)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || stdout.Len() > 0 {
				t.Errorf("left with %v, stdout %q", err, stdout.String())
			}
			for _, want := range tc.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("no %q in %q", want, stderr.String())
				}
			}
		})
	}
}

func remove(t *testing.T, dir layout.Dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(string(dir), name)); err != nil {
		t.Fatal(err)
	}
}

func TestInitTwiceKeepsEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "service")
	read := func() map[string]string {
		files := map[string]string{}
		for _, name := range []string{"keys/snapshot.key", "keys/timestamp.key", "keys/rollout.key", "online-keys.json"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			files[name] = string(b)
		}
		return files
	}
	var first map[string]string
	for range 2 {
		out, err := serverCommand("init", "-dir", dir).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("database: "+filepath.Join(dir, "livepatch.db"))) {
			t.Fatalf("init: %v: %s", err, out)
		}
		if first == nil {
			first = read()
		}
	}
	if got := read(); fmt.Sprint(got) != fmt.Sprint(first) {
		t.Error("the second init made other keys")
	}
}

var metricName = regexp.MustCompile(`livepatch_[a-z_]+`)

// checkDocumentedMetrics compares the metrics of a server that has published
// with those that documents name.
func checkDocumentedMetrics(t *testing.T, served string) {
	t.Helper()
	reference, err := os.ReadFile("../../../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../../../docs/how-to/run-the-server.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range metricName.FindAllString(string(reference)+string(guide), -1) {
		name = strings.TrimSuffix(name, "_bucket") // a histogram is served under the name before it
		if !strings.Contains(served, "# TYPE "+name+" ") {
			t.Errorf("a document names the metric %s, which there is not", name)
		}
	}
	for _, line := range regexp.MustCompile(`# TYPE livepatch_[a-z_]+ `).FindAllString(served, -1) {
		if name := metricName.FindString(line); !strings.Contains(string(reference), "`"+name+"`") {
			t.Errorf("docs/reference/metrics.md does not list %s", name)
		}
	}
}
