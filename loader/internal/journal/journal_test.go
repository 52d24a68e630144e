package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/loader/internal/journal"
)

const kernel = patch.BuildID("00112233445566778899aabbccddeeff00112233")

// open opens the journal in dir until the test ends or close is called.
func open(t *testing.T, dir string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// reopen is what a restart of the loader does.
func reopen(t *testing.T, j *journal.Journal, dir string) *journal.Journal {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir)
}

func entry(name string, seq uint64, s journal.Standing, boot string) journal.Entry {
	return journal.Entry{
		Module: patch.Module{Kernel: patch.Kernel{BuildID: kernel}, Name: name, Sequence: seq},
		Digest: patch.Digest{byte(seq)}, Standing: s, BootID: boot,
	}
}

func put(t *testing.T, j *journal.Journal, entries ...journal.Entry) {
	t.Helper()
	for _, e := range entries {
		if err := j.Put(e); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatWasWrittenIsThereAfterRestart(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	put(t, j, entry("a", 3, journal.Trial, "boot1"))
	trust := journal.Trust{Stored: tuf.Stored{Root: []byte("r"), Timestamp: []byte("t"), Snapshot: []byte("s")}, Time: time.Unix(1e9, 0).UTC()}
	if err := j.SetTrust(trust); err != nil {
		t.Fatal(err)
	}
	j = reopen(t, j, dir)
	if e, ok := j.Find("a"); !ok || e.Standing != journal.Trial || e.Digest != (patch.Digest{3}) {
		t.Errorf("entry = %+v, %v", e, ok)
	}
	if got := j.Trust(); !bytes.Equal(got.Snapshot, trust.Snapshot) || !got.Time.Equal(trust.Time) {
		t.Errorf("trust = %+v", got)
	}
	if f := j.Floor(kernel); f.Sequence != 3 {
		t.Errorf("floor = %+v", f)
	}
}

func TestFloorNeverSinks(t *testing.T) {
	j := open(t, t.TempDir())
	for _, seq := range []uint64{2, 7, 5, 7, 1} {
		put(t, j, entry("a", seq, journal.Quarantined, "boot1"))
	}
	if f := j.Floor(kernel); f.Sequence != 7 || f.Digest != (patch.Digest{7}) {
		t.Errorf("floor = %+v, want 7", f)
	}
	if f := j.Floor("ffffffffffffffff"); f.Sequence != 0 {
		t.Errorf("floor of a kernel never seen = %+v", f)
	}
}

func TestFloorOutlivesItsEntry(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	put(t, j, entry("first", 999, journal.Quarantined, "boot1"))
	for i := range uint64(100) {
		put(t, j, entry(fmt.Sprint("p", i), i, journal.Quarantined, "boot1"))
	}
	j = reopen(t, j, dir)
	if n := len(j.All()); n > 32 {
		t.Errorf("journal grew to %d entries", n)
	}
	if _, ok := j.Find("first"); ok {
		t.Error("the oldest entry is still there: the test shows nothing")
	}
	if f := j.Floor(kernel); f.Sequence != 999 {
		t.Errorf("floor = %+v, want 999", f)
	}
}

func TestPatchesInServiceAreNotForgotten(t *testing.T) {
	j := open(t, t.TempDir())
	put(t, j, entry("good", 1, journal.Accepted, "boot1"))
	for i := range uint64(100) {
		standing := []journal.Standing{journal.Suspect, journal.Quarantined}[i/50]
		put(t, j, entry(fmt.Sprint("p", i), i+2, standing, "boot1"))
	}
	if e, ok := j.Find("good"); !ok || e.Standing != journal.Accepted {
		t.Errorf("accepted patch = %+v, %v", e, ok)
	}
}

func TestBoot(t *testing.T) {
	proven := entry("p", 1, journal.Inserting, "boot1")
	proven.Proven = true
	cut := proven
	cut.Cut = true
	tests := map[string]struct {
		entry    journal.Entry
		clean    string // boot that was shut down in good order
		want     journal.Standing
		suspects int
	}{
		"crash during the insertion":              {entry("p", 1, journal.Inserting, "boot1"), "", journal.Suspect, 1},
		"crash during the trial":                  {entry("p", 1, journal.Trial, "boot1"), "", journal.Suspect, 1},
		"crash while an accepted one returned":    {proven, "", journal.Accepted, 0},
		"the same at the boot after":              {cut, "", journal.Suspect, 1},
		"shutdown during the trial":               {entry("p", 1, journal.Trial, "boot1"), "boot1", journal.Quarantined, 0},
		"shutdown while an accepted one returned": {proven, "boot1", journal.Accepted, 0},
		"an earlier boot was shut down":           {entry("p", 1, journal.Trial, "boot1"), "boot0", journal.Suspect, 1},
		"crash long after acceptance":             {entry("p", 1, journal.Accepted, "boot1"), "", journal.Accepted, 0},
		"same boot, loader restarted":             {entry("p", 1, journal.Trial, "boot2"), "", journal.Trial, 0},
		"suspect already":                         {entry("p", 1, journal.Suspect, "boot1"), "boot1", journal.Suspect, 0},
		"out of service":                          {entry("p", 1, journal.Quarantined, "boot1"), "", journal.Quarantined, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			j := open(t, t.TempDir())
			put(t, j, tc.entry)
			if err := j.MarkCleanShutdown(tc.clean); err != nil {
				t.Fatal(err)
			}
			suspects, err := j.BeginBoot("boot2")
			if err != nil {
				t.Fatal(err)
			}
			e, _ := j.Find("p")
			if e.Standing != tc.want || len(suspects) != tc.suspects {
				t.Errorf("standing = %s with %d suspects, want %s with %d", e.Standing, len(suspects), tc.want, tc.suspects)
			}
		})
	}
}

// A snap that is refreshed stops its services and starts them again; what comes
// after that is no clean shutdown any more.
func TestStoppedServiceIsNoShutdown(t *testing.T) {
	j := open(t, t.TempDir())
	put(t, j, entry("p", 1, journal.Trial, "boot1"))
	if err := j.MarkCleanShutdown("boot1"); err != nil {
		t.Fatal(err)
	}
	if suspects, err := j.BeginBoot("boot1"); err != nil || len(suspects) > 0 {
		t.Fatalf("started again: %v, %v", suspects, err)
	}
	if suspects, err := j.BeginBoot("boot2"); err != nil || len(suspects) != 1 {
		t.Errorf("after a crash: suspects %v, %v, want p", suspects, err)
	}
}

// The one before stays, to go back to.
func TestAcceptRetiresAllButThePatchBefore(t *testing.T) {
	other := entry("other-kernel", 1, journal.Accepted, "boot1")
	other.BuildID = "ffffffffffffffff"
	j := open(t, t.TempDir())
	put(t, j, other)
	older, revoked := entry("older", 1, journal.Accepted, "boot0"), entry("revoked", 1, journal.Accepted, "boot0")
	revoked.Rollout = patch.Revoked
	put(t, j, older, revoked, entry("old", 1, journal.Accepted, "boot1"), entry("bad", 2, journal.Suspect, "boot1"), entry("new", 3, journal.Trial, "boot1"))
	if err := j.Accept(entry("new", 3, journal.Trial, "boot1")); err != nil {
		t.Fatal(err)
	}
	want := map[string]journal.Standing{"new": journal.Accepted, "old": journal.Accepted, "older": journal.Quarantined, "revoked": journal.Quarantined, "bad": journal.Suspect, "other-kernel": journal.Accepted}
	for name, s := range want {
		if e, _ := j.Find(name); e.Standing != s || e.Proven != (name == "new") {
			t.Errorf("%s is %s (proven %v), want %s", name, e.Standing, e.Proven, s)
		}
	}
}

func TestModulesAreKeptWhileTheyAreNeeded(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	content := []byte("module")
	for seq, s := range []journal.Standing{journal.Inserting, journal.Trial, journal.Accepted, journal.Suspect, journal.Quarantined} {
		e := entry(string(s), uint64(seq), s, "boot1")
		put(t, j, e)
		if err := j.StoreModule(e.Digest, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	leftover := filepath.Join(dir, "store", ".tmp-123")
	if err := os.WriteFile(leftover, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := j.Prune(); err != nil {
		t.Fatal(err)
	}
	for _, e := range j.All() {
		var got bytes.Buffer
		err := j.LoadModule(e.Digest, &got)
		needed := e.Standing != journal.Suspect && e.Standing != journal.Quarantined
		if needed != (err == nil) || needed && !bytes.Equal(got.Bytes(), content) {
			t.Errorf("module of a patch that is %s: %q, %v", e.Standing, got.Bytes(), err)
		}
	}
	if _, err := os.Stat(leftover); err == nil {
		t.Error("leftover of a killed process is still there")
	}
}

func TestDamagedFilesAreNeverReplaced(t *testing.T) {
	for _, name := range []string{"journal.json", "trust.json"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(`{"entries": [`), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := journal.Open(dir)
			if !errors.Is(err, patch.ErrStorage) || !strings.Contains(err.Error(), name) {
				t.Errorf("error = %v, want one that names %s", err, name)
			}
			if b, _ := os.ReadFile(path); string(b) != `{"entries": [` {
				t.Errorf("%s was replaced by %q: floors are forgotten", name, b)
			}
		})
	}
}

func TestFailureToWriteChangesNothing(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	put(t, j, entry("a", 1, journal.Trial, "boot1"))
	before, _ := os.ReadFile(filepath.Join(dir, "journal.json"))
	// A folder in the place of the file cannot be replaced by a file; unlike
	// permissions this holds for root too.
	if err := os.Remove(filepath.Join(dir, "journal.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "journal.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := j.Mark("a", journal.Accepted); !errors.Is(err, patch.ErrStorage) {
		t.Errorf("error = %v, want %v", err, patch.ErrStorage)
	}
	if e, _ := j.Find("a"); e.Standing != journal.Trial {
		t.Errorf("standing = %s although it could not be written", e.Standing)
	}
	if len(before) == 0 {
		t.Error("there was no journal to begin with")
	}
}

func TestNothingNewIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	if _, err := j.BeginBoot("boot1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "journal.json")); err == nil {
		t.Error("an empty journal was written: a loader could not start on a full disk")
	}
	put(t, j, entry("a", 1, journal.Accepted, "boot1"))
	j = reopen(t, j, dir)
	before, err := os.Stat(filepath.Join(dir, "journal.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.BeginBoot("boot2"); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(dir, "journal.json")); err != nil || !os.SameFile(before, after) {
		t.Errorf("a journal without change was written again: %v", err)
	}
}

func TestSecondProcessWaits(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	opened := make(chan error, 1)
	go func() {
		second, err := journal.Open(dir)
		if err == nil {
			err = second.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("journal was open twice: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestStateIsForRootAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	j := open(t, dir)
	put(t, j, entry("a", 1, journal.Trial, "boot1"))
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
