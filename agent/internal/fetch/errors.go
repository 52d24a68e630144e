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
	"syscall"
	"time"
)

// Why a request got no answer, or none that helps. Each has its own next step.
var (
	ErrNoAddress   = errors.New("host name has no address")
	ErrConnRefused = errors.New("nothing listens there")
	ErrUnreachable = errors.New("network is unreachable")
	ErrTimeout     = errors.New("no answer in time")
	ErrTooSlow     = errors.New("transfer is too slow")
	ErrBroken      = errors.New("connection broke")
	ErrTLSName     = errors.New("certificate is for another name")
	ErrTLSUnknown  = errors.New("certificate is from an unknown authority")
	ErrTLSTime     = errors.New("certificate is not valid at this time")
	ErrTLS         = errors.New("no secure connection")
	ErrProxy       = errors.New("proxy does not let the request through")
	ErrProxyAuth   = errors.New("proxy wants a user name and a password")
	ErrToken       = errors.New("token is not accepted")
	ErrTokenOld    = errors.New("token has expired")
	ErrTokenGone   = errors.New("token has been revoked")
	ErrOverload    = errors.New("service is overloaded")
	ErrService     = errors.New("service failed")
	ErrRequest     = errors.New("service does not accept the request")
	ErrAbsent      = errors.New("service does not have the file")
	ErrAnswer      = errors.New("answer of the service cannot be used")
)

// An Error is a request that failed.
type Error struct {
	Kind       error  // one of the sentinels of this package
	Text       string // one line for a person, without secrets
	Status     int    // of the answer; 0 if there was none
	RetryAfter time.Duration
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the kind.
func (e *Error) Unwrap() error { return e.Kind }

// Unreachable tells whether err means that the service was not reached, as on a
// machine whose network is not up yet, so that trying again may be all it takes.
func Unreachable(err error) bool {
	for _, kind := range []error{ErrNoAddress, ErrConnRefused, ErrUnreachable, ErrTimeout, ErrBroken, ErrTooSlow, ErrProxy} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// explain says what err, the failure of a request to host, means. proxy is the
// one that was used, or nil; now is this machine's idea of the time.
func explain(err error, host string, proxy *url.URL, now time.Time) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrTooSlow) {
		return err
	}
	if e := explainProxy(err, proxy); e != nil {
		return e
	}
	if e := explainTLS(err, host, now); e != nil {
		return e
	}
	return explainNet(err, host)
}

func explainNet(err error, host string) *Error {
	say := func(kind error, format string, args ...any) *Error {
		return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
	}
	var dns *net.DNSError
	var nerr net.Error
	switch {
	case errors.As(err, &dns):
		return say(ErrNoAddress, "cannot find the address of host %q: %s", hostname(dns.Name), dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return say(ErrConnRefused, "connection to %s refused", host)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETDOWN):
		return say(ErrUnreachable, "no route to %s", host)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &nerr) && nerr.Timeout():
		return say(ErrTimeout, "no answer from %s in time", host)
	default:
		return say(ErrBroken, "connection to %s broke: %s", host, oneLine(err.Error()))
	}
}

func explainTLS(err error, host string, now time.Time) error {
	say := func(kind error, format string, args ...any) error {
		return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
	}
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &name):
		return say(ErrTLSName, "certificate of %s is for %s", host, names(name.Certificate))
	case errors.As(err, &unknown):
		return say(ErrTLSUnknown, "certificate of %s is from an authority that this machine does not trust", host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return say(ErrTLSTime, "certificate of %s is valid from %s to %s, and this machine's clock says %s", host,
			invalid.Cert.NotBefore.UTC().Format(time.DateOnly), invalid.Cert.NotAfter.UTC().Format(time.DateOnly),
			now.UTC().Format("2006-01-02 15:04 UTC"))
	case errors.Is(err, http.ErrSchemeMismatch):
		return say(ErrTLS, "%s does not speak TLS", host)
	case errors.As(err, &verify), errors.As(err, &alert), errors.As(err, &invalid):
		return say(ErrTLS, "cannot make a secure connection to %s: %s", host, oneLine(err.Error()))
	}
	return nil
}

// names returns the names that a certificate is for.
func names(c *x509.Certificate) string {
	var all []string
	all = append(all, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return "no host at all"
	}
	if len(all) > 4 {
		all = append(all[:4], "…")
	}
	return oneLine(strings.Join(all, ", "))
}

// explainProxy returns nil unless it was the proxy that failed.
func explainProxy(err error, proxy *url.URL) error {
	if proxy == nil {
		return nil
	}
	var status proxyStatusError
	if errors.As(err, &status) {
		return proxyAnswered(int(status), proxy.Host)
	}
	var op *net.OpError
	if !errors.As(err, &op) {
		return nil
	}
	switch {
	case op.Op == "proxyconnect":
		return &Error{Kind: ErrProxy, Text: fmt.Sprintf("cannot reach proxy %s: %s", proxy.Host, explainNet(op.Err, proxy.Host).Text)}
	case strings.HasPrefix(op.Op, "socks"):
		return &Error{Kind: ErrProxy, Text: fmt.Sprintf("proxy %s refused: %s", proxy.Host, oneLine(op.Err.Error()))}
	}
	return nil
}

// proxyAnswered explains the status with which a proxy refused.
func proxyAnswered(status int, host string) error {
	if status == 407 {
		return &Error{Kind: ErrProxyAuth, Status: status, Text: fmt.Sprintf("proxy %s wants a user name and a password", host)}
	}
	return &Error{Kind: ErrProxy, Status: status, Text: fmt.Sprintf("proxy %s refused with %s", host, proxyStatusError(status))}
}

// hostname returns the name without the port that net adds for some lookups.
func hostname(s string) string {
	if h, _, err := net.SplitHostPort(s); err == nil {
		return h
	}
	return s
}

// oneLine makes text from outside fit into one line of a terminal.
func oneLine(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
