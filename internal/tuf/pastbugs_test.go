package tuf_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// More mistakes that TUF implementations have made, by number. SECURITY.md has
// the list of all of them and of our test for each.

// CVE-2020-6173 (python-tuf): signatures without end cost time without end. We
// look up the signatures of the keys that a role names, and at no others, and a
// file has a size.
func TestManySignaturesOfStrangers(t *testing.T) {
	strangers := make([]any, 20_000)
	for i := range strangers {
		strangers[i] = tuftest.Object{"keyid": fmt.Sprintf("%064x", i), "sig": strings.Repeat("ab", 64)}
	}
	crowd := func(envelope tuftest.Object) any {
		return tuftest.Set(append(strangers[:len(strangers):len(strangers)], envelope["signatures"].([]any)...), "signatures")(envelope)
	}
	runAll(t, map[string]scenario{
		"on a bin, among which the right ones":  {edit: forge("bin", crowd), kept: all},
		"on a bin, and the right ones are gone": {edit: then(forge("bin", crowd), signers("bin")), want: patch.ErrUntrusted, kept: all},
		"on a timestamp, which is small":        {edit: forge("timestamp", crowd), want: patch.ErrTooLarge, kept: nothing},
	})
}

// CVE-2020-15163 (python-tuf): a root that failed was trusted by the next update.
func TestRootThatFailedIsForgotten(t *testing.T) {
	r := newRepo()
	good := r.Files()
	evil := r.AddRoot()
	tuftest.Grant(evil, "root", 1, tuftest.NewKey("evil"))
	tuftest.Grant(evil, "timestamp", 1, tuftest.NewKey("evil"))
	evil.Signers = keysOf("evil")
	third := r.AddRoot()
	third.Signers = keysOf("evil")
	files := r.Files()

	set, err := tuf.New(tuf.Stored{Root: good.Roots[0]}, start)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, b := range files.Roots[1:] {
			if set.Root(b) == nil {
				t.Fatal("a root that a stranger signed was taken")
			}
		}
		if set.RootVersion() != 1 || !bytes.Equal(set.Stored().Root, good.Roots[0]) {
			t.Fatalf("trusted root is %d", set.RootVersion())
		}
		if set, err = tuf.New(set.Stored(), start); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := find(t, set.Stored(), good, start, module); err != nil {
		t.Errorf("the repository as it was: %v", err)
	}
}

// CVE-2025-2885 (tough): the version of a new root was not looked at.
func TestRootsOutOfOrder(t *testing.T) {
	r := newRepo()
	for range 3 {
		r.AddRoot()
	}
	files := r.Files()
	for name, tc := range map[string]struct {
		order []int
		want  error
		root  int64
	}{
		"in order":       {[]int{2, 3, 4}, nil, 4},
		"one left out":   {[]int{2, 4}, patch.ErrMalformed, 2},
		"one twice":      {[]int{2, 2}, patch.ErrRollback, 2},
		"back again":     {[]int{2, 3, 2}, patch.ErrRollback, 3},
		"the first one":  {[]int{1}, patch.ErrRollback, 1},
		"the last first": {[]int{4}, patch.ErrMalformed, 1},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := tuf.New(tuf.Stored{Root: files.Roots[0]}, start)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range tc.order {
				if err = set.Root(files.Roots[n-1]); err != nil {
					break
				}
			}
			if verdict(err) != tc.want || set.RootVersion() != tc.root {
				t.Errorf("verdict = %v, root %d; want %v, %d", err, set.RootVersion(), tc.want, tc.root)
			}
		})
	}
}

// CVE-2025-2888 (tough): a timestamp that was refused, because it listed an older
// snapshot, was kept all the same, and stood in the way of the next one.
func TestTimestampThatWasRefusedIsNotKept(t *testing.T) {
	const before = "root 1, timestamp 2, snapshot 2"
	scenario{
		past: publish, edit: then(publish, func(r *tuftest.Repo) { r.Roles["snapshot"].Signed["version"] = 1 }),
		want: patch.ErrRollback, kept: before,
	}.run(t)
	scenario{past: publish, edit: publish, kept: "root 1, timestamp 3, snapshot 3"}.run(t)
}

// CVE-2026-23991 and what is left of it (go-tuf): a null, or nothing, where an
// object is wanted made the client panic, before it had looked at a signature.
func TestNullsThatNobodySigned(t *testing.T) {
	for _, name := range []string{"root", "timestamp", "snapshot", "targets", "debian", "bin"} {
		t.Run(name, func(t *testing.T) {
			base := newRepo()
			base.AddRoot()
			base.Files()
			envelope := tuftest.Object{"signed": role(base, name).Signed, "signatures": []any{tuftest.Object{"keyid": "a", "sig": "ab"}}}
			wrong := map[string]any{"null": nil, "nothing": tuftest.Object{}, "an empty list": []any{}, "null inside": tuftest.Object{"x": nil}}
			for i, p := range tuftest.Paths(envelope) {
				if i%thin != 0 {
					continue
				}
				for what, value := range wrong {
					r := base.Clone()
					role(r, name).Forge = func(tuftest.Object) any {
						return p.Edit(envelope, func(any) any { return value })
					}
					files := r.Files()
					_, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, module)
					// Whatever else it is, it is not signed.
					if v := verdict(err); v != patch.ErrMalformed && v != patch.ErrUntrusted && v != patch.ErrTampered {
						t.Errorf("%v is %s: %v", p, what, err)
					}
				}
			}
		})
	}
}

// What is packed is not unpacked: a small file cannot become a large one.
func TestCompressedMetadataIsMalformed(t *testing.T) {
	for _, name := range []string{"root", "timestamp", "snapshot", "bin"} {
		t.Run(name, func(t *testing.T) {
			r := newRepo()
			r.AddRoot()
			role(r, name).Rewrite = func(b []byte) []byte {
				var out bytes.Buffer
				z := gzip.NewWriter(&out)
				_, _ = z.Write(b)
				_ = z.Close()
				return out.Bytes()
			}
			files := r.Files()
			_, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, module)
			if verdict(err) != patch.ErrMalformed {
				t.Errorf("verdict = %v, want %v", err, patch.ErrMalformed)
			}
		})
	}
}
