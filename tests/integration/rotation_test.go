//go:build integration

package integration

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/lab"
)

// The rehearsal of an emergency: the keys of the vendor are stolen, the service's
// online keys with them and, as it turns out, all others, and one root key is
// lost. Everything is replaced, through five versions of the root. Machines that
// have missed all of them catch up, and what the stolen keys sign afterwards is
// refused.
func TestEverythingIsReplacedAfterATheft(t *testing.T) {
	t.Parallel()
	one, two, stolen := lab.NewModule(1), lab.NewModule(2), lab.NewModule(3)
	s := lab.NewService(t)
	f := lab.NewHonestFront(t, s)
	m, late := lab.NewMachine(t, s.Pinned()), lab.NewMachine(t, s.Pinned())
	m.Join(s, f.URL)
	m.Enable(s)
	m.OK("refresh")
	m.Accepts(one)

	thief := steal(t, s)
	ids := keyIDs(t, s)
	lab.Must(t, os.Remove(s.Path("publisher/keys/root-2.key.json")))
	renewOnlineKeys(t, s)
	for _, command := range []string{
		"online rotate --online-keys " + s.Path("server/online-keys.json"),
		"root rotate --remove " + ids["root-2"] + " --add root-4",
		"targets rotate --all",
		"vendor rotate debian --all",
		"root rotate --all",
		"root threshold 3",
	} {
		publish(t, s, strings.Fields(command)...)
	}
	if got := newestRoot(t, s.Path("publisher")); got != 6 {
		t.Fatalf("root is version %d, want 6: five after the first", got)
	}
	if out := publish(t, s, "verify"); !strings.Contains(out, "Everything verifies") {
		t.Errorf("verify: %s", out)
	}
	s.Publish(two)
	if out := publish(t, s, "verify", "-server", s.URL(), "-ca", s.Path("server/tls/ca.crt")); !strings.Contains(out, "Everything verifies") || !strings.Contains(out, "timestamp") {
		t.Errorf("verify -server: %s", out)
	}
	lab.Must(t, s.Server.Stop(t))
	s.Start() // its keys are in force, so that nothing has to be allowed any more

	t.Run("machines that skipped five roots catch up", func(t *testing.T) {
		m.OK("refresh")
		m.Accepts(two)
		late.Join(s, f.URL)
		late.Enable(s)
		late.OK("refresh")
		late.Accepts(two)
	})

	thief.sign(t, stolen)
	thief.rotateRoot(t, newestRoot(t, s.Path("publisher"))+1)
	t.Run("the service refuses what the stolen keys sign", func(t *testing.T) {
		r := thief.publisher(t, "push", "-server", s.URL(), "-ca", s.Path("server/tls/ca.crt"), "-token-file", s.Path("publisher-token"))
		if r.Code == 0 || !strings.Contains(r.Stderr, "service belongs to another repository") {
			t.Errorf("push: %v", r)
		}
	})
	refuses := func(m *lab.Machine, g forgery) func(t *testing.T) {
		return func(t *testing.T) {
			f.Set(g.serve)
			defer f.Set(nil)
			m.Refuses(t, false, "signature not trusted", "do not trust this service", "refresh")
			before := m.Footprint(false)
			if _, err := lab.Apply(t, m.Client(), g.opening(t, stolen), stolen.Content); !errors.Is(err, patch.ErrUntrusted) {
				t.Errorf("apply = %v, want %v", err, patch.ErrUntrusted)
			}
			lab.WantSame(t, before, m.Footprint(false))
			m.WantInForce(two)
		}
	}
	t.Run("agent and loader refuse a root of the stolen keys", refuses(m, thief.forgeRoot(t, s)))
	t.Run("agent and loader refuse a timestamp of the stolen keys", refuses(m, thief.forge(t, s)))
	// Worse: the new online keys are stolen as well, so that a vendor's signature
	// is all that is between the thief and the kernel.
	thief.online = onlineKeys(s)
	t.Run("agent and loader refuse a vendor of the stolen keys", refuses(late, thief.forge(t, s)))
	t.Run("and the next patch arrives", func(t *testing.T) {
		three := lab.NewModule(4)
		s.Publish(three)
		m.OK("refresh")
		m.Accepts(three)
	})
}

// renewOnlineKeys gives the service other keys, which no root names yet.
func renewOnlineKeys(t *testing.T, s *lab.Service) {
	t.Helper()
	lab.Must(t, s.Server.Stop(t))
	for _, role := range []string{"snapshot", "timestamp", "rollout"} {
		lab.Must(t, os.Remove(s.Path("server/keys/"+role+".key")))
	}
	for _, args := range [][]string{{"init", "-dir", s.Path("server")}, {"serve", "-dir", s.Path("server"), "-listen", s.Addr, "-ops-listen", ""}} {
		r := lab.RunToEnd(t, lab.Program(context.Background(), 0, nil, "livepatch-server", args...))
		if serve := args[0] == "serve"; serve != strings.Contains(r.Stderr, "hint: restore the keys folder") || serve != (r.Code != 0) {
			t.Fatalf("livepatch-server %s: %v", args[0], r)
		}
	}
	s.Start("-new-keys")
}

// publish runs livepatch-publish, which must succeed, and returns what it
// printed.
func publish(t *testing.T, s *lab.Service, args ...string) string {
	t.Helper()
	r := s.Publisher(args...)
	if r.Code != 0 {
		t.Fatalf("livepatch-publish %s: %v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// keyIDs returns the IDs of the publisher's keys by their names.
func keyIDs(t *testing.T, s *lab.Service) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for _, line := range strings.Split(publish(t, s, "keys"), "\n") {
		if words := strings.Fields(line); len(words) > 1 {
			ids[words[0]] = words[1]
		}
	}
	return ids
}

func newestRoot(t *testing.T, repo string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(repo, "metadata", "*.root.json"))
	lab.Must(t, err)
	return len(names)
}

// A theft is what somebody has who took a copy of the repository, all of its keys
// and those of the service.
type theft struct {
	repo       string
	passphrase string
	online     map[string]crypto.Signer
}

func steal(t *testing.T, s *lab.Service) theft {
	t.Helper()
	repo := filepath.Join(lab.Folder(t), "repo")
	lab.Must(t, os.CopyFS(repo, os.DirFS(s.Path("publisher"))))
	keys, err := filepath.Glob(filepath.Join(repo, "keys", "*.json"))
	lab.Must(t, err)
	for _, name := range keys {
		lab.Must(t, os.Chmod(name, 0o600))
	}
	lab.Must(t, os.Chmod(filepath.Join(repo, "keys"), 0o700))
	return theft{repo, s.Path("passphrase"), onlineKeys(s)}
}

func onlineKeys(s *lab.Service) map[string]crypto.Signer {
	return map[string]crypto.Signer{"snapshot": s.OnlineKey("snapshot"), "timestamp": s.OnlineKey("timestamp")}
}

func (th theft) publisher(t *testing.T, args ...string) lab.Result {
	t.Helper()
	args = append([]string{"-repo", th.repo, "-passphrase-file", th.passphrase}, args...)
	return lab.RunToEnd(t, lab.Program(context.Background(), 0, nil, "livepatch-publish", args...))
}

// sign signs a module and, often enough that its versions are above the real
// ones, everything else that the stolen keys can.
func (th theft) sign(t *testing.T, p lab.Module) {
	t.Helper()
	file, describe := filepath.Join(filepath.Dir(th.repo), p.Name+".ko"), filepath.Join(filepath.Dir(th.repo), p.Name+".json")
	lab.Must(t, os.WriteFile(file, p.Content, 0o644))
	lab.Must(t, os.WriteFile(describe, p.Description(t), 0o644))
	commands := [][]string{{"add", file, "-vendor", lab.Vendor, "-description", describe, "-build-id", string(p.BuildID)}}
	for range 5 {
		commands = append(commands, []string{"refresh", "--within", "2400h"}) // the vendor and its bins, not targets
	}
	for _, args := range commands {
		if r := th.publisher(t, args...); r.Code != 0 {
			t.Fatalf("livepatch-publish %v: %v", args, r)
		}
	}
}

// rotateRoot signs roots until there is one of that version.
func (th theft) rotateRoot(t *testing.T, version int) {
	t.Helper()
	for n := newestRoot(t, th.repo); n < version; n++ {
		args := []string{"root", "threshold", strconv.Itoa(2 + n%2)}
		if r := th.publisher(t, args...); r.Code != 0 {
			t.Fatalf("livepatch-publish %v: %v", args, r)
		}
	}
}

// A forgery is the real repository with the thief's vendor in it.
type forgery struct {
	repo      string
	files     map[string][]byte // metadata by name
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	lastRoots int
	root      []byte // that follows the last real one, nil for none
}

// forgeRoot is forge with a root that the thief has signed.
func (th theft) forgeRoot(t *testing.T, s *lab.Service) forgery {
	t.Helper()
	g := th.forge(t, s)
	name := fmt.Sprintf("%d.root.json", g.lastRoots+1)
	var err error
	g.root, err = os.ReadFile(filepath.Join(th.repo, "metadata", name))
	lab.Must(t, err)
	g.files[name] = g.root
	return g
}

// forge signs a snapshot and a timestamp with the online keys that were stolen:
// they list the real root, targets and rollout, and the thief's vendor and bins.
func (th theft) forge(t *testing.T, s *lab.Service) forgery {
	t.Helper()
	g := forgery{repo: th.repo, files: map[string][]byte{}, lastRoots: newestRoot(t, s.Path("publisher"))}
	timestamp, err := metadata.Timestamp().FromBytes(fetch(t, s, "timestamp.json"))
	lab.Must(t, err)
	was := timestamp.Signed.Meta["snapshot.json"].Version
	g.snapshot, err = metadata.Snapshot().FromBytes(fetch(t, s, fmt.Sprintf("%d.snapshot.json", was)))
	lab.Must(t, err)
	for role, file := range g.snapshot.Signed.Meta {
		if strings.HasPrefix(role, lab.Vendor) {
			file.Version = g.take(t, strings.TrimSuffix(role, ".json"))
			continue
		}
		name := fmt.Sprintf("%d.%s", file.Version, role)
		g.files[name] = fetch(t, s, name)
	}
	for v := 2; v <= g.lastRoots; v++ {
		name := fmt.Sprintf("%d.root.json", v)
		g.files[name] = fetch(t, s, name)
	}
	g.snapshot.Signed.Version = was + 100
	b := signed(t, g.snapshot, th.online["snapshot"])
	g.files[fmt.Sprintf("%d.snapshot.json", g.snapshot.Signed.Version)] = b
	timestamp.Signed.Version += 100
	timestamp.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(time.Hour)
	timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(g.snapshot.Signed.Version)
	g.files["timestamp.json"] = signed(t, timestamp, th.online["timestamp"])
	return g
}

var versioned = regexp.MustCompile(`^([0-9]+)\.`)

// take takes the newest version of a role from the thief's repository.
func (g forgery) take(t *testing.T, role string) (newest int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(g.repo, "metadata", "*."+role+".json"))
	lab.Must(t, err)
	for _, name := range names {
		v, err := strconv.ParseInt(versioned.FindStringSubmatch(filepath.Base(name))[1], 10, 64)
		lab.Must(t, err)
		newest = max(newest, v)
	}
	name := fmt.Sprintf("%d.%s.json", newest, role)
	g.files[name], err = os.ReadFile(filepath.Join(g.repo, "metadata", name))
	lab.Must(t, err)
	return newest
}

func signed[T metadata.Roles](t *testing.T, m *metadata.Metadata[T], key crypto.Signer) []byte {
	t.Helper()
	m.ClearSignatures()
	signer, err := signature.LoadSigner(key, crypto.Hash(0))
	lab.Must(t, err)
	_, err = m.Sign(signer)
	lab.Must(t, err)
	b, err := m.ToBytes(false)
	lab.Must(t, err)
	return b
}

// fetch gets a metadata file of the service.
func fetch(t *testing.T, s *lab.Service, name string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+"/tuf/metadata/"+name, nil)
	lab.Must(t, err)
	res, err := s.HTTPClient().Do(req)
	lab.Must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", name, res.Status, err)
	}
	return b
}

// serve makes a front hand out the forgery.
func (g forgery) serve(path string, res *http.Response) {
	var b []byte
	if name, ok := strings.CutPrefix(path, "/tuf/metadata/"); ok {
		b = g.files[name]
	} else if name, ok := strings.CutPrefix(path, "/tuf/targets/"); ok {
		b, _ = os.ReadFile(filepath.Join(g.repo, "targets", filepath.FromSlash(name))) // what is not there stays as it is
	}
	if b != nil {
		lab.Replace(res, b)
	}
}

// opening is what an agent that belongs to the thief would send to a loader that
// knows the last root.
func (g forgery) opening(t *testing.T, p lab.Module) *loaderv1.Opening {
	t.Helper()
	file := func(role string) []byte {
		b := g.files[fmt.Sprintf("%d.%s.json", g.snapshot.Signed.Meta[role+".json"].Version, role)]
		if b == nil {
			t.Fatalf("forgery has no %s", role)
		}
		return b
	}
	m := &loaderv1.Metadata{
		Timestamp: g.files["timestamp.json"], Snapshot: g.files[fmt.Sprintf("%d.snapshot.json", g.snapshot.Signed.Version)],
		Targets: file("targets"), Rollout: file(patch.RolloutRole),
	}
	if g.root != nil {
		m.Roots = [][]byte{g.root}
	}
	bins := metadata.SuccinctRoles{BitLength: 8, NamePrefix: lab.Vendor}
	return &loaderv1.Opening{
		Target: p.Path(), Metadata: m, Vendor: file(lab.Vendor), Bin: file(bins.GetRolesForTarget(p.Path())[0].Name),
	}
}
