package lab

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"livepatch/internal/patch"
)

// Host is the name that machines reach services by: an address, for tests change
// no name server.
const Host = "127.0.0.1"

// A Service is a livepatch-server with the folder it works in, and beside it the
// publisher who feeds it.
type Service struct {
	t      *testing.T
	Dir    string // holds server/ and publisher/
	Addr   string // "127.0.0.1:8443"; the same from start to start
	Server *Process
	Log    *Transcript
}

// shared is a service to which the first patch was published: making one takes
// seconds, most of which go into keys. Each test works on a copy.
var shared struct {
	once  sync.Once
	Dir   string
	ready bool
}

func closeShared() {
	if shared.Dir != "" {
		os.RemoveAll(shared.Dir)
	}
}

// NewService starts a service to which the first patch was published, and then
// more.
func NewService(t *testing.T, more ...Module) *Service {
	t.Helper()
	shared.once.Do(func() { prepareShared(t) })
	if !shared.ready {
		t.Fatal("cannot prepare a service; another test says why")
	}
	s := &Service{t: t, Dir: Folder(t), Log: &Transcript{}}
	Must(t, os.CopyFS(s.Dir, os.DirFS(shared.Dir)))
	tighten(t, s.Path("server/keys"), s.Path("publisher/keys"), s.Path("server/tls"))
	s.Addr = FreeAddress(t)
	showOnFailure(t, serverBin, s.Log)
	s.Start()
	if len(more) > 0 {
		s.Publish(more...)
	}
	return s
}

// prepareShared makes what all services are copies of.
func prepareShared(t *testing.T) {
	var err error
	shared.Dir, err = os.MkdirTemp("", "livepatch-shared-")
	Must(t, err)
	s := &Service{t: t, Dir: shared.Dir, Addr: FreeAddress(t), Log: &Transcript{}}
	run := func(name string, args ...string) {
		if r := RunToEnd(t, Program(context.Background(), 0, nil, name, args...)); r.Code != 0 {
			t.Fatalf("%s %s: %v", name, strings.Join(args, " "), r)
		}
	}
	Must(t, os.Mkdir(s.Path("publisher"), 0o700))
	Must(t, os.WriteFile(s.Path("passphrase"), []byte("correct horse\n"), 0o600))
	run(serverBin, "init", "-dir", s.Path("server"))
	run(serverBin, "dev-ca", "-dir", s.Path("server"), "-host", Host+",localhost")
	run(publishBin, s.publisherArgs("init", "-online-keys", s.Path("server/online-keys.json"))...)
	run(publishBin, s.publisherArgs("vendor", "add", Vendor, "-bits", "8")...)
	s.Start()
	s.Publish(NewModule(1))
	Must(t, s.Server.Stop(t))
	shared.ready = true
}

// tighten makes the files in folders readable by their owner only, which copies
// are not.
func tighten(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		Must(t, err)
		for _, f := range files {
			Must(t, os.Chmod(filepath.Join(dir, f.Name()), 0o600))
		}
	}
}

// FreeAddress returns an address of this machine that nobody listens at.
func FreeAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", Host+":0")
	Must(t, err)
	defer lis.Close()
	return lis.Addr().String()
}

// Path returns where a file of the service is, "server/keys".
func (s *Service) Path(name string) string { return filepath.Join(s.Dir, filepath.FromSlash(name)) }

// URL is where machines find the service.
func (s *Service) URL() string { return "https://" + s.Addr }

// Start starts the server, with more flags perhaps, and waits until it serves.
func (s *Service) Start(flags ...string) {
	s.t.Helper()
	seen := len(s.Log.String())
	cmd := Program(context.Background(), 0, nil, serverBin, append([]string{"serve", "-dir", s.Path("server"), "-listen", s.Addr,
		"-ops-listen", Host + ":0", "-soak", "0s", "-check-interval", "1h", "-at-once"}, flags...)...)
	s.Server = Start(s.t, serverBin, cmd, s.Log)
	Eventually(s.t, "server listens", func() bool {
		if s.Server.ended() {
			s.t.Fatalf("server ended: %v\n%s", s.Server.err, s.Log)
		}
		return strings.Contains(s.Log.String()[seen:], `"msg":"Listening"`)
	})
}

// Beside returns another server on the same folder, which is not started.
func (s *Service) Beside() *Service {
	s.t.Helper()
	other := &Service{t: s.t, Dir: s.Dir, Addr: FreeAddress(s.t), Log: &Transcript{}}
	showOnFailure(s.t, serverBin+" beside", other.Log)
	return other
}

// Admin runs livepatch-admin, which must succeed, and returns what it printed.
func (s *Service) Admin(args ...string) string {
	s.t.Helper()
	return s.admin(s.adminProgram(args...), args)
}

// AdminOther is Admin by another administrator. It runs in a user namespace of its own,
// where this user goes by another number.
func (s *Service) AdminOther(args ...string) string {
	s.t.Helper()
	cmd := s.adminProgram(args...)
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid() + 1001, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	return s.admin(cmd, args)
}

func (s *Service) adminProgram(args ...string) *exec.Cmd {
	return Program(s.t.Context(), 0, nil, AdminBin, append([]string{"-dir", s.Path("server")}, args...)...)
}

func (s *Service) admin(cmd *exec.Cmd, args []string) string {
	s.t.Helper()
	r := RunToEnd(s.t, cmd)
	if r.Code != 0 {
		s.t.Fatalf("livepatch-admin %s: %v", strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.Stdout)
}

// Token makes an auth token.
func (s *Service) Token(flags ...string) string {
	s.t.Helper()
	return s.Admin(append([]string{"token", "create"}, flags...)...)
}

func (s *Service) publisherArgs(args ...string) []string {
	return append([]string{"-repo", s.Path("publisher"), "-passphrase-file", s.Path("passphrase")}, args...)
}

// Publisher runs livepatch-publish.
func (s *Service) Publisher(args ...string) Result {
	s.t.Helper()
	return RunToEnd(s.t, Program(s.t.Context(), 0, nil, publishBin, s.publisherArgs(args...)...))
}

// Publish signs patches and pushes them.
func (s *Service) Publish(modules ...Module) {
	s.t.Helper()
	for _, m := range modules {
		s.Sign(m)
	}
	s.Push()
}

// Sign adds a patch to the publisher's repository.
func (s *Service) Sign(m Module) {
	s.t.Helper()
	file := s.Path(m.Name + ".ko")
	Must(s.t, os.WriteFile(file, m.Content, 0o644))
	describe := s.Path(m.Name + ".json")
	Must(s.t, os.WriteFile(describe, m.Description(s.t), 0o644))
	if r := s.Publisher("add", file, "-vendor", Vendor, "-description", describe, "-build-id", string(m.BuildID)); r.Code != 0 {
		s.t.Fatalf("livepatch-publish add: %v", r)
	}
}

// Description is what its maker says of a patch, as JSON, which is YAML.
func (m Module) Description(t *testing.T) []byte {
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
	Must(t, err)
	return b
}

// Push brings the publisher's repository to the server.
func (s *Service) Push() {
	s.t.Helper()
	Must(s.t, os.WriteFile(s.Path("publisher-token"), []byte(s.Admin("publisher-token", "create")+"\n"), 0o600))
	r := s.Publisher("push", "-server", s.URL(), "-ca", s.Path("server/tls/ca.crt"), "-token-file", s.Path("publisher-token"))
	if r.Code != 0 {
		s.t.Fatalf("livepatch-publish push: %v", r)
	}
}

// Pinned returns the root that machines are shipped with.
func (s *Service) Pinned() []byte {
	s.t.Helper()
	r := s.Publisher("root", "show", "-version", "1")
	if r.Code != 0 {
		s.t.Fatalf("livepatch-publish root show: %v", r)
	}
	return []byte(r.Stdout)
}

// CA returns the certificate of the authority that machines have to trust.
func (s *Service) CA() string {
	s.t.Helper()
	b, err := os.ReadFile(s.Path("server/tls/ca.crt"))
	Must(s.t, err)
	return string(b)
}

// Join switches on the agent of a machine that trusts the service, and tells it
// where the service is: at url.
func (m *Machine) Join(s *Service, url string) {
	m.t.Helper()
	m.SwitchOn()
	if r := m.CLIWith(s.CA(), "config", "ca-certs=@stdin"); r.Code != 0 {
		m.t.Fatalf("config ca-certs: %v", r)
	}
	m.OK("config", "remote-server="+url)
	m.OK("config", "check-interval=0") // checks happen when the test wants them
}

// NewClient returns a machine that was enabled with a service and has nothing in
// its kernel.
func NewClient(t *testing.T, s *Service) *Machine {
	t.Helper()
	m := NewMachine(t, s.Pinned())
	m.Join(s, s.URL())
	m.Enable(s)
	return m
}

// Enable enables a machine and waits until its first check has ended.
func (m *Machine) Enable(s *Service) {
	m.t.Helper()
	m.OK("enable", s.Token())
}
