// Package loader is the agent's side of the contract with livepatch-loader.
//
// The loader is started when somebody connects and leaves when it has been idle
// for a while, so every call makes its own connection and ends it.
package loader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
)

// ErrAway means that the loader could not be reached.
var ErrAway = errors.New("livepatch-loader cannot be reached")

// ErrForbidden means that the loader hung up before a word was said: as it does
// with a user that it does not talk to, and as it looks when it dies at once.
var ErrForbidden = errors.New("livepatch-loader hung up: it does not accept the agent's user, or it failed")

// Time limits for the calls that only read or write a little, and for those
// that change the kernel.
const (
	shortTimeout = 20 * time.Second
	longTimeout  = 11 * time.Minute // the longest wait of the contract, and some
)

// chunk is how much of a module one message of the contract carries.
const chunk = 64 << 10

// A Client calls the loader that listens on a socket.
type Client struct {
	socket string
}

// New returns a client of the loader at socket.
func New(socket string) *Client { return &Client{socket} }

// A State is what the kernel says of a livepatch: the name of a loader.v1.State
// in lower case.
type State string

// The states. Anything else is a state that this version does not know.
const (
	Absent    State = "absent"
	Enabled   State = "enabled"
	Enabling  State = "enabling"
	Disabling State = "disabling"
	Disabled  State = "disabled"
)

// A Standing is what the loader's journal says of a livepatch: the name of a
// loader.v1.Standing in lower case. The zero Standing is that of a livepatch
// which somebody else inserted.
type Standing string

// The standings.
const (
	Inserting   Standing = "inserting"
	Trial       Standing = "trial"
	Accepted    Standing = "accepted"
	Suspect     Standing = "suspect"
	Quarantined Standing = "quarantined"
)

// A Status is what the loader sees.
type Status struct {
	Kernel      Kernel
	Livepatches []Livepatch
	RootVersion int64  // of the newest TUF root that the loader trusts
	CleanBoot   string // the last boot that ended with a clean shutdown, "" if none did
	Complaints  []Complaint
	Mode        kernel.Mode // what the operator has switched off
}

// A Complaint is what the kernel has said against a livepatch of ours.
type Complaint struct {
	Name      string // of the module
	Signature string // what makes two of them the same on different machines
	Message   string // the kernel's words
	BootID    string // "" for a record of an earlier boot
}

// A Kernel tells which kernel runs and what it lets in.
type Kernel struct {
	patch.Kernel
	BootID             string
	LivepatchSupported bool
	FtraceEnabled      bool
	ModulesDisabled    bool
	SignatureEnforced  bool
	Lockdown           string
	SecureBoot         *bool    // nil: the firmware does not say
	ModuleKeys         []string // subject key identifiers, lower-case hexadecimal; none: they cannot be told
	RevokedKeys        []string // "tbs:" and a hash, "key:" and a subject key identifier
	Taints             []Taint
}

// A Taint is one set bit of /proc/sys/kernel/tainted.
type Taint struct {
	Bit             int
	Letter, Meaning string
	Modules         []string
}

// A Livepatch is one patch, as the kernel and the journal see it.
type Livepatch struct {
	Name         string
	State        State
	Standing     Standing
	Version      string // "" if the journal does not know the patch
	Sequence     uint64
	Digest       patch.Digest
	Inserted     time.Time
	Blockers     []Blocker
	BlockerCount int
	Rollout      patch.RolloutState // as the loader has last seen it, "" if never
}

// Ours tells whether this loader inserted the patch.
func (l Livepatch) Ours() bool { return l.Standing != "" }

// Live tells whether the patch is in force, or on the way there.
func (l Livepatch) Live() bool { return l.State == Enabled || l.State == Enabling }

// Returns tells whether the patch is not in force, and may be the one that the loader
// brings back at boot.
func (l Livepatch) Returns() bool {
	return l.Standing == Accepted && !l.Live() && l.Rollout != patch.Revoked
}

// Returning returns the newest patch that returns at boot, of whatever kernel, or nil.
func (s Status) Returning() *Livepatch {
	var newest *Livepatch
	for i := range s.Livepatches {
		if l := &s.Livepatches[i]; l.Returns() && (newest == nil || l.Sequence > newest.Sequence) {
			newest = l
		}
	}
	return newest
}

// A Blocker is a task that has not switched.
type Blocker struct {
	TID   int
	Comm  string
	State string // "R (running)"
}

// Metadata is one update of the signed metadata. It is sent byte for byte.
type Metadata struct {
	Roots [][]byte // those after Status.RootVersion, in order

	Timestamp, Snapshot, Targets, Rollout []byte
}

// A Request is what Apply sends.
type Request struct {
	Metadata
	Target      string
	Vendor, Bin []byte

	Module io.Reader
	Wait   time.Duration // for the transition; 0: as long as the loader likes
}

// A Result is how an Apply ended well.
type Result struct {
	Livepatch Livepatch
	Already   bool // it was in force before
	Pending   bool // the transition goes on
	Unloaded  []string
}

// Status asks what the loader sees.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, shortTimeout, func(ctx context.Context, cl loaderv1.LoaderServiceClient) error {
		res, err := cl.Status(ctx, &loaderv1.StatusRequest{})
		if err == nil {
			s = fromStatus(res)
		}
		return err
	})
	return s, err
}

// Update hands newer signed metadata to the loader. It returns the names of the
// patches that are revoked and have left the kernel for it.
func (c *Client) Update(ctx context.Context, m Metadata) (withdrawn []string, err error) {
	err = c.call(ctx, longTimeout, func(ctx context.Context, cl loaderv1.LoaderServiceClient) error {
		res, err := cl.Update(ctx, &loaderv1.UpdateRequest{Metadata: m.proto()})
		withdrawn = res.GetWithdrawn()
		return err
	})
	return withdrawn, err
}

func (m Metadata) proto() *loaderv1.Metadata {
	return &loaderv1.Metadata{Roots: m.Roots, Timestamp: m.Timestamp, Snapshot: m.Snapshot, Targets: m.Targets, Rollout: m.Rollout}
}

// Accept ends the trial of a patch.
func (c *Client) Accept(ctx context.Context, name string) (Livepatch, error) {
	var l Livepatch
	err := c.call(ctx, shortTimeout, func(ctx context.Context, cl loaderv1.LoaderServiceClient) error {
		res, err := cl.Accept(ctx, &loaderv1.AcceptRequest{Name: name})
		l = fromLivepatch(res.GetLivepatch())
		return err
	})
	return l, err
}

// Remove takes a patch out of the kernel.
func (c *Client) Remove(ctx context.Context, name string) (Livepatch, error) {
	var l Livepatch
	err := c.call(ctx, longTimeout, func(ctx context.Context, cl loaderv1.LoaderServiceClient) error {
		res, err := cl.Remove(ctx, &loaderv1.RemoveRequest{Name: name})
		l = fromLivepatch(res.GetLivepatch())
		return err
	})
	return l, err
}

// Apply brings a livepatch into the kernel. Errors that the loader has a reason
// for match a sentinel of package patch.
func (c *Client) Apply(ctx context.Context, r Request) (Result, error) {
	var result Result
	err := c.call(ctx, longTimeout, func(ctx context.Context, cl loaderv1.LoaderServiceClient) error {
		stream, err := cl.Apply(ctx)
		if err != nil {
			return err
		}
		// io.EOF from a Send means that the loader has already answered: why, is
		// in the answer.
		if err := sendAll(stream, r); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		res, err := stream.CloseAndRecv()
		if err != nil {
			return err
		}
		result = Result{
			Livepatch: fromLivepatch(res.GetLivepatch()),
			Already:   res.GetOutcome() == loaderv1.Outcome_OUTCOME_ALREADY_APPLIED,
			Pending:   res.GetOutcome() == loaderv1.Outcome_OUTCOME_TRANSITION_PENDING,
			Unloaded:  res.GetUnloaded(),
		}
		if res.GetOutcome() == loaderv1.Outcome_OUTCOME_UNSPECIFIED {
			return fmt.Errorf("loader did not say how applying ended: %w", patch.ErrTransitionFailed)
		}
		return nil
	})
	return result, err
}

// call connects, calls f and explains its error.
func (c *Client) call(ctx context.Context, limit time.Duration, f func(context.Context, loaderv1.LoaderServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///livepatch-loader",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket; who is there, its folder's owner decides
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithReadBufferSize(4<<10),
		grpc.WithWriteBufferSize(chunk),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)),
	)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAway, err)
	}
	defer func() { _ = conn.Close() }() // all was answered, or nothing matters
	return explain(f(ctx, loaderv1.NewLoaderServiceClient(conn)), c.socket)
}

// explain turns a status of gRPC into an error that a caller can branch on.
func explain(err error, socket string) error {
	if err == nil {
		return nil
	}
	if err := rpcerr.FromStatus(err); errors.As(err, new(*rpcerr.Error)) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch st.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: no answer in time", ErrAway)
	case codes.Unavailable:
		// The loader closes the connection of a peer that it does not talk to
		// before a byte has gone either way.
		if strings.Contains(st.Message(), "permission denied") || strings.Contains(st.Message(), " preface") {
			return fmt.Errorf("%w: %s", ErrForbidden, socket)
		}
		return fmt.Errorf("%w: %s", ErrAway, cause(st.Message()))
	default:
		return fmt.Errorf("loader failed: %s", cause(st.Message()))
	}
}

// cause takes gRPC's own words off a message, of which the last part says most:
// "dial unix /run/loader.sock: connect: no such file or directory".
func cause(s string) string {
	if i := strings.LastIndex(s, "dial unix"); i >= 0 {
		s = s[i:]
	}
	s = strings.Join(strings.Fields(strings.TrimRight(s, `"`)), " ")
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}

// sendAll sends the opening and the module.
func sendAll(stream loaderv1.LoaderService_ApplyClient, r Request) error {
	opening := &loaderv1.Opening{
		Target:   r.Target,
		Metadata: r.proto(),
		Vendor:   r.Vendor,
		Bin:      r.Bin,
	}
	if r.Wait > 0 {
		opening.Wait = durationpb.New(r.Wait)
	}
	if err := stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: opening}}); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for {
		// Send has serialized the message when it returns, so the buffer is free
		// again.
		n, err := io.ReadFull(r.Module, buf)
		if n > 0 {
			if err := stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: buf[:n]}}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read module from the cache: %w", err)
		}
	}
}
