package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/loader/internal/journal"
)

// FuzzOpen opens a folder in which both files hold anything. Either they are
// refused, as storage that a person has to look at, or what they say is the
// same after it was written and read again; a refused file is left as it is.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{}`), []byte(`{}`))
	f.Add([]byte(`{"entries":[{"name":"lkp_1","sequence":3,"standing":"trial","digest":"`+
		`0000000000000000000000000000000000000000000000000000000000000001","build_id":"0011"}],"floors":{"0011":{"sequence":3}}}`),
		[]byte(`{"Root":"e30=","Time":"2026-11-22T03:00:00Z"}`))
	f.Add([]byte(`{"entries":null,"floors":null}`), []byte(`null`))
	f.Add([]byte(`{"floors":{"":{"sequence":18446744073709551615}}}`), []byte(`{"Time":"0000-00-00T00:00:00Z"}`))
	f.Add([]byte(``), []byte("\x00"))
	f.Fuzz(func(t *testing.T, record, trust []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"journal.json": record, "trust.json": trust} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		j, err := journal.Open(dir)
		if err != nil {
			refused(t, dir, record, err)
			return
		}
		before, trusted := j.All(), j.Trust()
		kernels := floorsOf(j, before)
		if err := errors.Join(j.MarkCleanShutdown("another boot"), j.SetTrust(trusted), j.Close()); err != nil {
			t.Fatal(err)
		}
		if j, err = journal.Open(dir); err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
		defer j.Close()
		if diff := cmp.Diff(before, j.All()); diff != "" {
			t.Errorf("entries differ (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(kernels, floorsOf(j, before)); diff != "" {
			t.Errorf("floors differ (-before +after):\n%s", diff)
		}
		if got := j.Trust(); !got.Time.Equal(trusted.Time) || string(got.Root) != string(trusted.Root) {
			t.Errorf("trust differs: %+v, then %+v", trusted, got)
		}
	})
}

func refused(t *testing.T, dir string, record []byte, err error) {
	t.Helper()
	if !errors.Is(err, patch.ErrStorage) {
		t.Errorf("Open = %v, want %v", err, patch.ErrStorage)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "journal.json")); err != nil || string(b) != string(record) {
		t.Errorf("journal was changed to %q, %v", b, err)
	}
}

func floorsOf(j *journal.Journal, entries []journal.Entry) map[patch.BuildID]journal.Floor {
	floors := map[patch.BuildID]journal.Floor{}
	for _, e := range entries {
		floors[e.BuildID] = j.Floor(e.BuildID)
	}
	return floors
}
