//go:build attack

package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

const tenThousand = 10_000

// Connections that say nothing, and those that say just enough to be kept.
func TestHostileAgentTenThousandConnections(t *testing.T) {
	t.Parallel()
	for name, say := range map[string]func(w net.Conn){
		"that say nothing": func(net.Conn) {},
		"that are kept": func(c net.Conn) {
			_, _ = io.WriteString(c, http2.ClientPreface)
			_ = http2.NewFramer(c, nil).WriteSettings()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTarget(t)
			a := report.Begin(t, report.Agent, "10 000 connections "+name)
			var conns []net.Conn
			turned := 0
			for range tenThousand {
				conn, err := net.DialTimeout("unix", l.Path("loader.sock"), time.Second)
				if err != nil {
					turned++
					continue
				}
				say(conn)
				conns = append(conns, conn)
			}
			open := l.descriptors()
			if open > 64 {
				t.Errorf("loader has %d files open", open)
			}
			a.Bounded("loader: keeps few, %d files open; kernel: turned %d away; %s; nobody but the agent waits", open, turned, l.peak())
			for _, c := range conns {
				c.Close()
			}
			l.settles(t)
			l.survives(t)
		})
	}
}

// Calls by the ten thousand are answered, each of them, and one at a time gets its
// way.
func TestHostileAgentTenThousandCalls(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	opening := l.repo.Opening(l.one)
	for name, call := range map[string]func(ctx context.Context, c loaderv1.LoaderServiceClient) error{
		"Status": func(ctx context.Context, c loaderv1.LoaderServiceClient) error {
			_, err := c.Status(ctx, &loaderv1.StatusRequest{})
			return err
		},
		"Apply": func(ctx context.Context, c loaderv1.LoaderServiceClient) error {
			_, err := lab.ApplyWith(ctx, c, opening, l.one.Content)
			return err
		},
		"Remove": func(ctx context.Context, c loaderv1.LoaderServiceClient) error {
			_, err := c.Remove(ctx, &loaderv1.RemoveRequest{Name: "lkp_nobody"})
			return rpcerr.FromStatus(err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Agent, "10 000 calls of "+name+" at once, over 20 connections")
			l.forgetPeak()
			var clients []loaderv1.LoaderServiceClient
			var conns []*grpc.ClientConn
			for range 20 {
				conns = append(conns, l.conn(t))
				clients = append(clients, loaderv1.NewLoaderServiceClient(conns[len(conns)-1]))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			var work sync.WaitGroup
			var answered, busy, away, other atomic.Int64
			for i := range tenThousand {
				work.Go(func() {
					switch err := call(ctx, clients[i%len(clients)]); {
					case errors.Is(err, patch.ErrBusy):
						busy.Add(1)
					case status.Code(err) == codes.Unavailable: // a connection too many
						away.Add(1)
					case err == nil, errors.Is(err, patch.ErrNotFound), errors.Is(err, patch.ErrNotOurs):
						answered.Add(1)
					default:
						if other.Add(1) < 5 {
							t.Logf("%v", err)
						}
					}
				})
			}
			work.Wait()
			if other.Load() > 0 || answered.Load() == 0 {
				t.Errorf("%d were answered, %d found it busy, %d failed otherwise", answered.Load(), busy.Load(), other.Load())
			}
			for _, conn := range conns {
				conn.Close()
			}
			l.survives(t)
			a.StoppedBy("loader: few connections and streams, one change at a time: %d answered, %d BUSY, %d turned away; %s", answered.Load(), busy.Load(), away.Load(), l.peak())
		})
	}
}

// A dripping body holds back the last byte of a message, or sends one now and then.
type dripping struct {
	head  []byte
	pause time.Duration   // 0: says nothing more
	ctx   context.Context //nolint:containedctx // a body has no other way to learn of the end
	sent  *atomic.Int64
}

// Read implements [io.Reader].
func (d *dripping) Read(b []byte) (int, error) {
	if len(d.head) > 0 {
		n := copy(b, d.head)
		d.head = d.head[n:]
		d.sent.Add(int64(n))
		return n, nil
	}
	var tick <-chan time.Time
	if d.pause > 0 {
		tick = time.After(d.pause)
	}
	select {
	case <-d.ctx.Done():
		return 0, io.ErrUnexpectedEOF
	case <-tick:
		b[0] = 0
		d.sent.Add(1)
		return 1, nil
	}
}

// post sends a gRPC request by hand and returns gRPC's status, or why there is none.
func (l *target) post(tr *http.Transport, method string, body *dripping) string {
	ctx, cancel := context.WithCancel(body.ctx)
	defer cancel()
	body.ctx = ctx
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+method, body)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err.Error()
	}
	defer func() { cancel(); res.Body.Close() }() // closing waits for the request's body
	_, _ = io.Copy(io.Discard, res.Body)
	if s := res.Header.Get("Grpc-Status"); s != "" {
		return s + " " + res.Header.Get("Grpc-Message")
	}
	return res.Trailer.Get("Grpc-Status") + " " + res.Trailer.Get("Grpc-Message")
}

// transport returns a connection for requests made by hand.
func (l *target) transport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Path("loader.sock"))
	}}
}

// message begins a gRPC message that says it has length bytes, of which sent follow.
func message(length uint32, sent int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, length), make([]byte, sent)...)
}

// Requests of the largest size that are never finished are held in memory until they
// are. How many there can be bounds what that costs.
func TestHostileAgentFillsTheMemory(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	a := report.Begin(t, report.Agent, "unfinished requests of 8 MiB, as many as the loader takes")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var work sync.WaitGroup
	var sent atomic.Int64
	for range 12 {
		tr := l.transport()
		for range 8 {
			work.Go(func() {
				l.post(tr, statusMethod, &dripping{head: message(8<<20, 8<<20-1), ctx: ctx, sent: &sent})
			})
		}
	}
	// It has taken what it takes once nothing more is sent for a while.
	for was := int64(-1); was != sent.Load(); time.Sleep(500 * time.Millisecond) {
		was = sent.Load()
	}
	used := l.memory("VmHWM")
	stop()
	work.Wait()
	l.survives(t)
	a.StoppedBy("gRPC: limits on connections, streams and messages: of 768 MiB offered %d were sent; peak %d of %d MiB",
		sent.Load()>>20, used>>10, unitMemory>>10)
}

// Whoever stops in the middle, or sends a byte now and then, holds the loader's only
// place for two minutes and no longer.
func TestHostileAgentHoldsThePlace(t *testing.T) {
	t.Parallel()
	for name, pause := range map[string]time.Duration{"stops in the middle": 0, "sends a byte a second": time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTarget(t)
			a := report.Begin(t, report.Agent, "Apply that "+name)
			o := l.repo.Opening(l.one)
			opening := marshal(t, &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: o}})
			head := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(opening))), opening...)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var sent atomic.Int64
			begin := time.Now()
			got := make(chan string, 1)
			go func() {
				got <- l.post(l.transport(), applyMethod, &dripping{head: append(head, message(10000, 100)...), pause: pause, ctx: ctx, sent: &sent})
			}()
			// Nobody else asks before the attacker has the place, or he would find it taken.
			lab.Eventually(t, "the attacker has sent what he sends", func() bool { return sent.Load() >= int64(len(head)+100) })
			time.Sleep(500 * time.Millisecond)
			lab.Eventually(t, "the attacker has the place", func() bool {
				_, err := lab.Apply(t, l.c, o, l.one.Content)
				return errors.Is(err, patch.ErrBusy)
			})
			if _, err := l.c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
				t.Errorf("status meanwhile: %v", err)
			}
			select {
			case answer := <-got:
				a.Bounded("loader: %.60s; after %v", answer, time.Since(begin).Round(time.Second))
			case <-time.After(4 * time.Minute):
				t.Error("the attacker still has the place after 4 minutes")
			}
			l.survives(t)
		})
	}
}

// A module that never ends is cut off at the size that a module may have.
func TestHostileAgentSendsForEver(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	a := report.Begin(t, report.Agent, "module that never ends")
	l.forgetPeak()
	stream, err := l.c.Apply(t.Context())
	lab.Must(t, err)
	lab.Must(t, stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: l.repo.Opening(l.one)}}))
	sent := 0
	for piece := make([]byte, 64<<10); sent < 1<<30; sent += len(piece) {
		if stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: piece}}) != nil {
			break
		}
	}
	_, err = stream.CloseAndRecv()
	l.refused(t, a, err, patch.ErrTooLarge)
	if sent > 80<<20 {
		t.Errorf("the loader took %d MiB", sent>>20)
	}
	a.StoppedBy("%s", fmt.Sprintf("after %d MiB; %s", sent>>20, l.peak()))
	l.survives(t)
}
