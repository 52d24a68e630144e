package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/server/internal/store"
)

// rehearse lets the loader's verifier look at the repository as it would be
// after the publication, down to each bin that is new. Two verifiers guard a
// kernel; what one of them refuses is better refused here than on a million
// machines.
func (p *proposal) rehearse(ctx context.Context) error {
	set, err := p.rehearseTop(ctx)
	if err != nil {
		return fmt.Errorf("%w: the loader's verifier refuses it: %w", ErrUntrusted, err)
	}
	load := func(role string, version int64) ([]byte, error) {
		if f, ok := p.new[role]; ok {
			return f.body, nil
		}
		f, err := p.tx.File(ctx, role, version)
		return f.Body, err
	}
	for bin, probe := range p.probes {
		// Whether the bin lists the probe does not matter: the verifier has seen
		// the bin before it can say no.
		if _, err := set.Find(probe, load); err != nil && !errors.Is(err, patch.ErrNotFound) {
			return fmt.Errorf("%w: the loader's verifier refuses role %q: %w", ErrUntrusted, bin, err)
		}
	}
	return ctx.Err()
}

// rehearseTop verifies root, timestamp and snapshot as they would be. The last
// two are signed for this and then forgotten.
func (p *proposal) rehearseTop(ctx context.Context) (*tuf.Set, error) {
	roots := p.roots
	var first []byte
	if have := p.state.Roles[metadata.ROOT].Version; have > 0 {
		f, err := p.tx.File(ctx, metadata.ROOT, have)
		if err != nil {
			return nil, err
		}
		first = f.Body
	} else {
		first, roots = roots[0].body, roots[1:]
	}
	set, err := tuf.New(tuf.Stored{Root: first}, p.now)
	if err != nil {
		return nil, err
	}
	for _, r := range roots {
		if err := set.Root(r.body); err != nil {
			return nil, err
		}
	}
	snapshot, timestamp, err := p.trial()
	if err != nil {
		return nil, err
	}
	if err := set.Timestamp(timestamp.Body); err != nil {
		return nil, err
	}
	return set, set.Snapshot(snapshot.Body)
}

// trial signs a snapshot and a timestamp of the proposal.
func (p *proposal) trial() (snapshot, timestamp store.File, err error) {
	versions := offlineRoles(p.state.Roles)
	for role, f := range p.new {
		versions[role] = f.version
	}
	if snapshot, err = p.c.signer.Snapshot(1, versions, p.now); err != nil {
		return store.File{}, store.File{}, err
	}
	timestamp, err = p.c.signer.Timestamp(1, snapshot, p.now)
	return snapshot, timestamp, err
}

// probesFor returns a path in each of some bins of a vendor.
func probesFor(vendor string, bins *metadata.SuccinctRoles, wanted []string) map[string]string {
	open := make(map[string]bool, len(wanted))
	for _, bin := range wanted {
		open[bin] = true
	}
	probes := make(map[string]string, len(wanted))
	for n := 0; len(open) > 0; n++ {
		path := fmt.Sprintf("%s/probe-%d", vendor, n)
		if bin := bins.GetRolesForTarget(path)[0].Name; open[bin] {
			probes[bin] = path
			delete(open, bin)
		}
	}
	return probes
}
