package authority_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/publisher/internal/authority"
)

func private(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func key(t *testing.T, name string) (*metadata.Key, string) {
	t.Helper()
	k, err := metadata.KeyFromPublicKey(private(name).Public())
	if err != nil {
		t.Fatal(err)
	}
	id, err := k.ID()
	if err != nil {
		t.Fatal(err)
	}
	return k, id
}

// root returns a root whose own keys are these.
func root(t *testing.T, threshold int, names ...string) *authority.Root {
	t.Helper()
	m := metadata.Root()
	for _, name := range names {
		k, _ := key(t, name)
		if err := m.Signed.AddKey(k, metadata.ROOT); err != nil {
			t.Fatal(err)
		}
	}
	m.Signed.Roles[metadata.ROOT].Threshold = threshold
	return m
}

func signature(t *testing.T, name string, payload []byte) metadata.Signature {
	t.Helper()
	_, id := key(t, name)
	return metadata.Signature{KeyID: id, Signature: ed25519.Sign(private(name), payload)}
}

func TestEveryRoleHasOneParent(t *testing.T) {
	tests := map[string]string{
		"root": "root", "targets": "root", "snapshot": "root", "timestamp": "root",
		"debian": "targets", "rollout": "targets", "debian-00": "debian", "debian-3ff": "debian",
	}
	for role, want := range tests {
		if got := authority.Parent(role); got != want {
			t.Errorf("Parent(%s) = %s, want %s", role, got, want)
		}
	}
	roles := []string{"debian-01", "ubuntu", "root", "debian-00", "debian", "targets"}
	slices.SortFunc(roles, authority.Compare)
	if want := []string{"root", "targets", "debian", "ubuntu", "debian-00", "debian-01"}; !slices.Equal(roles, want) {
		t.Errorf("in order: %q, want %q", roles, want)
	}
}

func TestSignedCountsEachKeyOnce(t *testing.T) {
	m := root(t, 2, "a", "b")
	own, err := authority.InRoot(m, metadata.ROOT)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := authority.Payload(m)
	if err != nil {
		t.Fatal(err)
	}
	_, a := key(t, "a")
	tests := map[string]struct {
		signatures []metadata.Signature
		want       []string
	}{
		"one":                        {[]metadata.Signature{signature(t, "a", payload)}, []string{a}},
		"one, twice":                 {[]metadata.Signature{signature(t, "a", payload), signature(t, "a", payload)}, []string{a}},
		"a stranger":                 {[]metadata.Signature{signature(t, "c", payload)}, nil},
		"of something else":          {[]metadata.Signature{signature(t, "a", []byte("other"))}, nil},
		"a stranger in one's name":   {[]metadata.Signature{{KeyID: a, Signature: ed25519.Sign(private("c"), payload)}}, nil},
		"nothing in somebody's name": {[]metadata.Signature{{KeyID: a}}, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := own.Signed(payload, tc.signatures); !slices.Equal(got, tc.want) {
				t.Errorf("Signed = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestARootNeedsTheKeysOfTheRootBefore(t *testing.T) {
	before := root(t, 2, "a", "b", "c")
	tests := map[string]struct {
		next *authority.Root
		want int
	}{
		"the same keys":       {root(t, 2, "c", "b", "a"), 1},
		"another key":         {root(t, 2, "a", "b", "d"), 2},
		"another threshold":   {root(t, 1, "a", "b", "c"), 2},
		"nothing is the same": {root(t, 1, "d"), 2},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			own, err := authority.InRoot(tc.next, metadata.ROOT)
			if err != nil {
				t.Fatal(err)
			}
			demands, err := authority.Demands(own, before)
			if err != nil || len(demands) != tc.want {
				t.Errorf("%d demands, %v; want %d", len(demands), err, tc.want)
			}
		})
	}
}

func TestARoleThatNobodyDelegatesTo(t *testing.T) {
	targets := metadata.Targets()
	if _, err := authority.InTargets(targets, "debian"); err == nil {
		t.Error("role without delegations: no error")
	}
	targets.Signed.Delegations = &metadata.Delegations{SuccinctRoles: &metadata.SuccinctRoles{BitLength: 8, NamePrefix: "debian"}}
	if _, err := authority.InTargets(targets, "ubuntu-00"); err == nil {
		t.Error("bin of somebody else: no error")
	}
	if _, err := authority.InRoot(root(t, 1, "a"), "debian"); err == nil {
		t.Error("role that root does not know: no error")
	}
}
