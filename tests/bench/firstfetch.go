package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// kernelsTried is for how many kernels of the repository the first fetch is
// measured; the largest counts.
const kernelsTried = 20

// firstFetch measures what a machine fetches to learn of its patch for the
// first time, and how soon the server is up on the same repository.
func firstFetch(ctx context.Context, s *site, kernels, patches int) ([]row, error) {
	common, bins, err := s.metadataSizes(ctx)
	if err != nil {
		return nil, err
	}
	targets, err := s.newestTargets(ctx)
	if err != nil {
		return nil, err
	}
	var samples []float64
	for i := range kernelsTried {
		t := targets[i*len(targets)/kernelsTried]
		total := common
		for _, role := range slices.Compact([]string{bin(patch.IndexPath(vendor, t.Module.Release, t.Module.Arch)), bin(t.Target)}) {
			n, err := bins(role)
			if err != nil {
				return nil, err
			}
			total += n
		}
		samples = append(samples, float64(total))
	}
	rss, err := resident(s.server.pid())
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%d kernels × %d patches; gzip; bodies of timestamp, snapshot, targets, vendor, rollout and the bins of index and module; largest of %d kernels",
		kernels, patches, kernelsTried)
	return []row{
		{What: "first fetch: metadata, compressed", Unit: "B", Measured: slices.Max(samples), Limit: 10_000, Samples: samples, Note: note},
		{What: "server start on that repository", Unit: "s", Measured: s.tookUp.Seconds(), Limit: 2, Note: "from exec until it accepts connections"},
		{What: "server RSS after that", Unit: "MB", Measured: rss, Informative: true},
	}, nil
}

// metadataSizes returns the size of what every machine fetches, compressed, and
// a function for the size of a bin.
func (s *site) metadataSizes(ctx context.Context) (common int, bins func(role string) (int, error), err error) {
	fetch := func(name string) ([]byte, int, error) {
		n, body, err := s.fetch(ctx, service.PathMetadata+name)
		return body, n, err
	}
	timestamp, n, err := fetch("timestamp.json")
	if err != nil {
		return 0, nil, err
	}
	common += n
	versions, err := listed(timestamp)
	if err != nil {
		return 0, nil, err
	}
	snapshot, n, err := fetch(fmt.Sprintf("%d.snapshot.json", versions["snapshot.json"]))
	if err != nil {
		return 0, nil, err
	}
	common += n
	if versions, err = listed(snapshot); err != nil {
		return 0, nil, err
	}
	size := func(role string) (int, error) {
		version, ok := versions[role+".json"]
		if !ok {
			return 0, fmt.Errorf("cannot measure first fetch: snapshot does not list %s", role)
		}
		_, n, err := fetch(fmt.Sprintf("%d.%s.json", version, role))
		return n, err
	}
	for _, role := range []string{"targets", vendor, patch.RolloutRole} {
		n, err := size(role)
		if err != nil {
			return 0, nil, err
		}
		common += n
	}
	return common, size, nil
}

// listed returns the versions that a timestamp or snapshot lists.
func listed(b []byte) (map[string]int64, error) {
	var m struct {
		Signed struct {
			Meta map[string]struct {
				Version int64 `json:"version"`
			} `json:"meta"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("cannot read metadata: %w", err)
	}
	versions := map[string]int64{}
	for name, entry := range m.Signed.Meta {
		versions[name] = entry.Version
	}
	return versions, nil
}

// bin returns the role that lists a target: 2^10 bins, TAP 15.
func bin(target string) string {
	sum := sha256.Sum256([]byte(target))
	return fmt.Sprintf("%s-%03x", vendor, binary.BigEndian.Uint16(sum[:2])>>6)
}

// A listedTarget is one line of "livepatch-publish list --json".
type listedTarget struct {
	Target string
	Module patch.Module
}

// newestTargets returns the newest module of each kernel of the repository.
func (s *site) newestTargets(ctx context.Context) ([]listedTarget, error) {
	out, err := s.tool(ctx, "livepatch-publish", "--repo", s.path("repository"), "list", "--json")
	if err != nil {
		return nil, err
	}
	var all []listedTarget
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("cannot read list of targets: %w", err)
	}
	newest := map[string]listedTarget{}
	for _, t := range all {
		if t.Module.Sequence > newest[t.Module.Release].Module.Sequence {
			newest[t.Module.Release] = t
		}
	}
	if len(newest) < kernelsTried {
		return nil, fmt.Errorf("cannot measure first fetch: repository has %d kernels, need %d", len(newest), kernelsTried)
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b listedTarget) int { return strings.Compare(a.Target, b.Target) }), nil
}
