package notify_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"livepatch/server/internal/notify"
	"livepatch/server/internal/store"
)

// transport is a function that carries requests.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A fakeOutbox holds one notice.
type fakeOutbox struct {
	n         store.Notice
	forgotten []time.Time
}

func (o *fakeOutbox) DueNotices(_ context.Context, now time.Time, _ int64) ([]store.Notice, error) {
	if !o.n.Ended.IsZero() || o.n.ID == "" || o.n.Next.After(now) {
		return nil, nil
	}
	return []store.Notice{o.n}, nil
}

func (o *fakeOutbox) ClaimNotice(_ context.Context, _ store.Notice, until time.Time) error {
	o.n.Next = until
	return nil
}

func (o *fakeOutbox) KeepNotice(_ context.Context, n store.Notice) error { o.n = n; return nil }

func (o *fakeOutbox) ForgetNotices(_ context.Context, before time.Time) (int64, error) {
	o.forgotten = append(o.forgotten, before)
	return 0, nil
}

// TestAnswerThatDoesNotCome: an attempt ends after its time, and the next one comes.
func TestAnswerThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &fakeOutbox{n: store.Notice{ID: "msg_1", At: time.Now(), Next: time.Now()}}
		began := time.Now()
		var attempts []time.Duration
		s, err := notify.New(slog.New(slog.DiscardHandler), o, notify.Config{
			URL: "https://hook.example/", Secrets: secrets, Now: time.Now,
			Transport: transport(func(r *http.Request) (*http.Response, error) {
				attempts = append(attempts, time.Since(began))
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), 50*time.Hour)
		defer stop()
		s.Run(ctx)
		if len(attempts) < 20 || o.n.Sent || o.n.Ended.IsZero() || attempts[1] < 15*time.Second {
			t.Errorf("%d attempts at %v, notice %+v", len(attempts), attempts, o.n)
		}
		if last := attempts[len(attempts)-1]; last < 23*time.Hour || last > 26*time.Hour {
			t.Errorf("last attempt after %v, want about a day", last)
		}
		if len(o.forgotten) != 3 {
			t.Errorf("old notices are forgotten at %v, want at the start and daily", o.forgotten)
		}
	})
}

// A queue is an outbox of several notices.
type queue struct {
	mu      sync.Mutex
	notices []store.Notice
}

func (q *queue) DueNotices(_ context.Context, now time.Time, limit int64) (due []store.Notice, _ error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range q.notices {
		if n.Ended.IsZero() && !n.Next.After(now) && int64(len(due)) < limit {
			due = append(due, n)
		}
	}
	return due, nil
}

func (q *queue) ClaimNotice(ctx context.Context, n store.Notice, until time.Time) error {
	n.Next = until
	return q.KeepNotice(ctx, n)
}

func (q *queue) KeepNotice(_ context.Context, n store.Notice) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.IndexFunc(q.notices, func(o store.Notice) bool { return o.ID == n.ID })
	q.notices[i] = n
	return nil
}

func (q *queue) ForgetNotices(context.Context, time.Time) (int64, error) { return 0, nil }

// add adds a notice of now.
func (q *queue) add(id string, kind notify.Kind) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.notices = append(q.notices, store.Notice{ID: id, Kind: string(kind), At: time.Now(), Next: time.Now()})
}

// TestAHaltWaitsForNobody: while a receiver hangs on two hundred notices, a halt is sent when
// the attempts end that are under way.
func TestAHaltWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q queue
		for i := range 200 {
			q.add(fmt.Sprint("msg_", i), notify.Entered)
		}
		tried := make(chan time.Time, 1)
		s, err := notify.New(slog.New(slog.DiscardHandler), &q, notify.Config{
			URL: "https://hook.example/", Secrets: secrets, Now: time.Now,
			Transport: transport(func(r *http.Request) (*http.Response, error) {
				if r.Header.Get("webhook-id") == "halt" {
					tried <- time.Now()
					return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody, Request: r}, nil
				}
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		time.Sleep(time.Minute + time.Second)
		halted := time.Now()
		q.add("halt", notify.Halted)
		if waited := (<-tried).Sub(halted); waited > 16*time.Second { // 15 s an attempt, and 1 s between looks
			t.Errorf("a halt waits for %v", waited)
		}
		stop()
		running.Wait()
	})
}

// TestANewWebhookHearsOfTheLastDay: what happened before that is in the log of decisions, and
// is news to nobody.
func TestANewWebhookHearsOfTheLastDay(t *testing.T) {
	b, r := newBed(t), newReceiver(t)
	var old []string
	for range 20 {
		old = append(old, b.add())
	}
	b.now = b.now.Add(2 * time.Hour)
	late := b.add()
	b.now = b.now.Add(23 * time.Hour)
	s := b.sender(b.db, r.URL, nil)
	b.round(s)
	if got := r.ids(); !slices.Equal(got, []string{late}) {
		t.Errorf("told of %q, want %q", got, late)
	}
	for _, id := range old {
		if n := b.notice(id); n.Ended.IsZero() || n.Sent || n.Attempts != 0 {
			t.Errorf("an old notice is %+v", n)
		}
	}
	if s.GivenUp() != 0 { // there is an alert on it, and nobody has missed anything
		t.Errorf("%d notices are given up", s.GivenUp())
	}
}

// TestEndInTheMidst: a server that ends while it sends leaves the notice to the next
// one, and does not call it a failure.
func TestEndInTheMidst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &fakeOutbox{n: store.Notice{ID: "msg_1", At: time.Now(), Next: time.Now()}}
		s, err := notify.New(slog.New(slog.DiscardHandler), o, notify.Config{
			URL: "https://hook.example/", Secrets: secrets, Now: time.Now,
			Transport: transport(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		s.Run(ctx)
		if s.Failures() != 0 || o.n.Attempts != 0 || !o.n.Ended.IsZero() || !o.n.Next.After(time.Now()) {
			t.Errorf("%d failures, notice %+v", s.Failures(), o.n)
		}
	})
}

// TestWithoutWebhook: notices are only forgotten.
func TestWithoutWebhook(t *testing.T) {
	b := newBed(t)
	id := b.add()
	s, err := notify.New(slog.New(slog.DiscardHandler), b.db, notify.Config{Now: func() time.Time { return b.now }})
	if err != nil {
		t.Fatal(err)
	}
	b.round(s)
	if n := b.notice(id); n.Attempts != 0 {
		t.Errorf("notice is %+v", n)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	b.now = b.now.Add(31 * 24 * time.Hour)
	s.Run(ctx)
	// A context that is over is over for the database too; the next start forgets.
	if n, err := b.db.ForgetNotices(t.Context(), b.now.Add(-30*24*time.Hour)); err != nil || n != 1 {
		t.Errorf("%d forgotten, %v", n, err)
	}
}

func TestAddresses(t *testing.T) {
	tests := map[string]bool{
		"https://hook.example/path?x=1": true,
		"https://hook.example:8443":     true,
		"http://127.0.0.1:8080/":        true,
		"http://[::1]/":                 true,
		"http://localhost/hook":         true,
		"":                              true, // nobody
		"http://hook.example/":          false,
		"http://localhost.example/":     false,
		"http://127.0.0.1.example/":     false,
		"https://user:pass@hook/":       false,
		"https://hook/#part":            false,
		"https:///path":                 false,
		"ftp://hook/":                   false,
		"hook.example":                  false,
		"https://a b/":                  false,
	}
	for url, ok := range tests {
		_, err := notify.New(slog.New(slog.DiscardHandler), nil, notify.Config{URL: url, Secrets: secrets})
		if (err == nil) != ok || err != nil && (!errors.Is(err, notify.ErrURL) || strings.Contains(err.Error(), "pass")) {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := notify.New(nil, nil, notify.Config{URL: "https://hook/"}); !errors.Is(err, notify.ErrSecret) {
		t.Errorf("without a secret: %v", err)
	}
}
