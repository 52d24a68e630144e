package fetch

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"livepatch/internal/service"
)

// FuzzAnswer reads any body as the answers of the service that the agent acts
// on. What is not an answer is an error of one line; what is one is no longer
// than it may be.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"interval_seconds":3600,"generation":7,"tier":"stable"}`))
	f.Add([]byte(`{"interval_seconds":-9223372036854775808,"generation":9223372036854775807,"tier":"\u001b[2J"}`))
	f.Add([]byte(`{"machine_token":"0123456789abcdef0123456789abcdef","tier":null}`))
	f.Add([]byte(`{"interval_seconds":1e300}`))
	f.Add([]byte(`{"interval_seconds":3600} trailing`))
	f.Add([]byte("<html>\n</html>"))
	f.Add(bytes.Repeat([]byte{' '}, service.MaxJSON+1))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := New(Options{Base: "https://livepatch.test"})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://livepatch.test", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, out := range []any{&service.CheckInAnswer{}, &service.Enrolment{}, nil} {
			res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: req}
			err := c.decode(req, res, out)
			var e *Error
			switch {
			case err == nil && len(body) > service.MaxJSON:
				t.Errorf("took %d bytes", len(body))
			case err != nil && (!errors.As(err, &e) || !errors.Is(err, ErrAnswer) || strings.Contains(err.Error(), "\n")):
				t.Errorf("decode = %v", err)
			}
		}
	})
}

// FuzzRetryAfter reads any header. A service cannot keep the agent away for
// longer than a day.
func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "30", "-1", "99999999999999999999", "Sun, 22 Nov 2026 03:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "\x00"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if got := retryAfter(http.Header{"Retry-After": {s}}, now); got < 0 || got > 24*time.Hour {
			t.Errorf("%q keeps the agent away for %v", s, got)
		}
	})
}

// FuzzBase reads any address of a service. One that is taken is HTTPS, and no
// password in it is ever shown.
func FuzzBase(f *testing.F) {
	for _, s := range []string{"https://livepatch.test", "https://user:geheim@livepatch.test/x", "http://livepatch.test", "https://", "//x", "https://[::1]:8443", "https://a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, base string) {
		c, err := New(Options{Base: base})
		if err != nil {
			return
		}
		u, err := url.Parse(base)
		if err != nil || u.Scheme != "https" || !strings.HasPrefix(c.Base(), "https://") {
			t.Errorf("%q became %q", base, c.Base())
		}
		if password, ok := u.User.Password(); ok && len(password) > 5 && !strings.Contains(u.Host+u.Path+u.User.Username(), password) && strings.Contains(c.Base(), password) {
			t.Errorf("%q is shown as %q", base, c.Base())
		}
	})
}
