// Package synthetic makes up livepatches for measurements: as many as a
// repository holds that has served a distribution for years. Their modules are
// a few bytes and would load nowhere.
package synthetic

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/repo"
)

// fixesPerPatch is about what a Livepatch Security Notice of Ubuntu lists.
const fixesPerPatch = 4

// Additions returns patches for kernels 6.1.0-1-amd64, 6.1.0-2-amd64, …, in the
// order of their sequence numbers. The same numbers give the same bytes.
func Additions(kernels, patches int) ([]repo.Addition, error) {
	if kernels < 1 || patches < 1 || kernels*patches > 1_000_000 {
		return nil, fmt.Errorf("cannot make up %d kernels with %d patches, need 1 to 1000000 modules", kernels, patches)
	}
	all := make([]repo.Addition, 0, kernels*patches)
	for k := 1; k <= kernels; k++ {
		for p := 1; p <= patches; p++ {
			all = append(all, addition(k, p))
		}
	}
	return all, nil
}

func addition(k, p int) repo.Addition {
	release := fmt.Sprintf("6.1.0-%d-amd64", k)
	id := sha1.Sum([]byte(release)) //nolint:gosec // not a matter of security: a build-id has this form
	m := patch.Module{
		Kernel:   patch.Kernel{Arch: "x86_64", Release: release, BuildID: patch.BuildID(hex.EncodeToString(id[:]))},
		Flavour:  "amd64",
		Name:     fmt.Sprintf("lkp_Debian_6_1_0_%d_amd64_%d", k, p),
		Version:  fmt.Sprintf("%d.1", p),
		Sequence: uint64(p),
		Notice:   fmt.Sprintf("LSN-%04d-1", p),
	}
	a := repo.Addition{
		Content: []byte("module " + m.Name + "\n"),
		Kernel:  repo.KernelFacts{Version: fmt.Sprintf("6.1.%d-1", k), From: "2025-01-01", Until: "2027-12-31"},
	}
	for i := range fixesPerPatch {
		f := patch.Fix{
			Name: fmt.Sprintf("CVE-2025-%d", 10000+10*p+i), Priority: patch.High,
			Summary: "A use after free in the handling of sockets lets a local user gain privileges.",
		}
		a.Fixes = append(a.Fixes, f)
		m.Fixes = append(m.Fixes, f.Name)
	}
	a.Module = m
	return a
}
