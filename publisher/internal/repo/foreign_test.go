package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/sign"
)

// served makes of a publisher's folder what a service serves: snapshot,
// timestamp and rollout are there as well.
func served(t *testing.T) (dir string, ring memRing) {
	t.Helper()
	dir, ring = create(t)
	add(t, dir, ring, livepatch(release, 1))
	r := open(t, dir, start)
	versions := r.Versions()
	closeRepo(t, r)
	url := serve(t, dir, versions)
	for _, name := range []string{"timestamp.json", "1.snapshot.json", "1.rollout.json"} {
		put(t, dir, name, get(t, url+"/metadata/"+name))
	}
	if err := os.Remove(filepath.Join(dir, "repo.json")); err != nil {
		t.Fatal(err)
	}
	return dir, ring
}

func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "metadata", name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// foreign reports on somebody else's repository.
func foreign(t *testing.T, dir string) repo.Report {
	t.Helper()
	r, err := repo.OpenForeign(dir, start, false)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRepo(t, r)
	rep, err := r.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestWhatIsServedIsExplained(t *testing.T) {
	dir, ring := served(t)
	rep := foreign(t, dir)
	for _, p := range rep.Problems {
		t.Errorf("problem: %s", p)
	}
	left := make(map[string]float64)
	for _, r := range rep.Roles {
		left[r.Role] = r.Left(start)
		if len(r.Signed) != r.Threshold {
			t.Errorf("role %s: signed by %d, want %d", r.Role, len(r.Signed), r.Threshold)
		}
	}
	for role, want := range map[string]float64{"timestamp": 1, "snapshot": 0.5, "rollout": 1, "root": 1, "debian-00": 1} {
		if got, ok := left[role]; !ok || got != want {
			t.Errorf("role %s has %v of its life left (known: %v), want %v", role, got, ok, want)
		}
	}
	r, err := repo.OpenForeign(dir, start, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(t.Context(), ring, "debian", []repo.Addition{livepatch(release, 2)}); !errors.Is(err, repo.ErrForeign) {
		t.Errorf("Add to somebody else's repository = %v, want ErrForeign", err)
	}
}

func TestTroubleInWhatIsServedIsExplained(t *testing.T) {
	tests := map[string]struct {
		damage func(t *testing.T, dir string)
		says   string
	}{
		"a timestamp that is none": {func(t *testing.T, dir string) { put(t, dir, "timestamp.json", []byte("{}")) }, "role timestamp: cannot be read"},
		"a timestamp with null": {func(t *testing.T, dir string) {
			put(t, dir, "timestamp.json", []byte(`{"signatures":null,"signed":{"_type":"timestamp","meta":{"snapshot.json":null}}}`))
		}, "role timestamp: cannot be read"},
		"a snapshot that is gone": {func(t *testing.T, dir string) { remove(t, dir, "1.snapshot.json") }, "role snapshot: "},
		"a rollout that is gone":  {func(t *testing.T, dir string) { remove(t, dir, "1.rollout.json") }, "role rollout: "},
		"a vendor that is newer":  {func(t *testing.T, dir string) { newVendor(t, dir, 8) }, "role debian: the newest version is 2, the snapshot lists 1"},
		"a vendor with 2^30 bins": {func(t *testing.T, dir string) { newVendor(t, dir, 30) }, "role debian delegates to 2^30 bins"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir, _ := served(t)
			tc.damage(t, dir)
			var all []string
			for _, p := range foreign(t, dir).Problems {
				all = append(all, p.What)
			}
			if !strings.Contains(strings.Join(all, "\n"), tc.says) {
				t.Errorf("problems = %q, want one that says %q", all, tc.says)
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "metadata", name)); err != nil {
		t.Fatal(err)
	}
}

// newVendor writes another version of the vendor, signed as it has to be.
func newVendor(t *testing.T, dir string, bits int) {
	t.Helper()
	m := read(t, dir, "1.debian.json")
	m.Signed.Version = 2
	m.Signed.Delegations.SuccinctRoles.BitLength = bits
	b, err := sign.Encode(t.Context(), m, []sign.Signer{newKey("debian-builder"), newKey("debian-approver")})
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "2.debian.json", b)
}

func TestThereIsNothingToExplain(t *testing.T) {
	if _, err := repo.OpenForeign(t.TempDir(), start, false); !errors.Is(err, repo.ErrNone) {
		t.Errorf("an empty folder: %v, want ErrNone", err)
	}
}
