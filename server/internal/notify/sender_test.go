package notify_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/server/internal/layout"
	"livepatch/server/internal/notify"
	"livepatch/server/internal/store"
	"livepatch/server/internal/store/sqlite"
)

var start = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

var secrets = [][]byte{[]byte("a secret of at least 24 bytes"), []byte("another one, which is to go away")}

// A bed is a database with an outbox, and a clock.
type bed struct {
	*testing.T
	db  *sqlite.DB
	now time.Time
}

func newBed(t *testing.T) *bed {
	t.Helper()
	dir := layout.Dir(t.TempDir())
	if _, err := dir.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	db, err := dir.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bed{T: t, db: db, now: start}
}

// add adds a notice and returns its ID.
func (b *bed) add() (id string) {
	b.Helper()
	err := b.db.Update(b.Context(), func(tx store.Tx) (err error) {
		id, err = notify.AddTest(b.Context(), tx, "alice (uid 1000)", b.now)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return id
}

func (b *bed) notice(id string) (n store.Notice) {
	b.Helper()
	err := b.db.View(b.Context(), func(tx store.Tx) (err error) {
		n, err = tx.Notice(b.Context(), id)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// An outbox is what a sender sees of the database.
type outbox interface {
	DueNotices(ctx context.Context, now time.Time, limit int64) ([]store.Notice, error)
	ClaimNotice(ctx context.Context, n store.Notice, until time.Time) error
	KeepNotice(ctx context.Context, n store.Notice) error
	ForgetNotices(ctx context.Context, before time.Time) (int64, error)
}

func (b *bed) sender(o outbox, url string, transport http.RoundTripper) *notify.Sender {
	b.Helper()
	s, err := notify.New(slog.New(slog.DiscardHandler), o, notify.Config{
		URL: url, Secrets: secrets, Now: func() time.Time { return b.now }, Transport: transport,
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func (b *bed) round(s *notify.Sender) {
	b.Helper()
	if err := s.Round(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// A receiver answers notices as a list says, and 204 when the list is over.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	answers []int
	got     []*http.Request
	bodies  [][]byte
}

func newReceiver(t *testing.T, answers ...int) *receiver {
	t.Helper()
	r := &receiver{answers: answers}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got, r.bodies = append(r.got, req), append(r.bodies, body)
	status := http.StatusNoContent
	if len(r.answers) > 0 {
		status, r.answers = r.answers[0], r.answers[1:]
	}
	w.WriteHeader(status)
}

// ids returns the IDs that came, in their order.
func (r *receiver) ids() (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.got {
		ids = append(ids, req.Header.Get("webhook-id"))
	}
	return ids
}

// TestSignature makes the signatures anew, by the words of the specification.
func TestSignature(t *testing.T) {
	b, r := newBed(t), newReceiver(t)
	id := b.add()
	b.round(b.sender(b.db, r.URL, nil))
	if len(r.got) != 1 {
		t.Fatalf("%d notices came", len(r.got))
	}
	h := r.got[0].Header
	if h.Get("webhook-id") != id || h.Get("webhook-timestamp") != fmt.Sprint(start.Unix()) || h.Get("content-type") != "application/json" {
		t.Errorf("headers are %v", h)
	}
	var want []string
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + fmt.Sprint(start.Unix()) + "."))
		mac.Write(r.bodies[0])
		want = append(want, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if got := h.Get("webhook-signature"); got != strings.Join(want, " ") {
		t.Errorf("signature is %q, want %q", got, want)
	}
	if n := b.notice(id); !n.Sent || n.Attempts != 1 || n.Failure != "" {
		t.Errorf("notice is %+v", n)
	}
	b.now = b.now.Add(time.Hour)
	if b.round(b.sender(b.db, r.URL, nil)); len(r.got) != 1 {
		t.Error("what was taken is sent again")
	}
}

// TestRetries: a notice is tried again, later and later, under its ID and signed anew.
func TestRetries(t *testing.T) {
	b, r := newBed(t), newReceiver(t, 500, 503, 404, 302, 200)
	id, s := b.add(), b.sender(b.db, r.URL, nil)
	var waits []time.Duration
	for range 4 {
		b.round(s)
		n := b.notice(id)
		waits = append(waits, n.Next.Sub(b.now))
		if b.round(s); b.notice(id).Attempts != n.Attempts {
			t.Error("tried again before it was due")
		}
		b.now = n.Next
	}
	b.round(s)
	for i, want := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second} {
		if waits[i] < want/2-time.Second || waits[i] > 3*want/2 {
			t.Errorf("wait %d is %v, want about %v", i, waits[i], want)
		}
	}
	if ids := r.ids(); len(ids) != 5 || len(slices.Compact(ids)) != 1 || ids[0] != id {
		t.Errorf("came as %q, want five times %q", ids, id)
	}
	if first, last := r.got[0].Header.Get("webhook-timestamp"), r.got[4].Header.Get("webhook-timestamp"); first == last {
		t.Error("the last attempt is not signed anew")
	}
	if n := b.notice(id); !n.Sent || s.Sent() != 1 || s.Failures() != 4 || s.GivenUp() != 0 {
		t.Errorf("notice is %+v; %d sent, %d failures", n, s.Sent(), s.Failures())
	}
}

// TestReceiverAwayForLong: what happened meanwhile arrives when it is back within a
// day, and is given up when it is not.
func TestReceiverAwayForLong(t *testing.T) {
	tests := map[string]struct {
		away time.Duration
		sent bool
	}{
		"for ten hours": {10 * time.Hour, true},
		"for two days":  {48 * time.Hour, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b, r := newBed(t), newReceiver(t)
			gone := httptest.NewServer(nil)
			gone.Close() // so that connections are refused
			id := b.add()
			s := b.sender(b.db, gone.URL, nil)
			for b.now.Sub(start) < tc.away {
				b.round(s)
				b.now = b.now.Add(time.Minute)
			}
			b.now = b.now.Add(90 * time.Minute) // no wait is longer
			back := b.sender(b.db, r.URL, nil)
			b.round(back)
			n := b.notice(id)
			if n.Sent != tc.sent || len(r.got) > 0 != tc.sent || n.Ended.IsZero() {
				t.Errorf("notice is %+v, %d came", n, len(r.got))
			}
			if n.Attempts < 10 || n.Attempts > 60 {
				t.Errorf("%d attempts in %v", n.Attempts, tc.away)
			}
			if given := s.GivenUp() == 1; given == tc.sent {
				t.Errorf("given up %d", s.GivenUp())
			}
		})
	}
}

// A lostOutbox loses what came of an attempt, as a process does that is killed
// between sending and keeping that.
type lostOutbox struct{ *sqlite.DB }

var errKilled = errors.New("killed")

func (lostOutbox) KeepNotice(context.Context, store.Notice) error { return errKilled }

// TestKilledBetweenSendingAndMarking: the notice comes again, under its ID.
func TestKilledBetweenSendingAndMarking(t *testing.T) {
	b, r := newBed(t), newReceiver(t)
	id := b.add()
	if err := b.sender(lostOutbox{b.db}, r.URL, nil).Round(t.Context()); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	next := b.sender(b.db, r.URL, nil)
	b.round(next)
	if len(r.got) != 1 {
		t.Fatal("another server sends what this one may still be sending")
	}
	b.now = b.now.Add(time.Minute)
	b.round(next)
	if got := r.ids(); !slices.Equal(got, []string{id, id}) {
		t.Errorf("came as %q, want %q twice", got, id)
	}
	if string(r.bodies[0]) != string(r.bodies[1]) || !b.notice(id).Sent {
		t.Errorf("notice is %+v, bodies %q", b.notice(id), r.bodies)
	}
}

// TestSendersShareTheWork: two servers on one database send each notice once.
func TestSendersShareTheWork(t *testing.T) {
	b, r := newBed(t), newReceiver(t)
	var want []string
	for range 8 {
		want = append(want, b.add())
	}
	one, two := b.sender(b.db, r.URL, nil), b.sender(b.db, r.URL, nil)
	var wg sync.WaitGroup
	for _, s := range []*notify.Sender{one, two} {
		wg.Go(func() {
			if err := s.Round(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := r.ids()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("came as %q, want each of %q once", got, want)
	}
}

func TestWhatTheOtherSideMayNotDo(t *testing.T) {
	t.Run("it redirects to somebody else", func(t *testing.T) {
		b, other := newBed(t), newReceiver(t)
		r := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
		defer r.Close()
		id := b.add()
		b.round(b.sender(b.db, r.URL, nil))
		if n := b.notice(id); n.Sent || len(other.got) != 0 || !strings.Contains(n.Failure, "answered 307") {
			t.Errorf("notice is %+v, the other got %d", n, len(other.got))
		}
	})
	t.Run("it answers without end", func(t *testing.T) {
		b, left := newBed(t), make(chan struct{})
		r := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			defer close(left)
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}))
		defer r.Close()
		id := b.add()
		b.round(b.sender(b.db, r.URL, nil))
		select {
		case <-left:
		case <-time.After(time.Minute):
			t.Error("the answer is read without end")
		}
		if n := b.notice(id); !n.Sent {
			t.Errorf("notice is %+v", n)
		}
	})
	t.Run("nobody vouches for its certificate", func(t *testing.T) {
		b, r := newBed(t), &receiver{}
		r.Server = httptest.NewUnstartedServer(r)
		r.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		r.StartTLS()
		defer r.Close()
		id := b.add()
		b.round(b.sender(b.db, r.URL, nil))
		if n := b.notice(id); n.Sent || len(r.got) != 0 || !strings.Contains(n.Failure, "certificate") {
			t.Errorf("notice is %+v, %d came", n, len(r.got))
		}
		b.now = b.now.Add(time.Minute)
		b.round(b.sender(b.db, r.URL, r.Client().Transport))
		if n := b.notice(id); !n.Sent {
			t.Errorf("with a certificate that is vouched for, notice is %+v", n)
		}
	})
	t.Run("it wants no more", func(t *testing.T) {
		b, r := newBed(t), newReceiver(t, http.StatusGone)
		id := b.add()
		b.round(b.sender(b.db, r.URL, nil))
		if n := b.notice(id); n.Sent || n.Ended.IsZero() {
			t.Errorf("notice is %+v", n)
		}
	})
	t.Run("the address is told", func(t *testing.T) {
		b := newBed(t)
		gone := httptest.NewServer(nil)
		gone.Close()
		id := b.add()
		b.round(b.sender(b.db, gone.URL+"/hook?token=secret", nil))
		if n := b.notice(id); strings.Contains(n.Failure, "secret") || n.Failure == "" {
			t.Errorf("failure is %q", n.Failure)
		}
	})
}
