package api

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// An address may fail so many times at once, and then once in a while.
const (
	failureBurst = 10
	failureEvery = 6 * time.Second
	maxAddresses = 10_000
)

// A limiter counts failures by address. A token cannot be guessed; what it
// keeps off is the load of those who try, and the noise in the log.
type limiter struct {
	mu   sync.Mutex
	seen map[netip.Prefix]*rate.Limiter
}

func newLimiter() *limiter { return &limiter{seen: map[netip.Prefix]*rate.Limiter{}} }

// address returns whom a request counts for: an IPv4 address, or a network of
// IPv6, for one customer has 2⁶⁴ addresses there.
func address(r *http.Request) netip.Prefix {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{} // all that have none share one
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // bits fit the address
	return p
}

// check returns an error if the address has failed too often.
func (l *limiter) check(p netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.seen[p]; ok {
		if missing := 1 - c.Tokens(); missing > 0 {
			return &tooManyError{retry: time.Duration(missing * float64(failureEvery))}
		}
	}
	return nil
}

// failed counts a failure.
func (l *limiter) failed(p netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.seen[p]
	if !ok {
		l.makeRoom()
		c = rate.NewLimiter(rate.Every(failureEvery), failureBurst)
		l.seen[p] = c
	}
	c.Allow()
}

// makeRoom forgets addresses whose failures are long ago, and if there are none
// any of them, so that an attacker with many addresses cannot use up memory.
func (l *limiter) makeRoom() {
	if len(l.seen) < maxAddresses {
		return
	}
	for p, c := range l.seen {
		if c.Tokens() >= failureBurst {
			delete(l.seen, p)
		}
	}
	for p := range l.seen {
		if len(l.seen) < maxAddresses {
			return
		}
		delete(l.seen, p)
	}
}
