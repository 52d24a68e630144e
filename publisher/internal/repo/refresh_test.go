package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/publisher/internal/repo"
)

const day = 24 * time.Hour

// refresh refreshes at a later time and returns which roles were signed, all
// bins as "bins".
func refresh(t *testing.T, dir string, ring memRing, now time.Time) []string {
	t.Helper()
	r := open(t, dir, now)
	defer closeRepo(t, r)
	done, err := r.Refresh(t.Context(), ring, r.Due())
	if err != nil {
		t.Fatal(err)
	}
	var roles []string
	for _, d := range done {
		role := d.Role
		if strings.Contains(role, "-") {
			role = "bins"
		}
		if !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	return roles
}

func TestRefreshSignsWhatExpiresSoon(t *testing.T) {
	tests := map[string]struct {
		after time.Duration
		want  []string
	}{
		"the next day":                {day, nil},
		"when bins have 11 days left": {19 * day, nil},
		"when bins have 10 days left": {20 * day, []string{"bins"}},
		"after two months":            {60 * day, []string{"debian", "bins"}},
		"after four months":           {120 * day, []string{"targets", "debian", "bins"}},
		"when even root has a third":  {244 * day, []string{"root", "targets", "debian", "bins"}},
		"when everything expired":     {400 * day, []string{"root", "targets", "debian", "bins"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir, ring := create(t)
			add(t, dir, ring, livepatch(release, 1))
			now := start.Add(tc.after)
			if got := refresh(t, dir, ring, now); !slices.Equal(got, tc.want) {
				t.Errorf("signed %v, want %v", got, tc.want)
			}
			rep := verify(t, dir, now)
			if rep.Modules != 1 || rep.Indexes != 1 {
				t.Errorf("report = %d modules, %d indexes", rep.Modules, rep.Indexes)
			}
			if got := refresh(t, dir, ring, now); len(got) > 0 {
				t.Errorf("a second refresh signed %v", got)
			}
		})
	}
}

func TestMachineFollowsTheChainOfRoots(t *testing.T) {
	dir, ring := create(t)
	shipped := firstRoot(t, dir)
	r := open(t, dir, start)
	for range 2 {
		if _, err := r.Refresh(t.Context(), ring, func(role string, _ time.Time) bool { return role == "root" }); err != nil {
			t.Fatal(err)
		}
	}
	closeRepo(t, r)
	u := machine(t, dir, shipped)
	if err := u.Refresh(); err != nil {
		t.Fatal(err)
	}
	if got := u.GetTrustedMetadataSet().Root.Signed.Version; got != 3 {
		t.Errorf("root of the machine = %d, want 3", got)
	}
	verify(t, dir, start)
}

func TestVerifyReportsProblems(t *testing.T) {
	replace := func(file, old, new string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, file))
			if err != nil || len(names) == 0 {
				t.Fatalf("no %s, %v", file, err)
			}
			b, err := os.ReadFile(names[0])
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(b), old, new, 1)
			if text == string(b) {
				t.Fatalf("%s has no %q", names[0], old)
			}
			if err := os.WriteFile(names[0], []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(file string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, file))
			if err != nil || len(names) == 0 {
				t.Fatalf("no %s, %v", file, err)
			}
			if err := os.Remove(names[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		damage func(t *testing.T, dir string)
		after  time.Duration
		says   string
	}{
		"a bin with another target":   {replace("metadata/2.debian-*.json", `"length":`, `"length":1`), 0, "not enough signatures"},
		"a bin that expired":          {func(*testing.T, string) {}, 31 * day, "expired on"},
		"a vendor that lives longer":  {replace("metadata/1.debian.json", `"expires":"20`, `"expires":"30`), 0, "not enough signatures"},
		"a bin that is gone":          {remove("metadata/1.debian-00.json"), 0, "role debian-00: missing"},
		"a module with a changed bit": {replace("targets/debian/*.ko", "c", "b"), 0, "hash verification failed"},
		"a module that is gone":       {remove("targets/debian/*.ko"), 0, "its file is missing"},
		"an index with another date":  {replace("targets/debian/*.json", "2027-01-01", "2037-01-01"), 0, "hash verification failed"},
		"a bin in the place of another": {func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, "metadata/2.debian-*.json"))
			if err != nil || len(names) < 2 {
				t.Fatalf("bins with targets: %q, %v", names, err)
			}
			if err := os.Rename(names[0], names[1]); err != nil {
				t.Fatal(err)
			}
		}, 0, "which belongs to debian-"},
		"a role that nobody delegates": {func(t *testing.T, dir string) {
			if err := os.Link(filepath.Join(dir, "metadata/1.debian.json"), filepath.Join(dir, "metadata/1.ubuntu.json")); err != nil {
				t.Fatal(err)
			}
		}, 0, "ubuntu"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir, ring := create(t)
			add(t, dir, ring, livepatch(release, 1))
			tc.damage(t, dir)
			r := open(t, dir, start.Add(tc.after))
			defer closeRepo(t, r)
			rep, err := r.Verify(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(rep.Problems, func(p repo.Problem) bool { return strings.Contains(p.What, tc.says) && p.Do != "" }) {
				t.Errorf("problems = %v, want one that says %q", rep.Problems, tc.says)
			}
		})
	}
}

// Who can write to the folder but has no keys must not get a signature by
// waiting until somebody signs.
func TestWhatWasTamperedWithIsNotSigned(t *testing.T) {
	dir, ring := create(t)
	add(t, dir, ring, livepatch(release, 1))
	for _, file := range []string{"metadata/2.debian-*.json", "metadata/1.debian.json", "metadata/2.targets.json", "metadata/1.root.json"} {
		names, err := filepath.Glob(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			good, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			bad := strings.Replace(string(good), `"expires":"20`, `"expires":"21`, 1)
			if err := os.WriteFile(name, []byte(bad), 0o644); err != nil {
				t.Fatal(err)
			}
			before := snapshotOf(t, dir)
			r := open(t, dir, start)
			if _, err := r.Refresh(t.Context(), ring, func(string, time.Time) bool { return true }); !errors.Is(err, repo.ErrCorrupt) {
				t.Errorf("refresh with tampered %s = %v, want ErrCorrupt", filepath.Base(name), err)
			}
			closeRepo(t, r)
			if len(snapshotOf(t, dir)) != len(before) {
				t.Errorf("refresh with tampered %s wrote files", filepath.Base(name))
			}
			if err := os.WriteFile(name, good, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	verify(t, dir, start)
}
