package report

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A recorder is a test that does not fail the test which looks at it.
type recorder struct {
	testing.TB
	failed   bool
	cleanups []func()
}

func (r *recorder) Name() string     { return "TestAttack" }
func (r *recorder) Helper()          {}
func (r *recorder) Failed() bool     { return r.failed }
func (r *recorder) Error(...any)     { r.failed = true }
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) end() (failed bool) {
	for _, f := range r.cleanups {
		f()
	}
	return r.failed
}

// rows returns what is written by tests that run in a tree of their own.
func rows(t *testing.T, attack func(r *recorder)) (failed bool, written []Row) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module tree\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	r := &recorder{}
	attack(r)
	failed = r.end()
	f, err := os.Open(filepath.Join(dir, "build", "attack.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if written, err = Read(f); err != nil {
		t.Fatal(err)
	}
	return failed, written
}

func TestRowSaysWhatWasSeen(t *testing.T) {
	tests := map[string]struct {
		attack func(a *Attack, r *recorder)
		want   Row
		failed bool
	}{
		"stopped": {
			attack: func(a *Attack, _ *recorder) { a.StoppedBy("loader: %s", "ROLLBACK"); a.Sees("error:\n older") },
			want:   Row{"TestAttack", "old files", Mirror, "loader: ROLLBACK", "error: older", Stopped},
		},
		"stopped by two checks": {
			attack: func(a *Attack, _ *recorder) { a.StoppedBy("one"); a.StoppedBy("two"); a.StoppedBy("two") },
			want:   Row{"TestAttack", "old files", Mirror, "one; two", "", Stopped},
		},
		"bounded": {
			attack: func(a *Attack, _ *recorder) { a.Bounded("expiry: %d day", 1) },
			want:   Row{"TestAttack", "old files", Mirror, "expiry: 1 day", "", Bounded},
		},
		"got through, because the test failed": {
			attack: func(a *Attack, r *recorder) { a.StoppedBy("nobody"); r.Error() },
			want:   Row{"TestAttack", "old files", Mirror, "nobody", "", Through},
			failed: true,
		},
		"got through, because nothing was seen": {
			attack: func(*Attack, *recorder) {},
			want:   Row{"TestAttack", "old files", Mirror, "", "", Through},
			failed: true,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			failed, got := rows(t, func(r *recorder) { tc.attack(Begin(r, Mirror, "old files"), r) })
			if failed != tc.failed || len(got) != 1 || got[0] != tc.want {
				t.Errorf("failed = %v, rows = %+v, want %v, %+v", failed, got, tc.failed, tc.want)
			}
		})
	}
}

func TestTableFailsIfAnythingGotThrough(t *testing.T) {
	good := Row{"TestA", "old files", Mirror, "floor", "error: older", Stopped}
	slow := Row{"TestB", "silence", Server, "expiry", "", Bounded}
	bad := Row{"TestC", "own module", Agent, "", "", Through}
	tests := map[string]struct {
		rows []Row
		want error
	}{
		"all stopped or bounded": {[]Row{good, slow}, nil},
		"one got through":        {[]Row{good, bad}, ErrThrough},
		"a result nobody knows":  {[]Row{good, {Test: "TestD"}}, ErrThrough},
		"no attack at all":       {nil, ErrThrough},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := Print(&out, tc.rows, true); !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
			for _, r := range tc.rows {
				if !strings.Contains(out.String(), r.Attack) || !strings.Contains(out.String(), r.Sees) {
					t.Errorf("table lacks %+v:\n%s", r, out.String())
				}
			}
		})
	}
}

func TestLaterRowOfATestCounts(t *testing.T) {
	got, err := Read(strings.NewReader(`{"test":"TestA","attack":"x","result":"GOT THROUGH"}
{"test":"TestB","attack":"y","result":"stopped"}
{"test":"TestA","attack":"x","result":"stopped"}
`))
	if err != nil || len(got) != 2 || got[1].Test != "TestA" || got[1].Result != Stopped {
		t.Errorf("rows = %+v, %v", got, err)
	}
	if _, err := Read(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was read")
	}
}

func TestDocumentNamesEveryTest(t *testing.T) {
	rows := []Row{{Test: "TestA/one thing"}, {Test: "TestA/another"}, {Test: "TestB"}, {Test: "TestC"}}
	got := Unlisted(rows, "| attack | `TestA/one thing`, `TestC` |")
	if len(got) != 1 || got[0] != "TestB" {
		t.Errorf("unlisted = %q, want TestB", got)
	}
}
