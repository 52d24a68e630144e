// Package server is what root does for the agent: the five calls of
// proto/loader/v1, each as parse, clear, act, report.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"livepatch/internal/kernel"
	"livepatch/internal/kmsg"
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
	Log() string // what the kernel has said lately
}

// A Server changes the kernel for one request at a time.
type Server struct {
	loaderv1.UnimplementedLoaderServiceServer

	Log     *slog.Logger
	Gate    *gate.Gate
	Modules Modules
	Klp     *klp.Kernel
	Root    fs.FS // of the kernel's files
	Journal *journal.Journal
	Facts   func() (kernel.Facts, error) // of the running kernel, now
	Now     func() time.Time

	// Busy holds a token while a request is changing the kernel; its capacity
	// is 1. The kernel allows one livepatch transition at a time, so a second
	// request is refused at once rather than queued behind it.
	Busy chan struct{}

	cleanBoot string // the last one, before this, that ended with a clean shutdown
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
	opening, received := new(loaderv1.Opening), make(chan error, 1)
	// It ends at the latest when the handler returns, which ends the stream.
	go func() { received <- receive(stream.Recv, &opening, image) }()
	select {
	case err = <-received:
	case <-time.After(receiveTimeout):
		err = fmt.Errorf("%w: it took longer than %v", patch.ErrInvalid, receiveTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot receive patch: %w", err)
	}
	// From here the request is not cancelled: once the kernel has the module,
	// the agent must be told so even if it has stopped waiting.
	resp, err := s.apply(context.WithoutCancel(stream.Context()), opening, image)
	if err != nil {
		return nil, fmt.Errorf("cannot apply %.200q: %w", opening.GetTarget(), err)
	}
	return resp, nil
}

// receive reads an Apply's stream: the opening, then the module into image.
func receive(recv func() (*loaderv1.ApplyRequest, error), opening **loaderv1.Opening, image io.Writer) error {
	first, err := recv()
	*opening = first.GetOpening()
	switch wait := (*opening).GetWait().AsDuration(); {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case *opening == nil:
		return fmt.Errorf("%w: it does not begin with an opening", patch.ErrInvalid)
	case wait < 0 || wait > maxWait:
		return fmt.Errorf("%w: cannot wait %v, at most %v", patch.ErrInvalid, wait, maxWait)
	}
	for {
		req, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && len(req.GetModule()) == 0 {
			err = fmt.Errorf("%w: a message without a piece of the module", patch.ErrInvalid)
		}
		if err == nil {
			_, err = image.Write(req.GetModule())
		}
		if err != nil {
			return err
		}
	}
}

// Update implements [loaderv1.LoaderServiceServer].
func (s *Server) Update(ctx context.Context, req *loaderv1.UpdateRequest) (*loaderv1.UpdateResponse, error) {
	resp := &loaderv1.UpdateResponse{}
	return resp, s.change(ctx, "update", func(ctx context.Context) (err error) {
		if err = s.Gate.Update(metadata(req.GetMetadata())); err == nil {
			resp.Withdrawn, err = s.withdraw(ctx)
		}
		return err
	})
}

// Remove implements [loaderv1.LoaderServiceServer].
func (s *Server) Remove(ctx context.Context, req *loaderv1.RemoveRequest) (*loaderv1.RemoveResponse, error) {
	lp, err := s.changeOne(ctx, "remove", req.GetName(), func(ctx context.Context, e journal.Entry) error { return s.remove(ctx, e, true) })
	return &loaderv1.RemoveResponse{Livepatch: lp}, err
}

// Accept implements [loaderv1.LoaderServiceServer].
func (s *Server) Accept(ctx context.Context, req *loaderv1.AcceptRequest) (*loaderv1.AcceptResponse, error) {
	lp, err := s.changeOne(ctx, "accept", req.GetName(), s.accept)
	return &loaderv1.AcceptResponse{Livepatch: lp}, err
}

// change does one thing while nobody else changes the kernel.
func (s *Server) change(ctx context.Context, what string, do func(context.Context) error) error {
	release, err := s.acquire()
	if err == nil {
		defer release()
		err = do(context.WithoutCancel(ctx))
	}
	if err != nil {
		err = fmt.Errorf("cannot %s: %w", what, err)
		s.Log.WarnContext(ctx, "Refused change", "err", err)
	}
	return rpcerr.ToStatus(ctx, s.Log, err)
}

// changeOne does one thing to a livepatch that this loader inserted, and returns
// what became of it.
func (s *Server) changeOne(ctx context.Context, verb, name string, do func(context.Context, journal.Entry) error) (lp *loaderv1.Livepatch, err error) {
	err = s.change(ctx, fmt.Sprintf("%s %.100q", verb, name), func(ctx context.Context) error {
		e, known := s.Journal.Find(name)
		if !known {
			return patch.ErrNotOurs
		}
		return inOrder(
			func() error { return do(ctx, e) },
			func() (err error) { lp, err = s.livepatch(name); return err })
	})
	return lp, err
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

// Idle calls leave once the function that it returns was not called for a while
// and no change is under way, so that there is no root process at rest.
func (s *Server) Idle(after time.Duration, leave func()) (busy func()) {
	var timer *time.Timer
	timer = time.AfterFunc(after, func() {
		if _, err := s.acquire(); err != nil {
			timer.Reset(after)
			return
		}
		leave() // with the token: no change begins any more
	})
	return func() { timer.Reset(after) }
}

// maxBlockers bounds how many tasks a report names.
const maxBlockers = 16

// report tells what Status answers.
func (s *Server) report() (*loaderv1.StatusResponse, error) {
	f, err := s.Facts()
	trusted, terr := s.Gate.Trusted()
	names, lerr := s.Klp.List()
	if err := cmp.Or(err, terr, lerr); err != nil {
		return nil, err
	}
	for _, e := range s.Journal.All() {
		if !slices.Contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	resp := &loaderv1.StatusResponse{RootVersion: trusted.RootVersion(), CleanBoot: s.cleanBoot, Mode: f.Mode.String(), Kernel: &loaderv1.Kernel{
		Arch: f.Arch, Release: f.Release, BuildId: string(f.BuildID), BootId: f.BootID,
		LivepatchSupported: f.Livepatch, FtraceEnabled: f.Ftrace, ModulesDisabled: f.ModulesDisabled,
		SignatureEnforced: f.SigEnforced, Lockdown: f.Lockdown, SecureBoot: f.SecureBoot, ModuleKeys: f.ModuleKeys, RevokedKeys: f.RevokedKeys,
	}, Complaints: kmsg.Report(s.Root, s.Modules.Log, f.BootID, names)}
	for _, t := range f.Taints {
		resp.Kernel.Taints = append(resp.Kernel.Taints, &loaderv1.Taint{Bit: int32(t.Bit), Letter: t.Letter, Meaning: t.Meaning, Modules: t.Modules})
	}
	for _, name := range names {
		lp, err := s.livepatch(name)
		if err != nil {
			return nil, err
		}
		resp.Livepatches = append(resp.Livepatches, lp)
	}
	return resp, nil
}

// livepatch reports one livepatch.
func (s *Server) livepatch(name string) (*loaderv1.Livepatch, error) {
	state, err := s.Klp.State(name)
	if err != nil {
		return nil, err
	}
	lp := &loaderv1.Livepatch{Name: name, State: loaderv1.State(state)}
	lp.Blockers, lp.BlockerCount = s.Klp.Blockers(state, maxBlockers)
	if e, known := s.Journal.Find(name); known {
		lp.Standing = loaderv1.Standing(loaderv1.Standing_value["STANDING_"+strings.ToUpper(string(e.Standing))])
		lp.Version, lp.Sequence, lp.Digest = e.Version, e.Sequence, e.Digest[:]
		lp.Inserted, lp.Rollout = timestamppb.New(e.Inserted), string(e.Rollout)
	}
	return lp, nil
}
