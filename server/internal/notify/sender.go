package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/sync/errgroup"

	"livepatch/internal/version"
	"livepatch/server/internal/store"
)

const (
	// poll is how often the outbox is looked at.
	poll = time.Second
	// timeout bounds an attempt. As long as it lasts, and some time more, no other
	// server tries the same notice.
	timeout = 15 * time.Second
	claim   = 2 * timeout
	// The waits after failed attempts grow from firstRetry to maxRetry. A notice that
	// is giveUp old is not tried again: whoever has not heard by then looks at the log.
	firstRetry = 5 * time.Second
	maxRetry   = time.Hour
	giveUp     = 24 * time.Hour
	// keep is how long notices stay in the database.
	keep = 30 * 24 * time.Hour
	// Of the notices that are due, look at a time, the most urgent are sent, batch of them
	// at once: so one that has to be heard waits for one attempt at most, however many
	// others a receiver that hangs has let pile up.
	look  = 256
	batch = 8
	// maxAnswer bounds what is read of an answer.
	maxAnswer = 16 << 10
)

// outbox is implemented by package sqlite.
type outbox interface {
	DueNotices(ctx context.Context, now time.Time, limit int64) ([]store.Notice, error)
	ClaimNotice(ctx context.Context, n store.Notice, until time.Time) error
	KeepNotice(ctx context.Context, n store.Notice) error
	ForgetNotices(ctx context.Context, before time.Time) (int64, error)
}

// Config says where notices go.
type Config struct {
	URL     string   // "" if they go nowhere: they are only kept, and forgotten in time
	Secrets [][]byte // that sign them
	Now     func() time.Time
	// Transport is how they are sent; nil for HTTPS as the system trusts it.
	Transport http.RoundTripper
}

// A Sender sends what is in the outbox. Several on one database share the work.
type Sender struct {
	log    *slog.Logger
	outbox outbox
	url    string
	keys   []*webhooks.Webhook
	now    func() time.Time
	client *http.Client

	sent, failures, givenUp atomic.Int64
}

// New returns a sender that sends nothing before [Sender.Run]. The error matches
// [ErrURL] if notices must not go to that address.
func New(log *slog.Logger, o outbox, c Config) (*Sender, error) {
	if err := checkURL(c.URL); err != nil {
		return nil, err
	}
	if c.Transport == nil {
		c.Transport = &http.Transport{
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: timeout, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: maxAnswer,
		}
	}
	s := &Sender{log: log, outbox: o, url: c.URL, now: c.Now, client: &http.Client{
		Transport: c.Transport, Timeout: timeout,
		// A redirect would carry what is signed to whom the operator did not name.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, secret := range c.Secrets {
		key, err := webhooks.NewWebhookRaw(secret)
		if err != nil {
			return nil, fmt.Errorf("cannot use secret of webhook: %w", err)
		}
		s.keys = append(s.keys, key)
	}
	if c.URL != "" && len(s.keys) == 0 {
		return nil, fmt.Errorf("cannot send notices: %w: there is none", ErrSecret)
	}
	return s, nil
}

// checkURL refuses an address that others could listen on the way to, or that names a
// user, whose password would be in logs. HTTP without TLS stays on this machine.
func checkURL(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("cannot send notices: %w", ErrURL) // err would quote it
	case u.Host == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("cannot send notices: %w: want https://HOST/PATH", ErrURL)
	case u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("cannot send notices: %w: want https, or http to this machine", ErrURL)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Sent returns how many notices the other side took, Failures how many attempts failed,
// and GivenUp how many notices were not tried again, all since the start.
func (s *Sender) Sent() int64 { return s.sent.Load() }

// Failures returns how many attempts failed since the start.
func (s *Sender) Failures() int64 { return s.failures.Load() }

// GivenUp returns how many notices were given up since the start.
func (s *Sender) GivenUp() int64 { return s.givenUp.Load() }

// Run sends what is due until ctx is done.
func (s *Sender) Run(ctx context.Context) {
	var forgotten time.Time
	for {
		if now := s.now(); now.Sub(forgotten) >= 24*time.Hour || now.Before(forgotten) {
			forgotten = now
			if _, err := s.outbox.ForgetNotices(ctx, now.Add(-keep)); err != nil {
				s.log.ErrorContext(ctx, "Cannot forget old notices", "err", err)
			}
		}
		if err := s.Round(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "Cannot look for notices", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
	}
}

// Round sends what is due now and most urgent, all of it at once, and keeps what came of it.
func (s *Sender) Round(ctx context.Context) error {
	if s.url == "" {
		return nil
	}
	due, err := s.outbox.DueNotices(ctx, s.now(), look)
	if err != nil {
		return err
	}
	if due, err = s.leaveOut(ctx, due); err != nil {
		return err
	}
	slices.SortStableFunc(due, func(a, b store.Notice) int { return urgency(a) - urgency(b) })
	var sending errgroup.Group
	for _, n := range due[:min(batch, len(due))] {
		sending.Go(func() error { return s.one(ctx, n) })
	}
	return sending.Wait()
}

// urgency is less for what is to be sent before others.
func urgency(n store.Notice) int {
	switch Kind(n.Kind) {
	case Halted, HeldBack:
		return 0
	case Waits, Proposed, Withdrawing, Revoked, Test:
		return 1
	default:
		return 2
	}
}

// leaveOut ends what is too old to be news and was never tried, and returns the rest: such
// notices are of before there was a webhook.
func (s *Sender) leaveOut(ctx context.Context, due []store.Notice) (rest []store.Notice, err error) {
	now := s.now()
	for _, n := range due {
		if n.Attempts > 0 || now.Sub(n.At) < giveUp {
			rest = append(rest, n)
			continue
		}
		n.Ended, n.Failure = now, "it was too old when a server began to send"
		if err := s.outbox.KeepNotice(ctx, n); err != nil {
			return nil, err
		}
		s.log.WarnContext(ctx, "Left out an old notice", "notice", n.ID, "kind", n.Kind, "at", n.At)
	}
	return rest, nil
}

// one sends a notice, unless another server does.
func (s *Sender) one(ctx context.Context, n store.Notice) error {
	err := s.outbox.ClaimNotice(ctx, n, s.now().Add(claim))
	switch {
	case errors.Is(err, store.ErrNotFound): // another server was first
		return nil
	case err != nil:
		return err
	}
	return s.try(ctx, n)
}

// try makes one attempt and keeps what came of it. If that cannot be kept, or this
// process ends in between, the notice is sent again when the claim is over.
func (s *Sender) try(ctx context.Context, n store.Notice) error {
	n.Attempts++
	ended, err := s.send(ctx, n)
	if err != nil && ctx.Err() != nil { // this process is ending: no fault of the other side
		return ctx.Err()
	}
	ctx = context.WithoutCancel(ctx) // what the other side has taken is to be kept
	now := s.now()
	n.Sent, n.Failure = err == nil, ""
	if err != nil {
		n.Failure = err.Error()
		s.failures.Add(1)
	}
	switch {
	case err == nil:
		n.Ended = now
		s.sent.Add(1)
		s.log.InfoContext(ctx, "Sent notice", "notice", n.ID, "kind", n.Kind, "attempts", n.Attempts)
	case ended || now.Sub(n.At) >= giveUp:
		n.Ended = now
		s.givenUp.Add(1)
		s.log.ErrorContext(ctx, "Gave up a notice", "notice", n.ID, "kind", n.Kind, "attempts", n.Attempts, "err", err, "body", string(n.Body))
	default:
		n.Next = now.Add(retry(n.Attempts))
		s.log.WarnContext(ctx, "Cannot send notice", "notice", n.ID, "kind", n.Kind, "attempts", n.Attempts, "retry_in", n.Next.Sub(now), "err", err)
	}
	return s.outbox.KeepNotice(ctx, n)
}

// retry returns the wait after a number of failed attempts. It is random, so that the
// notices of a long outage do not come all at once.
func retry(attempts int64) time.Duration {
	wait := maxRetry
	if attempts < 11 { // 5 s · 2¹⁰ is more than an hour
		wait = min(firstRetry<<(attempts-1), maxRetry)
	}
	return wait/2 + rand.N(wait)
}

// send makes one attempt. ended tells, of a failure, that there is no use in another.
func (s *Sender) send(ctx context.Context, n store.Notice) (ended bool, err error) {
	req, err := s.request(ctx, n)
	if err != nil {
		return true, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		var outer *url.Error // which quotes the address: that may hold a secret
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return false, fmt.Errorf("cannot send notice: %w", err)
	}
	defer resp.Body.Close()
	// Read to the end, within reason, so that the connection can be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // the status says it all
	if resp.StatusCode/100 != 2 {
		// 410 is how Standard Webhooks says that nobody wants notices there any more.
		return resp.StatusCode == http.StatusGone, fmt.Errorf("cannot send notice: answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	return false, nil
}

// request signs a notice as of now, which Standard Webhooks wants of each attempt: a
// receiver refuses what was signed more than some minutes ago.
func (s *Sender) request(ctx context.Context, n store.Notice) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(n.Body))
	if err != nil {
		return nil, err
	}
	now := s.now()
	signatures := make([]string, len(s.keys))
	for i, key := range s.keys {
		if signatures[i], err = key.Sign(n.ID, now, n.Body); err != nil {
			return nil, fmt.Errorf("cannot sign notice: %w", err)
		}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "livepatch-server/"+version.String())
	req.Header.Set(webhooks.HeaderWebhookID, n.ID)
	req.Header.Set(webhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(webhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return req, nil
}
