// Package fetch talks HTTPS to the service: requests with proxies, extra
// authorities, timeouts and caps, and errors that say what went wrong in words
// a person can act on.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"

	"livepatch/internal/patch"
)

// Timeouts that are not configurable.
const (
	headerTimeout = 30 * time.Second // from the request to the first byte of the answer
	idleTimeout   = 30 * time.Second // of a kept connection
)

// Options configure a [Client].
type Options struct {
	Base        string           // "https://host[:port][/path]"
	Proxy       httpproxy.Config // all empty: no proxy
	CACerts     []byte           // PEM; trusted besides the system's
	DialTimeout time.Duration
	UserAgent   string
}

// A Client talks to one service.
type Client struct {
	base      *url.URL
	userAgent string
	http      *http.Client
	transport *http.Transport

	// skew is how far the service's clock is ahead of this machine's, in
	// nanoseconds, and skewKnown whether an answer has told.
	skew      atomic.Int64
	skewKnown atomic.Bool
}

// New returns a client. Only https is accepted: what travels are tokens.
func New(o Options) (*Client, error) {
	base, err := url.Parse(o.Base)
	if err != nil || base.Host == "" {
		return nil, fmt.Errorf("cannot use %q as the address of the service: %w", o.Base, patch.ErrInvalid)
	}
	if base.Scheme != "https" {
		return nil, fmt.Errorf("cannot use %q as the address of the service: need https: %w", base.Redacted(), patch.ErrInvalid)
	}
	roots, err := authorities(o.CACerts)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: o.DialTimeout}
	proxy := o.Proxy.ProxyFunc()
	transport := &http.Transport{
		Proxy:                 func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   max(o.DialTimeout, time.Second),
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConns:          2,
		MaxConnsPerHost:       2,
		ForceAttemptHTTP2:     false,
		// One connection at a time carries a few requests an hour: HTTP/2 would
		// bring buffers and a goroutine that reads, and save nothing.
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxResponseHeaderBytes: 64 << 10,
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, res *http.Response) error {
			if res.StatusCode == http.StatusOK {
				return nil
			}
			return proxyStatusError(res.StatusCode)
		},
	}
	return &Client{
		base:      base,
		userAgent: o.UserAgent,
		transport: transport,
		http: &http.Client{
			Transport: transport,
			// A redirect to another host would carry the token there.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// authorities returns the system's certificate authorities and those in pem.
func authorities(pem []byte) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if len(strings.TrimSpace(string(pem))) > 0 && !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("cannot use ca-certs: no certificate in it: %w", patch.ErrInvalid)
	}
	return pool, nil
}

// Close ends kept connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Base returns the address of the service without user information.
func (c *Client) Base() string { return c.base.Redacted() }

// Skew returns how far the service's clock is ahead of this machine's, as the
// last answer to a check-in or an enrolment told; false if none has.
func (c *Client) Skew() (time.Duration, bool) {
	return time.Duration(c.skew.Load()), c.skewKnown.Load()
}

// noteDate takes the service's clock from an answer that no cache can have
// kept. Half of the round trip has passed since the service wrote it.
func (c *Client) noteDate(res *http.Response, sent time.Time) {
	if res.Header.Get("Age") != "" {
		return
	}
	date, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return
	}
	now := time.Now()
	middle := sent.Add(now.Sub(sent) / 2)
	c.skew.Store(int64(date.Sub(middle)))
	c.skewKnown.Store(true)
}

// do sends a request and explains what went wrong. The answer may have any
// status.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", c.userAgent)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(req, err)
	}
	return res, nil
}

// proxyStatusError is the status with which a proxy refused a tunnel.
type proxyStatusError int

func (e proxyStatusError) Error() string {
	return fmt.Sprintf("status %d (%s)", int(e), http.StatusText(int(e)))
}

// explain turns the failure of a request into a [*Error].
func (c *Client) explain(req *http.Request, err error) error {
	if errors.Is(req.Context().Err(), context.Canceled) {
		return context.Cause(req.Context()) // whoever cancelled knows why
	}
	var uerr *url.Error
	if errors.As(err, &uerr) {
		// Its text repeats the method and the URL, which may hold a secret.
		err = uerr.Err
	}
	var proxy *url.URL
	if c.transport.Proxy != nil {
		proxy, _ = c.transport.Proxy(req)
	}
	return explain(err, req.URL.Host, proxy, time.Now())
}
