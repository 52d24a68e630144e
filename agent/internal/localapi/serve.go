package localapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

// Limits of the sockets, which anybody on the machine may be able to connect to.
const (
	maxConns      = 64
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second // headers and body, which also ends the wait for a body that nobody reads
	idleTimeout   = 30 * time.Second
	maxHeader     = 32 << 10 // old clients send the token in the URL
	stopTimeout   = 5 * time.Second
)

// Listeners are the sockets of a [Server].
type Listeners struct {
	public, private net.Listener
}

// Listen makes the two sockets in dir, in place of those that an agent before
// left there; the private one with a mode. The caller holds the lock that keeps a
// second agent out, and has set a umask that gives others nothing.
func Listen(dir string, private fs.FileMode) (*Listeners, error) {
	public, err := listen(filepath.Join(dir, PublicSocket), 0o666)
	if err != nil {
		return nil, err
	}
	other, err := listen(filepath.Join(dir, PrivateSocket), private)
	if err != nil {
		_ = public.Close()
		return nil, err
	}
	return &Listeners{public, other}, nil
}

// listen makes one socket. Until its mode is set only the agent's user can
// connect.
func listen(path string, mode fs.FileMode) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace socket: %w", err)
	}
	l, err := net.Listen("unix", path) //nolint:noctx // returns at once
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	return l, nil
}

// Serve answers on the sockets until ctx is done, then lets running requests
// end. It closes the sockets and removes them.
func (s *Server) Serve(ctx context.Context, l *Listeners) error {
	return s.serve(ctx, l, s.Public(), s.Private())
}

// ServeRefusal answers every request on the sockets with err and what to do about
// it, until ctx is done: it is for an agent that cannot begin its work. Whoever
// asks learns why.
func (s *Server) ServeRefusal(ctx context.Context, l *Listeners, err error) error {
	say := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusServiceUnavailable, firstLine(err.Error()), s.hint(err))
	})
	return s.serve(ctx, l, say, s.authorized(say))
}

func (s *Server) serve(ctx context.Context, l *Listeners, publicly, privately http.Handler) error {
	public := s.httpServer(publicly)
	private := s.httpServer(privately)
	errs := make(chan error, 2)
	go func() { errs <- public.Serve(netutil.LimitListener(limitPerUser(l.public, maxPerUser), maxConns)) }()
	go func() { errs <- private.Serve(limitPerUser(l.private, maxPerUser)) }()
	var err error
	ended := 0
	select {
	case <-ctx.Done():
	case err = <-errs:
		ended++
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range []*http.Server{public, private} {
		wg.Go(func() {
			if srv.Shutdown(stop) != nil {
				_ = srv.Close() // whoever still waits has to ask again
			}
		})
	}
	wg.Wait()
	for ; ended < 2; ended++ {
		if e := <-errs; err == nil && !errors.Is(e, http.ErrServerClosed) {
			err = e
		}
	}
	return err
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ConnContext:       connContext,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}
