// Package loadertest is a livepatch-loader for tests: a kernel in memory that
// takes livepatches, with the contract of proto/loader/v1 in front of it.
package loadertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"livepatch/agent/internal/loader"
	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
)

// A Fake is a kernel and its loader. It has the methods of [loader.Client], and
// can be served to one. Fields are changed through Do.
type Fake struct {
	mu sync.Mutex

	Kernel      loader.Kernel
	Livepatches []loader.Livepatch
	RootVersion int64
	CleanBoot   string
	Complaints  []loader.Complaint
	Mode        kernel.Mode

	Err       error // of every call
	ApplyErr  error // of Apply, after it has received everything
	RemoveErr error // of Remove
	Slow      bool  // transitions do not end by themselves

	Calls   []string // "apply lkp_…", "accept lkp_…", "status"
	Applied []Applied
}

// Applied is what an Apply brought.
type Applied struct {
	loader.Request
	Content []byte // of the module
}

// New returns a loader of a healthy kernel.
func New(k patch.Kernel) *Fake {
	return &Fake{
		Kernel: loader.Kernel{
			Kernel: k, BootID: "boot", LivepatchSupported: true, FtraceEnabled: true, Lockdown: "none",
			Taints: []loader.Taint{{Bit: 15, Letter: "K", Meaning: "kernel has been live patched"}},
		},
		RootVersion: 1,
	}
}

// Do changes the fake, or looks at it, while nothing else does.
func (f *Fake) Do(change func(*Fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// Made returns the calls so far but for Status, and forgets them.
func (f *Fake) Made() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := slices.DeleteFunc(f.Calls, func(c string) bool { return c == "status" })
	f.Calls = nil
	return calls
}

// Settle ends the transition that goes on.
func (f *Fake) Settle() {
	f.Do(func(f *Fake) {
		for i := range f.Livepatches {
			if f.Livepatches[i].State == loader.Enabling {
				f.Livepatches[i].State = loader.Enabled
				f.Livepatches[i].Blockers, f.Livepatches[i].BlockerCount = nil, 0
			}
		}
	})
}

// Status is [loader.Client.Status].
func (f *Fake) Status(context.Context) (loader.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Calls = append(f.Calls, "status")
	return loader.Status{
		Kernel: f.Kernel, Livepatches: slices.Clone(f.Livepatches), RootVersion: f.RootVersion,
		CleanBoot: f.CleanBoot, Complaints: slices.Clone(f.Complaints), Mode: f.Mode,
	}, f.Err
}

// Apply is [loader.Client.Apply].
func (f *Fake) Apply(_ context.Context, r loader.Request) (loader.Result, error) {
	content, err := io.ReadAll(r.Module)
	if err != nil {
		return loader.Result{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Calls = append(f.Calls, "apply "+r.Target)
	r.Module = bytes.NewReader(content)
	f.Applied = append(f.Applied, Applied{r, content})
	if err := errors.Join(f.Err, f.ApplyErr); err != nil {
		return loader.Result{}, err
	}
	return f.insert(r, content)
}

// insert puts the module into the kernel, in place of what is there. It trusts
// the metadata, but compares the module with it.
func (f *Fake) insert(r loader.Request, content []byte) (loader.Result, error) {
	var bin struct {
		Signed struct {
			Targets map[string]struct {
				Hashes map[string]patch.Digest `json:"hashes"`
				Custom patch.Module            `json:"custom"`
			} `json:"targets"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(r.Bin, &bin); err != nil {
		return loader.Result{}, patch.ErrMalformed
	}
	t, ok := bin.Signed.Targets[r.Target]
	d := patch.Digest(sha256.Sum256(content))
	switch {
	case !ok:
		return loader.Result{}, patch.ErrNotFound
	case d != t.Hashes["sha256"]:
		return loader.Result{}, patch.ErrTampered
	}
	if err := f.takeRoots(r.Roots); err != nil {
		return loader.Result{}, err
	}
	var result loader.Result
	f.Livepatches = slices.DeleteFunc(f.Livepatches, func(l loader.Livepatch) bool {
		if l.Ours() && l.Live() && l.Name != t.Custom.Name {
			result.Unloaded = append(result.Unloaded, l.Name)
			return true
		}
		return l.Name == t.Custom.Name // the journal has one of each name
	})
	l := loader.Livepatch{Name: t.Custom.Name, State: loader.Enabled, Standing: loader.Trial, Version: t.Custom.Version,
		Sequence: t.Custom.Sequence, Digest: d, Inserted: time.Now()}
	if f.Slow {
		l.State, result.Pending = loader.Enabling, true
		l.Blockers, l.BlockerCount = []loader.Blocker{{TID: 812, Comm: "vhost-812", State: "S (sleeping)"}}, 3
	}
	f.Livepatches = append(f.Livepatches, l)
	result.Livepatch = l
	return result, nil
}

// takeRoots goes to the last of the roots, if each is the next version after the one
// before. It trusts them.
func (f *Fake) takeRoots(roots [][]byte) error {
	for _, b := range roots {
		var root struct {
			Signed struct {
				Version int64 `json:"version"`
			} `json:"signed"`
		}
		if err := json.Unmarshal(b, &root); err != nil {
			return patch.ErrMalformed
		}
		if is, want := root.Signed.Version, f.RootVersion+1; is != want {
			return fmt.Errorf("%w: root is version %d, want %d", patch.ErrMalformed, is, want)
		}
		f.RootVersion++
	}
	return nil
}

// Update is [loader.Client.Update]. It trusts the metadata, and has nothing to go
// back to.
func (f *Fake) Update(_ context.Context, m loader.Metadata) (withdrawn []string, err error) {
	var rollouts struct {
		Signed struct {
			Targets map[string]struct {
				Custom patch.Rollout `json:"custom"`
			} `json:"targets"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(m.Rollout, &rollouts); err != nil {
		return nil, patch.ErrMalformed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Calls = append(f.Calls, "update")
	if f.Err != nil {
		return nil, f.Err
	}
	if err := f.takeRoots(m.Roots); err != nil {
		return nil, err
	}
	for i := range f.Livepatches {
		l := &f.Livepatches[i]
		for path, t := range rollouts.Signed.Targets {
			if strings.HasSuffix(path, "_"+l.Version) && l.Ours() {
				l.Rollout = t.Custom.At(f.Kernel.Kernel)
			}
		}
		if l.Rollout == patch.Revoked && l.Live() {
			l.State, l.Standing = loader.Absent, loader.Quarantined
			withdrawn = append(withdrawn, l.Name)
		}
	}
	return withdrawn, nil
}

// Accept is [loader.Client.Accept].
func (f *Fake) Accept(_ context.Context, name string) (loader.Livepatch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Calls = append(f.Calls, "accept "+name)
	for i, l := range f.Livepatches {
		if l.Name == name {
			f.Livepatches[i].Standing = loader.Accepted
			return f.Livepatches[i], f.Err
		}
	}
	return loader.Livepatch{}, patch.ErrNotFound
}

// Remove is [loader.Client.Remove]. None of those that were accepted returns then.
func (f *Fake) Remove(_ context.Context, name string) (loader.Livepatch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Calls = append(f.Calls, "remove "+name)
	if err := errors.Join(f.Err, f.RemoveErr); err != nil {
		return loader.Livepatch{}, err
	}
	i := slices.IndexFunc(f.Livepatches, func(l loader.Livepatch) bool { return l.Name == name && l.Ours() })
	if i < 0 {
		return loader.Livepatch{}, patch.ErrNotOurs
	}
	f.Livepatches[i].State, f.Livepatches[i].Standing = loader.Absent, loader.Quarantined
	for i := range f.Livepatches {
		if f.Livepatches[i].Standing == loader.Accepted {
			f.Livepatches[i].Standing = loader.Quarantined
		}
	}
	return f.Livepatches[i], nil
}

// Serve answers on a unix socket until the returned function is called.
func (f *Fake) Serve(socket string) (stop func(), err error) {
	l, err := net.Listen("unix", socket) //nolint:noctx // returns at once
	if err != nil {
		return nil, err
	}
	return f.ServeOn(l), nil
}

// ServeOn is Serve for a listener.
func (f *Fake) ServeOn(l net.Listener) (stop func()) {
	srv := grpc.NewServer()
	loaderv1.RegisterLoaderServiceServer(srv, &server{fake: f})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends when it is stopped
	}()
	return func() { srv.Stop(); <-done }
}

type server struct {
	loaderv1.UnimplementedLoaderServiceServer
	fake *Fake
}

func toStatus(ctx context.Context, err error) error {
	return rpcerr.ToStatus(ctx, slog.New(slog.DiscardHandler), err)
}

func (s *server) Status(ctx context.Context, _ *loaderv1.StatusRequest) (*loaderv1.StatusResponse, error) {
	st, err := s.fake.Status(ctx)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	res := &loaderv1.StatusResponse{RootVersion: st.RootVersion, Kernel: &loaderv1.Kernel{
		Arch: st.Kernel.Arch, Release: st.Kernel.Release, BuildId: string(st.Kernel.BuildID), BootId: st.Kernel.BootID,
		LivepatchSupported: st.Kernel.LivepatchSupported, FtraceEnabled: st.Kernel.FtraceEnabled, ModulesDisabled: st.Kernel.ModulesDisabled,
		SignatureEnforced: st.Kernel.SignatureEnforced, Lockdown: st.Kernel.Lockdown,
		SecureBoot: st.Kernel.SecureBoot, ModuleKeys: st.Kernel.ModuleKeys, RevokedKeys: st.Kernel.RevokedKeys,
	}}
	res.CleanBoot, res.Mode = st.CleanBoot, st.Mode.String()
	for _, c := range st.Complaints {
		res.Complaints = append(res.Complaints, &loaderv1.Complaint{Name: c.Name, Signature: c.Signature, Message: c.Message, BootId: c.BootID})
	}
	for _, t := range st.Kernel.Taints {
		res.Kernel.Taints = append(res.Kernel.Taints, &loaderv1.Taint{Bit: int32(t.Bit), Letter: t.Letter, Meaning: t.Meaning, Modules: t.Modules})
	}
	for _, l := range st.Livepatches {
		res.Livepatches = append(res.Livepatches, toProto(l))
	}
	return res, nil
}

func (s *server) Apply(stream loaderv1.LoaderService_ApplyServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	o := first.GetOpening()
	if o == nil {
		return toStatus(stream.Context(), fmt.Errorf("%w: no opening", patch.ErrInvalid))
	}
	var module bytes.Buffer
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(m.GetModule()) == 0 || len(m.GetModule()) > 64<<10 {
			return toStatus(stream.Context(), fmt.Errorf("%w: %d bytes in a piece", patch.ErrInvalid, len(m.GetModule())))
		}
		module.Write(m.GetModule())
	}
	result, err := s.fake.Apply(stream.Context(), loader.Request{
		Target: o.GetTarget(), Metadata: fromProto(o.GetMetadata()),
		Vendor: o.GetVendor(), Bin: o.GetBin(), Module: &module, Wait: o.GetWait().AsDuration(),
	})
	if err != nil {
		return toStatus(stream.Context(), err)
	}
	outcome := loaderv1.Outcome_OUTCOME_APPLIED
	if result.Pending {
		outcome = loaderv1.Outcome_OUTCOME_TRANSITION_PENDING
	}
	return stream.SendAndClose(&loaderv1.ApplyResponse{Outcome: outcome, Livepatch: toProto(result.Livepatch), Unloaded: result.Unloaded})
}

func fromProto(m *loaderv1.Metadata) loader.Metadata {
	return loader.Metadata{Roots: m.GetRoots(), Timestamp: m.GetTimestamp(), Snapshot: m.GetSnapshot(), Targets: m.GetTargets(), Rollout: m.GetRollout()}
}

func (s *server) Update(ctx context.Context, r *loaderv1.UpdateRequest) (*loaderv1.UpdateResponse, error) {
	withdrawn, err := s.fake.Update(ctx, fromProto(r.GetMetadata()))
	return &loaderv1.UpdateResponse{Withdrawn: withdrawn}, toStatus(ctx, err)
}

func (s *server) Accept(ctx context.Context, r *loaderv1.AcceptRequest) (*loaderv1.AcceptResponse, error) {
	l, err := s.fake.Accept(ctx, r.GetName())
	return &loaderv1.AcceptResponse{Livepatch: toProto(l)}, toStatus(ctx, err)
}

func (s *server) Remove(ctx context.Context, r *loaderv1.RemoveRequest) (*loaderv1.RemoveResponse, error) {
	l, err := s.fake.Remove(ctx, r.GetName())
	return &loaderv1.RemoveResponse{Livepatch: toProto(l)}, toStatus(ctx, err)
}

func toProto(l loader.Livepatch) *loaderv1.Livepatch {
	p := &loaderv1.Livepatch{
		Name:     l.Name,
		State:    loaderv1.State(loaderv1.State_value["STATE_"+strings.ToUpper(string(l.State))]),
		Standing: loaderv1.Standing(loaderv1.Standing_value["STANDING_"+strings.ToUpper(string(l.Standing))]),
		Version:  l.Version, Sequence: l.Sequence, BlockerCount: int32(l.BlockerCount), Rollout: string(l.Rollout),
	}
	if l.Digest != (patch.Digest{}) {
		p.Digest = l.Digest[:]
	}
	if !l.Inserted.IsZero() {
		p.Inserted = timestamppb.New(l.Inserted)
	}
	for _, b := range l.Blockers {
		p.Blockers = append(p.Blockers, &loaderv1.Blocker{Tid: int32(b.TID), Comm: b.Comm, State: b.State})
	}
	return p
}
