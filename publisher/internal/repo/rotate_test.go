package repo_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/sign"
)

const firstModule = "debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.ko"

// rotation returns a change of keys by their names.
func rotation(remove, add []string, threshold int) repo.Rotation {
	c := repo.Rotation{Threshold: threshold}
	for _, name := range remove {
		c.Remove = append(c.Remove, keyID(newKey(name)))
	}
	for _, name := range add {
		c.Add = append(c.Add, newKey(name).Public())
	}
	return c
}

func rotate(t *testing.T, dir string, ring memRing, role string, c repo.Rotation) error {
	t.Helper()
	r := open(t, dir, start)
	defer closeRepo(t, r)
	return r.Rotate(t.Context(), ring, role, c)
}

// online are the keys that sign snapshot and timestamp of a test.
type online struct{ snapshot, timestamp string }

// loaderFinds lets the loader's verifier follow from a root to a module.
func loaderFinds(t *testing.T, dir string, pinned []byte, keys online) error {
	t.Helper()
	r := open(t, dir, start)
	defer closeRepo(t, r)
	expires := start.Add(24 * time.Hour)
	snapshot := metadata.Snapshot(expires)
	for role, v := range r.Versions() {
		if role != metadata.ROOT {
			snapshot.Signed.Meta[role+".json"] = metadata.MetaFile(v)
		}
	}
	set, err := tuf.New(tuf.Stored{Root: pinned}, start)
	if err != nil {
		return err
	}
	for v := set.RootVersion() + 1; v <= r.Versions()["root"]; v++ {
		b, err := r.Metadata("root", v)
		if err != nil {
			return err
		}
		if err := set.Root(b); err != nil {
			return err
		}
	}
	if err := set.Timestamp(encode(t, metadata.Timestamp(expires), keys.timestamp)); err != nil {
		return err
	}
	if err := set.Snapshot(encode(t, snapshot, keys.snapshot)); err != nil {
		return err
	}
	_, err = set.Find(firstModule, r.Metadata)
	return err
}

var ownOnline = online{"snapshot", "timestamp"}

// wantFollowed fails the test unless both kinds of machines that know only the
// first root find a module.
func wantFollowed(t *testing.T, dir string, pinned []byte) {
	t.Helper()
	verify(t, dir, start)
	if err := loaderFinds(t, dir, pinned, ownOnline); err != nil {
		t.Errorf("loader: %v", err)
	}
	download(t, machine(t, dir, pinned), firstModule)
}

func TestMachinesFollowEveryChangeOfKeys(t *testing.T) {
	tests := map[string]struct {
		role string
		c    repo.Rotation
		lost string // keys that are not there any more
		want string // keys and threshold afterwards
	}{
		"the first root key is replaced":    {"root", rotation([]string{"root-1"}, []string{"root-4"}, 0), "root-1", "2 of root-2 root-3 root-4"},
		"the second root key is replaced":   {"root", rotation([]string{"root-2"}, []string{"root-4"}, 0), "root-2", "2 of root-1 root-3 root-4"},
		"the third root key is replaced":    {"root", rotation([]string{"root-3"}, []string{"root-4"}, 0), "root-3", "2 of root-1 root-2 root-4"},
		"all root keys are replaced":        {"root", rotation([]string{"root-1", "root-2", "root-3"}, []string{"root-4", "root-5", "root-6"}, 0), "", "2 of root-4 root-5 root-6"},
		"all root keys, one of them lost":   {"root", rotation([]string{"root-1", "root-2", "root-3"}, []string{"root-4", "root-5", "root-6"}, 0), "root-2", "2 of root-4 root-5 root-6"},
		"a fourth root key, and three sign": {"root", rotation(nil, []string{"root-4"}, 3), "", "3 of root-1 root-2 root-3 root-4"},
		"three root keys sign":              {"root", rotation(nil, nil, 3), "", "3 of root-1 root-2 root-3"},
		"one root key signs":                {"root", rotation(nil, nil, 1), "root-3", "1 of root-1 root-2 root-3"},
		"one targets key is replaced":       {"targets", rotation([]string{"targets-1"}, []string{"targets-4"}, 0), "targets-1", "2 of targets-2 targets-3 targets-4"},
		"all targets keys are lost":         {"targets", rotation([]string{"targets-1", "targets-2", "targets-3"}, []string{"targets-4", "targets-5", "targets-6"}, 0), "targets-1 targets-2 targets-3", "2 of targets-4 targets-5 targets-6"},
		"three targets keys sign":           {"targets", rotation(nil, nil, 3), "", "3 of targets-1 targets-2 targets-3"},
		"the builder is replaced":           {"debian", rotation([]string{"debian-builder"}, []string{"debian-builder-2"}, 0), "debian-builder", "2 of debian-approver debian-builder-2"},
		"both of a vendor are lost":         {"debian", rotation([]string{"debian-builder", "debian-approver"}, []string{"b2", "a2"}, 0), "debian-builder debian-approver", "2 of b2 a2"},
		"a vendor gets a third who signs":   {"debian", rotation(nil, []string{"debian-reviewer"}, 3), "", "3 of debian-builder debian-approver debian-reviewer"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir, ring := create(t)
			pinned := firstRoot(t, dir)
			add(t, dir, ring, livepatch(release, 1))
			names := strings.Fields("root-4 root-5 root-6 targets-4 targets-5 targets-6 debian-builder-2 debian-reviewer a2 b2")
			ring.add(names...)
			ring.remove(strings.Fields(tc.lost)...)
			if err := rotate(t, dir, ring, tc.role, tc.c); err != nil {
				t.Fatal(err)
			}
			wantFollowed(t, dir, pinned)
			if got := trusted(t, dir, ring, tc.role); got != tc.want {
				t.Errorf("%s trusts %s, want %s", tc.role, got, tc.want)
			}
		})
	}
}

// trusted says who may sign a role.
func trusted(t *testing.T, dir string, ring memRing, role string) string {
	t.Helper()
	r := open(t, dir, start)
	defer closeRepo(t, r)
	who, err := r.Keys(role)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	all := maps.Clone(ring)
	all.add(strings.Fields("root-1 root-2 root-3 targets-1 targets-2 targets-3 debian-builder debian-approver")...)
	for _, id := range who.IDs {
		names = append(names, all.Name(id))
	}
	return fmt.Sprint(who.Threshold, " of ", strings.Join(names, " "))
}

// Every further signature travels to every machine.
func TestARotationHasNoMoreSignaturesThanItNeeds(t *testing.T) {
	dir, ring := create(t)
	ring.add("root-4", "root-5", "root-6")
	for step, tc := range []struct {
		c    repo.Rotation
		want int
	}{
		{rotation([]string{"root-2"}, []string{"root-4"}, 0), 2}, // root-1 and root-3 speak for both
		{rotation([]string{"root-1"}, []string{"root-5"}, 3), 4}, // root-3, root-4, root-1 is not asked: two before, three after
	} {
		if err := rotate(t, dir, ring, "root", tc.c); err != nil {
			t.Fatal(err)
		}
		r := open(t, dir, start)
		root, err := r.Root()
		closeRepo(t, r)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(root.Signatures); got > tc.want {
			t.Errorf("step %d: %d signatures, want at most %d", step, got, tc.want)
		}
	}
}

func TestOnlineKeysAreReplaced(t *testing.T) {
	dir, ring := create(t)
	pinned := firstRoot(t, dir)
	add(t, dir, ring, livepatch(release, 1))
	keys := repo.OnlineKeys{
		"snapshot": newKey("snapshot-2").Public(), "timestamp": newKey("timestamp-2").Public(), "rollout": newKey("rollout-2").Public(),
	}
	r := open(t, dir, start)
	changed, err := r.ReplaceOnline(t.Context(), ring, keys)
	if err != nil || !changed {
		t.Fatalf("ReplaceOnline = %v, %v", changed, err)
	}
	changed, err = r.ReplaceOnline(t.Context(), ring, keys)
	if err != nil || changed {
		t.Errorf("the same keys again: %v, %v; want no change", changed, err)
	}
	ids, err := r.OnlineKeyIDs()
	if err != nil {
		t.Fatal(err)
	}
	for role := range keys {
		if len(ids[role]) != 1 || ids[role][0] != keyID(newKey(role+"-2")) {
			t.Errorf("%s = %q, want its new key alone", role, ids[role])
		}
	}
	closeRepo(t, r)
	verify(t, dir, start)
	if err := loaderFinds(t, dir, pinned, online{"snapshot-2", "timestamp-2"}); err != nil {
		t.Errorf("loader: %v", err)
	}
	if err := loaderFinds(t, dir, pinned, ownOnline); !errors.Is(err, patch.ErrUntrusted) {
		t.Errorf("loader, with the keys before: %v, want ErrUntrusted", err)
	}
}

func TestRotateRefusesWhatMachinesCouldNotFollow(t *testing.T) {
	tests := map[string]struct {
		role string
		c    repo.Rotation
		lost string
		want error
		says string
	}{
		"two of three root keys are lost": {"root", rotation([]string{"root-1", "root-2"}, []string{"root-4", "root-5"}, 0), "root-1 root-2", sign.ErrMissing, "missing 1 of "},
		"a new key is not here":           {"root", rotation([]string{"root-1", "root-2", "root-3"}, []string{"root-4", "root-5", "nobody's"}, 3), "", sign.ErrMissing, "2 of 3 needed"},
		"targets without root keys":       {"targets", rotation([]string{"targets-1"}, []string{"targets-4"}, 0), "root-1 root-2", sign.ErrMissing, "role root"},
		"a vendor without targets keys":   {"debian", rotation([]string{"debian-builder"}, []string{"b2"}, 0), "targets-1 targets-3", sign.ErrMissing, "role targets"},
		"a threshold above the keys":      {"root", rotation(nil, nil, 4), "", repo.ErrThreshold, "4 keys have to sign and there are 3"},
		"fewer keys than the threshold":   {"debian", rotation([]string{"debian-builder"}, nil, 0), "", repo.ErrThreshold, "2 keys have to sign and there are 1"},
		"a threshold below one":           {"root", rotation(nil, nil, -1), "", repo.ErrThreshold, ""},
		"a key that is not there":         {"root", rotation([]string{"targets-1"}, []string{"root-4"}, 0), "", repo.ErrKey, "not one of the role's keys"},
		"a key that is there already":     {"root", rotation([]string{"root-1"}, []string{"root-2"}, 0), "", repo.ErrKey, ""},
		"the key that goes comes back":    {"root", rotation([]string{"root-1"}, []string{"root-1"}, 0), "", repo.ErrKey, ""},
		"nothing":                         {"root", repo.Rotation{}, "", repo.ErrKey, "nothing would change"},
		"the same threshold":              {"targets", rotation(nil, nil, 2), "", repo.ErrKey, "nothing would change"},
		"a key of five bytes":             {"root", repo.Rotation{Add: []ed25519.PublicKey{[]byte("short")}}, "", nil, "cannot use 5 bytes"},
		"a bin":                           {"debian-00", rotation([]string{"debian-builder"}, []string{"b2"}, 0), "", repo.ErrVendor, ""},
		"the server's role":               {"snapshot", rotation([]string{"snapshot"}, []string{"b2"}, 0), "", repo.ErrVendor, ""},
		"a stranger":                      {"ubuntu", rotation(nil, []string{"b2"}, 0), "", repo.ErrVendor, ""},
	}
	dir, all := create(t)
	add(t, dir, all, livepatch(release, 1))
	before := snapshotOf(t, dir)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ring := maps.Clone(all)
			ring.add("root-4", "root-5", "targets-4", "b2")
			ring.remove(strings.Fields(tc.lost)...)
			r := open(t, dir, start)
			defer closeRepo(t, r)
			err := r.Rotate(t.Context(), ring, tc.role, tc.c)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Rotate = %v, want %v and %q", err, tc.want, tc.says)
			}
			if !maps.Equal(snapshotOf(t, dir), before) {
				t.Error("repository has changed")
			}
			for _, role := range []string{"root", "targets", "debian"} {
				if who, err := r.Keys(role); err != nil || who.Threshold != 2 || strings.Contains(fmt.Sprint(who.IDs), keyID(newKey("root-4"))) {
					t.Errorf("the open repository remembers it: %s has %+v, %v", role, who, err)
				}
			}
		})
	}
}

// Whoever has a stolen key must not get anything with it.
func TestWhatAKeySignsAfterItWasTakenOutIsRefused(t *testing.T) {
	dir, ring := create(t)
	pinned := firstRoot(t, dir)
	add(t, dir, ring, livepatch(release, 1))
	stolen := maps.Clone(ring)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	ring.add("b2", "a2", "root-4")
	if err := rotate(t, dir, ring, "debian", rotation([]string{"debian-builder", "debian-approver"}, []string{"b2", "a2"}, 0)); err != nil {
		t.Fatal(err)
	}
	// The thief signs a newer bin over the one that is there.
	add(t, copied, stolen, livepatch("6.1.0-99-amd64", 1))
	r := open(t, copied, start)
	if _, err := r.Refresh(t.Context(), stolen, func(role string, _ time.Time) bool { return role != "root" && role != "targets" }); err != nil {
		t.Fatal(err)
	}
	forged := r.Versions()
	closeRepo(t, r)
	for role, v := range forged {
		if !strings.HasPrefix(role, "debian") {
			continue
		}
		name := filepath.Join("metadata", repo.FileName(role, v))
		b, err := os.ReadFile(filepath.Join(copied, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := loaderFinds(t, dir, pinned, ownOnline); !errors.Is(err, patch.ErrUntrusted) {
		t.Errorf("loader: %v, want ErrUntrusted", err)
	}
	if _, err := machine(t, dir, pinned).GetTargetInfo(firstModule); err == nil || !strings.Contains(err.Error(), "not enough signatures") {
		t.Errorf("go-tuf: %v, want not enough signatures", err)
	}
}
