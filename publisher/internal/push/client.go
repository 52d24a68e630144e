// Package push brings a repository to the service: targets first, then, in one
// request, the metadata that makes them known.
package push

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"livepatch/internal/service"
)

// Conditions that callers branch on.
var (
	ErrURL         = errors.New("URL of the service is not valid")
	ErrToken       = errors.New("service does not accept the publisher token")
	ErrCA          = errors.New("certificate of the service is not from a CA that is trusted here")
	ErrServerName  = errors.New("certificate of the service is for another name")
	ErrCertificate = errors.New("certificate of the service is not valid")
	ErrTLS         = errors.New("service does not speak TLS 1.3")
	ErrDown        = errors.New("service cannot be reached")
	ErrBusy        = errors.New("service asks to come back later")
	ErrConflict    = errors.New("service has something newer")
	ErrForeign     = errors.New("service belongs to another repository")
	ErrRejected    = errors.New("service refuses the request")
)

// Bounds of what is waited for.
const (
	maxAttempts   = 8
	firstBackOff  = time.Second
	maxBackOff    = 30 * time.Second
	maxRetryAfter = 2 * time.Minute
	maxAnswer     = 8 << 20 // bytes; a state names each role
)

// A Client talks to one service.
type Client struct {
	base  *url.URL
	http  *http.Client
	token string
}

// Options say how to reach a service.
type Options struct {
	Server string // "https://livepatch.example.com:8443"
	CA     []byte // PEM, trusted besides the system's CAs; may be empty
	Token  string // of the publisher
	// Proxy chooses a proxy; nil means none.
	Proxy func(*http.Request) (*url.URL, error)
}

// NewClient returns a client. It does not connect yet.
func NewClient(o Options) (*Client, error) {
	if o.Token == "" || strings.ContainsAny(o.Token, " \t\r\n") {
		return nil, fmt.Errorf("%w: it is empty or has white space in it", ErrToken)
	}
	return newClient(o)
}

func newClient(o Options) (*Client, error) {
	base, err := url.Parse(strings.TrimSuffix(o.Server, "/"))
	if err != nil || base.Host == "" || base.Scheme != "https" || base.RawQuery != "" || base.User != nil {
		return nil, fmt.Errorf("%w: %q, want https://HOST[:PORT]", ErrURL, o.Server)
	}
	roots, err := pool(o.CA)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:                 o.Proxy,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute, // a big publication is verified before it is answered
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   parallel,
	}
	return &Client{base: base, token: o.Token, http: &http.Client{
		Transport: transport,
		// The token must not travel to where an answer points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func pool(ca []byte) (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if len(ca) > 0 && !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%w: the CA file holds no certificate in PEM", ErrCA)
	}
	return roots, nil
}

// State returns what the service has.
func (c *Client) State(ctx context.Context) (service.PublishState, error) {
	var s service.PublishState
	b, err := c.do(ctx, http.MethodGet, service.PathPublishState, nil)
	if err != nil {
		return s, fmt.Errorf("cannot get state of the service: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("cannot read state of the service: %w", err)
	}
	return s, nil
}

// A body is what a request carries. It is opened once for each attempt.
type body struct {
	kind   string // media type
	length int64
	open   func() (io.ReadCloser, error)
}

func jsonBody(v any) (*body, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	return &body{kind: "application/json", length: int64(len(b)), open: open}, nil
}

// do sends a request until the service does not ask to come back later, and
// returns the body of its answer.
func (c *Client) do(ctx context.Context, method, path string, b *body) ([]byte, error) {
	backOff := firstBackOff
	for attempt := 1; ; attempt++ {
		answer, wait, err := c.try(ctx, method, path, b)
		if !errors.Is(err, ErrBusy) || attempt == maxAttempts {
			return answer, err
		}
		if wait == 0 {
			wait, backOff = backOff, min(2*backOff, maxBackOff)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(min(wait, maxRetryAfter)):
		}
	}
}

// try sends a request once. With [ErrBusy] it returns how long the service asks
// to wait, 0 if it does not say.
func (c *Client) try(ctx context.Context, method, path string, b *body) (answer []byte, wait time.Duration, err error) {
	req, err := c.request(ctx, method, path, b)
	if err != nil {
		return nil, 0, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, explain(err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, 0, explain(err)
	}
	if resp.StatusCode/100 == 2 {
		return answer, 0, nil
	}
	return nil, retryAfter(resp.Header), statusError(resp.StatusCode, answer)
}

func (c *Client) request(ctx context.Context, method, path string, b *body) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if b == nil {
		return req, nil
	}
	req.Header.Set("Content-Type", b.kind)
	req.ContentLength, req.GetBody = b.length, b.open
	req.Body, err = b.open()
	if b.length == 0 && err == nil {
		err = req.Body.Close()
		req.Body = http.NoBody
	}
	return req, err
}

// retryAfter reads the header in both of its forms.
func retryAfter(h http.Header) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return time.Duration(min(n, int(maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}

// A StatusError is an answer that is not a success. It matches one of the
// conditions of this package.
type StatusError struct {
	Status    int
	Answer    service.Error
	condition error
}

// Error implements error.
func (e *StatusError) Error() string {
	text := plain(e.Answer.Message)
	if text == "" {
		text = http.StatusText(e.Status)
	}
	return fmt.Sprintf("%v: %d: %s", e.condition, e.Status, text)
}

// plain makes one line of at most 300 bytes of what a service says: it is to be
// shown on a terminal, and whoever answers may not be who was asked.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// Unwrap returns the condition.
func (e *StatusError) Unwrap() error { return e.condition }

func statusError(status int, answer []byte) error {
	e := &StatusError{Status: status, condition: ErrRejected}
	if json.Unmarshal(answer, &e.Answer) != nil {
		e.Answer = service.Error{} // a proxy speaks HTML
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.condition = ErrToken
	case http.StatusConflict:
		e.condition = ErrConflict
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		e.condition = ErrBusy
	}
	return e
}

// explain names the condition behind an error of the HTTP client, whose text
// repeats method and URL.
func explain(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
		network  *net.OpError
		record   tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: %w", ErrCA, err)
	case errors.As(err, &hostname):
		return fmt.Errorf("%w: %w", ErrServerName, err)
	case errors.As(err, &invalid), errors.As(err, &verify):
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	// crypto/tls calls an alert of the other side a "remote error".
	case errors.As(err, &network) && network.Op == "remote error", errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	return fmt.Errorf("%w: %w", ErrDown, err)
}
