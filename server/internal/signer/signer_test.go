package signer_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/server/internal/signer"
	"livepatch/server/internal/store"
)

var now = time.Date(2026, 11, 22, 3, 0, 0, 123456789, time.UTC)

func newKeys(t *testing.T) (dir string, keys signer.Keys) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "keys")
	if err := signer.CreateKeys(dir); err != nil {
		t.Fatal(err)
	}
	keys, err := signer.LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, keys
}

func TestKeysAreMadeOnce(t *testing.T) {
	dir, first := newKeys(t)
	if err := os.Remove(filepath.Join(dir, "snapshot.key")); err != nil {
		t.Fatal(err)
	}
	if err := signer.CreateKeys(dir); err != nil {
		t.Fatal(err)
	}
	second, err := signer.LoadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, b := first.Public(), second.Public()
	if a["snapshot"] == b["snapshot"] || a["timestamp"] != b["timestamp"] || a["rollout"] != b["rollout"] {
		t.Errorf("keys are %v, were %v", b, a)
	}
	if distinct := slices.Compact(slices.Sorted(maps.Values(b))); len(distinct) != 3 {
		t.Errorf("%d distinct keys, want 3", len(distinct))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("files are %v, %v", left, err)
	}
}

func TestKeysAreReadByTheirOwnerOnly(t *testing.T) {
	dir, _ := newKeys(t)
	path := filepath.Join(dir, "rollout.key")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("a new key has mode %v, %v", info.Mode(), err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o601, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := signer.LoadKeys(dir)
		if !errors.Is(err, signer.ErrOpenKey) || !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("mode %v: %v, want %v", mode, err, signer.ErrOpenKey)
		}
	}
}

func TestKeysThatCannotBeUsed(t *testing.T) {
	tests := map[string]struct {
		content string
		wantErr string
	}{
		"empty file":       {"", "EOF"},
		"not PEM":          {"hello", "no PEM private key"},
		"public key":       {"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n", "no PEM private key"},
		"broken":           {"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "asn1"},
		"key of P-256":     {p256(t), "need ed25519"},
		"more than a page": {strings.Repeat("x", 10<<10), "no PEM private key"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir, _ := newKeys(t)
			if err := os.WriteFile(filepath.Join(dir, "timestamp.key"), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := signer.LoadKeys(dir); err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("LoadKeys = %v, want %q", err, tc.wantErr)
			}
		})
	}
	if _, err := signer.LoadKeys(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no keys: %v, want %v", err, fs.ErrNotExist)
	}
}

// p256 returns a key of another kind, in the form of ours.
func p256(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// root returns a root that trusts keys.
func root(t *testing.T, keys signer.Keys) *metadata.Metadata[metadata.RootType] {
	t.Helper()
	r := metadata.Root(now.AddDate(1, 0, 0))
	for _, role := range []string{"snapshot", "timestamp"} {
		key, err := metadata.KeyFromPublicKey(keys[role].Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Signed.AddKey(key, role); err != nil {
			t.Fatal(err)
		}
		if id, err := keys.ID(role); err != nil || !slices.Contains(r.Signed.Roles[role].KeyIDs, id) {
			t.Errorf("ID of %s = %s, %v", role, id, err)
		}
	}
	return r
}

func TestTimestampNamesTheSnapshot(t *testing.T) {
	_, keys := newKeys(t)
	s := signer.New(keys)
	snapshot, err := s.Snapshot(7, map[string]int64{"targets": 3, "debian": 2, "debian-0": 9, "rollout": 11}, now)
	if err != nil {
		t.Fatal(err)
	}
	timestamp, err := s.Timestamp(5, snapshot, now)
	if err != nil {
		t.Fatal(err)
	}
	sn, err := metadata.Snapshot().FromBytes(snapshot.Body)
	if err != nil {
		t.Fatal(err)
	}
	ts, err := metadata.Timestamp().FromBytes(timestamp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := root(t, keys)
	if err := errors.Join(r.VerifyDelegate("snapshot", sn), r.VerifyDelegate("timestamp", ts)); err != nil {
		t.Fatal(err)
	}
	named := ts.Signed.Meta["snapshot.json"]
	if err := named.VerifyLengthHashes(snapshot.Body); err != nil || named.Version != 7 || named.Length == 0 || len(named.Hashes) != 1 {
		t.Errorf("timestamp names %+v, %v", named, err)
	}
	if len(sn.Signed.Meta) != 4 || sn.Signed.Meta["debian-0.json"].Version != 9 || len(sn.Signed.Meta["debian-0.json"].Hashes) != 0 {
		t.Errorf("snapshot lists %v", sn.Signed.Meta)
	}
	if want := time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC); !sn.Signed.Expires.Equal(want) || !snapshot.Expires.Equal(want) {
		t.Errorf("snapshot expires %v, want %v", sn.Signed.Expires, want)
	}
	if want := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC); !ts.Signed.Expires.Equal(want) {
		t.Errorf("timestamp expires %v, want %v", ts.Signed.Expires, want)
	}
	if len(timestamp.Gzip) >= len(timestamp.Body) {
		t.Errorf("%d bytes were compressed to %d", len(timestamp.Body), len(timestamp.Gzip))
	}
}

func TestRolloutSaysWhoGetsAPatch(t *testing.T) {
	_, keys := newKeys(t)
	f, err := signer.New(keys).Rollout(2, []store.Rollout{
		{Vendor: "debian", Version: "1.1", State: patch.Running, Salt: "salt", Soak: 90 * time.Second, Spread: store.Spread{
			Tiers:   map[string]int64{"edge": patch.Everyone},
			Kernels: []patch.Spread{{Kernels: []string{"6.1.0-53-amd64/x86_64"}, Shares: map[string]int64{"edge": 300}}},
			States:  map[string]patch.RolloutState{"6.1.0-52-amd64/x86_64": patch.Halted},
		}},
		{Vendor: "debian", Version: "2.1", State: patch.Revoked, Salt: "other"},
		{Vendor: "debian", Version: "3.1", State: patch.Halted, Salt: "third", Withdrawal: store.Withdrawal{Share: 10_000, Salt: "fourth"}},
		{Vendor: "debian", Version: "4.1", State: patch.Running, Salt: "fifth", Withdrawal: store.Withdrawal{Share: 10_000, Salt: "sixth"}},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	m, err := metadata.Targets().FromBytes(f.Body)
	if err != nil {
		t.Fatal(err)
	}
	for path, state := range map[string]patch.RolloutState{"rollout/debian_1.1": patch.Running, "rollout/debian_2.1": patch.Revoked} {
		target := m.Signed.Targets[path]
		got, err := patch.ParseRollout(*target.Custom)
		if err != nil || got.State != state || target.VerifyLengthHashes(nil) != nil {
			t.Errorf("%s is %+v, %v", path, got, err)
		}
	}
	rollout := func(version string) patch.Rollout {
		got, err := patch.ParseRollout(*m.Signed.Targets["rollout/debian_"+version].Custom)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	got := rollout("1.1")
	if got.SoakSeconds != 90 || len(got.Tiers) != 5 || got.Tiers["edge"] != (patch.Stage{Share: patch.Everyone, Salt: "salt"}) ||
		got.Tiers["stable"] != (patch.Stage{Salt: "salt"}) {
		t.Errorf("rollout is %+v", got)
	}
	k := patch.Kernel{Release: "6.1.0-53-amd64", Arch: "x86_64"}
	if stage, ok := got.Stage(k, "edge"); !ok || stage.Share != 300 {
		t.Errorf("stage of a kernel by itself is %+v, %v", stage, ok)
	}
	if k.Release = "6.1.0-52-amd64"; got.At(k) != patch.Halted {
		t.Error("a kernel that the rule has halted runs on")
	}
	if got.Withdraw != nil || rollout("4.1").Withdraw != nil {
		t.Error("a rollout that is not halted is withdrawn")
	}
	if w := rollout("3.1").Withdraw; w == nil || *w != (patch.Stage{Share: 10_000, Salt: "fourth"}) {
		t.Errorf("withdrawal is %+v", w)
	}
}

func TestDue(t *testing.T) {
	tests := map[string]struct {
		role string
		left time.Duration
		want bool
	}{
		"new":                           {"timestamp", 24 * time.Hour, false},
		"more than half is left":        {"timestamp", 12*time.Hour + time.Second, false},
		"half is left":                  {"timestamp", 12 * time.Hour, true},
		"snapshot with half of it left": {"snapshot", 24 * time.Hour, true},
		"snapshot with more":            {"snapshot", 25 * time.Hour, false},
		"expired":                       {"rollout", -time.Hour, true},
		"from the future":               {"rollout", 24*time.Hour + time.Minute, true},
	}
	for name, tc := range tests {
		if got := signer.Due(tc.role, now.Add(tc.left), now); got != tc.want {
			t.Errorf("%s: due = %t, want %t", name, got, tc.want)
		}
	}
}
