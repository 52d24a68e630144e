package push

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A script answers requests one after the other, the last one for ever.
type script struct {
	answers []response
	at      []time.Duration
	start   time.Time
}

type response struct {
	status     int
	retryAfter string
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	s.at = append(s.at, time.Since(s.start))
	if r.Body != nil {
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != `"hello"` {
			return nil, errors.New("body was not sent again")
		}
	}
	a := s.answers[min(len(s.at), len(s.answers))-1]
	h := http.Header{}
	if a.retryAfter != "" {
		h.Set("Retry-After", a.retryAfter)
	}
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(strings.NewReader(""))}, nil
}

func TestRetry(t *testing.T) {
	sec := func(s ...int) (d []time.Duration) {
		for _, n := range s {
			d = append(d, time.Duration(n)*time.Second)
		}
		return d
	}
	tests := map[string]struct {
		answers []response
		at      []time.Duration
		want    error
	}{
		"success at once":                  {[]response{{200, ""}}, sec(0), nil},
		"busy twice, the wait doubles":     {[]response{{503, ""}, {429, ""}, {200, ""}}, sec(0, 1, 3), nil},
		"the service says when":            {[]response{{429, "7"}, {200, ""}}, sec(0, 7), nil},
		"the service asks for a day":       {[]response{{503, "86400"}, {200, ""}}, sec(0, 120), nil},
		"the service says nothing useful":  {[]response{{503, "soon"}, {200, ""}}, sec(0, 1), nil},
		"a negative wait":                  {[]response{{503, "-5"}, {200, ""}}, sec(0, 1), nil},
		"busy for ever":                    {[]response{{503, ""}}, sec(0, 1, 3, 7, 15, 31, 61, 91), ErrBusy},
		"a gateway without the service":    {[]response{{502, ""}, {504, ""}, {200, ""}}, sec(0, 1, 3), nil},
		"a wrong token is not tried again": {[]response{{401, ""}}, sec(0), ErrToken},
		"an error is not tried again":      {[]response{{500, ""}}, sec(0), ErrRejected},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{answers: tc.answers, start: time.Now()}
				c, err := NewClient(Options{Server: "https://service", Token: "token"})
				if err != nil {
					t.Fatal(err)
				}
				c.http.Transport = s
				b, err := jsonBody("hello")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.do(t.Context(), http.MethodPost, "/", b); !errors.Is(err, tc.want) {
					t.Errorf("error = %v, want %v", err, tc.want)
				}
				if !slices.Equal(s.at, tc.at) {
					t.Errorf("requests at %v, want %v", s.at, tc.at)
				}
			})
		})
	}
}

func TestRetryAfterDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.Header{"Retry-After": {time.Now().Add(9 * time.Second).UTC().Format(http.TimeFormat)}}
		if got := retryAfter(h); got != 9*time.Second {
			t.Errorf("retryAfter = %v, want 9s", got)
		}
	})
}
