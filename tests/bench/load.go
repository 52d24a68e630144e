package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A load is many requests, each on a connection of its own, as a fleet of
// machines sends them.
type load struct {
	addr    string         // of the server
	name    string         // in its certificate
	roots   *x509.CertPool // that vouch for it
	request func() *http.Request
	want    int // status code of every answer
	n       int // requests
	workers int
}

// A cost is what a load took on the wire and from the client's view.
type cost struct {
	requests int
	sent     int64 // bytes, with everything that TLS adds
	received int64
	took     time.Duration
}

// run sends all requests. It fails at the first answer that is not the wanted one.
func (l load) run(ctx context.Context) (cost, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sent, received, left atomic.Int64
	left.Store(int64(l.n))
	start := time.Now()
	var wg sync.WaitGroup
	for range l.workers {
		wg.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				in, out, err := l.once(ctx)
				if err != nil {
					cancel(err)
					return
				}
				received.Add(in)
				sent.Add(out)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return cost{}, fmt.Errorf("cannot load %s: %w", l.addr, err)
	}
	return cost{l.n, sent.Load(), received.Load(), time.Since(start)}, nil
}

// once makes a connection, sends one request and reads the answer.
func (l load) once(ctx context.Context) (received, sent int64, err error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	raw, err := d.DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return 0, 0, err
	}
	counted := &counter{Conn: raw}
	// No session cache: every handshake is a full one, with a signature.
	conn := tls.Client(counted, &tls.Config{RootCAs: l.roots, ServerName: l.name, MinVersion: tls.VersionTLS13})
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, 0, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return 0, 0, err
	}
	req := l.request()
	req.Header.Set("Connection", "close")
	if err := req.Write(conn); err != nil {
		return 0, 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	if resp.StatusCode != l.want {
		return 0, 0, fmt.Errorf("%s %s answered %s, want %d: %.200s", req.Method, req.URL.Path, resp.Status, l.want, body)
	}
	return counted.received.Load(), counted.sent.Load(), nil
}

// A counter counts the bytes of a connection.
type counter struct {
	net.Conn
	received, sent atomic.Int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// A tap forwards connections to a server and counts their bytes: what a real
// client, which we cannot look into, puts on the wire.
type tap struct {
	lis         net.Listener
	connections atomic.Int64
	received    atomic.Int64 // by the client
	sent        atomic.Int64
}

// newTap listens on a free port of the loopback interface until ctx is done.
func newTap(ctx context.Context, server string) (*tap, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot count bytes: %w", err)
	}
	t := &tap{lis: lis}
	context.AfterFunc(ctx, func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return // closed
			}
			t.connections.Add(1)
			go t.forward(ctx, c, server)
		}
	}()
	return t, nil
}

func (t *tap) addr() string { return t.lis.Addr().String() }

func (t *tap) forward(ctx context.Context, client net.Conn, server string) {
	defer client.Close()
	var d net.Dialer
	up, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return
	}
	defer up.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn, n *atomic.Int64) {
		defer func() { done <- struct{}{} }()
		_, err := io.Copy(io.MultiWriter(to, countTo{n}), from)
		if tcp, ok := to.(*net.TCPConn); ok && err == nil {
			_ = tcp.CloseWrite() // the peer may have closed meanwhile
		}
	}
	go pipe(up, client, &t.sent)
	go pipe(client, up, &t.received)
	for range 2 {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

type countTo struct{ n *atomic.Int64 }

func (c countTo) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// errNoTool says that a part of the benchmark cannot run on this machine.
var errNoTool = errors.New("tool is missing")
