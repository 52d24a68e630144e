package notify_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
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
