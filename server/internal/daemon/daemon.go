// Package daemon runs the service: it opens what the service consists of,
// listens, and ends in order.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"livepatch/server/internal/api"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/certs"
	"livepatch/server/internal/controller"
	"livepatch/server/internal/enrolment"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/ops"
	"livepatch/server/internal/rollout"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store/sqlite"
)

// ErrNoCertificate means that there is no certificate to serve with.
var ErrNoCertificate = errors.New("there is no TLS certificate")

// Limits in time and size of a connection. A body's limit is its route's, and a
// transfer that makes progress may last longer; see package api.
const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 16 << 10
	// grace is how long requests that run may take when the service ends.
	grace = 20 * time.Second
)

// Config says how to serve.
type Config struct {
	Log       *slog.Logger
	Dir       layout.Dir
	Listen    string           // address of the API
	OpsListen string           // address of health and metrics; "" for none
	Cert, Key string           // files; "" for those of Dir
	Reload    <-chan os.Signal // asks for the certificate to be read again; may be nil

	Interval       time.Duration // between two check-ins of a machine
	Soak           time.Duration // that a patch stays on trial
	MaxConnections int
	PrivateFiles   bool
	Params         rollout.Params // of the rule that widens and halts
	Webhook        string         // address of who is told of decisions; "" for nobody
	WebhookSecrets [][]byte       // that sign what it is told
	NewKeys        bool           // the online keys were replaced; wait for a root that names them
}

// A service is what Serve opens.
type service struct {
	Config
	db      *sqlite.DB
	catalog *catalog.Catalog
	rule    *controller.Controller
	sender  *notify.Sender
	metrics *ops.Metrics
	pair    *certs.Pair
}

// Serve serves until ctx is done. Requests that run then have some seconds to
// finish.
func Serve(ctx context.Context, c Config) (err error) {
	s, err := open(ctx, c)
	if err != nil {
		return fmt.Errorf("cannot serve: %w", err)
	}
	defer func() { err = errors.Join(err, s.db.Close()) }()

	// Background work ends after the last request, which may depend on it.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()

	// What is served first must not have expired while nobody served.
	if err := s.catalog.Refresh(ctx); err != nil {
		s.Log.ErrorContext(ctx, "Cannot sign", "err", err)
	}
	// Nor may what was reported while nobody served wait for the first request.
	if err := s.rule.Round(ctx); err != nil {
		s.Log.ErrorContext(ctx, "Cannot run the rule", "err", err)
	}
	work.Go(func() { s.catalog.Run(background) })
	work.Go(func() { s.rule.Run(background) })
	work.Go(func() { s.sender.Run(background) })
	work.Go(func() { s.catalog.Clean(background) })
	work.Go(func() { s.pair.Watch(background, s.Reload) })
	if err := s.listen(ctx); err != nil {
		return fmt.Errorf("cannot serve: %w", err)
	}
	return nil
}

func open(ctx context.Context, c Config) (_ *service, err error) {
	s := &service{Config: c, metrics: ops.NewMetrics()}
	if s.pair, err = loadPair(c); err != nil {
		return nil, err
	}
	keys, err := c.Dir.Keys()
	if err != nil {
		return nil, err
	}
	blobs, err := c.Dir.Blobs()
	if err != nil {
		return nil, err
	}
	if s.db, err = c.Dir.Database(ctx); err != nil {
		return nil, err
	}
	openCatalog := catalog.Open
	if c.NewKeys {
		openCatalog = catalog.OpenForNewKeys
	}
	s.catalog, err = openCatalog(ctx, c.Log, s.db, blobs, signer.New(keys), c.Soak)
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	s.rule, err = controller.New(controller.Config{
		Log: c.Log, DB: s.db, Params: c.Params, Tiers: controller.Tiers(), SignFiles: s.catalog.Refresh, Now: time.Now,
		Metrics: s.metrics,
	})
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	s.catalog.Published = s.rule.Poke
	s.sender, err = notify.New(c.Log, s.db, notify.Config{URL: c.Webhook, Secrets: c.WebhookSecrets, Now: time.Now})
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	s.gauges()
	return s, nil
}

func loadPair(c Config) (*certs.Pair, error) {
	if c.Cert == "" && c.Key == "" {
		c.Cert, c.Key = c.Dir.Cert(), c.Dir.Key()
	}
	pair, err := certs.Load(c.Log, c.Cert, c.Key)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNoCertificate, err)
	}
	return pair, err
}

func (s *service) gauges() {
	m := s.metrics
	m.Expiring(s.catalog.Expiring)
	m.Leads(s.rule.Leads)
	m.Rollouts(s.rule.Stages, time.Now)
	m.Gauge("livepatch_generation", "Generation of what is published.", func() float64 {
		return float64(s.catalog.Generation())
	})
	m.Counter("livepatch_signing_failures_total", "Attempts to sign that failed.", func() float64 {
		return float64(s.catalog.Failures())
	})
	m.Counter("livepatch_webhook_sent_total", "Notices that the webhook took.", func() float64 {
		return float64(s.sender.Sent())
	})
	m.Counter("livepatch_webhook_failures_total", "Attempts to send a notice that failed.", func() float64 {
		return float64(s.sender.Failures())
	})
	m.Counter("livepatch_webhook_given_up_total", "Notices that were not tried again.", func() float64 {
		return float64(s.sender.GivenUp())
	})
	m.Gauge("livepatch_certificate_expiry_seconds", "Seconds until the TLS certificate expires.", func() float64 {
		return time.Until(s.pair.Expires()).Seconds()
	})
}

// ready returns nil if machines can be served: the database answers and no
// online role has expired.
func (s *service) ready(ctx context.Context) error {
	return errors.Join(s.db.Ping(ctx), s.catalog.Check(time.Now()))
}

// listen serves the API and the ops handler until ctx is done or one of them
// fails.
func (s *service) listen(ctx context.Context) error {
	quiet := slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug) // of what strangers send
	main := &http.Server{
		Handler: api.New(api.Config{
			Log: s.Log, Catalog: s.catalog, Desk: enrolment.New(s.db), Metrics: s.metrics,
			Rule: s.rule, Now: time.Now,
			Interval: s.Interval, PrivateFiles: s.PrivateFiles,
		}).Handler(),
		TLSConfig:         s.pair.Config(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          quiet,
	}
	aside := &http.Server{
		Handler:           ops.Handler(s.metrics, s.ready, s.catalog.Expiring),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		ErrorLog: quiet,
	}
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	failed := make(chan error, 2)
	opsAddr := ""
	if s.OpsListen != "" {
		opsLis, err := lc.Listen(ctx, "tcp", s.OpsListen)
		if err != nil {
			return errors.Join(fmt.Errorf("cannot listen: %w", err), lis.Close())
		}
		opsAddr = opsLis.Addr().String()
		go func() { failed <- aside.Serve(opsLis) }()
	}
	go func() { failed <- main.ServeTLS(netutil.LimitListener(lis, s.MaxConnections), "", "") }()
	s.Log.InfoContext(ctx, "Listening", "addr", lis.Addr().String(), "ops_addr", opsAddr)

	select {
	case err = <-failed:
	case <-ctx.Done():
		s.Log.InfoContext(ctx, "Stopping", "grace", grace)
	}
	return errors.Join(err, shutdown(ctx, main), shutdown(ctx, aside))
}

// shutdown lets requests finish, and cuts them off when grace is over.
func shutdown(ctx context.Context, srv *http.Server) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("cannot finish requests: %w", err), srv.Close())
	}
	return nil
}
