package keys_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"livepatch/publisher/internal/keys"
)

var passphrase = []byte("correct horse")

// store returns a folder that does not exist yet, with the cheapest encryption.
func store(t *testing.T) *keys.Store {
	t.Helper()
	return &keys.Store{Dir: filepath.Join(t.TempDir(), "keys"), Strength: encrypted.Legacy}
}

func create(t *testing.T, s *keys.Store, name string) *keys.Key {
	t.Helper()
	k, err := s.Create(name, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func file(s *keys.Store, name string) string { return filepath.Join(s.Dir, name+".key.json") }

func TestKeySignsAfterItWasStored(t *testing.T) {
	s := store(t)
	created := create(t, s, "root-1")
	opened, err := s.Open("root-1", passphrase)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := opened.Sign(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(created.Public(), []byte("message"), sig) {
		t.Error("signature of the stored key does not verify with the one that was created")
	}
}

func TestFilesBelongToTheirOwnerOnly(t *testing.T) {
	s := store(t)
	create(t, s, "root-1")
	for name, want := range map[string]os.FileMode{s.Dir: 0o700, file(s, "root-1"): 0o600} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("mode of %s = %04o, want %04o", name, st.Mode().Perm(), want)
		}
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v, %v; want one file", entries, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	edit := func(old, new string) func(t *testing.T, s *keys.Store) {
		return func(t *testing.T, s *keys.Store) {
			b, err := os.ReadFile(file(s, "root-1"))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(b), old) {
				t.Fatalf("key file has no %s", old)
			}
			if err := os.WriteFile(file(s, "root-1"), []byte(strings.Replace(string(b), old, new, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		damage     func(t *testing.T, s *keys.Store)
		passphrase string
		want       error
	}{
		"a wrong passphrase":  {nil, "wrong horse", keys.ErrPassphrase},
		"an empty passphrase": {nil, "", keys.ErrPassphrase},
		"a file that the group can read": {func(t *testing.T, s *keys.Store) {
			if err := os.Chmod(file(s, "root-1"), 0o640); err != nil {
				t.Fatal(err)
			}
		}, string(passphrase), keys.ErrExposed},
		"a file that the world can read": {func(t *testing.T, s *keys.Store) {
			if err := os.Chmod(file(s, "root-1"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, string(passphrase), keys.ErrExposed},
		"a folder that the group can write": {func(t *testing.T, s *keys.Store) {
			if err := os.Chmod(s.Dir, 0o770); err != nil {
				t.Fatal(err)
			}
		}, string(passphrase), keys.ErrExposed},
		"a file that is gone": {func(t *testing.T, s *keys.Store) {
			if err := os.Remove(file(s, "root-1")); err != nil {
				t.Fatal(err)
			}
		}, string(passphrase), keys.ErrNotFound},
		"a file of another name": {edit(`"name":"root-1"`, `"name":"root-2"`), string(passphrase), keys.ErrCorrupt},
		"no JSON":                {edit(`{`, `[`), string(passphrase), keys.ErrCorrupt},
		"a foreign public half":  {swapPublic, string(passphrase), keys.ErrCorrupt},
	}
	origin := store(t)
	create(t, origin, "root-1")
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			copyStore(t, origin, s)
			if tc.damage != nil {
				tc.damage(t, s)
			}
			if _, err := s.Open("root-1", []byte(tc.passphrase)); !errors.Is(err, tc.want) {
				t.Errorf("Open = %v, want %v", err, tc.want)
			}
		})
	}
}

// copyStore copies the key root-1, which is quicker than making another.
func copyStore(t *testing.T, from, to *keys.Store) {
	t.Helper()
	b, err := os.ReadFile(file(from, "root-1"))
	if err := errors.Join(err, os.Mkdir(to.Dir, 0o700), os.WriteFile(file(to, "root-1"), b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// swapPublic gives root-1 the public half and ID of another key, consistently.
func swapPublic(t *testing.T, s *keys.Store) {
	other := create(t, s, "other")
	own, err := s.Open("root-1", passphrase)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if err != nil || len(all) != 2 {
		t.Fatalf("List = %v, %v", all, err)
	}
	b, err := os.ReadFile(file(s, "root-1"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), hex.EncodeToString(own.Public()), hex.EncodeToString(other.Public()))
	text = strings.ReplaceAll(text, all[1].ID, all[0].ID)
	if err := os.WriteFile(file(s, "root-1"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCreateKeepsWhatIsThere(t *testing.T) {
	s := store(t)
	create(t, s, "root-1")
	before, err := os.ReadFile(file(s, "root-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create("root-1", passphrase); !errors.Is(err, keys.ErrExists) {
		t.Errorf("second Create = %v, want ErrExists", err)
	}
	after, err := os.ReadFile(file(s, "root-1"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("key file changed, %v", err)
	}
}

func TestCreateRefusesNamesThatArePaths(t *testing.T) {
	if _, err := store(t).Create("../root-1", passphrase); err == nil {
		t.Error("Create(../root-1) = nil, want an error")
	}
}

func TestPrintingShowsNoSecret(t *testing.T) {
	s := store(t)
	k := create(t, s, "root-1")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		got := fmt.Sprintf(verb, k)
		if !strings.HasPrefix(got, "key root-1 (") || len(got) > 100 {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

// asked is a person who types the same passphrase, and counts.
type asked struct {
	answer []byte
	times  []string
}

func (a *asked) prompt(_ context.Context, key string, created bool) ([]byte, error) {
	a.times = append(a.times, fmt.Sprint(key, " ", created))
	return a.answer, nil
}

func TestRingAsksOnceForKeysWithTheSamePassphrase(t *testing.T) {
	s := store(t)
	first := &asked{answer: passphrase}
	ring := keys.NewRing(s, first.prompt, nil)
	for _, name := range []string{"a", "b", "a"} {
		if _, err := ring.Ensure(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(first.times) != "[a true]" {
		t.Errorf("asked for %v, want once, for a new key a", first.times)
	}
	again := &asked{answer: passphrase}
	ring = keys.NewRing(s, again.prompt, nil)
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	held, err := ring.Held(t.Context(), []string{all[0].ID, all[1].ID})
	if err != nil || len(held) != 2 || len(again.times) != 0 {
		t.Fatalf("Held = %v, %v; asked %d times", held, err, len(again.times))
	}
	for _, id := range held {
		if _, err := ring.Signer(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(again.times) != "[a false]" {
		t.Errorf("asked for %v, want once, for the key a", again.times)
	}
}

func TestRingAsksForEachPassphrase(t *testing.T) {
	s := store(t)
	create(t, s, "a")
	if _, err := s.Create("b", []byte("another horse")); err != nil {
		t.Fatal(err)
	}
	ring := keys.NewRing(s, func(_ context.Context, key string, _ bool) ([]byte, error) {
		return map[string][]byte{"a": passphrase, "b": []byte("another horse")}[key], nil
	}, nil)
	for _, name := range []string{"a", "b"} {
		if _, err := ring.Ensure(t.Context(), name); err != nil {
			t.Errorf("Ensure(%s) = %v", name, err)
		}
	}
}

func TestRingRefuses(t *testing.T) {
	s := store(t)
	create(t, s, "a")
	wrong := keys.NewRing(s, (&asked{answer: []byte("wrong horse")}).prompt, nil)
	if _, err := wrong.Ensure(t.Context(), "a"); !errors.Is(err, keys.ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	short := keys.NewRing(s, (&asked{answer: []byte("horse")}).prompt, nil)
	if _, err := short.Ensure(t.Context(), "new"); err == nil {
		t.Error("passphrase of 5 characters for a new key: no error")
	}
	right := keys.NewRing(s, (&asked{answer: passphrase}).prompt, nil)
	if _, err := right.Signer(t.Context(), "no such ID"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("key that is not here: %v", err)
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(`{"name":"k","keyid":"","public":"","secret":{}}`))
	f.Add([]byte(`{`))
	f.Add([]byte(`{"name":"k","keyid":"00","public":"00112233","secret":{"kdf":{"name":"scrypt","params":{"N":1,"r":1,"p":1},"salt":""}}}`))
	s := &keys.Store{Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(file(s, "k"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := s.Open("k", passphrase); err == nil {
			t.Errorf("opened as %v without knowing its passphrase", k)
		}
	})
}
