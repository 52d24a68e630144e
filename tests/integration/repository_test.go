//go:build integration

package integration

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

const vendor = "debian"

// A repository holds signed patches whose keys the test has, all of them. Its
// files are handed to a loader directly, as by an agent that somebody has taken
// over, or served by a [front].
type repository struct{ *tuftest.Repo }

// newRepository returns a repository with patches.
func newRepository(now time.Time, modules ...module) repository {
	r := repository{tuftest.New(now)}
	for _, m := range modules {
		r.add(m)
	}
	return r
}

// list puts the index of the kernel into the repository, with these patches.
func (r repository) list(modules ...module) {
	ix := patch.Index{
		Arch: running.Arch, Release: running.Release, Flavour: "amd64", KernelVersion: kernelPackage,
		From: time.Now().AddDate(0, -1, 0).Format(time.DateOnly), Until: time.Now().AddDate(1, 0, 0).Format(time.DateOnly),
	}
	for _, m := range modules {
		fixes := []patch.Fix{}
		for _, f := range m.Fixes {
			fixes = append(fixes, patch.Fix{Name: f, Priority: patch.High})
		}
		ix.Patches = append(ix.Patches, patch.IndexEntry{
			Target: m.path(), Name: m.Name, Version: m.Version, Sequence: m.Sequence, BuildID: m.BuildID,
			Notice: m.Notice, Added: time.Now().UTC().Format(time.RFC3339), Fixes: fixes,
		})
	}
	content, err := json.Marshal(ix)
	if err != nil {
		panic(err) // strings and numbers
	}
	target := patch.IndexPath(vendor, running.Release, running.Arch)
	r.AddTarget(target, content, nil)
	r.Publish(r.Bin(target))
}

// add publishes a patch to everybody.
func (r repository) add(m module) {
	r.AddTarget(m.path(), m.content, m.Module)
	r.AddTarget(patch.RolloutPath(vendor, m.Version), nil, patch.Rollout{
		State: patch.Running, Tiers: map[string]patch.Stage{"stable": {Share: patch.Everyone}},
	})
	r.Publish(r.Bin(m.path()), patch.RolloutRole)
}

func (m module) path() string { return patch.ModulePath(vendor, m.Module) }

// pinned returns the root that machines are shipped with.
func (r repository) pinned() []byte { return r.Files().Roots[0] }

// opening returns what an honest agent would send first.
func (r repository) opening(m module) *loaderv1.Opening {
	f := r.Files()
	return &loaderv1.Opening{
		Target: m.path(), Roots: f.Roots[1:], Timestamp: f.Roles["timestamp"], Snapshot: f.Roles["snapshot"],
		Targets: f.Roles["targets"], Vendor: f.Roles[vendor], Bin: f.Roles[r.Bin(m.path())], Rollout: f.Roles[patch.RolloutRole],
	}
}

// apply sends a patch to the loader. Its errors match those of package patch.
func apply(t *testing.T, c loaderv1.LoaderServiceClient, o *loaderv1.Opening, content []byte) (*loaderv1.ApplyResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return applyWith(ctx, c, o, content)
}

func applyWith(ctx context.Context, c loaderv1.LoaderServiceClient, o *loaderv1.Opening, content []byte) (*loaderv1.ApplyResponse, error) {
	stream, err := c.Apply(ctx)
	if err != nil {
		return nil, rpcerr.FromStatus(err)
	}
	err = send(stream, o, content)
	if err != nil && !errors.Is(err, io.EOF) { // then the answer says why
		return nil, rpcerr.FromStatus(err)
	}
	resp, err := stream.CloseAndRecv()
	return resp, rpcerr.FromStatus(err)
}

func send(stream loaderv1.LoaderService_ApplyClient, o *loaderv1.Opening, content []byte) error {
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

// mustApply is apply for a patch that has to get in with an outcome.
func mustApply(t *testing.T, c loaderv1.LoaderServiceClient, r repository, m module, want loaderv1.Outcome) *loaderv1.ApplyResponse {
	t.Helper()
	resp, err := apply(t, c, r.opening(m), m.content)
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetOutcome() != want {
		t.Fatalf("outcome = %v, want %v", resp.GetOutcome(), want)
	}
	return resp
}

// waiting returns a copy of an opening that waits as long for the transition.
func waiting(o *loaderv1.Opening, wait time.Duration) *loaderv1.Opening {
	o = proto.CloneOf(o)
	o.Wait = durationpb.New(wait)
	return o
}
