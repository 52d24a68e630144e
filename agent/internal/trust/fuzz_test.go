package trust

import (
	"os"
	"testing"

	"livepatch/agent/internal/servicetest"
	"livepatch/internal/patch"
)

// broken are shapes that go-tuf has stumbled over: null where an object belongs.
var broken = []string{
	"null", "", "{}", `{"signed":null,"signatures":null}`, `{"signed":{"_type":"root","roles":{"root":null},"keys":null}}`,
	`{"signed":{"_type":"root","spec_version":"1.0.31","version":1,"expires":"2999-01-01T00:00:00Z","keys":{"a":null},` +
		`"roles":{"root":{"keyids":["a"],"threshold":0},"targets":null,"snapshot":null,"timestamp":null}},"signatures":[null]}`,
	`{"signed":{"_type":"targets","targets":{"x":null},"delegations":{"keys":null,"roles":[null]}},"signatures":[]}`,
	`{"signed":{"_type":"snapshot","meta":{"targets.json":null}},"signatures":[{}]}`,
}

// FuzzCheckRoot looks at any file that a user may name as the root to trust.
func FuzzCheckRoot(f *testing.F) {
	repo := servicetest.NewRepo()
	f.Add(repo.Root())
	for _, s := range broken {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if CheckRoot(b) != nil {
			return
		}
		if _, err := Open(t.TempDir(), b); err != nil {
			t.Errorf("root passes, and cannot be opened: %v", err)
		}
	})
}

// FuzzServed has the service serve any bytes for one file. The agent finds the
// target that was signed, or none.
func FuzzServed(f *testing.F) {
	repo := servicetest.NewRepo()
	repo.Add(module1, []byte("module one"), servicetest.Everyone())
	repo.Publish()
	honest := repo.State()
	roles := []string{"timestamp", "snapshot", "targets", "debian", "rollout", "root"}
	for i, role := range roles {
		name := repo.Current(role)
		if role == "root" {
			name = "2.root.json"
		}
		f.Add(uint8(i), repo.Metadata(name))
		for _, s := range broken {
			f.Add(uint8(i), []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		repo.Restore(honest)
		role := roles[int(which)%len(roles)]
		name := repo.Current(role)
		if role == "root" {
			name = "2.root.json"
		}
		repo.SetMetadata(name, b)
		k, err := Open(t.TempDir(), repo.Root())
		if err != nil {
			t.Fatal(err)
		}
		v, err := k.Refresh(t.Context(), &source{repo: repo}, 1)
		if err != nil {
			return
		}
		target, err := v.Target(patch.ModulePath("debian", module1))
		if err == nil && target.Length != int64(len("module one")) {
			t.Errorf("found %+v, which nobody signed", target)
		}
	})
}

// FuzzEarlierRoot has the service serve any bytes for a root before the pinned one.
// Nobody is handed what does not lead to the pinned one, and it does no lasting harm.
func FuzzEarlierRoot(f *testing.F) {
	repo := servicetest.NewRepo()
	repo.RotateRoot("root")
	repo.RotateRoot("root")
	honest, pinned := repo.State(), repo.Metadata("3.root.json")
	f.Add(repo.Metadata("2.root.json"))
	for _, s := range broken {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := Open(t.TempDir(), pinned)
		if err != nil {
			t.Fatal(err)
		}
		repo.SetMetadata("2.root.json", b)
		if roots, err := k.Roots(t.Context(), &source{repo: repo}, 1); err == nil {
			if err := leads(2, roots); err != nil {
				t.Errorf("got %d roots: %v", len(roots), err)
			}
		}
		repo.Restore(honest)
		if err := k.ForgetEarlier(); err != nil {
			t.Fatal(err)
		}
		if roots, err := k.Roots(t.Context(), &source{repo: repo}, 1); err != nil || len(roots) != 2 {
			t.Errorf("afterwards %d roots, %v", len(roots), err)
		}
	})
}

// FuzzCachedFiles puts any bytes in place of a file that the agent keeps: it
// heals, however a disk or a power cut has damaged it.
func FuzzCachedFiles(f *testing.F) {
	repo := servicetest.NewRepo()
	repo.Add(module1, []byte("module one"), servicetest.Everyone())
	repo.Publish()
	for which := range uint8(6) {
		for _, s := range broken {
			f.Add(which, []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		dir := t.TempDir()
		k, err := Open(dir, repo.Root())
		if err != nil {
			t.Fatal(err)
		}
		refresh := func() {
			t.Helper()
			v, err := k.Refresh(t.Context(), &source{repo: repo}, 1)
			if err == nil {
				_, err = v.Target(patch.ModulePath("debian", module1))
			}
			if err != nil {
				t.Fatalf("file %d holds %q: %v", which%6, b, err)
			}
		}
		refresh()
		files := []string{k.path("snapshot"), k.path("targets"), k.path("debian"), k.path("root"), k.rootPath(2), k.memo}
		if err := os.WriteFile(files[int(which)%len(files)], b, 0o600); err != nil {
			t.Fatal(err)
		}
		refresh()
	})
}
