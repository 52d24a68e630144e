package catalog

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/server/internal/store"
)

// A listing is what a bin lists.
type listing struct {
	targets  []store.Target
	indexes  map[string]store.Target // kernel indexes by path
	versions []version
}

// list reads the targets of a vendor's bin. It refuses what a machine would
// refuse, or would never look for.
func (c *Catalog) list(vendor, bin string, bins *metadata.SuccinctRoles, m *targetsMeta) (listing, error) {
	l := listing{indexes: map[string]store.Target{}}
	for path, f := range m.Signed.Targets {
		if v, err := patch.VendorOf(path); err != nil || v != vendor {
			return listing{}, refuse(bin, "%q is not a path of %q", path, vendor)
		}
		if home := bins.GetRolesForTarget(path)[0].Name; home != bin {
			return listing{}, refuse(bin, "%q belongs to the bin %q", path, home)
		}
		digest := f.Hashes["sha256"]
		if len(f.Hashes) != 1 || len(digest) != len(patch.Digest{}) {
			return listing{}, refuse(bin, "%q has other hashes than one SHA-256", path)
		}
		t := store.Target{Path: path, Digest: patch.Digest(digest), Length: f.Length}
		l.targets = append(l.targets, t)
		if err := l.add(vendor, t, f); err != nil {
			return listing{}, refuse(bin, "%q: %v", path, err)
		}
	}
	return l, nil
}

// provenance ends the name of an in-toto statement of how a module was built.
const provenance = ".intoto.json"

// add reads one target by what its name says it is.
func (l *listing) add(vendor string, t store.Target, f *metadata.TargetFiles) error {
	limit := int64(service.MaxIndex)
	if strings.HasSuffix(t.Path, ".ko") {
		limit = service.MaxModule
	}
	if t.Length < 1 || t.Length > limit {
		return fmt.Errorf("it has %d bytes, need 1 to %d", t.Length, limit)
	}
	switch {
	case strings.HasSuffix(t.Path, ".index.json"):
		l.indexes[t.Path] = t
		return nil
	case strings.HasSuffix(t.Path, provenance):
		return nil // for people and their tools; machines do not fetch it
	}
	if f.Custom == nil {
		return fmt.Errorf("it is not described")
	}
	m, err := patch.ParseModule(*f.Custom)
	if err != nil {
		return err
	}
	if want := patch.ModulePath(vendor, m); want != t.Path {
		return fmt.Errorf("it is described as %q", want)
	}
	l.versions = append(l.versions, version{vendor, m.Version})
	return nil
}

// readIndex reads an uploaded kernel index.
func (c *Catalog) readIndex(bin string, t store.Target) (store.Kernel, error) {
	f, err := c.blobs.Open(t.Digest)
	if err != nil {
		return store.Kernel{}, refuse(bin, "target %q (sha256 %v, %d bytes) was not uploaded", t.Path, t.Digest, t.Length)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, service.MaxIndex))
	if err != nil {
		return store.Kernel{}, fmt.Errorf("cannot read kernel index %q: %w", t.Path, err)
	}
	ix, err := patch.ParseIndex(b)
	if err != nil {
		return store.Kernel{}, refuse(bin, "%q: %v", t.Path, err)
	}
	if err := checkIndex(t.Path, ix); err != nil {
		return store.Kernel{}, refuse(bin, "%q: %v", t.Path, err)
	}
	return store.Kernel{Path: t.Path, Role: bin, Digest: t.Digest, Series: seriesOf(ix.Release), Index: ix}, nil
}

func checkIndex(path string, ix patch.Index) error {
	vendor, _, _ := strings.Cut(path, "/")
	if want := patch.IndexPath(vendor, ix.Release, ix.Arch); want != path {
		return fmt.Errorf("it describes %q", want)
	}
	if err := patch.CheckWord("a flavour", ix.Flavour); err != nil {
		return err
	}
	if seriesOf(ix.Release) == "" {
		return fmt.Errorf("kernel release %q does not begin with two numbers", ix.Release)
	}
	for _, day := range []string{ix.From, ix.Until} {
		if _, err := time.Parse(time.DateOnly, day); err != nil {
			return fmt.Errorf("%q is not a day of its support window", day)
		}
	}
	if ix.Until < ix.From {
		return fmt.Errorf("its support ends before it begins")
	}
	return nil
}

var series = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// seriesOf returns the series of a kernel release or version, "6.1", or "".
func seriesOf(release string) string { return series.FindString(release) }
