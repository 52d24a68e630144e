//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	api "livepatch/internal/service"
	loaderv1 "livepatch/proto/loader/v1"
)

// kills is how often each program is killed in its test.
const kills = 40

// dice returns random numbers that are the same at each run, and says which they
// are if the test fails.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("random numbers of seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, seed))
}

func upTo(d *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(d.Int64N(int64(most)))
}

// wantNeverOlder fails the test if a module got in that is older than one that
// was in before, unless the machine was rebooted in between: then the accepted
// one returns.
func (m *machine) wantNeverOlder(reboots []int) {
	m.t.Helper()
	last := 0
	for i, in := range m.kernel.insertions() {
		if slices.Contains(reboots, i) {
			last = 0
		}
		got := numberOf(in.Name)
		if got < last {
			m.t.Errorf("insertion %d is %s, older than the one before (%d)", i, in.Name, last)
		}
		last = max(last, got)
	}
}

// numberOf returns which of the test's modules has a name.
func numberOf(name string) int {
	n, err := strconv.Atoi(name[strings.LastIndexByte(name, '_')+1:])
	if err != nil {
		panic(err) // moduleName makes no other names
	}
	return n
}

// The loader is killed at any moment of applying, accepting and rebooting. No
// floor, no entry of the journal and no accepted patch is ever lost, nothing
// older gets in, and at the end the newest patch is in force.
func TestKillTheLoaderAtAnyMoment(t *testing.T) {
	t.Parallel()
	d := dice(t)
	repo := newRepository(time.Now())
	m := newMachine(t, repo.pinned())
	m.idle = 30 * time.Second
	c := m.client()
	var accepted uint64 // sequence of the last patch that the loader said it had accepted
	var reboots []int
	killed, cut := 0, 0
	for n := 1; killed < kills && n < 4*kills; n++ {
		m.kernel.set(steering{before: upTo(d, 4*time.Millisecond), after: upTo(d, 4*time.Millisecond), transition: upTo(d, 8*time.Millisecond)})
		patch := newModule(n)
		repo.add(patch)
		done := make(chan struct{})
		go func() {
			defer close(done)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := applyWith(ctx, c, repo.opening(patch), patch.content); err != nil {
				cut++
				return
			}
			if _, err := c.Accept(ctx, &loaderv1.AcceptRequest{Name: patch.Name}); err == nil {
				accepted = patch.Sequence
			}
		}()
		time.Sleep(upTo(d, 40*time.Millisecond))
		if m.loader.kill() {
			killed++
		}
		<-done
		m.wantJournalKnowsKernel()
		m.wantAccepted(accepted)
		if n%8 == 0 { // a power cut, and one more kill while the machine boots
			m.reboot(false)
			reboots = append(reboots, len(m.kernel.insertions()))
			m.bootUntilItWorks(d, accepted)
		}
	}
	if killed < kills || cut < kills/8 {
		t.Errorf("the loader was killed %d times, %d of them while it applied a patch", killed, cut)
	}
	m.wantNeverOlder(reboots)

	m.kernel.set(steering{})
	last := newModule(1000)
	repo.add(last)
	eventually(t, "newest patch is in force", func() bool {
		_, err := apply(t, c, repo.opening(last), last.content)
		if err != nil && !errors.Is(err, patch.ErrBusy) && strings.Contains(err.Error(), "rpc error") {
			t.Logf("apply = %v", err)
		}
		return err == nil
	})
	m.wantInForce(last)
	if got := m.kernel.modules(); len(got) != 1 {
		t.Errorf("modules = %q, want what was replaced unloaded", got)
	}
	if temporary, _ := filepath.Glob(m.path("loader/*tmp*")); len(temporary) > 0 {
		t.Errorf("the loader left %q", temporary)
	}
}

// wantAccepted fails the test if the journal has no accepted patch of at least
// that sequence.
func (m *machine) wantAccepted(least uint64) {
	m.t.Helper()
	var newest uint64
	for _, e := range m.journal().Entries {
		if e.Standing == "accepted" || e.Standing == "inserting" && e.Proven {
			newest = max(newest, e.Sequence)
			if _, err := os.Stat(m.path("loader/store/" + e.Digest.String())); err != nil {
				m.t.Errorf("accepted patch %s is not in the store: %v", e.Name, err)
			}
		}
	}
	if newest < least {
		m.t.Errorf("newest accepted patch is %d, the loader had accepted %d", newest, least)
	}
}

// bootUntilItWorks runs the loader as at boot, kills it a few times, and fails
// the test unless at the end what was accepted is in force.
func (m *machine) bootUntilItWorks(d *rand.Rand, accepted uint64) {
	m.t.Helper()
	for range 3 {
		p := start(m.t, loaderBin, m.loaderCommand("-boot"), m.loader.log)
		time.Sleep(upTo(d, 30*time.Millisecond))
		p.kill()
		m.wantAccepted(accepted)
	}
	if r := m.oneShot("-boot"); r.code != 0 {
		m.t.Fatalf("loader -boot: %v", r)
	}
	eventually(m.t, "accepted patch is in force", func() bool { return accepted == 0 || len(m.inForce()) == 1 })
}

// The agent is killed at any moment of fetching and applying. It always starts
// again, keeps its token, and at the end the newest patch is in force.
func TestKillTheAgentAtAnyMoment(t *testing.T) {
	t.Parallel()
	d := dice(t)
	s := newService(t)
	f := newHonestFront(t, s)
	repo := newRepository(time.Now())
	var all []module
	publish := func() {
		m := newModule(len(all) + 1)
		all = append(all, m)
		repo.add(m)
		repo.list(all...)
		f.serve(repo)
	}
	publish()
	m := newMachine(t, repo.pinned())
	m.join(s, f.url)
	token := s.token()
	for range 8 { // first at any moment of being enabled
		done := make(chan struct{})
		go func() { defer close(done); m.cli("enable", token) }()
		time.Sleep(upTo(d, 60*time.Millisecond))
		m.agent.kill()
		<-done
		m.switchOn()
	}
	m.cli("enable", token)
	before, err := os.ReadFile(m.path("agent/machine-token"))
	must(t, err)
	cut := 0
	for range kills {
		publish()
		m.kernel.set(steering{before: upTo(d, 10*time.Millisecond), transition: upTo(d, 20*time.Millisecond)})
		done := make(chan struct{})
		go func() {
			defer close(done)
			if m.cli("refresh").code != 0 {
				cut++
			}
		}()
		time.Sleep(upTo(d, 120*time.Millisecond))
		m.agent.kill()
		if d.IntN(4) == 0 {
			m.loader.kill()
		}
		<-done
		m.wantJournalKnowsKernel()
		m.switchOn()
	}
	if cut < kills/8 {
		t.Errorf("the agent was killed during a refresh %d times only", cut)
	}
	if after, err := os.ReadFile(m.path("agent/machine-token")); err != nil || string(after) != string(before) {
		t.Errorf("machine token = %q, %v, want %q", after, err, before)
	}
	m.kernel.set(steering{})
	eventually(t, "newest patch is in force", func() bool {
		m.cli("refresh")
		got := m.inForce()
		return len(got) == 1 && got[0] == all[len(all)-1].Name
	})
	m.wantNeverOlder(nil)
	m.wantStatus(all[len(all)-1], "checked", "applied")
	for _, dir := range []string{"agent", "agent/cache", "agent/cache/metadata", "agent/cache/blobs"} {
		if left, _ := filepath.Glob(m.path(dir + "/*tmp*")); len(left) > 0 {
			t.Errorf("the agent left %q", left)
		}
	}
}

// The server is killed while machines enrol and check in, decisions are made and
// patches are published. It always starts again, forgets nothing that it has
// confirmed, and signs nothing older than before.
func TestKillTheServerAtAnyMoment(t *testing.T) {
	t.Parallel()
	d := dice(t)
	s := newService(t)
	m := newClient(t, s)
	m.ok("refresh")
	token := s.token()
	s.sign(newModule(2)) // waits to be pushed
	var enrolled []string
	var versions map[string]float64
	for i := range kills {
		var work sync.WaitGroup
		var mu sync.Mutex
		work.Go(func() {
			if tok, err := enrol(s, token, i); err == nil {
				mu.Lock()
				enrolled = append(enrolled, tok)
				mu.Unlock()
			}
		})
		work.Go(func() { m.cli("refresh") })
		decision := []string{"halt", "resume"}[i%2]
		work.Go(func() { // it waits for the server to sign, and is killed over it, too
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_ = program(ctx, 0, nil, adminBin, "-dir", s.path("server"), "rollout", decision, vendor, "1.1").Run()
		})
		if i%10 == 5 {
			work.Go(func() {
				s.publisher("push", "-server", s.url(), "-ca", s.path("server/tls/ca.crt"), "-token-file", s.path("publisher-token"))
			})
		}
		time.Sleep(upTo(d, 100*time.Millisecond))
		s.server.kill()
		work.Wait()
		s.start()
		now := onlineVersions(t, s)
		for role, was := range versions {
			if now[role] < was {
				t.Errorf("after kill %d %s is version %v, was %v", i, role, now[role], was)
			}
		}
		versions = now
	}
	if len(enrolled) == 0 {
		t.Error("no machine was enrolled between the kills")
	}
	for _, tok := range enrolled {
		if code := checkIn(t, s, tok); code != http.StatusOK {
			t.Errorf("a machine that was enrolled is answered with %d", code)
		}
	}
	s.push()
	s.admin("rollout", "list")
	m.ok("refresh")
	m.wantInForce(newModule(2))
}

// request sends a request of a machine.
func request(s *service, method, path, token string, body any) (*http.Response, []byte, error) {
	client := s.httpClient()
	defer client.CloseIdleConnections()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, nil, err
		}
		r = strings.NewReader(string(b))
	}
	req, err := http.NewRequest(method, s.url()+path, r)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

// enrol enrols a made-up machine and returns its token.
func enrol(s *service, token string, n int) (string, error) {
	res, b, err := request(s, http.MethodPost, api.PathMachines, token, api.EnrolRequest{
		MachineID: fmt.Sprintf("%032x", n+1), Version: "test", Facts: api.Facts{Kernel: running, BootID: "boot"},
	})
	if err != nil {
		return "", err
	}
	var e api.Enrolment
	if res.StatusCode/100 != 2 || json.Unmarshal(b, &e) != nil || e.MachineToken == "" {
		return "", fmt.Errorf("status %d: %s", res.StatusCode, b)
	}
	return e.MachineToken, nil
}

// checkIn checks in and returns the status of the answer.
func checkIn(t *testing.T, s *service, token string) int {
	t.Helper()
	res, _, err := request(s, http.MethodPost, api.PathCheckIn, token, api.CheckIn{
		Version: "test", Facts: api.Facts{Kernel: running, BootID: "boot"},
	})
	must(t, err)
	return res.StatusCode
}

// onlineVersions returns the versions of timestamp and snapshot that are served.
func onlineVersions(t *testing.T, s *service) map[string]float64 {
	t.Helper()
	_, b, err := request(s, http.MethodGet, "/tuf/metadata/timestamp.json", "", nil)
	must(t, err)
	var file struct {
		Signed struct {
			Version float64
			Meta    map[string]struct{ Version float64 }
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatalf("timestamp is %q: %v", b, err)
	}
	return map[string]float64{"timestamp": file.Signed.Version, "snapshot": file.Signed.Meta["snapshot.json"].Version}
}
