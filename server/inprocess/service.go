package inprocess

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/internal/tuf"
	"livepatch/server/internal/api"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/controller"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/ops"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

// Soak is how long the patch stays on trial.
const Soak = time.Hour

// A Service is a whole service: its HTTP handlers behind a socket of the loopback
// interface, its database on a disk, its rule, and its keys. Only time is not
// real: it is that of the caller, and the rule runs when the caller says so.
type Service struct {
	log  *slog.Logger
	dir  layout.Dir
	now  func() time.Time
	db   *sqlite.DB
	cat  *catalog.Catalog
	rule *controller.Controller
	salt string

	socket  bool
	handler http.Handler
	server  *http.Server // nil if it does not listen
	served  chan struct{}
	base    string // "http://127.0.0.1:1234"
	client  *http.Client
	crowd   crowd
	stored  tuf.Stored // that the machines trust

	touched time.Time   // when the fleet was last said to be there
	kept    time.Time   // when the catalog was last asked to keep its roles fresh
	spread  atomic.Bool // something was decided since the last Round
	seq     int64       // of the last decision that was seen
	dealt   map[lane]Assignment
	halted  rollout.Reason // the first
}

type lane struct{ cell, tier string }

// Config says which service to open.
type Config struct {
	Log *slog.Logger
	Dir string // that Prepare has made
	Now func() time.Time
	// Salt is that of the rollout, so that two runs deal machines alike; "" for one
	// that the service draws.
	Salt string
	// Socket makes the service listen on the loopback interface, as
	// [Service.CheckIn] and [Service.Signed] need it; [Service.Call] does not.
	Socket bool
}

// Open opens a service, which has nothing to give out yet. The caller closes it.
func Open(ctx context.Context, c Config) (*Service, error) {
	s := &Service{log: c.Log, dir: layout.Dir(c.Dir), now: c.Now, salt: c.Salt, socket: c.Socket, touched: c.Now(), dealt: map[lane]Assignment{}}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open service: %w", err), s.Close())
	}
	return s, nil
}

// start opens everything that a server opens when it starts.
func (s *Service) start(ctx context.Context) error {
	keys, err := s.dir.Keys()
	if err != nil {
		return err
	}
	blobs, err := s.dir.Blobs()
	if err != nil {
		return err
	}
	if s.db, err = s.dir.Database(ctx); err != nil {
		return err
	}
	if s.cat, err = catalog.Open(ctx, s.log, s.db, blobs, signer.New(keys), Soak); err != nil {
		return err
	}
	s.cat.Now = s.now
	metrics := ops.NewMetrics()
	s.rule, err = controller.New(controller.Config{
		Log: s.log, DB: unhurried{s.db, &count{}}, Params: rollout.Defaults(), Tiers: controller.Tiers(), SignFiles: s.sign, Now: s.now,
		Metrics: metrics,
	})
	if err != nil {
		return err
	}
	var rule api.Rule = attentive{s.rule, &s.crowd}
	if !s.socket {
		rule = prompt{s.rule}
	}
	s.handler = api.New(api.Config{
		Log: s.log, Catalog: s.cat, Desk: enrolment.New(s.db), Metrics: metrics, Interval: time.Hour,
		Rule: rule, Now: s.now,
	}).Handler()
	if !s.socket {
		return nil
	}
	return s.listen(ctx)
}

// sign is what the rule calls when it has decided something.
func (s *Service) sign(ctx context.Context) error {
	s.spread.Store(true)
	return s.cat.Refresh(ctx)
}

func (s *Service) listen(ctx context.Context) error {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.base = "http://" + lis.Addr().String()
	s.server = &http.Server{Handler: s.handler, ReadHeaderTimeout: time.Minute}
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxCrowd}, Timeout: time.Minute}
	s.served = make(chan struct{})
	go func(server *http.Server, done chan struct{}) {
		defer close(done)
		_ = server.Serve(lis) // ends with Close
	}(s.server, s.served)
	return nil
}

// Close ends the service. Its folder stays.
func (s *Service) Close() (err error) {
	if s.server != nil {
		s.client.CloseIdleConnections()
		err = s.server.Close()
		<-s.served
		s.server = nil
	}
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
		s.db = nil
	}
	return err
}

// Restart ends the service and starts it again on the same folder, as after an
// outage: the rule goes on from what is in the database.
func (s *Service) Restart(ctx context.Context) error {
	if err := s.Close(); err != nil {
		return fmt.Errorf("cannot restart service: %w", err)
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("cannot restart service: %w", err)
	}
	return nil
}

// Round lets the service do what is due now, and returns the decisions that let the
// patch come further or halted it, with those that were made in between.
func (s *Service) Round(ctx context.Context) ([]Decision, error) {
	if err := s.touch(ctx); err != nil {
		return nil, err
	}
	if err := s.rule.Round(ctx); err != nil {
		return nil, fmt.Errorf("cannot run the rule: %w", err)
	}
	if s.now().Sub(s.kept) >= time.Minute {
		s.kept = s.now()
		if err := s.cat.Refresh(ctx); err != nil {
			return nil, fmt.Errorf("cannot keep roles fresh: %w", err)
		}
	}
	if !s.spread.Swap(false) {
		return nil, nil
	}
	return s.decisions(ctx)
}

// decisions reads what was decided from the database, and how it deals machines.
func (s *Service) decisions(ctx context.Context) (made []Decision, err error) {
	err = s.db.View(ctx, func(tx store.Tx) error {
		all, err := tx.AllVerdicts(ctx)
		for _, v := range all {
			if v.Seq > s.seq {
				made = append(made, v.Decision)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read decisions: %w", err)
	}
	for _, d := range made {
		s.seq = max(s.seq, d.Seq)
		s.deal(d)
	}
	return made, nil
}

// deal notes what a decision does to the machines of its kernels.
func (s *Service) deal(d Decision) {
	a := Assignment{Salt: s.salt}
	switch d.Verdict.Action {
	case Hold:
		return
	case Advance:
		a.Stage, a.Share, a.Sham = d.Evidence.Stage+1, d.Verdict.Share, d.Verdict.Sham
	case Promote, Complete:
		a.Share = patch.Everyone
	case Halt:
		s.halted = cmp.Or(s.halted, d.Verdict.Reason)
	}
	for _, cell := range d.Cells {
		s.dealt[lane{cell, d.Tier}] = a
		if d.Verdict.Action == Halt {
			for _, t := range controller.Tiers() {
				s.dealt[lane{cell, t.Name}] = a
			}
		}
	}
}

// Assignment returns how the machines of a kernel and tier are dealt now.
func (s *Service) Assignment(_ context.Context, k patch.Kernel, tier string) (Assignment, error) {
	if a, ok := s.dealt[lane{k.Cell(), tier}]; ok {
		return a, nil
	}
	return Assignment{Salt: s.salt}, nil
}

// CheckIn lets machines check in, all at once, and makes a round of the rule when all
// that wait for its word have been heard. The answers are in their order.
func (s *Service) CheckIn(ctx context.Context, from []Machine, say []service.CheckIn) ([]service.CheckInAnswer, error) {
	answers := make([]service.CheckInAnswer, len(from))
	for begin := 0; begin < len(from); begin += maxCrowd {
		end := min(begin+maxCrowd, len(from))
		if err := s.checkIn(ctx, from[begin:end], say[begin:end], answers[begin:end]); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (s *Service) checkIn(ctx context.Context, from []Machine, say []service.CheckIn, answers []service.CheckInAnswer) error {
	errs := make([]error, len(from))
	s.crowd.gather(len(from))
	for i := range from {
		go func() {
			defer s.crowd.served()
			answers[i], errs[i] = s.post(ctx, from[i], say[i])
		}()
	}
	for !s.crowd.settled() {
		if err := s.rule.Round(ctx); err != nil {
			errs[0] = errors.Join(errs[0], fmt.Errorf("cannot run the rule: %w", err))
		}
		s.crowd.answered()
	}
	return errors.Join(errs...)
}
