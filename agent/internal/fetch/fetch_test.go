package fetch

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http/httpproxy"

	"livepatch/agent/internal/servicetest"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

func newClient(t *testing.T, s *servicetest.Service) *Client {
	t.Helper()
	c, err := New(Options{Base: s.URL, CACerts: s.CA, DialTimeout: 5 * time.Second, UserAgent: "livepatchd/test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T) (*servicetest.Service, *Client) {
	t.Helper()
	s := servicetest.New(servicetest.NewRepo())
	t.Cleanup(s.Close)
	return s, newClient(t, s)
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"no address":            {},
		"plain http":            {Base: "http://livepatch.test"},
		"no host":               {Base: "https:///x"},
		"no URL":                {Base: "https://a b"},
		"another scheme":        {Base: "ftp://livepatch.test"},
		"certificates that are": {Base: "https://livepatch.test", CACerts: []byte("none")},
	} {
		if _, err := New(o); !errors.Is(err, patch.ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnrolCheckInForget(t *testing.T) {
	s, c := serve(t)
	e, err := c.Enrol(t.Context(), servicetest.AuthToken, service.EnrolRequest{MachineID: strings.Repeat("0", 32)})
	if err != nil || len(e.MachineToken) != 32 || e.Tier != "stable" {
		t.Fatalf("Enrol = %+v, %v", e, err)
	}
	a, err := c.CheckIn(t.Context(), e.MachineToken, service.CheckIn{Version: "v1", Patch: &service.Patch{Name: "x"}})
	if err != nil || a.IntervalSeconds != 3600 {
		t.Errorf("CheckIn = %+v, %v", a, err)
	}
	if got := s.CheckIns(); len(got) != 1 || got[0].Patch == nil || got[0].Patch.Name != "x" {
		t.Errorf("service got %+v", got)
	}
	if err := c.Forget(t.Context(), e.MachineToken); err != nil || s.Machines() != 0 {
		t.Errorf("Forget = %v, %d machines left", err, s.Machines())
	}
	if _, err := c.CheckIn(t.Context(), e.MachineToken, service.CheckIn{}); !errors.Is(err, ErrToken) {
		t.Errorf("afterwards: %v", err)
	}
	if skew, known := c.Skew(); !known || skew < -2*time.Second || skew > 2*time.Second {
		t.Errorf("skew = %v, %v", skew, known)
	}
}

func TestRequestsSayWhoAsks(t *testing.T) {
	s, c := serve(t)
	got := make(chan http.Header, 1)
	s.Override(func(_ http.ResponseWriter, r *http.Request) bool { got <- r.Header; return false })
	if _, err := c.Metadata(t.Context(), "timestamp.json", 1<<20, ""); err != nil {
		t.Fatal(err)
	}
	h := <-got
	if h.Get("User-Agent") != "livepatchd/test" || h.Get("Accept-Encoding") != "gzip" || h.Get("Authorization") != "" {
		t.Errorf("headers = %v", h)
	}
}

func TestMetadataIsNotSentTwice(t *testing.T) {
	s, c := serve(t)
	f, err := c.Metadata(t.Context(), "timestamp.json", 1<<20, "")
	if err != nil || f.NotModified || f.ETag == "" || !bytes.Equal(f.Data, s.Repo.Metadata("timestamp.json")) {
		t.Fatalf("first: %+v, %v", f, err)
	}
	again, err := c.Metadata(t.Context(), "timestamp.json", 1<<20, f.ETag)
	if err != nil || !again.NotModified || again.Data != nil || again.ETag != f.ETag {
		t.Errorf("second: %+v, %v", again, err)
	}
	if _, err := c.Metadata(t.Context(), "9.root.json", 1<<20, ""); !errors.Is(err, ErrAbsent) {
		t.Errorf("absent: %v", err)
	}
}

func TestMetadataHasALimit(t *testing.T) {
	s, c := serve(t)
	n := int64(len(s.Repo.Metadata("timestamp.json")))
	if _, err := c.Metadata(t.Context(), "timestamp.json", n, ""); err != nil {
		t.Errorf("exactly as long: %v", err)
	}
	if _, err := c.Metadata(t.Context(), "timestamp.json", n-1, ""); !errors.Is(err, patch.ErrTooLarge) {
		t.Errorf("one byte longer: %v", err)
	}
}

func TestNotModifiedWithoutAskingIsAnError(t *testing.T) {
	s, c := serve(t)
	s.Override(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusNotModified); return true })
	if _, err := c.Metadata(t.Context(), "timestamp.json", 1<<20, ""); !errors.Is(err, ErrAnswer) {
		t.Errorf("Metadata = %v", err)
	}
}

func TestTarget(t *testing.T) {
	s := servicetest.New(servicetest.NewRepo())
	t.Cleanup(s.Close)
	c := newClient(t, s)
	s.Override(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == service.PathTargets+"debian/abc.x.ko" {
			_, _ = io.WriteString(w, "content")
			return true
		}
		return false
	})
	body, err := c.Target(t.Context(), "debian/abc.x.ko")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err != nil || string(b) != "content" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Target(t.Context(), "debian/none.ko"); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "none.ko") {
		t.Errorf("absent: %v", err)
	}
}

// drip is the body of an answer that brings so many bytes every second.
type drip struct {
	ctx  context.Context //nolint:containedctx // that of the request it answers
	rate int
	left int
}

func (d *drip) Read(b []byte) (int, error) {
	select {
	case <-time.After(time.Second):
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
	n := min(d.rate, d.left, len(b))
	if d.left -= n; n == 0 && d.left == 0 {
		return 0, io.EOF
	}
	clear(b[:n])
	return n, nil
}

func (*drip) Close() error { return nil }

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTransfersThatAreTooSlow(t *testing.T) {
	tests := map[string]struct {
		rate     int
		want     error
		atMost   time.Duration
		atLeast  time.Duration
		gotWhole bool
	}{
		"nothing comes":     {0, ErrTooSlow, window + time.Second, window, false},
		"a byte a second":   {1, ErrTooSlow, window + time.Second, window, false},
		"half a kilobyte":   {512, ErrTooSlow, window + time.Second, window, false},
		"a slow modem":      {1 << 10, nil, 300 * time.Second, 90 * time.Second, true},
		"an ordinary speed": {1 << 20, nil, 30 * time.Second, time.Second, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const size = 100 << 10
				c, err := New(Options{Base: "https://livepatch.test"})
				if err != nil {
					t.Fatal(err)
				}
				c.http.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: &drip{r.Context(), tc.rate, size}}, nil
				})
				start := time.Now()
				f, err := c.Metadata(t.Context(), "x", 1<<20, "")
				took := time.Since(start)
				if !errors.Is(err, tc.want) || took > tc.atMost || took < tc.atLeast || (len(f.Data) == size) != tc.gotWhole {
					t.Errorf("%d bytes after %v, %v", len(f.Data), took, err)
				}
				if tc.want != nil && !Unreachable(err) {
					t.Error("counts as a lasting trouble")
				}
			})
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	tests := map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"120":                           2 * time.Minute,
		"99999999":                      24 * time.Hour,
		"-5":                            0,
		"soon":                          0,
		"99999999999999999999":          0,
		"Sun, 22 Nov 2026 03:10:00 GMT": 10 * time.Minute,
		"Sun, 22 Nov 2026 02:10:00 GMT": 0,
		"Sun, 22 Nov 2099 02:10:00 GMT": 24 * time.Hour,
	}
	for v, want := range tests {
		if got := retryAfter(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

func TestOverloadCarriesRetryAfter(t *testing.T) {
	s, c := serve(t)
	for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		s.Override(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "90")
			servicetest.Refuse(w, code, service.CodeTooMany, "later")
			return true
		})
		_, err := c.CheckIn(t.Context(), "t", service.CheckIn{})
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, ErrOverload) || e.RetryAfter != 90*time.Second || e.Status != code {
			t.Errorf("%d: %+v", code, err)
		}
	}
}

func TestClockIsNotTakenFromACache(t *testing.T) {
	s, c := serve(t)
	s.Override(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Age", "7200")
		w.Header().Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
		return false
	})
	_, _ = c.CheckIn(t.Context(), "t", service.CheckIn{})
	if skew, known := c.Skew(); known {
		t.Errorf("skew = %v", skew)
	}
}

func TestExplain(t *testing.T) {
	proxy := &url.URL{Scheme: "http", Host: "proxy.test:3128"}
	timeout := &net.OpError{Op: "dial", Err: timeoutError{}}
	tests := map[string]struct {
		err   error
		proxy *url.URL
		kind  error
		text  string
	}{
		"no such host":          {&net.DNSError{Err: "no such host", Name: "x.test"}, nil, ErrNoAddress, `cannot find the address of host "x.test": no such host`},
		"refused":               {syscall.ECONNREFUSED, nil, ErrConnRefused, "connection to h:1 refused"},
		"network down":          {syscall.ENETUNREACH, nil, ErrUnreachable, "no route to h:1"},
		"no route":              {syscall.EHOSTUNREACH, nil, ErrUnreachable, "no route to h:1"},
		"dial timeout":          {timeout, nil, ErrTimeout, "no answer from h:1 in time"},
		"deadline":              {context.DeadlineExceeded, nil, ErrTimeout, "no answer from h:1 in time"},
		"reset":                 {syscall.ECONNRESET, nil, ErrBroken, "connection to h:1 broke: connection reset by peer"},
		"line breaks":           {errors.New("a\nb\x1b[31m\tc"), nil, ErrBroken, "connection to h:1 broke: a b [31m c"},
		"proxy refused":         {&net.OpError{Op: "proxyconnect", Err: syscall.ECONNREFUSED}, proxy, ErrProxy, "cannot reach proxy proxy.test:3128: connection to proxy.test:3128 refused"},
		"proxy 407":             {proxyStatusError(407), proxy, ErrProxyAuth, "proxy proxy.test:3128 wants a user name and a password"},
		"proxy 502":             {proxyStatusError(502), proxy, ErrProxy, "proxy proxy.test:3128 refused with status 502 (Bad Gateway)"},
		"socks":                 {&net.OpError{Op: "socks connect", Err: errors.New("general failure")}, proxy, ErrProxy, "proxy proxy.test:3128 refused: general failure"},
		"refused behind proxy":  {syscall.ECONNREFUSED, proxy, ErrConnRefused, "connection to h:1 refused"},
		"nameless certificate":  {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}, nil, ErrTLSName, "certificate of h:1 is for no host at all"},
		"too weak certificate":  {x509.CertificateInvalidError{Cert: &x509.Certificate{}, Reason: x509.NotAuthorizedToSign}, nil, ErrTLS, "cannot make a secure connection to h:1"},
		"many names":            {x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"a", "b", "c", "d", "e"}}}, nil, ErrTLSName, "is for a, b, c, d, …"},
		"certificate of a host": {x509.HostnameError{Certificate: &x509.Certificate{IPAddresses: []net.IP{net.IPv4(1, 2, 3, 4)}}}, nil, ErrTLSName, "is for 1.2.3.4"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := explain(fmt.Errorf("x: %w", tc.err), "h:1", tc.proxy, time.Now())
			if !errors.Is(err, tc.kind) || !strings.Contains(strings.Replace(err.Error(), "x: ", "", 1), tc.text) {
				t.Errorf("explain = %v (%v), want %q", err, errors.Unwrap(err), tc.text)
			}
		})
	}
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func TestErrorsDoNotTellSecrets(t *testing.T) {
	c, err := New(Options{Base: "https://user:geheim@127.0.0.1:1", DialTimeout: time.Second,
		Proxy: httpproxy.Config{HTTPSProxy: "http://user:geheim@127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.CheckIn(t.Context(), "geheim", service.CheckIn{})
	if err == nil || strings.Contains(err.Error(), "geheim") || strings.Contains(c.Base(), "geheim") {
		t.Errorf("error = %v, base = %s", err, c.Base())
	}
}

func TestCancelledRequest(t *testing.T) {
	s, c := serve(t)
	stop := errors.New("disabled meanwhile")
	ctx, cancel := context.WithCancelCause(t.Context())
	s.Override(func(_ http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body) // only then is the end of the connection noticed
		cancel(stop)
		<-r.Context().Done()
		return true
	})
	if _, err := c.CheckIn(ctx, "t", service.CheckIn{}); !errors.Is(err, stop) && !errors.Is(err, context.Canceled) {
		t.Errorf("CheckIn = %v", err)
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb\x1b[31m\u2028c\xff")
	f.Add(strings.Repeat("ü", 300))
	f.Fuzz(func(t *testing.T, s string) {
		got := oneLine(s)
		if len(got) > 210 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' }) {
			t.Errorf("%q", got)
		}
	})
}

func FuzzRefusal(f *testing.F) {
	f.Add(401, []byte(`{"code":"revoked-token","message":"x\ny"}`))
	f.Add(503, []byte("<html>"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c, err := New(Options{Base: "https://livepatch.test"})
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequest(http.MethodGet, "https://livepatch.test", nil)
		got := c.refusal(&http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: req})
		if got == nil || strings.Contains(got.Error(), "\n") {
			t.Errorf("refusal = %v", got)
		}
	})
}
