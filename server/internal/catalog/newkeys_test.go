package catalog_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"log/slog"
	"maps"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	"livepatch/server/internal/catalog"
	"livepatch/server/internal/servicetest"
	"livepatch/server/internal/signer"
)

// The online keys were stolen: the service gets others, and the publisher a root
// that names them, some roots later.
func TestNewOnlineKeysWaitForTheRootThatNamesThem(t *testing.T) {
	s, r := published(t)
	old, err := s.Dir.Keys()
	if err != nil {
		t.Fatal(err)
	}
	keys := maps.Clone(old)
	for _, role := range []string{"snapshot", "timestamp"} {
		seed := sha256.Sum256([]byte(role + " 2")) // that of tuftest.NewKey
		keys[role] = ed25519.NewKeyFromSeed(seed[:])
	}
	c, err := catalog.OpenForNewKeys(t.Context(), slog.New(slog.DiscardHandler), s.DB, s.Blobs, signer.New(keys), servicetest.Soak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := catalog.Decide(t.Context(), s.DB, decision("1.1", patch.Halted)); err != nil {
		t.Fatal(err)
	}
	before := c.Generation()
	if err := c.Refresh(t.Context()); !errors.Is(err, catalog.ErrForeignKeys) || c.Generation() != before {
		t.Errorf("Refresh = %v, generation %d after %d; want ErrForeignKeys and nothing signed", err, c.Generation(), before)
	}

	r.AddRoot() // a change of other keys, on the way
	if _, err := c.Publish(t.Context(), servicetest.Publication(r, "root")); !errors.Is(err, catalog.ErrUntrusted) {
		t.Errorf("Publish of a root with the keys before = %v, want ErrUntrusted", err)
	}
	next := r.AddRoot()
	for _, role := range []string{"snapshot", "timestamp"} {
		tuftest.Grant(next, role, 1, tuftest.NewKey(role+" 2"))
	}
	publication := servicetest.Publication(r, "root")
	publication.Files["2.root.json"] = r.Roots[1].Bytes()
	if _, err := c.Publish(t.Context(), publication); err != nil {
		t.Fatal(err)
	}
	if err := c.Refresh(t.Context()); err != nil {
		t.Errorf("Refresh = %v", err)
	}
	root, err := metadata.Root().FromBytes(next.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Timestamp()
	if err != nil {
		t.Fatal(err)
	}
	timestamp, err := metadata.Timestamp().FromBytes(f.Body)
	if err == nil {
		err = root.VerifyDelegate(metadata.TIMESTAMP, timestamp)
	}
	if err != nil {
		t.Errorf("timestamp: %v", err)
	}
	// From now on the keys need no leave any more, and those before are foreign.
	if err := s.Reopen(t, keys); err != nil {
		t.Errorf("Open with the new keys = %v", err)
	}
	if err := s.Reopen(t, old); !errors.Is(err, catalog.ErrForeignKeys) {
		t.Errorf("Open with the keys before = %v, want ErrForeignKeys", err)
	}
}
