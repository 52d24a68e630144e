package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/vm/guest"
	"livepatch/tests/vm/machine"
)

// An Offer is what somebody sends to the loader: true, wrong or forged.
type Offer struct {
	Opening *loaderv1.Opening
	Module  []byte
}

// A Repo is a signed repository whose keys the test holds, so that it can say
// anything in anybody's name. [tuftest.Repo] tells how.
type Repo struct {
	*tuftest.Repo
	kernel patch.Kernel
	// version counts what was offered from this repository and all its copies. A
	// machine takes nothing older than what it has seen, even of an offer that it
	// refused in the end, so every offer is newer than the one before.
	version *int
}

// NewRepo returns a repository for the lab's kernel without any patch.
func (l *Lab) NewRepo() *Repo {
	return &Repo{
		Repo: tuftest.New(time.Now()), version: new(int),
		kernel: patch.Kernel{Arch: "x86_64", Release: l.Kernel.Release, BuildID: patch.BuildID(l.Kernel.BuildID)},
	}
}

// Copy returns a copy that can be changed without changing r.
func (r *Repo) Copy() *Repo { return &Repo{Repo: r.Clone(), kernel: r.kernel, version: r.version} }

// Root returns the root that machines are to be shipped with.
func (r *Repo) Root() []byte { return r.Roots[0].Bytes() }

// Publish signs a module as a patch of the lab's kernel and lets everybody have
// it. change, unless it is nil, makes the description say something else.
func (r *Repo) Publish(m Module, version string, sequence uint64, change func(*patch.Module)) (target string) {
	custom := patch.Module{
		Kernel: r.kernel, Flavour: "amd64", Name: m.Name, Version: version, Sequence: sequence,
		Notice: "LSN-TEST-" + version, Fixes: []string{},
	}
	if change != nil {
		change(&custom)
	}
	target = patch.ModulePath("debian", custom)
	r.AddTarget(target, m.Content, custom)
	r.SetRollout(version, patch.Running)
	return target
}

// SetRollout makes the rollout role say that a version is in the given state.
func (r *Repo) SetRollout(version string, state patch.RolloutState) {
	r.AddTarget(patch.RolloutPath("debian", version), nil, patch.Rollout{
		State: state, Tiers: map[string]patch.Stage{"stable": {Share: patch.Everyone}},
	})
}

// Metadata returns the signed metadata, newer than all before, and the files of
// all roles.
func (r *Repo) Metadata() (*loaderv1.Metadata, tuftest.Files) {
	*r.version++
	for _, role := range r.Roles {
		role.Signed["version"] = *r.version
	}
	f := r.Files()
	return &loaderv1.Metadata{
		Roots: f.Roots[1:], Timestamp: f.Roles["timestamp"], Snapshot: f.Roles["snapshot"],
		Targets: f.Roles["targets"], Rollout: f.Roles["rollout"],
	}, f
}

// Offer returns what an honest agent would send for a target.
func (r *Repo) Offer(target string) *Offer {
	metadata, f := r.Metadata()
	return &Offer{
		Opening: &loaderv1.Opening{Target: target, Metadata: metadata, Vendor: f.Roles["debian"], Bin: f.Roles[r.Bin(target)]},
		Module:  f.Content[target],
	}
}

// Wait sets how long the loader is to wait for the transition.
func (o *Offer) Wait(d time.Duration) *Offer {
	o.Opening.Wait = durationpb.New(d)
	return o
}

// A RefusedError is the loader's refusal.
type RefusedError struct {
	Code   string `json:"code"`   // of gRPC
	Reason string `json:"reason"` // of package rpcerr; empty if there was none
	Text   string `json:"text"`
}

// Error returns what the loader said.
func (e *RefusedError) Error() string { return fmt.Sprintf("%s (%s, %s)", e.Text, e.Code, e.Reason) }

// A Caller calls the loader of a machine as one of its users.
type Caller struct {
	Machine  *machine.Machine
	UID, GID uint32
}

// AgentOf returns a caller with the agent's user. It says what the test says, so
// it is also the agent after somebody has taken it over.
func AgentOf(m *machine.Machine) Caller { return Caller{m, AgentUID, AgentUID} }

// Apply sends an offer.
func (c Caller) Apply(ctx context.Context, o *Offer) (*loaderv1.ApplyResponse, error) {
	encoded, err := o.encode()
	if err != nil {
		return nil, err
	}
	resp := new(loaderv1.ApplyResponse)
	return resp, c.call(ctx, "ask-loader apply", encoded, resp)
}

// ApplyLarge sends an offer whose module goes on with as many zeroes.
func (c Caller) ApplyLarge(ctx context.Context, o *Offer, zeroes int) (*loaderv1.ApplyResponse, error) {
	encoded, err := o.encode()
	if err != nil {
		return nil, err
	}
	resp := new(loaderv1.ApplyResponse)
	return resp, c.call(ctx, fmt.Sprintf("ask-loader -zeroes %d apply", zeroes), encoded, resp)
}

// encode writes the offer as ask-loader reads it.
func (o *Offer) encode() ([]byte, error) {
	opening, err := proto.Marshal(o.Opening)
	if err != nil {
		return nil, err
	}
	return slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(len(opening))), opening, o.Module), nil
}

// Status asks what the loader sees.
func (c Caller) Status(ctx context.Context) (*loaderv1.StatusResponse, error) {
	resp := new(loaderv1.StatusResponse)
	return resp, c.call(ctx, "ask-loader status", nil, resp)
}

// Update sends metadata without a patch.
func (c Caller) Update(ctx context.Context, m *loaderv1.Metadata) (*loaderv1.UpdateResponse, error) {
	req, err := proto.Marshal(&loaderv1.UpdateRequest{Metadata: m})
	if err != nil {
		return nil, err
	}
	resp := new(loaderv1.UpdateResponse)
	return resp, c.call(ctx, "ask-loader update", req, resp)
}

// Remove takes a livepatch out.
func (c Caller) Remove(ctx context.Context, name string) (*loaderv1.RemoveResponse, error) {
	resp := new(loaderv1.RemoveResponse)
	return resp, c.call(ctx, "ask-loader remove "+name, nil, resp)
}

// Accept ends the trial of a livepatch.
func (c Caller) Accept(ctx context.Context, name string) (*loaderv1.AcceptResponse, error) {
	resp := new(loaderv1.AcceptResponse)
	return resp, c.call(ctx, "ask-loader accept "+name, nil, resp)
}

// call runs a command that ends with ask-loader's answer. A refusal is a
// [*RefusedError].
func (c Caller) call(ctx context.Context, command string, stdin []byte, resp proto.Message) error {
	res, err := c.Machine.RunRequest(ctx, guest.Request{Command: command, Stdin: stdin, UID: c.UID, GID: c.GID})
	if err != nil {
		return err
	}
	if res.Code != 0 {
		refused := new(RefusedError)
		if json.Unmarshal([]byte(res.Stdout), refused) != nil {
			return fmt.Errorf("cannot run %q: %s", command, res.Stderr)
		}
		return refused
	}
	return protojson.Unmarshal([]byte(res.Stdout), resp)
}
