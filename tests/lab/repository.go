package lab

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/tuftest"
	loaderv1 "livepatch/proto/loader/v1"
)

// Vendor is the name of the vendor that signs the patches of tests.
const Vendor = "debian"

// A Repository holds signed patches whose keys the test has, all of them. Its
// files are handed to a loader directly, as by an agent that somebody has taken
// over, or served by a [Front].
type Repository struct{ *tuftest.Repo }

// NewRepository returns a repository with patches.
func NewRepository(now time.Time, modules ...Module) Repository {
	r := Repository{tuftest.New(now)}
	for _, m := range modules {
		r.Add(m)
	}
	return r
}

// List puts the index of the kernel into the repository, with these patches.
func (r Repository) List(modules ...Module) {
	ix := patch.Index{
		Arch: Running.Arch, Release: Running.Release, Flavour: "amd64", KernelVersion: kernelPackage,
		From: time.Now().AddDate(0, -1, 0).Format(time.DateOnly), Until: time.Now().AddDate(1, 0, 0).Format(time.DateOnly),
	}
	for _, m := range modules {
		fixes := []patch.Fix{}
		for _, f := range m.Fixes {
			fixes = append(fixes, patch.Fix{Name: f, Priority: patch.High})
		}
		ix.Patches = append(ix.Patches, patch.IndexEntry{
			Target: m.Path(), Name: m.Name, Version: m.Version, Sequence: m.Sequence, BuildID: m.BuildID,
			Notice: m.Notice, Added: time.Now().UTC().Format(time.RFC3339), Fixes: fixes,
		})
	}
	content, err := json.Marshal(ix)
	if err != nil {
		panic(err) // strings and numbers
	}
	target := patch.IndexPath(Vendor, Running.Release, Running.Arch)
	r.AddTarget(target, content, nil)
	r.Publish(r.Bin(target))
}

// Add publishes a patch to everybody.
func (r Repository) Add(m Module) {
	r.AddTarget(m.Path(), m.Content, m.Module)
	r.AddTarget(patch.RolloutPath(Vendor, m.Version), nil, patch.Rollout{
		State: patch.Running, Tiers: map[string]patch.Stage{"stable": {Share: patch.Everyone}},
	})
	r.Publish(r.Bin(m.Path()), patch.RolloutRole)
}

// Path returns where the module lies in a repository.
func (m Module) Path() string { return patch.ModulePath(Vendor, m.Module) }

// Pinned returns the root that machines are shipped with.
func (r Repository) Pinned() []byte { return r.Files().Roots[0] }

// Opening returns what an honest agent would send first.
func (r Repository) Opening(m Module) *loaderv1.Opening {
	f := r.Files()
	return &loaderv1.Opening{
		Target: m.Path(), Metadata: r.Metadata(), Vendor: f.Roles[Vendor], Bin: f.Roles[r.Bin(m.Path())],
	}
}

// Metadata returns the signed metadata that is not about one patch.
func (r Repository) Metadata() *loaderv1.Metadata {
	f := r.Files()
	return &loaderv1.Metadata{
		Roots: f.Roots[1:], Timestamp: f.Roles["timestamp"], Snapshot: f.Roles["snapshot"],
		Targets: f.Roles["targets"], Rollout: f.Roles[patch.RolloutRole],
	}
}

// Apply sends a patch to the loader. Its errors match those of package patch.
func Apply(t *testing.T, c loaderv1.LoaderServiceClient, o *loaderv1.Opening, content []byte) (*loaderv1.ApplyResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	return ApplyWith(ctx, c, o, content)
}

// ApplyWith is Apply that ends with ctx.
func ApplyWith(ctx context.Context, c loaderv1.LoaderServiceClient, o *loaderv1.Opening, content []byte) (*loaderv1.ApplyResponse, error) {
	stream, err := c.Apply(ctx)
	if err != nil {
		return nil, rpcerr.FromStatus(err)
	}
	err = Send(stream, o, content)
	if err != nil && !errors.Is(err, io.EOF) { // then the answer says why
		return nil, rpcerr.FromStatus(err)
	}
	resp, err := stream.CloseAndRecv()
	return resp, rpcerr.FromStatus(err)
}

// Send sends an opening and then the module in pieces.
func Send(stream loaderv1.LoaderService_ApplyClient, o *loaderv1.Opening, content []byte) error {
	const chunk = 64 << 10
	if err := stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: o}}); err != nil {
		return err
	}
	for len(content) > 0 {
		n := min(len(content), chunk)
		if err := stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: content[:n]}}); err != nil {
			return err
		}
		content = content[n:]
	}
	return nil
}

// MustApply is apply for a patch that has to get in with an outcome.
func MustApply(t *testing.T, c loaderv1.LoaderServiceClient, r Repository, m Module, want loaderv1.Outcome) *loaderv1.ApplyResponse {
	t.Helper()
	resp, err := Apply(t, c, r.Opening(m), m.Content)
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetOutcome() != want {
		t.Fatalf("outcome = %v, want %v", resp.GetOutcome(), want)
	}
	return resp
}

// Waiting returns a copy of an opening that waits as long for the transition.
func Waiting(o *loaderv1.Opening, wait time.Duration) *loaderv1.Opening {
	o = proto.CloneOf(o)
	o.Wait = durationpb.New(wait)
	return o
}
