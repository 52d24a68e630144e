package trust

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/servicetest"
	"livepatch/internal/patch"
)

// updated returns a fixture whose program was replaced by one that pins root 3 of 4,
// and whose cache is as if it had never known another. Who trusts root 1 needs 2 to 4.
func updated(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	f.src.repo.RotateRoot("timestamp")
	f.src.repo.RotateRoot("root")
	f.repin(t, 3)
	f.src.repo.RotateRoot("")
	f.src.repo.Publish()
	f.must(t)
	f.src.asked()
	return f
}

// repin opens the cache again, with another version of root as the pinned one.
func (f *fixture) repin(t *testing.T, version int64) {
	t.Helper()
	var err error
	if f.Keeper, err = Open(f.dir, rootOf(f.src.repo, version)); err != nil {
		t.Fatal(err)
	}
}

func rootOf(repo *servicetest.Repo, version int64) []byte {
	return repo.Metadata(fmt.Sprintf("%d.root.json", version))
}

// wantRoots fails the test unless the keeper has these versions for who trusts root 1.
func (f *fixture) wantRoots(t *testing.T, src Source, versions ...int64) {
	t.Helper()
	roots, err := f.Roots(t.Context(), src, 1)
	if err != nil {
		t.Fatal(err)
	}
	var want [][]byte
	for _, v := range versions {
		want = append(want, rootOf(f.src.repo, v))
	}
	if !slices.EqualFunc(roots, want, bytes.Equal) {
		t.Errorf("got %d roots, want those of versions %d", len(roots), versions)
	}
}

func TestRootsBeforeThePinnedOneAreFetchedOnce(t *testing.T) {
	f := updated(t)
	f.wantRoots(t, f.src, 2, 3, 4)
	if got := f.src.asked(); !slices.Equal(got, []string{"2.root.json"}) {
		t.Errorf("asked for %q", got)
	}
	f.repin(t, 3)
	f.wantRoots(t, nil, 2, 3, 4)
	if roots, err := f.Roots(t.Context(), nil, 2); err != nil || len(roots) != 2 {
		t.Errorf("above the one before the pinned one: %d, %v", len(roots), err)
	}
}

// A program that is updated in place has seen the roots before.
func TestRootsBeforeThePinnedOneMayBeInTheCache(t *testing.T) {
	f := newFixture(t)
	f.src.repo.RotateRoot("root")
	f.src.repo.RotateRoot("root")
	f.must(t)
	f.src.asked()
	f.repin(t, 3)
	f.wantRoots(t, nil, 2, 3)
}

func TestRootsThatDoNotLeadToThePinnedOne(t *testing.T) {
	stranger := servicetest.NewRepo()
	stranger.RotateRoot("root")
	tests := map[string]struct {
		harm func(*fixture)
		want error
	}{
		"one is missing":    {func(f *fixture) { f.src.repo.SetMetadata("2.root.json", nil) }, ErrGap},
		"of somebody else":  {func(f *fixture) { f.src.repo.SetMetadata("2.root.json", rootOf(stranger, 2)) }, patch.ErrUntrusted},
		"another version":   {func(f *fixture) { f.src.repo.SetMetadata("2.root.json", rootOf(f.src.repo, 1)) }, patch.ErrMalformed},
		"no root":           {func(f *fixture) { f.src.repo.SetMetadata("2.root.json", f.src.repo.Metadata("timestamp.json")) }, patch.ErrMalformed},
		"null":              {func(f *fixture) { f.src.repo.SetMetadata("2.root.json", []byte("null")) }, patch.ErrMalformed},
		"service not there": {func(f *fixture) { f.src.err = &fetch.Error{Kind: fetch.ErrConnRefused, Text: "refused"} }, fetch.ErrConnRefused},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := updated(t)
			honest := f.src.repo.State()
			tc.harm(f)
			roots, err := f.Roots(t.Context(), f.src, 1)
			if !errors.Is(err, tc.want) || !strings.HasPrefix(err.Error(), "cannot learn how root 1 leads to root 3: ") || roots != nil {
				t.Errorf("Roots = %d, %v, want %v", len(roots), err, tc.want)
			}
			f.src.err = nil
			f.src.repo.Restore(honest)
			f.wantRoots(t, f.src, 2, 3, 4)
		})
	}
}

func TestRootBeforeThePinnedOneThatIsDamagedIsFetchedAnew(t *testing.T) {
	f := updated(t)
	f.wantRoots(t, f.src, 2, 3, 4)
	if err := os.WriteFile(f.rootPath(2), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.wantRoots(t, f.src, 2, 3, 4)
	f.wantRoots(t, nil, 2, 3, 4)
}

// A forged root 2 that names the keys of root 3 besides one of its own leads there,
// and only who trusts root 1 can tell.
func TestRootsThatWereRefusedAreFetchedAnew(t *testing.T) {
	f := updated(t)
	f.wantRoots(t, f.src, 2, 3, 4)
	if err := f.ForgetEarlier(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Roots(t.Context(), nil, 1); !errors.Is(err, ErrOffline) {
		t.Errorf("Roots = %v", err)
	}
	if roots, err := f.Roots(t.Context(), nil, 2); err != nil || len(roots) != 2 {
		t.Errorf("those since the pinned one: %d, %v", len(roots), err)
	}
	f.wantRoots(t, f.src, 2, 3, 4)
}
