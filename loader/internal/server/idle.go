package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/stats"
)

// An Idle calls a function once no request has been under way for a while, so
// that there is no root process at rest. Open connections do not count. It is a
// [stats.Handler].
type Idle struct {
	after time.Duration
	timer *time.Timer

	mu    sync.Mutex
	under int // requests under way
}

// NewIdle returns an Idle that calls leave after the given time without a
// request. The time begins at once.
func NewIdle(after time.Duration, leave func()) *Idle {
	return &Idle{after: after, timer: time.AfterFunc(after, leave)}
}

// HandleRPC sees the begin and the end of every request.
func (i *Idle) HandleRPC(_ context.Context, event stats.RPCStats) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch event.(type) {
	case *stats.Begin:
		i.under++
		i.timer.Stop()
	case *stats.End:
		if i.under--; i.under == 0 {
			i.timer.Reset(i.after)
		}
	}
}

// TagRPC adds nothing.
func (i *Idle) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn adds nothing.
func (i *Idle) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (i *Idle) HandleConn(context.Context, stats.ConnStats) {}
