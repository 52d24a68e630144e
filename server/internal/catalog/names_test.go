package catalog_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/server/internal/catalog"
)

func sha(b []byte) patch.Digest { return sha256.Sum256(b) }

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"1.root.json", "7.debian-3ff.json", "timestamp.json", "0.root.json", "01.root.json",
		"1.../../x.json", "1.a/b.json", "1.root.json\x00", "999999999999999999999.root.json", "1..json", "1.a..b.json"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		role, version, err := catalog.ParseName(name)
		if err != nil {
			return
		}
		if fmt.Sprintf("%d.%s.json", version, role) != name {
			t.Errorf("%q is read as version %d of %q", name, version, role)
		}
		if strings.ContainsAny(role, "/\\\x00") || strings.Contains(role, "..") || version < 1 {
			t.Errorf("%q is a role", role)
		}
	})
}

func TestReleasesAreComparedByNumbers(t *testing.T) {
	order := []string{"5.4.0-9-amd64", "5.4.0-10-amd64", "5.4.0-10.1-amd64", "5.10.0-1-amd64", "6.1.0-2-amd64", "6.1.0-2-amd64x"}
	for i, a := range order {
		for j, b := range order {
			got := catalog.CompareReleases(a, b)
			if want := i - j; (got < 0) != (want < 0) || (got > 0) != (want > 0) {
				t.Errorf("compare %q with %q = %d", a, b, got)
			}
		}
	}
}

func FuzzCompareReleases(f *testing.F) {
	f.Add("5.4.0-9", "5.4.0-10")
	f.Add("", "1")
	f.Add("99999999999999999999999", "1")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := catalog.CompareReleases(a, b), catalog.CompareReleases(b, a); x != -y {
			t.Errorf("%q, %q: %d one way, %d the other", a, b, x, y)
		}
	})
}
