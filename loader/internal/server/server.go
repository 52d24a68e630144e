// Package server is what root does for the agent: the four calls of
// proto/loader/v1, each as parse, clear, act, report.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/loader/internal/gate"
	"livepatch/loader/internal/journal"
	"livepatch/loader/internal/klp"
	loaderv1 "livepatch/proto/loader/v1"
)

// Modules changes which modules are loaded; package kmod implements it.
type Modules interface {
	Insert(*gate.Cleared) error
	Delete(name string) error
}

// A Server changes the kernel for one request at a time.
type Server struct {
	loaderv1.UnimplementedLoaderServiceServer

	Log     *slog.Logger
	Gate    *gate.Gate
	Modules Modules
	Klp     *klp.Kernel
	Journal *journal.Journal
	Facts   func() (kernel.Facts, error) // of the running kernel, now
	Now     func() time.Time

	// Busy holds a token while a request is changing the kernel; its capacity
	// is 1. The kernel allows one livepatch transition at a time, so a second
	// request is refused at once rather than queued behind it.
	Busy chan struct{}
}

// How long a call waits for a transition. The transition itself is never cut
// short: that takes a reboot or the operator's word.
const (
	defaultWait = 30 * time.Second
	maxWait     = 10 * time.Minute
)

// receiveTimeout is how long a client may take to send everything. It is local
// data: a client that is slower holds the only place for nothing.
const receiveTimeout = 2 * time.Minute

// maxRoots bounds how many roots one update walks through.
const maxRoots = 64

// Status implements [loaderv1.LoaderServiceServer].
func (s *Server) Status(ctx context.Context, _ *loaderv1.StatusRequest) (*loaderv1.StatusResponse, error) {
	if release, err := s.acquire(); err == nil {
		s.settleOpen(ctx)
		release()
	}
	resp, err := s.report()
	return resp, rpcerr.ToStatus(ctx, s.Log, err)
}

// Apply implements [loaderv1.LoaderServiceServer].
func (s *Server) Apply(stream loaderv1.LoaderService_ApplyServer) error {
	resp, err := s.receiveAndApply(stream)
	if err != nil {
		s.Log.WarnContext(stream.Context(), "Refused livepatch", "err", err)
		return rpcerr.ToStatus(stream.Context(), s.Log, err)
	}
	return stream.SendAndClose(resp)
}

func (s *Server) receiveAndApply(stream loaderv1.LoaderService_ApplyServer) (*loaderv1.ApplyResponse, error) {
	release, err := s.acquire()
	if err != nil {
		return nil, fmt.Errorf("cannot apply: %w", err)
	}
	defer release()
	image, err := gate.NewImage()
	if err != nil {
		return nil, fmt.Errorf("cannot apply: %w", err)
	}
	defer image.Close()
	steps := newSteps()
	var opening *loaderv1.Opening
	received := make(chan error, 1)
	go func() { // ends at the latest when the handler returns, which ends the stream
		var err error
		opening, err = receive(stream.Recv, image)
		received <- err
	}()
	select {
	case err = <-received:
	case <-time.After(receiveTimeout):
		err = fmt.Errorf("%w: it took longer than %v", patch.ErrInvalid, receiveTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot receive patch: %w", err)
	}
	steps.done("receive")
	// From here the request is not cancelled: once the kernel has the module,
	// the agent must be told so even if it has stopped waiting.
	resp, err := s.apply(context.WithoutCancel(stream.Context()), opening, image, steps)
	if err != nil {
		return nil, fmt.Errorf("cannot apply %q: %w", opening.GetTarget(), err)
	}
	return resp, nil
}

// receive reads an Apply's stream: the opening, then the module into image.
func receive(recv func() (*loaderv1.ApplyRequest, error), image io.Writer) (*loaderv1.Opening, error) {
	first, err := recv()
	opening := first.GetOpening()
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case opening == nil:
		return nil, fmt.Errorf("%w: it does not begin with an opening", patch.ErrInvalid)
	case len(opening.GetRoots()) > maxRoots:
		return nil, fmt.Errorf("%w: %d roots, at most %d", patch.ErrTooLarge, len(opening.GetRoots()), maxRoots)
	case opening.GetWait().AsDuration() < 0 || opening.GetWait().AsDuration() > maxWait:
		return nil, fmt.Errorf("%w: cannot wait %v, at most %v", patch.ErrInvalid, opening.GetWait().AsDuration(), maxWait)
	}
	for {
		req, err := recv()
		if errors.Is(err, io.EOF) {
			return opening, nil
		}
		if err == nil && len(req.GetModule()) == 0 {
			err = fmt.Errorf("%w: a message without a piece of the module", patch.ErrInvalid)
		}
		if err == nil {
			_, err = image.Write(req.GetModule())
		}
		if err != nil {
			return nil, err
		}
	}
}

// Remove implements [loaderv1.LoaderServiceServer].
func (s *Server) Remove(ctx context.Context, req *loaderv1.RemoveRequest) (*loaderv1.RemoveResponse, error) {
	lp, err := s.change(ctx, "remove", req.GetName(), s.remove)
	return &loaderv1.RemoveResponse{Livepatch: lp}, err
}

// Accept implements [loaderv1.LoaderServiceServer].
func (s *Server) Accept(ctx context.Context, req *loaderv1.AcceptRequest) (*loaderv1.AcceptResponse, error) {
	lp, err := s.change(ctx, "accept", req.GetName(), s.accept)
	return &loaderv1.AcceptResponse{Livepatch: lp}, err
}

// change does one thing to a livepatch that this loader inserted, and returns
// what became of it.
func (s *Server) change(ctx context.Context, verb, name string, do func(context.Context, journal.Entry) error) (*loaderv1.Livepatch, error) {
	release, err := s.acquire()
	if err == nil {
		defer release()
		var e journal.Entry
		if e, err = s.ours(name); err == nil {
			err = do(context.WithoutCancel(ctx), e)
		}
	}
	if err != nil {
		err = fmt.Errorf("cannot %s %q: %w", verb, name, err)
		s.Log.WarnContext(ctx, "Refused change", "err", err)
		return nil, rpcerr.ToStatus(ctx, s.Log, err)
	}
	return s.livepatch(name)
}

// ours returns the journal's entry of a livepatch.
func (s *Server) ours(name string) (journal.Entry, error) {
	if err := patch.CheckModuleName(name); err != nil {
		return journal.Entry{}, err
	}
	e, known := s.Journal.Find(name)
	if known {
		return e, nil
	}
	state, err := s.Klp.State(name)
	if state != klp.Absent {
		return e, cmp.Or(err, patch.ErrNotOurs)
	}
	return e, patch.ErrNotFound
}

// acquire takes the token, or says that somebody has it.
func (s *Server) acquire() (release func(), err error) {
	select {
	case s.Busy <- struct{}{}:
		return func() { <-s.Busy }, nil
	default:
		return nil, fmt.Errorf("%w: another request is changing the kernel", patch.ErrBusy)
	}
}
