package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"livepatch/internal/service"
)

// A stream is check-ins over connections that stay open, each of which sends the next
// one when the last is answered.
type stream struct {
	addr    string // of the server
	name    string // in its certificate
	roots   *x509.CertPool
	workers int           // connections
	lasts   time.Duration // after which nothing more is sent; 0: next says when
	// next returns a check-in and the token of who sends it, or ok = false at the end. It is
	// called by all workers at a time.
	next func(*rand.Rand) (token string, body []byte, ok bool)
	// heard is told of answers, one at a time, unless it is nil.
	heard func(service.CheckInAnswer)
}

// A flow is what became of a stream, from the client's view.
type flow struct {
	reports int
	took    time.Duration
	ms      []float64 // that each took to be answered, in ascending order
	cpu     float64   // of the server, µs for each
}

// rate is how many check-ins were answered in a second.
func (f flow) rate() float64 { return float64(f.reports) / f.took.Seconds() }

// percentile returns the least of the times that at least a share q of them do not
// exceed, in ms; 0 if there are none.
func (f flow) percentile(q float64) float64 {
	if len(f.ms) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(f.ms)))) - 1
	return f.ms[max(0, min(i, len(f.ms)-1))]
}

// run makes all connections, and then sends. It fails at the first answer that is not
// one to a check-in.
func (s stream) run(ctx context.Context) (flow, error) {
	ctx, end := context.WithTimeout(ctx, s.lasts+giveUp)
	defer end()
	conns, err := s.connect(ctx)
	defer conns.close()
	if err != nil {
		return flow{}, fmt.Errorf("cannot connect to %s: %w", s.addr, err)
	}
	f, err := s.send(ctx, conns)
	if err != nil {
		return flow{}, fmt.Errorf("cannot check in at %s: %w", s.addr, err)
	}
	return f, nil
}

// connections are open and idle.
type connections []*tls.Conn

func (cs connections) close() {
	for _, c := range cs {
		c.Close()
	}
}

// interrupt ends what waits for an answer.
func (cs connections) interrupt() {
	for _, c := range cs {
		_ = c.SetDeadline(time.Now()) // fails if it is closed
	}
}

func (s stream) connect(ctx context.Context) (conns connections, err error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second},
		Config: &tls.Config{RootCAs: s.roots, ServerName: s.name, MinVersion: tls.VersionTLS13}}
	for range s.workers {
		c, err := d.DialContext(ctx, "tcp", s.addr)
		if err != nil {
			return conns, err
		}
		conns = append(conns, c.(*tls.Conn)) // as documented
	}
	return conns, nil
}

// send sends on all connections until the stream is over, one fails or ctx is done.
func (s stream) send(ctx context.Context, conns connections) (flow, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, conns.interrupt)()
	var (
		f    flow
		mu   sync.Mutex // guards f.ms, and calls of heard
		work sync.WaitGroup
	)
	begin := time.Now()
	for i, c := range conns {
		work.Go(func() {
			ms, err := s.work(ctx, c, rand.New(rand.NewPCG(uint64(i), 0)), begin, &mu)
			if err != nil {
				cancel(err)
			}
			mu.Lock()
			defer mu.Unlock()
			f.ms = append(f.ms, ms...)
		})
	}
	work.Wait()
	f.took, f.reports = time.Since(begin), len(f.ms)
	slices.Sort(f.ms)
	return f, context.Cause(ctx)
}

// work sends on one connection and returns how long each answer took, in ms.
func (s stream) work(ctx context.Context, c net.Conn, d *rand.Rand, begin time.Time, hearing *sync.Mutex) (ms []float64, err error) {
	answers := bufio.NewReader(c)
	for ctx.Err() == nil && (s.lasts == 0 || time.Since(begin) < s.lasts) {
		token, body, ok := s.next(d)
		if !ok {
			return ms, nil
		}
		sent := time.Now()
		a, err := post(c, answers, token, body)
		if err != nil {
			return ms, err
		}
		ms = append(ms, float64(time.Since(sent))/float64(time.Millisecond))
		if s.heard != nil {
			hearing.Lock()
			s.heard(a)
			hearing.Unlock()
		}
	}
	return ms, nil
}

// post sends a check-in as the agent does, and reads the answer.
func post(c net.Conn, answers *bufio.Reader, token string, body []byte) (a service.CheckInAnswer, err error) {
	head := "POST " + service.PathCheckIn + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: canonical-livepatch/bench\r\n" +
		"Content-Type: application/json\r\nAuthorization: Bearer " + token + "\r\n"
	if _, err := c.Write(fmt.Appendf(nil, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body)); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("check-in was answered %s: %.200s", resp.Status, b)
	}
	if resp.Close {
		return a, errors.New("server wants a new connection for each check-in")
	}
	return a, json.Unmarshal(b, &a)
}
