package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	tests := map[string]struct {
		ms   []float64
		q    float64
		want float64
	}{
		"the median of an odd number":            {[]float64{1, 2, 9}, 0.5, 2},
		"the 99th of a hundred is the 99th":      {hundred, 0.99, 99},
		"the 99th of few is the largest":         {[]float64{1, 2, 9}, 0.99, 9},
		"all of them are at most the largest":    {hundred, 1, 100},
		"of one, that one":                       {[]float64{7}, 0.5, 7},
		"of none, nothing":                       {nil, 0.99, 0},
		"a share below the first is still first": {hundred, 0, 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := (flow{ms: tc.ms}).percentile(tc.q); got != tc.want {
				t.Errorf("percentile(%v) = %v, want %v", tc.q, got, tc.want)
			}
		})
	}
}

func TestCountIsWrittenAsPeopleSayIt(t *testing.T) {
	for n, want := range map[int]string{
		999: "999", 1000: "1 k", 1500: "1.50 k", 1234: "1234", 10_000: "10 k", 100_000: "100 k", 1_000_000: "1 M", 2_500_000: "2.50 M",
	} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
}

// measured is a fleet whose check-ins take so many ms.
func measured(machines int, rate int, ms float64) ingested {
	f := flow{reports: rate, took: time.Second, ms: []float64{ms}, cpu: 100}
	return ingested{machines: machines, checkIns: f, heartbeats: f, intents: f, asked: f, naive: 500,
		queued: 10, caughtUp: time.Second, halted: 100 * time.Millisecond}
}

func TestRowsOfIngestionTellHowFiguresGrow(t *testing.T) {
	tests := map[string]struct {
		rate   int
		ms     float64
		missed []string
	}{
		"as fast with a hundred times the machines": {rate: 2000, ms: 10},
		"half as fast":                 {rate: 1000, ms: 50},
		"less than half as fast":       {rate: 999, ms: 10, missed: []string{"check-ins a second", "heartbeats a second", "intents a second"}},
		"more than five times as late": {rate: 2000, ms: 51, missed: []string{"check-ins: p99", "heartbeats: p99", "intents: p99", "decisions while heartbeats come: p99"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var missed []string
			for _, r := range ingestRows([]ingested{measured(10_000, 2000, 10), measured(1_000_000, tc.rate, tc.ms)}) {
				if what, grows := strings.CutSuffix(r.What, ", growth to 1 M"); grows && !r.met() {
					missed = append(missed, what)
				}
			}
			if diff := cmp.Diff(tc.missed, missed); diff != "" {
				t.Errorf("missed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRowsOfIngestion(t *testing.T) {
	rows := ingestRows([]ingested{measured(10_000, 2000, 10)})
	if slices.ContainsFunc(rows, func(r row) bool { return strings.Contains(r.What, "growth") }) {
		t.Error("one fleet has grown")
	}
	i := slices.IndexFunc(rows, func(r row) bool { return r.What == "heartbeats a second, 10 k" })
	if i < 0 || rows[i].Measured != 2000 || rows[i].ratio() != "4.00×" {
		t.Errorf("rows lack heartbeats a second at four times the peer: %+v", rows)
	}
	i = slices.IndexFunc(rows, func(r row) bool { return strings.Contains(r.What, "halt") })
	if i < 0 || rows[i].target() != "≤ 1000 ms" || !rows[i].met() {
		t.Errorf("rows lack a halt within its limit: %+v", rows)
	}
	if rows := ingestRows(nil); rows != nil {
		t.Errorf("rows of no fleet: %v", rows)
	}
}

// The lines are those of the server.
const exposition = `# TYPE livepatch_rollout_exposed_machines gauge
livepatch_rollout_exposed_machines{tier="edge",unit="6.1.0-1-amd64/x86_64",vendor="debian",version="1.1"} 3
livepatch_rollout_exposed_machines{tier="stable",unit="6.1.0-1-amd64/x86_64",vendor="debian",version="1.1"} 9800
livepatch_decision_lag_seconds_bucket{le="0.1"} 4
livepatch_decision_lag_seconds_bucket{le="1"} 5
livepatch_decision_lag_seconds_bucket{le="+Inf"} 5
livepatch_decision_lag_seconds_sum 0.9
livepatch_controller_leads 1
`

func TestMetricsOfTheServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, exposition)
	}))
	defer server.Close()
	s := &site{opsAddr: strings.TrimPrefix(server.URL, "http://")}
	for name, want := range map[string]float64{
		"livepatch_rollout_exposed_machines": 9803, "livepatch_controller_leads": 1, "livepatch_controller": 0,
	} {
		if got, err := s.sum(t.Context(), name); err != nil || got != want {
			t.Errorf("sum of %s = %v, %v; want %v", name, got, err, want)
		}
	}
	want := map[float64]float64{0.1: 4, 1: 5, math.Inf(1): 5}
	if diff := cmp.Diff(want, buckets(exposition, "livepatch_decision_lag_seconds_bucket")); diff != "" {
		t.Errorf("buckets (-want +got):\n%s", diff)
	}
}

func TestSlowestObservationBetweenTwoLooks(t *testing.T) {
	inf := math.Inf(1)
	tests := map[string]struct {
		before, after map[float64]float64
		want          float64
	}{
		"all in the first bucket":   {map[float64]float64{0.1: 4, 1: 5, inf: 5}, map[float64]float64{0.1: 6, 1: 7, inf: 7}, 0.1},
		"one in the second":         {map[float64]float64{0.1: 4, 1: 5, inf: 5}, map[float64]float64{0.1: 5, 1: 7, inf: 7}, 1},
		"one beyond all":            {map[float64]float64{0.1: 4, 1: 5, inf: 5}, map[float64]float64{0.1: 4, 1: 5, inf: 6}, inf},
		"none":                      {map[float64]float64{0.1: 4, inf: 5}, map[float64]float64{0.1: 4, inf: 5}, 0},
		"the first look at nothing": {nil, map[float64]float64{0.1: 1, inf: 1}, 0.1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := slowest(tc.before, tc.after); got != tc.want {
				t.Errorf("slowest = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestParseSteps(t *testing.T) {
	out := `goos: linux
BenchmarkStep/kernels=10/trials=10000-2         	    2000	    500000 ns/op
BenchmarkStep/kernels=10/trials=1000000         	     986	   1250000.5 ns/op	      12 B/op
BenchmarkSweep/10000-2         	    2000	    500000 ns/op
PASS
`
	want := []stepped{{10_000, 1}, {1_000_000, 2.500001}}
	if diff := cmp.Diff(want, parseSteps(out), cmp.AllowUnexported(stepped{})); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

func TestIdentitiesAreThoseOfMachinesAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for i := range 1000 {
		id, token := identity(i)
		if len(id) != 32 || len(token) != 32 || seen[id] || seen[token] || id == token {
			t.Fatalf("identity(%d) = %s, %s", i, id, token)
		}
		seen[id], seen[token] = true, true
	}
}

// A fakeService answers check-ins: how many of them, and the token of the last.
type fakeService struct {
	served atomic.Int64
	status int
}

func (f *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var c service.CheckIn
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil || r.URL.Path != service.PathCheckIn || r.Header.Get("Authorization") == "" {
		http.Error(w, fmt.Sprint("not a check-in: ", err), http.StatusBadRequest)
		return
	}
	f.served.Add(1)
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(service.CheckInAnswer{Go: []string{"1.1"}})
}

// toFake returns a stream of n check-ins to a service that answers with a status.
func toFake(t *testing.T, status, n int) (*fakeService, stream) {
	t.Helper()
	fake := &fakeService{status: status}
	server := httptest.NewUnstartedServer(fake)
	server.StartTLS()
	t.Cleanup(server.Close)
	var left atomic.Int64
	left.Store(int64(n))
	i := &ingester{fleet: &fleet{machines: 10, version: "1.1"}}
	roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return fake, stream{
		addr: strings.TrimPrefix(server.URL, "https://"), name: "example.com", roots: roots, workers: 3,
		next: func(d *rand.Rand) (string, []byte, bool) {
			if left.Add(-1) < 0 {
				return "", nil, false
			}
			return i.plain(d)
		},
	}
}

func TestStreamSendsAllAndHearsTheAnswers(t *testing.T) {
	fake, s := toFake(t, http.StatusOK, 50)
	heard := 0
	s.heard = func(a service.CheckInAnswer) { heard += len(a.Go) }
	f, err := s.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.reports != 50 || fake.served.Load() != 50 || heard != 50 || !slices.IsSorted(f.ms) || f.ms[0] <= 0 || f.rate() <= 0 {
		t.Errorf("%d reports, %d served, %d heard, times %v", f.reports, fake.served.Load(), heard, f.ms)
	}
}

func TestStreamFailsAtAnAnswerThatIsNone(t *testing.T) {
	_, s := toFake(t, http.StatusServiceUnavailable, 50)
	if f, err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("run = %v, %v; want an error that says 503", f, err)
	}
}

func TestStreamEndsWhenItIsTold(t *testing.T) {
	_, s := toFake(t, http.StatusOK, math.MaxInt)
	ctx, cancel := context.WithCancel(t.Context())
	s.heard = func(service.CheckInAnswer) { cancel() }
	if _, err := s.run(ctx); err == nil {
		t.Error("a stream that was cancelled says that it is complete")
	}
}

func TestCheckInsAreWhatTheAgentSends(t *testing.T) {
	i := &ingester{fleet: &fleet{machines: 10, version: "1.1", module: "lkp_x", kernel: patch.Kernel{Arch: "x86_64", Release: "6.1.0-1-amd64"}}}
	tests := map[service.Kind]struct{ inForce bool }{
		service.Intent: {false}, service.Heartbeat: {true}, service.Crashed: {true},
	}
	for kind, tc := range tests {
		t.Run(string(kind), func(t *testing.T) {
			_, body, ok := i.checkIn(3, i.event(kind))
			var c service.CheckIn
			if err := json.Unmarshal(body, &c); err != nil || !ok {
				t.Fatal(err, ok)
			}
			if (c.Patch != nil) != tc.inForce || len(c.Events) != 1 || c.Events[0].Kind != kind || c.Events[0].BootID != c.BootID || c.Cell() != "6.1.0-1-amd64/x86_64" {
				t.Errorf("check-in is %s", body)
			}
		})
	}
}

// A fleetDB is a database with the tables that a fleet is put into.
func fleetDB(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{database: filepath.Join(t.TempDir(), "db"), machines: 1200, kernel: patch.Kernel{Arch: "x86_64", Release: "6.1.0-1-amd64"}, version: "1.1"}
	err := f.fill(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`
			CREATE TABLE tokens (id INTEGER PRIMARY KEY, kind TEXT, tier TEXT);
			INSERT INTO tokens VALUES (1, 'publisher', ''), (2, 'auth', 'stable'), (3, 'auth', 'stable');
			CREATE TABLE machines (id TEXT PRIMARY KEY, token_hash BLOB UNIQUE, auth_token_id, hostname, agent_version, arch, release,
				build_id, kernel_version, distribution, boot_id, enrolled_at, last_seen, patch_version);
			CREATE TABLE events (machine_id, id, kind, name, version, boot_id, at, received_at, reason, message, PRIMARY KEY (machine_id, id));
			CREATE TABLE reports (seq INTEGER PRIMARY KEY, body BLOB)`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFleetIsSpreadOverItsAccounts(t *testing.T) {
	f := fleetDB(t)
	got := map[string]int{}
	err := f.fill(t.Context(), func(tx *sql.Tx) error {
		if err := f.readTokens(t.Context(), tx); err != nil {
			return err
		}
		if err := f.enrol(t.Context(), tx); err != nil {
			return err
		}
		rows, err := tx.Query(`SELECT auth_token_id, release, count(DISTINCT token_hash) FROM machines GROUP BY 1, 2`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var account, release string
			var n int
			if err := rows.Scan(&account, &release, &n); err != nil {
				return err
			}
			got[account+" "+release] = n
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"2 6.1.0-1-amd64": 600, "3 6.1.0-1-amd64": 600}, got); diff != "" || f.tier != "stable" {
		t.Errorf("machines by account and kernel, tier %q (-want +got):\n%s", f.tier, diff)
	}
}

func TestQueuedReportsAreIntentsOfTheFirstMachines(t *testing.T) {
	f := fleetDB(t)
	f.accounts, f.tier = []int64{2, 3}, "stable"
	if err := f.queue(t.Context(), 600); err != nil {
		t.Fatal(err)
	}
	var rows, signs int
	err := f.fill(t.Context(), func(tx *sql.Tx) error {
		q, err := tx.Query(`SELECT body FROM reports ORDER BY seq`)
		if err != nil {
			return err
		}
		defer q.Close()
		for q.Next() {
			var body []byte
			if err := q.Scan(&body); err != nil {
				return err
			}
			var got []sign
			if err := json.Unmarshal(body, &got); err != nil {
				return err
			}
			for _, s := range got {
				if id, _ := identity(signs); s.Machine != id || s.Cell != "6.1.0-1-amd64/x86_64" || s.Events[0]["kind"] != "intent" {
					t.Errorf("sign %d is %+v", signs, s)
				}
				signs++
			}
			rows++
		}
		return q.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if rows != 2 || signs != 600 {
		t.Errorf("%d rows with %d signs, want 2 with 600", rows, signs)
	}
}

func TestNaiveWayKeepsEachReport(t *testing.T) {
	f := fleetDB(t)
	rate, err := f.naive(t.Context(), 4, 50*time.Millisecond)
	if err != nil || rate <= 0 {
		t.Fatalf("naive = %v, %v", rate, err)
	}
	kept := 0
	err = f.fill(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT count(*) FROM events WHERE kind = 'heartbeat'`).Scan(&kept)
	})
	if err != nil || kept == 0 {
		t.Errorf("%d events are kept, %v", kept, err)
	}
}

func TestFleetsThatCannotBeMeasured(t *testing.T) {
	for _, text := range []string{"", "many", "0", "-5", "999", "1e6"} {
		if _, err := ingestion(t.Context(), options{machines: text}); err == nil || !strings.Contains(err.Error(), "want a number") {
			t.Errorf("ingestion of %q machines: %v", text, err)
		}
	}
}
