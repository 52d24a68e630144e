package trust

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"livepatch/agent/internal/servicetest"
	"livepatch/internal/patch"
)

// shipped returns the files of a repository as they come with the program.
func shipped(repo *servicetest.Repo) fstest.MapFS {
	files := fstest.MapFS{"README": {Data: []byte("not a signed file")}}
	for name, b := range repo.State() {
		if !strings.Contains(name, "/") {
			files[name] = &fstest.MapFile{Data: b}
		}
	}
	return files
}

func TestNewMachineBelievesNothingOlderThanWhatCameWithTheProgram(t *testing.T) {
	f := newFixture(t)
	old := f.src.repo.State()
	f.src.repo.Publish()
	now := f.src.repo.State()
	files := shipped(f.src.repo)
	if files["timestamp.json"] == nil {
		t.Fatal("the repository has no timestamp")
	}
	if err := f.Seed(files); err != nil {
		t.Fatal(err)
	}
	f.src.repo.Restore(old)
	if _, err := f.refresh(t); !errors.Is(err, patch.ErrRollback) {
		t.Errorf("with older files: %v", err)
	}
	f.src.repo.Restore(now)
	if _, err := f.refresh(t); err != nil {
		t.Errorf("with those that came: %v", err)
	}
}

func TestSeedsThatAreOfNoUseDoNoHarm(t *testing.T) {
	tests := map[string]func(*fixture) fstest.MapFS{
		"none": func(*fixture) fstest.MapFS { return fstest.MapFS{} },
		"damaged": func(f *fixture) fstest.MapFS {
			files := shipped(f.src.repo)
			for _, file := range files {
				file.Data = file.Data[:len(file.Data)/2]
			}
			return files
		},
		"signed by others": func(*fixture) fstest.MapFS {
			other := servicetest.NewRepo()
			other.Publish()
			return shipped(other)
		},
		"expired": func(f *fixture) fstest.MapFS {
			f.src.repo.SetLifetime(-time.Hour)
			f.src.repo.Publish()
			files := shipped(f.src.repo)
			f.src.repo.SetLifetime(24 * time.Hour)
			f.src.repo.Publish()
			return files
		},
		"names that lead elsewhere": func(*fixture) fstest.MapFS {
			return fstest.MapFS{"0.root.json": {Data: []byte("{}")}, "x.y.json": {Data: []byte("{}")}, "dir/timestamp.json": {Data: []byte("{}")}}
		},
	}
	for name, files := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			if err := f.Seed(files(f)); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Refresh(t.Context(), f.src, 1); err != nil {
				t.Errorf("Refresh = %v", err)
			}
		})
	}
}

func TestSeedLeavesACacheAlone(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Refresh(t.Context(), f.src, 1); err != nil {
		t.Fatal(err)
	}
	if err := f.Seed(fstest.MapFS{"timestamp.json": {Data: []byte("{}")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Cached(t.Context()); err != nil {
		t.Errorf("Cached = %v", err)
	}
}

func TestSeedThatIsTooLongIsRefused(t *testing.T) {
	f := newFixture(t)
	long := fstest.MapFS{"timestamp.json": {Data: []byte(strings.Repeat(" ", 64<<20))}}
	if err := f.Seed(long); err == nil {
		t.Error("no error")
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, "metadata", "*")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
