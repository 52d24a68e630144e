//go:build integration

package integration

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to read what the server has kept

	"livepatch/tests/lab"

	api "livepatch/internal/service"
)

// serverKills is how often the server is killed while machines report.
const serverKills = 100

// A fleet is made-up machines that report to a service, and what they were told.
type fleet struct {
	t      *testing.T
	token  []string // of each machine
	mu     sync.Mutex
	n      int      // events so far
	kept   []string // events that were acknowledged and that are kept as such
	let    map[int]bool
	answer int
}

// newFleet enrols machines.
func newFleet(t *testing.T, s *lab.Service, machines int) *fleet {
	t.Helper()
	f := &fleet{t: t, token: make([]string, machines), let: map[int]bool{}}
	auth := s.Token()
	var work sync.WaitGroup
	for first := range 16 {
		work.Go(func() {
			for i := first; i < machines; i += 16 {
				var err error
				if f.token[i], err = enrol(s, auth, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	return f
}

// report has random machines report to one of the services until stop is closed. A
// request that fails, because the server was killed, is forgotten: nothing was
// acknowledged.
func (f *fleet) report(d *rand.Rand, stop <-chan struct{}, services ...*lab.Service) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		i, kind := d.IntN(len(f.token)), []api.Kind{api.Intent, api.Heartbeat, api.Applied}[d.IntN(3)]
		f.mu.Lock()
		f.n++
		id := fmt.Sprintf("event-%d", f.n)
		f.mu.Unlock()
		res, body, err := request(services[d.IntN(len(services))], http.MethodPost, api.PathCheckIn, f.token[i], api.CheckIn{
			Version: "test", Facts: api.Facts{Kernel: lab.Running, BootID: "boot"},
			Events: []api.Event{{ID: id, Kind: kind, Version: "1.1", Name: "m", BootID: "boot", At: time.Now()}},
		})
		if err == nil && res.StatusCode == http.StatusOK {
			f.took(i, id, kind, body)
		}
	}
}

// took remembers what a service has acknowledged.
func (f *fleet) took(i int, id string, kind api.Kind, body []byte) {
	var a api.CheckInAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer++
	if kind != api.Heartbeat {
		f.kept = append(f.kept, id)
	}
	if slices.Contains(a.Go, "1.1") {
		f.let[i] = true
	}
}

// A ledger is what a server has kept, read without the server.
type ledger struct {
	events  map[string]bool // by ID
	intents map[string]int  // that the rule was told of, by machine
	steps   int
}

// readLedger reads the books of a server, and checks that nothing in them is missing or
// there twice.
func readLedger(t *testing.T, s *lab.Service) ledger {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.Path("server/livepatch.db")+"?mode=ro")
	lab.Must(t, err)
	defer db.Close()
	l := ledger{events: map[string]bool{}, intents: map[string]int{}}
	each(t, db, `SELECT id FROM events`, func(scan func(...any)) {
		var id string
		scan(&id)
		l.events[id] = true
	})
	each(t, db, `SELECT step, events FROM steps WHERE version = '1.1' ORDER BY step`, func(scan func(...any)) {
		var step int
		var body []byte
		scan(&step, &body)
		if l.steps++; step != l.steps {
			t.Errorf("step %d comes after step %d", step, l.steps-1)
			l.steps = step
		}
		var events []struct{ Kind, Machine string }
		lab.Must(t, json.Unmarshal(body, &events))
		for _, e := range events {
			if e.Kind == "intent" {
				l.intents[e.Machine]++
			}
		}
	})
	last := 0
	each(t, db, `SELECT seq FROM verdicts WHERE version = '1.1' ORDER BY seq`, func(scan func(...any)) {
		var seq int
		scan(&seq)
		if last++; seq != last {
			t.Errorf("verdict %d comes after verdict %d", seq, last-1)
			last = seq
		}
	})
	if last == 0 {
		t.Error("nothing was decided")
	}
	each(t, db, `SELECT count(*) FROM reports`, func(scan func(...any)) {
		var n int
		if scan(&n); n != 0 {
			t.Errorf("%d reports were acknowledged and not taken", n)
		}
	})
	return l
}

func each(t *testing.T, db *sql.DB, query string, row func(scan func(...any))) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	lab.Must(t, err)
	defer rows.Close()
	for rows.Next() {
		row(func(to ...any) {
			t.Helper()
			lab.Must(t, rows.Scan(to...))
		})
	}
	lab.Must(t, rows.Err())
}

// wantKept fails the test unless the books hold all that was acknowledged, once.
func (f *fleet) wantKept(s *lab.Service) {
	f.t.Helper()
	l := readLedger(f.t, s)
	for _, id := range f.kept {
		if !l.events[id] {
			f.t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	for i := range f.let {
		if l.intents[fmt.Sprintf("%032x", i+1)] == 0 { // more than one: it fell silent and asked again
			f.t.Errorf("machine %d was let in, and the rule does not know", i)
		}
	}
	f.t.Logf("%d reports were acknowledged, %d machines let in, %d steps", f.answer, len(f.let), l.steps)
	if f.answer < 100 || len(f.let) == 0 {
		f.t.Errorf("only %d reports were acknowledged, %d machines let in", f.answer, len(f.let))
	}
	if r := s.Admin("rollout", "replay"); r == "" {
		f.t.Error("replay says nothing")
	}
}

// The server is killed while machines report. What it has acknowledged is kept; what it
// has decided is kept; and no machine is let in without the rule's knowledge.
func TestKillTheServerWhileMachinesReport(t *testing.T) {
	t.Parallel()
	d := dice(t)
	s := lab.NewService(t)
	f := newFleet(t, s, 120)
	for range serverKills {
		stop := make(chan struct{})
		var work sync.WaitGroup
		for range 4 {
			own := rand.New(rand.NewPCG(d.Uint64(), d.Uint64()))
			work.Go(func() { f.report(own, stop, s) })
		}
		time.Sleep(upTo(d, 200*time.Millisecond))
		s.Server.Kill()
		close(stop)
		work.Wait()
		s.Start()
	}
	time.Sleep(2 * time.Second) // a round takes what is left
	f.wantKept(s)
}

// Two servers share a database. Each takes reports and answers for what the rule
// decides; one of them decides, and when it is killed the other one does.
func TestTwoServersDecideOnce(t *testing.T) {
	t.Parallel()
	d := dice(t)
	s := lab.NewService(t)
	other := s.Beside()
	other.Start()
	f := newFleet(t, s, 60)
	for i := range 10 {
		stop := make(chan struct{})
		var work sync.WaitGroup
		for range 4 {
			own := rand.New(rand.NewPCG(d.Uint64(), d.Uint64()))
			work.Go(func() { f.report(own, stop, s, other) })
		}
		time.Sleep(500 * time.Millisecond)
		victim := []*lab.Service{s, other}[i%2]
		victim.Server.Kill()
		time.Sleep(upTo(d, 500*time.Millisecond))
		close(stop)
		work.Wait()
		victim.Start()
	}
	time.Sleep(2 * time.Second)
	f.wantKept(s)
}
