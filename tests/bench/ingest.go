package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"livepatch/internal/service"
)

const (
	// streams is over how many connections check-ins come.
	streams = 64
	// fresh is how many machines of each fleet, at most half of it, do not have the patch
	// until it is measured how long the answer takes to whether they may begin.
	fresh = 5000
	// patience is how long the rule may take for all that was queued.
	patience = 30 * time.Minute
)

// rule are constants of the rule with which all machines but one in fifty may begin at
// once and none falls silent while it is measured. There are no controls, whose every
// check-in would be a question to the rule.
const rule = `{
	"pace": {"dead": 9e8, "controls": 0, "first_share": 0.98, "holdback": 0.01},
	"time": {"heartbeats": ["10s", "1h"], "grace": "2h", "early": "1h"}
}`

// An ingested is what was measured with one fleet.
type ingested struct {
	machines int
	watched  int           // machines that have the patch and are under watch
	queued   int           // reports that waited for the server
	caughtUp time.Duration // until the rule had taken them
	tookUp   time.Duration // from exec until the server listens, with all of them under watch
	naive    float64       // reports a second, a transaction for each

	checkIns, heartbeats, intents flow
	// asked are questions to the rule while heartbeats come.
	asked    flow
	let      int           // of those with an intent, machines that were let in
	behind   time.Duration // from the last heartbeat until the rule had taken all
	halted   time.Duration // from the deciding report until signed files say so
	lag      float64       // of that verdict as the server has measured it: at most so many seconds
	resident float64       // MB
	peak     float64
}

// ingestion measures how fast the service takes what machines report, and how fast the
// rule decides, with fleets of different sizes.
func ingestion(ctx context.Context, o options) ([]row, error) {
	var all []ingested
	for _, text := range strings.Split(o.machines, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1000 {
			return nil, fmt.Errorf("cannot measure a fleet of %q machines: want a number, at least 1000", text)
		}
		fmt.Fprintf(os.Stderr, "  a fleet of %d machines\n", n)
		got, err := ingest(ctx, o, n)
		if err != nil {
			return ingestRows(all), fmt.Errorf("cannot measure a fleet of %d machines: %w", n, err)
		}
		all = append(all, got)
	}
	return ingestRows(all), nil
}

// ingest measures with a fleet of n machines, and a service of its own.
func ingest(ctx context.Context, o options, n int) (ingested, error) {
	// Not in the folder for temporary files: that may be in memory, where no write waits.
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return ingested{}, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(o.out), "bench-")
	if err != nil {
		return ingested{}, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "rule.json"), []byte(rule), 0o600); err != nil {
		return ingested{}, err
	}
	s, err := newSite(ctx, dir, o.bin, 1, 1, "--rule", filepath.Join(dir, "rule.json"))
	if err != nil {
		return ingested{}, err
	}
	s.server.stop()
	f, err := newFleet(ctx, s, n)
	if err != nil {
		return ingested{}, err
	}
	i := &ingester{site: s, fleet: f, lasts: o.stream, out: ingested{machines: n}}
	err = i.measure(ctx)
	s.server.stop()
	return i.out, err
}

// An ingester measures one service with one fleet.
type ingester struct {
	*site
	*fleet
	lasts time.Duration // of a stream
	ids   atomic.Int64  // of events
	out   ingested
}

func (i *ingester) measure(ctx context.Context) (err error) {
	if i.out.naive, err = i.fleet.naive(ctx, streams, i.lasts/4); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{i.begin, i.catchUp, i.restart, i.flows, i.halt} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if i.out.resident, err = resident(i.server.pid()); err != nil {
		return err
	}
	peak, err := status(fmt.Sprintf("/proc/%d/status", i.server.pid()), "VmHWM")
	i.out.peak = float64(peak) * 1024 / 1e6
	return err
}

// holders is how many machines, the first ones, have the patch before the others ask for
// it.
func (i *ingester) holders() int { return i.machines - min(fresh, i.machines/2) }

// begin lets the rule count the fleet, and begin with it.
func (i *ingester) begin(ctx context.Context) error {
	if err := i.serve(ctx); err != nil {
		return err
	}
	i.server.stop()
	return nil
}

// catchUp starts a server that all machines but the last have reported to that they
// are about to begin, and measures how fast the rule lets them in.
func (i *ingester) catchUp(ctx context.Context) error {
	i.out.queued = i.holders()
	if err := i.queue(ctx, i.out.queued); err != nil {
		return err
	}
	begin := time.Now()
	if err := i.serve(ctx); err != nil {
		return err
	}
	if err := i.decided(ctx, i.server, patience); err != nil {
		return err
	}
	i.out.caughtUp = time.Since(begin)
	exposed, err := i.sum(ctx, "livepatch_rollout_exposed_machines")
	i.out.watched = int(exposed)
	if err == nil && i.out.watched < i.out.queued*9/10 {
		err = fmt.Errorf("rule has let in %d machines of %d:\n%s", i.out.watched, i.out.queued, i.server.logs.String())
	}
	return err
}

// restart stops the server in order and measures how soon it serves again.
func (i *ingester) restart(ctx context.Context) error {
	i.server.stop()
	if err := i.serve(ctx); err != nil {
		return err
	}
	i.out.tookUp = i.site.tookUp
	return nil
}

// flows measures check-ins that say nothing new, machines that ask whether they may
// begin, and heartbeats.
func (i *ingester) flows(ctx context.Context) (err error) {
	if i.out.checkIns, err = i.flow(ctx, i.stream(i.plain)); err != nil {
		return err
	}
	asking := i.stream(i.newcomer())
	asking.lasts = 0
	asking.heard = func(a service.CheckInAnswer) { i.out.let += len(a.Go) }
	if i.out.intents, err = i.flow(ctx, asking); err != nil {
		return err
	}
	if i.out.let < i.out.intents.reports*9/10 {
		return fmt.Errorf("rule has let in %d machines of %d that asked", i.out.let, i.out.intents.reports)
	}
	return i.beats(ctx)
}

// beats measures heartbeats, and beside them one machine at a time that asks the rule.
func (i *ingester) beats(ctx context.Context) error {
	asked := make(chan error, 1)
	go func() {
		s := i.stream(i.holder(service.Intent))
		s.workers = 1
		var err error
		i.out.asked, err = s.run(ctx)
		asked <- err
	}()
	var err error
	i.out.heartbeats, err = i.flow(ctx, i.stream(i.holder(service.Heartbeat)))
	if other := <-asked; err == nil {
		err = other
	}
	if err != nil {
		return err
	}
	begin := time.Now()
	err = i.decided(ctx, i.server, patience)
	i.out.behind = time.Since(begin)
	return err
}

// stream returns one of what next makes.
func (i *ingester) stream(next func(*rand.Rand) (string, []byte, bool)) stream {
	return stream{addr: i.addr, name: "localhost", roots: i.roots, workers: streams, lasts: i.lasts, next: next}
}

// flow runs a stream and measures what it costs the server.
func (i *ingester) flow(ctx context.Context, s stream) (flow, error) {
	before, err := cpu(i.server.pid())
	if err != nil {
		return flow{}, err
	}
	f, err := s.run(ctx)
	if err != nil {
		return flow{}, err
	}
	after, err := cpu(i.server.pid())
	f.cpu = float64(after-before) / float64(time.Microsecond) / float64(f.reports)
	return f, err
}

// plain makes check-ins of any machine that has nothing to report.
func (i *ingester) plain(d *rand.Rand) (token string, body []byte, ok bool) {
	return i.checkIn(d.IntN(i.machines))
}

// newcomer makes an intent of each machine that has not had one.
func (i *ingester) newcomer() func(*rand.Rand) (string, []byte, bool) {
	var next atomic.Int64
	next.Store(int64(i.holders()))
	return func(*rand.Rand) (string, []byte, bool) {
		n := int(next.Add(1)) - 1
		if n >= i.machines {
			return "", nil, false
		}
		return i.checkIn(n, i.event(service.Intent))
	}
}

// holder makes events of any machine that has the patch, but for the one in fifty that
// the rule did not let in.
func (i *ingester) holder(k service.Kind) func(*rand.Rand) (string, []byte, bool) {
	return func(d *rand.Rand) (string, []byte, bool) { return i.checkIn(d.IntN(i.holders()), i.event(k)) }
}

func (i *ingester) event(k service.Kind) service.Event {
	return service.Event{
		ID: fmt.Sprintf("%s-%d", k, i.ids.Add(1)), Kind: k, Version: i.version, Name: i.module, At: time.Now().UTC(),
	}
}

// checkIn returns a check-in of the n-th machine as the agent makes it.
func (i *ingester) checkIn(n int, events ...service.Event) (token string, body []byte, ok bool) {
	c := service.CheckIn{Version: agentVersion, Facts: i.facts(n), Generation: 1, Events: events}
	for j := range events {
		events[j].BootID = c.BootID
	}
	if len(events) == 0 || events[0].Kind != service.Intent {
		c.Patch = &service.Patch{Name: i.module, Version: i.version, Sequence: 1, State: "enabled", Standing: "trial"}
	}
	body, err := json.Marshal(c)
	if err != nil {
		panic(err) // it is made of what JSON can say
	}
	_, token = identity(n)
	return token, body, true
}

// halt has two machines of different accounts report the same oops while heartbeats come,
// and measures when signed files say that the patch is halted.
func (i *ingester) halt(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	noise := make(chan error, 1)
	go func() {
		s := i.stream(i.holder(service.Heartbeat))
		_, err := s.run(ctx)
		noise <- err
	}()
	err := i.haltAmid(ctx)
	cancel() // the heartbeats have done their part
	if bad := <-noise; err == nil && !errors.Is(bad, context.Canceled) {
		err = bad
	}
	return err
}

func (i *ingester) haltAmid(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(i.lasts / 10):
	}
	const lag = "livepatch_decision_lag_seconds_bucket"
	before, err := i.metrics(ctx)
	if err != nil {
		return err
	}
	if err := i.oops(ctx, 0); err != nil {
		return err
	}
	watch, err := i.watchFiles(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := i.oops(ctx, 1); err != nil {
		return err
	}
	if err := i.server.until(ctx, "halting", time.Minute, watch); err != nil {
		return err
	}
	i.out.halted = time.Since(begin)
	halted, err := i.sum(ctx, "livepatch_rollout_halted")
	if err == nil && halted != 1 {
		err = fmt.Errorf("two oopses have halted %v units, want 1", halted)
	}
	if err != nil {
		return err
	}
	after, err := i.metrics(ctx)
	i.out.lag = slowest(buckets(before, lag), buckets(after, lag))
	return err
}

// oops reports that the patch has done harm to the n-th machine.
func (i *ingester) oops(ctx context.Context, n int) error {
	e := i.event(service.Crashed)
	e.Reason, e.Signature = service.ReasonOops, "general protection fault/"+i.module+"/patched"
	token, body, _ := i.checkIn(n, e)
	once := i.stream(nil)
	once.workers, once.lasts = 1, 0
	sent := false
	once.next = func(*rand.Rand) (string, []byte, bool) {
		defer func() { sent = true }()
		return token, body, !sent
	}
	_, err := once.run(ctx)
	return err
}

// watchFiles returns a function that tells whether the signed files are others than now.
func (i *ingester) watchFiles(ctx context.Context) (changed func() bool, err error) {
	etag := func() (string, error) {
		return i.etag(ctx, "https://"+i.addr+service.PathMetadata+"timestamp.json")
	}
	now, err := etag()
	return func() bool {
		got, err := etag()
		return err == nil && got != now
	}, err
}
