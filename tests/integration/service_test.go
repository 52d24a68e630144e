//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
)

// host is the name that machines reach services by: an address, for tests change
// no name server.
const host = "127.0.0.1"

// A service is a livepatch-server with the folder it works in, and beside it the
// publisher who feeds it.
type service struct {
	t      *testing.T
	dir    string // holds server/ and publisher/
	addr   string // "127.0.0.1:8443"; the same from start to start
	server *process
	log    *transcript
}

// shared is a service to which the first patch was published: making one takes
// seconds, most of which go into keys. Each test works on a copy.
var shared struct {
	once  sync.Once
	dir   string
	ready bool
}

func closeShared() {
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
}

// newService starts a service to which the first patch was published, and then
// more.
func newService(t *testing.T, more ...module) *service {
	t.Helper()
	shared.once.Do(func() { prepareShared(t) })
	if !shared.ready {
		t.Fatal("cannot prepare a service; another test says why")
	}
	s := &service{t: t, dir: folder(t), log: &transcript{}}
	must(t, os.CopyFS(s.dir, os.DirFS(shared.dir)))
	tighten(t, s.path("server/keys"), s.path("publisher/keys"), s.path("server/tls"))
	s.addr = freeAddress(t)
	showOnFailure(t, serverBin, s.log)
	s.start()
	if len(more) > 0 {
		s.publish(more...)
	}
	return s
}

// prepareShared makes what all services are copies of.
func prepareShared(t *testing.T) {
	var err error
	shared.dir, err = os.MkdirTemp("", "livepatch-shared-")
	must(t, err)
	s := &service{t: t, dir: shared.dir, addr: freeAddress(t), log: &transcript{}}
	run := func(name string, args ...string) {
		if r := runToEnd(t, program(context.Background(), 0, nil, name, args...)); r.code != 0 {
			t.Fatalf("%s %s: %v", name, strings.Join(args, " "), r)
		}
	}
	must(t, os.Mkdir(s.path("publisher"), 0o700))
	must(t, os.WriteFile(s.path("passphrase"), []byte("correct horse\n"), 0o600))
	run(serverBin, "init", "-dir", s.path("server"))
	run(serverBin, "dev-ca", "-dir", s.path("server"), "-host", host+",localhost")
	run(publishBin, s.publisherArgs("init", "-online-keys", s.path("server/online-keys.json"))...)
	run(publishBin, s.publisherArgs("vendor", "add", vendor, "-bits", "8")...)
	s.start()
	s.publish(newModule(1))
	must(t, s.server.stop(t))
	shared.ready = true
}

// tighten makes the files in folders readable by their owner only, which copies
// are not.
func tighten(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		must(t, err)
		for _, f := range files {
			must(t, os.Chmod(filepath.Join(dir, f.Name()), 0o600))
		}
	}
}

// freeAddress returns an address of this machine that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", host+":0")
	must(t, err)
	defer lis.Close()
	return lis.Addr().String()
}

func (s *service) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// url is where machines find the service.
func (s *service) url() string { return "https://" + s.addr }

// start starts the server and waits until it serves.
func (s *service) start() {
	s.t.Helper()
	seen := len(s.log.String())
	cmd := program(context.Background(), 0, nil, serverBin, "serve", "-dir", s.path("server"), "-listen", s.addr,
		"-ops-listen", host+":0", "-soak", "0s", "-check-interval", "1h")
	s.server = start(s.t, serverBin, cmd, s.log)
	eventually(s.t, "server listens", func() bool {
		if s.server.ended() {
			s.t.Fatalf("server ended: %v\n%s", s.server.err, s.log)
		}
		return strings.Contains(s.log.String()[seen:], `"msg":"Listening"`)
	})
}

// admin runs livepatch-admin, which must succeed, and returns what it printed.
func (s *service) admin(args ...string) string {
	s.t.Helper()
	r := runToEnd(s.t, program(s.t.Context(), 0, nil, adminBin, append([]string{"-dir", s.path("server")}, args...)...))
	if r.code != 0 {
		s.t.Fatalf("livepatch-admin %s: %v", strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.stdout)
}

// token makes an auth token.
func (s *service) token(flags ...string) string {
	s.t.Helper()
	return s.admin(append([]string{"token", "create"}, flags...)...)
}

func (s *service) publisherArgs(args ...string) []string {
	return append([]string{"-repo", s.path("publisher"), "-passphrase-file", s.path("passphrase")}, args...)
}

// publisher runs livepatch-publish.
func (s *service) publisher(args ...string) result {
	s.t.Helper()
	return runToEnd(s.t, program(s.t.Context(), 0, nil, publishBin, s.publisherArgs(args...)...))
}

// publish signs patches and pushes them.
func (s *service) publish(modules ...module) {
	s.t.Helper()
	for _, m := range modules {
		s.sign(m)
	}
	s.push()
}

// sign adds a patch to the publisher's repository.
func (s *service) sign(m module) {
	s.t.Helper()
	file := s.path(m.Name + ".ko")
	must(s.t, os.WriteFile(file, m.content, 0o644))
	describe := s.path(m.Name + ".json")
	must(s.t, os.WriteFile(describe, m.description(s.t), 0o644))
	if r := s.publisher("add", file, "-vendor", vendor, "-description", describe, "-build-id", string(m.BuildID)); r.code != 0 {
		s.t.Fatalf("livepatch-publish add: %v", r)
	}
}

// description is what its maker says of a patch, as JSON, which is YAML.
func (m module) description(t *testing.T) []byte {
	t.Helper()
	fixes := []map[string]string{}
	for _, f := range m.Fixes {
		fixes = append(fixes, map[string]string{"name": f, "priority": string(patch.High), "summary": "Something is fixed."})
	}
	b, err := json.Marshal(map[string]any{
		"kernel":   map[string]string{"release": m.Release, "arch": m.Arch, "flavour": m.Flavour, "version": kernelPackage},
		"version":  m.Version,
		"notice":   m.Notice,
		"sequence": m.Sequence,
		"fixes":    fixes,
		"support": map[string]string{
			"from":  time.Now().AddDate(0, -1, 0).Format(time.DateOnly),
			"until": time.Now().AddDate(0, 13, 0).Format(time.DateOnly),
		},
	})
	must(t, err)
	return b
}

// push brings the publisher's repository to the server.
func (s *service) push() {
	s.t.Helper()
	must(s.t, os.WriteFile(s.path("publisher-token"), []byte(s.admin("publisher-token", "create")+"\n"), 0o600))
	r := s.publisher("push", "-server", s.url(), "-ca", s.path("server/tls/ca.crt"), "-token-file", s.path("publisher-token"))
	if r.code != 0 {
		s.t.Fatalf("livepatch-publish push: %v", r)
	}
}

// pinned returns the root that machines are shipped with.
func (s *service) pinned() []byte {
	s.t.Helper()
	r := s.publisher("root", "show", "-version", "1")
	if r.code != 0 {
		s.t.Fatalf("livepatch-publish root show: %v", r)
	}
	return []byte(r.stdout)
}

// ca returns the certificate of the authority that machines have to trust.
func (s *service) ca() string {
	s.t.Helper()
	b, err := os.ReadFile(s.path("server/tls/ca.crt"))
	must(s.t, err)
	return string(b)
}

// join switches on the agent of a machine that trusts the service, and tells it
// where the service is: at url.
func (m *machine) join(s *service, url string) {
	m.t.Helper()
	m.switchOn()
	if r := m.cliWith(s.ca(), "config", "ca-certs=@stdin"); r.code != 0 {
		m.t.Fatalf("config ca-certs: %v", r)
	}
	m.ok("config", "remote-server="+url)
	m.ok("config", "check-interval=0") // checks happen when the test wants them
}

// newClient returns a machine that was enabled with a service and has nothing in
// its kernel.
func newClient(t *testing.T, s *service) *machine {
	t.Helper()
	m := newMachine(t, s.pinned())
	m.join(s, s.url())
	m.enable(s)
	return m
}

// enable enables a machine and waits until its first check has ended.
func (m *machine) enable(s *service) {
	m.t.Helper()
	m.ok("enable", s.token())
}
