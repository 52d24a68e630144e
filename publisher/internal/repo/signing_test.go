package repo_test

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/repo"
)

// signed returns a livepatch that is said to be signed for kernels, with a file of
// package modsig's testdata as its content.
func signed(t *testing.T, file, key string) repo.Addition {
	t.Helper()
	a := livepatch(release, 1)
	b, err := os.ReadFile("../modsig/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	a.Content, a.Module.SigningKey = b, key
	return a
}

// keyID returns that of the certificate of the testdata.
func signingKey(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../modsig/testdata/certificate.x509")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := modsig.ParseCertificate(b)
	if err != nil {
		t.Fatal(err)
	}
	return modsig.HexID(cert)
}

func TestVerifyCountsTheKeysOfModules(t *testing.T) {
	dir, ring := create(t)
	key := signingKey(t)
	add(t, dir, ring, signed(t, "sha256.ko", key), livepatch(release, 2))
	rep := verify(t, dir, start)
	if want := map[string]int{key: 1}; rep.Modules != 2 || !maps.Equal(rep.SigningKeys, want) {
		t.Errorf("%d modules, keys %v, want 2 and %v", rep.Modules, rep.SigningKeys, want)
	}
}

func TestKeyOfAModuleCanBeToldLaterOnce(t *testing.T) {
	dir, ring := create(t)
	key := signingKey(t)
	add(t, dir, ring, signed(t, "sha256.ko", ""))
	if added := add(t, dir, ring, signed(t, "sha256.ko", key)); added[0].Unchanged {
		t.Error("the key was not published")
	}
	if rep := verify(t, dir, start); rep.SigningKeys[key] != 1 || rep.Modules != 1 {
		t.Errorf("report = %+v", rep)
	}
	for name, again := range map[string]string{"the same": key, "nothing": ""} {
		if added := add(t, dir, ring, signed(t, "sha256.ko", again)); !added[0].Unchanged {
			t.Errorf("saying %s once more changed something", name)
		}
	}
	r := open(t, dir, start)
	defer closeRepo(t, r)
	if _, err := r.Add(t.Context(), ring, "debian", []repo.Addition{signed(t, "sha256.ko", "00")}); !errors.Is(err, repo.ErrTaken) {
		t.Errorf("Add with another key = %v, want ErrTaken", err)
	}
}

func TestVerifyFindsModulesThatAreNotSignedAsIsSaid(t *testing.T) {
	tests := map[string]struct{ file, key, want string }{
		"not signed":       {"module.ko", signingKey(t), "module is not signed"},
		"with another key": {"keyid.ko", "00", "module was signed with another key"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir, ring := create(t)
			add(t, dir, ring, signed(t, tc.file, tc.key))
			r := open(t, dir, start)
			defer closeRepo(t, r)
			rep, err := r.Verify(t.Context())
			if err != nil || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0].What, tc.want) {
				t.Errorf("Verify = %v, %v, want %q", rep.Problems, err, tc.want)
			}
		})
	}
}

func TestExpires(t *testing.T) {
	dir, _ := create(t)
	r := open(t, dir, start)
	defer closeRepo(t, r)
	got, err := r.Expires("targets")
	if want := start.AddDate(0, 0, 180); err != nil || !got.Equal(want) {
		t.Errorf("Expires = %v, %v, want %v", got, err, want)
	}
	if _, err := r.Expires("nobody"); err == nil {
		t.Error("a role that does not exist has an expiry")
	}
}
