package push_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"livepatch/internal/service"
	"livepatch/publisher/internal/push"
	"livepatch/publisher/internal/sign"
)

const token = "publisher-token"

// onlineKey returns the public key of the service for a role.
func onlineKey(role string) ed25519.PublicKey {
	seed := sha256.Sum256([]byte(role))
	return ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
}

// A fakeService behaves as the service's publishing API does.
type fakeService struct {
	mu       sync.Mutex
	state    service.PublishState
	metadata map[string][]byte
	targets  map[string][]byte
	requests []string
	// refuse makes the next requests of a method fail with a status.
	refuse map[string][]int
}

func newService() *fakeService {
	f := &fakeService{metadata: make(map[string][]byte), targets: make(map[string][]byte), refuse: make(map[string][]int)}
	f.state.Versions = make(map[string]int64)
	f.state.OnlineKeys = make(map[string]string)
	for _, role := range []string{"snapshot", "timestamp", "rollout"} {
		f.state.OnlineKeys[role] = hex.EncodeToString(onlineKey(role))
	}
	return f
}

func (f *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	if next := f.refuse[r.Method]; len(next) > 0 {
		f.refuse[r.Method] = next[1:]
		answer(w, next[0], service.Error{Message: "as the test wants"})
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+token {
		answer(w, http.StatusUnauthorized, service.Error{Code: service.CodeUnknownToken, Message: "token is not known"})
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		answer(w, http.StatusBadRequest, service.Error{Message: err.Error()})
		return
	}
	switch {
	case r.URL.Path == service.PathPublishState:
		answer(w, http.StatusOK, f.state)
	case r.URL.Path == service.PathPublishMetadata:
		f.publish(w, body)
	case r.Method == http.MethodPut:
		f.put(w, strings.TrimPrefix(r.URL.Path, service.PathPublishTargets), body)
	default:
		f.get(w, r.URL.Path)
	}
}

func (f *fakeService) put(w http.ResponseWriter, file string, body []byte) {
	sum := sha256.Sum256(body)
	if !strings.Contains(file, "/"+hex.EncodeToString(sum[:])+".") {
		answer(w, http.StatusBadRequest, service.Error{Code: service.CodeInvalid, Message: "content differs from its name"})
		return
	}
	f.targets[file] = body
	w.WriteHeader(http.StatusCreated)
}

func (f *fakeService) get(w http.ResponseWriter, path string) {
	b, ok := f.metadata[strings.TrimPrefix(path, service.PathMetadata)]
	if !ok {
		b, ok = f.targets[strings.TrimPrefix(path, service.PathTargets)]
	}
	if !ok {
		answer(w, http.StatusNotFound, service.Error{Code: service.CodeNotFound})
		return
	}
	_, _ = w.Write(b)
}

func (f *fakeService) publish(w http.ResponseWriter, body []byte) {
	var p service.Publication
	if err := json.Unmarshal(body, &p); err != nil {
		answer(w, http.StatusBadRequest, service.Error{Code: service.CodeInvalid, Message: err.Error()})
		return
	}
	for name, b := range p.Files {
		var version int64
		var role string
		if _, err := fmt.Sscanf(strings.TrimSuffix(strings.Replace(name, ".", " ", 1), ".json"), "%d %s", &version, &role); err != nil {
			answer(w, http.StatusBadRequest, service.Error{Code: service.CodeInvalid, Message: name})
			return
		}
		f.metadata[name] = b
		if role == "root" {
			f.state.RootVersion = max(f.state.RootVersion, version)
		} else {
			f.state.Versions[role] = version
		}
	}
	answer(w, http.StatusOK, service.Published{SnapshotVersion: 4, Generation: 7})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// A fakeRepo is a repository whose metadata is the names of its targets.
type fakeRepo struct {
	dir      string
	versions map[string]int64
	metadata map[string][]byte
	files    map[string][]string // targets, by file name of metadata
}

func newRepo(t *testing.T) *fakeRepo {
	t.Helper()
	r := &fakeRepo{dir: t.TempDir(), versions: make(map[string]int64), metadata: make(map[string][]byte), files: make(map[string][]string)}
	r.next("root", nil)
	r.next("targets", nil)
	r.next("debian", nil)
	r.next("debian-00", nil)
	return r
}

// next makes a new version of a role, with targets of this content.
func (r *fakeRepo) next(role string, t *testing.T, contents ...string) {
	r.versions[role]++
	name := fmt.Sprintf("%d.%s.json", r.versions[role], role)
	r.metadata[name] = []byte(name)
	for _, c := range contents {
		file := fmt.Sprintf("debian/%x.lp.ko", sha256.Sum256([]byte(c)))
		full := filepath.Join(r.dir, filepath.FromSlash(file))
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(c), 0o644)); err != nil {
			t.Fatal(err)
		}
		r.files[name] = append(r.files[name], file)
	}
}

func (r *fakeRepo) Roles() []string            { return slices.Sorted(maps.Keys(r.versions)) }
func (r *fakeRepo) Versions() map[string]int64 { return maps.Clone(r.versions) }
func (r *fakeRepo) Metadata(role string, version int64) ([]byte, error) {
	b, ok := r.metadata[fmt.Sprintf("%d.%s.json", version, role)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (r *fakeRepo) TargetFiles(role string, version int64) ([]string, error) {
	if _, err := r.Metadata(role, version); err != nil {
		return nil, err
	}
	return r.files[fmt.Sprintf("%d.%s.json", version, role)], nil
}

func (r *fakeRepo) OpenTarget(file string) (*os.File, error) {
	return os.Open(filepath.Join(r.dir, filepath.FromSlash(file)))
}

func (r *fakeRepo) OnlineKeyIDs() (map[string][]string, error) {
	ids := make(map[string][]string)
	for _, role := range []string{"snapshot", "timestamp", "rollout"} {
		id, err := sign.KeyID(onlineKey(role))
		if err != nil {
			return nil, err
		}
		ids[role] = []string{id}
	}
	return ids, nil
}

// start serves f over TLS and returns a client that trusts it.
func start(t *testing.T, f http.Handler) (*push.Client, push.Options) {
	t.Helper()
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients that do not trust it are part of the tests
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	o := push.Options{
		Server: server.URL, Token: token,
		CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}
	return client(t, o), o
}

func client(t *testing.T, o push.Options) *push.Client {
	t.Helper()
	c, err := push.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPushBringsWhatIsNew(t *testing.T) {
	f, r := newService(), newRepo(t)
	c, _ := start(t, f)
	big := strings.Repeat("module ", 10_000)

	r.next("debian-00", t, "one", big)
	got, err := c.Push(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if want := (push.Result{Roles: 4, Uploaded: 2, Published: service.Published{SnapshotVersion: 4, Generation: 7}}); got != want {
		t.Errorf("first push = %+v, want %+v", got, want)
	}
	if _, ok := f.metadata["1.debian-00.json"]; ok {
		t.Error("an old version of a bin was published")
	}

	// Another version of the bin, with what it had and one module more; and a
	// root, of which machines need every version.
	r.next("debian-00", t, "one", big, "two")
	r.next("root", nil)
	r.next("root", nil)
	f.requests = nil
	got, err = c.Push(t.Context(), r)
	if err != nil || got.Roles != 2 || got.Uploaded != 1 {
		t.Errorf("second push = %+v, %v; want 2 roles, 1 target", got, err)
	}
	for _, name := range []string{"2.root.json", "3.root.json", "3.debian-00.json"} {
		if !bytes.Equal(f.metadata[name], r.metadata[name]) {
			t.Errorf("%s was not published", name)
		}
	}
	want := []string{
		"GET " + service.PathPublishState, "GET " + service.PathMetadata + "1.root.json",
		fmt.Sprintf("PUT %sdebian/%x.lp.ko", service.PathPublishTargets, sha256.Sum256([]byte("two"))),
		"POST " + service.PathPublishMetadata,
	}
	if !slices.Equal(f.requests, want) {
		t.Errorf("requests = %q, want %q", f.requests, want)
	}

	f.requests = nil
	got, err = c.Push(t.Context(), r)
	if err != nil || got != (push.Result{}) || len(f.requests) != 2 {
		t.Errorf("third push = %+v, %v with %d requests; want nothing with 2", got, err, len(f.requests))
	}
}

func TestPushDoesNotUploadABigTargetTwice(t *testing.T) {
	f, r := newService(), newRepo(t)
	c, _ := start(t, f)
	r.next("debian-00", t, strings.Repeat("module ", 10_000))
	f.refuse[http.MethodPost] = []int{http.StatusInternalServerError}
	if _, err := c.Push(t.Context(), r); !errors.Is(err, push.ErrRejected) {
		t.Fatalf("push that the service fails at = %v, want ErrRejected", err)
	}
	got, err := c.Push(t.Context(), r)
	if err != nil || got.Uploaded != 0 || got.Roles != 4 {
		t.Errorf("push = %+v, %v; want no upload, 4 roles", got, err)
	}
}

func TestPushRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(f *fakeService, r *fakeRepo, o *push.Options)
		want   error
	}{
		"a wrong token":            {func(_ *fakeService, _ *fakeRepo, o *push.Options) { o.Token = "other" }, push.ErrToken},
		"a CA that is not trusted": {func(_ *fakeService, _ *fakeRepo, o *push.Options) { o.CA = nil }, push.ErrCA},
		"a certificate for another": {func(_ *fakeService, _ *fakeRepo, o *push.Options) {
			o.Server = strings.Replace(o.Server, "127.0.0.1", "localhost", 1)
		}, push.ErrServerName},
		"a port where nobody listens": {func(_ *fakeService, _ *fakeRepo, o *push.Options) { o.Server = "https://" + free() }, push.ErrDown},
		"a host that does not exist":  {func(_ *fakeService, _ *fakeRepo, o *push.Options) { o.Server = "https://none.invalid" }, push.ErrDown},
		"a newer bin in the service":  {func(f *fakeService, _ *fakeRepo, _ *push.Options) { f.state.Versions["debian-00"] = 2 }, push.ErrConflict},
		"a newer root in the service": {func(f *fakeService, _ *fakeRepo, _ *push.Options) { f.state.RootVersion = 2 }, push.ErrConflict},
		"another root in the service": {func(f *fakeService, _ *fakeRepo, _ *push.Options) {
			f.state.RootVersion = 1
			f.metadata["1.root.json"] = []byte("x")
		}, push.ErrForeign},
		"other keys of the service": {func(f *fakeService, _ *fakeRepo, _ *push.Options) {
			f.state.OnlineKeys["rollout"] = hex.EncodeToString(onlineKey("x"))
		}, push.ErrForeign},
		"a conflict while publishing": {func(f *fakeService, _ *fakeRepo, _ *push.Options) { f.refuse["POST"] = []int{409} }, push.ErrConflict},
		"what does not verify there":  {func(f *fakeService, _ *fakeRepo, _ *push.Options) { f.refuse["POST"] = []int{422} }, push.ErrRejected},
		"an answer of a proxy":        {func(f *fakeService, _ *fakeRepo, _ *push.Options) { f.refuse["GET"] = []int{302} }, push.ErrRejected},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f, r := newService(), newRepo(t)
			_, o := start(t, f)
			tc.change(f, r, &o)
			if _, err := client(t, o).Push(t.Context(), r); !errors.Is(err, tc.want) {
				t.Errorf("Push = %v, want %v", err, tc.want)
			}
			if _, ok := f.metadata["1.targets.json"]; ok {
				t.Error("something was published")
			}
		})
	}
}

// free returns an address on which nobody listens.
func free() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestPushRefusesWhatIsNotTLS13(t *testing.T) {
	old := httptest.NewUnstartedServer(newService())
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	old.StartTLS()
	defer old.Close()
	plain := httptest.NewServer(newService())
	defer plain.Close()
	for name, url := range map[string]string{"TLS 1.2": old.URL, "HTTP": "https" + strings.TrimPrefix(plain.URL, "http")} {
		if _, err := client(t, push.Options{Server: url, Token: token}).State(t.Context()); !errors.Is(err, push.ErrTLS) {
			t.Errorf("%s: %v, want ErrTLS", name, err)
		}
	}
}

func TestNewClientRefuses(t *testing.T) {
	tests := map[string]struct {
		o    push.Options
		want error
	}{
		"plain HTTP":        {push.Options{Server: "http://127.0.0.1:8443", Token: token}, push.ErrURL},
		"no scheme":         {push.Options{Server: "127.0.0.1:8443", Token: token}, push.ErrURL},
		"a password in it":  {push.Options{Server: "https://user:secret@host", Token: token}, push.ErrURL},
		"no token":          {push.Options{Server: "https://host"}, push.ErrToken},
		"a token of lines":  {push.Options{Server: "https://host", Token: "a\r\nX: b"}, push.ErrToken},
		"a CA that is none": {push.Options{Server: "https://host", Token: token, CA: []byte("no PEM")}, push.ErrCA},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := push.NewClient(tc.o); !errors.Is(err, tc.want) {
				t.Errorf("NewClient = %v, want %v", err, tc.want)
			}
		})
	}
}
