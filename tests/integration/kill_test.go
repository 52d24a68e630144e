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

	"livepatch/tests/lab"

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
func wantNeverOlder(t *testing.T, m *lab.Machine, reboots []int) {
	t.Helper()
	last := 0
	for i, in := range m.Kernel.Insertions() {
		if slices.Contains(reboots, i) {
			last = 0
		}
		got := numberOf(in.Name)
		if got < last {
			t.Errorf("insertion %d is %s, older than the one before (%d)", i, in.Name, last)
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
	repo := lab.NewRepository(time.Now())
	m := lab.NewMachine(t, repo.Pinned())
	m.Idle = 30 * time.Second
	c := m.Client()
	var accepted uint64 // sequence of the last patch that the loader said it had accepted
	var reboots []int
	killed, cut := 0, 0
	for n := 1; killed < kills && n < 4*kills; n++ {
		m.Kernel.Set(lab.Steering{Before: upTo(d, 4*time.Millisecond), After: upTo(d, 4*time.Millisecond), Transition: upTo(d, 8*time.Millisecond)})
		patch := lab.NewModule(n)
		repo.Add(patch)
		done := make(chan struct{})
		go func() {
			defer close(done)
			ctx, cancel := context.WithTimeout(t.Context(), lab.Patience)
			defer cancel()
			if _, err := lab.ApplyWith(ctx, c, repo.Opening(patch), patch.Content); err != nil {
				cut++
				return
			}
			if _, err := c.Accept(ctx, &loaderv1.AcceptRequest{Name: patch.Name}); err == nil {
				accepted = patch.Sequence
			}
		}()
		time.Sleep(upTo(d, 40*time.Millisecond))
		if m.Loader.Kill() {
			killed++
		}
		<-done
		wantJournalKnowsKernel(t, m)
		wantAccepted(t, m, accepted)
		if n%8 == 0 { // a power cut, and one more kill while the machine boots
			m.Reboot(false)
			reboots = append(reboots, len(m.Kernel.Insertions()))
			bootUntilItWorks(t, m, d, accepted)
		}
	}
	if killed < kills || cut < kills/8 {
		t.Errorf("the loader was killed %d times, %d of them while it applied a patch", killed, cut)
	}
	wantNeverOlder(t, m, reboots)

	m.Kernel.Set(lab.Steering{})
	last := lab.NewModule(1000)
	repo.Add(last)
	lab.Eventually(t, "newest patch is in force", func() bool {
		_, err := lab.Apply(t, c, repo.Opening(last), last.Content)
		if err != nil && !errors.Is(err, patch.ErrBusy) && strings.Contains(err.Error(), "rpc error") {
			t.Logf("apply = %v", err)
		}
		return err == nil
	})
	m.WantInForce(last)
	if got := m.Kernel.Modules(); len(got) != 1 {
		t.Errorf("modules = %q, want what was replaced unloaded", got)
	}
	if temporary, _ := filepath.Glob(m.Path("loader/*tmp*")); len(temporary) > 0 {
		t.Errorf("the loader left %q", temporary)
	}
}

// wantAccepted fails the test if the journal has no accepted patch of at least
// that sequence.
func wantAccepted(t *testing.T, m *lab.Machine, least uint64) {
	t.Helper()
	var newest uint64
	for _, e := range m.Journal().Entries {
		if e.Standing == "accepted" || e.Standing == "inserting" && e.Proven {
			newest = max(newest, e.Sequence)
			if _, err := os.Stat(m.Path("loader/store/" + e.Digest.String())); err != nil {
				t.Errorf("accepted patch %s is not in the store: %v", e.Name, err)
			}
		}
	}
	if newest < least {
		t.Errorf("newest accepted patch is %d, the loader had accepted %d", newest, least)
	}
}

// bootUntilItWorks runs the loader as at boot, kills it a few times, and fails
// the test unless at the end what was accepted is in force.
func bootUntilItWorks(t *testing.T, m *lab.Machine, d *rand.Rand, accepted uint64) {
	t.Helper()
	for range 3 {
		p := lab.Start(t, lab.LoaderBin, m.LoaderCommand("-boot"), m.Loader.Log)
		time.Sleep(upTo(d, 30*time.Millisecond))
		p.Kill()
		wantAccepted(t, m, accepted)
	}
	if r := m.OneShot("-boot"); r.Code != 0 {
		t.Fatalf("loader -boot: %v", r)
	}
	lab.Eventually(t, "accepted patch is in force", func() bool { return accepted == 0 || len(m.InForce()) == 1 })
}

// The agent is killed at any moment of fetching and applying. It always starts
// again, keeps its token, and at the end the newest patch is in force.
func TestKillTheAgentAtAnyMoment(t *testing.T) {
	t.Parallel()
	d := dice(t)
	s := lab.NewService(t)
	f := lab.NewHonestFront(t, s)
	repo := lab.NewRepository(time.Now())
	var all []lab.Module
	publish := func() {
		m := lab.NewModule(len(all) + 1)
		all = append(all, m)
		repo.Add(m)
		repo.List(all...)
		f.Serve(repo)
	}
	publish()
	m := lab.NewMachine(t, repo.Pinned())
	m.Join(s, f.URL)
	token := s.Token()
	for range 8 { // first at any moment of being enabled
		done := make(chan struct{})
		go func() { defer close(done); m.CLI("enable", token) }()
		time.Sleep(upTo(d, 60*time.Millisecond))
		m.Agent.Kill()
		<-done
		m.SwitchOn()
	}
	m.CLI("enable", token)
	before, err := os.ReadFile(m.Path("agent/machine-token"))
	lab.Must(t, err)
	cut := 0
	for range kills {
		publish()
		m.Kernel.Set(lab.Steering{Before: upTo(d, 10*time.Millisecond), Transition: upTo(d, 20*time.Millisecond)})
		done := make(chan struct{})
		go func() {
			defer close(done)
			if m.CLI("refresh").Code != 0 {
				cut++
			}
		}()
		time.Sleep(upTo(d, 120*time.Millisecond))
		m.Agent.Kill()
		if d.IntN(4) == 0 {
			m.Loader.Kill()
		}
		<-done
		wantJournalKnowsKernel(t, m)
		m.SwitchOn()
	}
	if cut < kills/8 {
		t.Errorf("the agent was killed during a refresh %d times only", cut)
	}
	if after, err := os.ReadFile(m.Path("agent/machine-token")); err != nil || string(after) != string(before) {
		t.Errorf("machine token = %q, %v, want %q", after, err, before)
	}
	m.Kernel.Set(lab.Steering{})
	lab.Eventually(t, "newest patch is in force", func() bool {
		m.CLI("refresh")
		got := m.InForce()
		return len(got) == 1 && got[0] == all[len(all)-1].Name
	})
	wantNeverOlder(t, m, nil)
	m.WantStatus(all[len(all)-1], "checked", "applied")
	for _, dir := range []string{"agent", "agent/cache", "agent/cache/metadata", "agent/cache/blobs"} {
		if left, _ := filepath.Glob(m.Path(dir + "/*tmp*")); len(left) > 0 {
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
	s := lab.NewService(t)
	m := lab.NewClient(t, s)
	m.OK("refresh")
	token := s.Token()
	s.Sign(lab.NewModule(2)) // waits to be pushed
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
		work.Go(func() { m.CLI("refresh") })
		decision := []string{"halt", "resume"}[i%2]
		work.Go(func() { // it waits for the server to sign, and is killed over it, too
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_ = lab.Program(ctx, 0, nil, lab.AdminBin, "-dir", s.Path("server"), "rollout", decision, lab.Vendor, "1.1").Run()
		})
		if i%10 == 5 {
			work.Go(func() {
				s.Publisher("push", "-server", s.URL(), "-ca", s.Path("server/tls/ca.crt"), "-token-file", s.Path("publisher-token"))
			})
		}
		time.Sleep(upTo(d, 100*time.Millisecond))
		s.Server.Kill()
		work.Wait()
		s.Start()
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
	s.Push()
	s.Admin("rollout", "list")
	m.OK("refresh")
	m.WantInForce(lab.NewModule(2))
}

// request sends a request of a machine.
func request(s *lab.Service, method, path, token string, body any) (*http.Response, []byte, error) {
	client := s.HTTPClient()
	defer client.CloseIdleConnections()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, nil, err
		}
		r = strings.NewReader(string(b))
	}
	req, err := http.NewRequest(method, s.URL()+path, r)
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
func enrol(s *lab.Service, token string, n int) (string, error) {
	res, b, err := request(s, http.MethodPost, api.PathMachines, token, api.EnrolRequest{
		MachineID: fmt.Sprintf("%032x", n+1), Version: "test", Facts: api.Facts{Kernel: lab.Running, BootID: "boot"},
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
func checkIn(t *testing.T, s *lab.Service, token string) int {
	t.Helper()
	res, _, err := request(s, http.MethodPost, api.PathCheckIn, token, api.CheckIn{
		Version: "test", Facts: api.Facts{Kernel: lab.Running, BootID: "boot"},
	})
	lab.Must(t, err)
	return res.StatusCode
}

// onlineVersions returns the versions of timestamp and snapshot that are served.
func onlineVersions(t *testing.T, s *lab.Service) map[string]float64 {
	t.Helper()
	_, b, err := request(s, http.MethodGet, "/tuf/metadata/timestamp.json", "", nil)
	lab.Must(t, err)
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
