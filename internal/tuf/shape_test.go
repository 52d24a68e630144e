package tuf_test

import (
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// The tests of this file are about what could be written in two ways.

func TestHashesThatAreNotKnown(t *testing.T) {
	target := func(hashes tuftest.Object) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) { role(r, "bin").Edit = tuftest.Set(hashes, "targets", module, "hashes") }
	}
	sum := strings.Repeat("ab", 32)
	runAll(t, map[string]scenario{
		"none":            {edit: target(tuftest.Object{}), want: patch.ErrMalformed, kept: all},
		"md5":             {edit: target(tuftest.Object{"md5": strings.Repeat("ab", 16)}), want: patch.ErrMalformed, kept: all},
		"md5 besides":     {edit: target(tuftest.Object{"md5": strings.Repeat("ab", 16), "sha256": sum}), want: patch.ErrMalformed, kept: all},
		"sha256 of 20":    {edit: target(tuftest.Object{"sha256": strings.Repeat("ab", 20)}), want: patch.ErrMalformed, kept: all},
		"sha256 of 64":    {edit: target(tuftest.Object{"sha256": sum + sum}), want: patch.ErrMalformed, kept: all},
		"in capitals":     {edit: target(tuftest.Object{"sha256": strings.ToUpper(sum)}), want: patch.ErrMalformed, kept: all},
		"SHA256":          {edit: target(tuftest.Object{"SHA256": sum}), want: patch.ErrMalformed, kept: all},
		"not hexadecimal": {edit: target(tuftest.Object{"sha256": strings.Repeat("zz", 32)}), want: patch.ErrMalformed, kept: all},
	})
}

// A target has SHA-256 and no other hash: with two there would be two files
// that somebody could mean.
func TestTargetHasOneHash(t *testing.T) {
	sum, long := strings.Repeat("ab", 32), strings.Repeat("ab", 64)
	for name, tc := range map[string]struct {
		hashes tuftest.Object
		want   error
	}{
		"sha256": {tuftest.Object{"sha256": sum}, nil},
		"sha512": {tuftest.Object{"sha512": long}, patch.ErrMalformed},
		"both":   {tuftest.Object{"sha256": sum, "sha512": long}, patch.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo()
			role(r, "bin").Edit = tuftest.Set(tc.hashes, "targets", module, "hashes")
			files := r.Files()
			found, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, module)
			if verdict(err) != tc.want || err == nil && found.Digest.String() != sum {
				t.Errorf("find = %+v, %v, want %v", found, err, tc.want)
			}
		})
	}
}

// There is one way to write a time. Others are read as different times by
// different programs, or signed as another text than was read.
func TestExpiryIsWrittenInOneWay(t *testing.T) {
	malformed := []string{
		"", "2026-12-22", "2026-12-22T12:00:00", "2026-12-22T12:00:00z", "2026-12-22t12:00:00Z", "2026-12-22 12:00:00Z", "2026-12-22T12:00Z",
		"2026-12-22T12:00:00.5Z", "2026-12-22T12:00:00.50Z", "2026-12-22T12:00:00,5Z", "2026-12-22T12:00:00.000000000Z", "2026-12-22T12:00:00+00:00",
		"2026-12-22T12:00:00+01:00", "2026-12-22T9:00:00Z", "2026-12-22T12:0:00Z", "2026-12-32T12:00:00Z", "2026-02-30T12:00:00Z", "2026-13-01T12:00:00Z",
		"2026-12-22T24:00:00Z", "2026-12-22T12:60:00Z", "2026-12-22T12:00:60Z", "12026-12-22T12:00:00Z", "-026-12-22T12:00:00Z", "2026-12-22T12:00:00Z ",
		" 2026-12-22T12:00:00Z", "２０２６-12-22T12:00:00Z", "2026-12-22T12:00:00Z\x00", "Tue, 22 Dec 2026 12:00:00 GMT", "1798000000",
	}
	for _, expires := range malformed {
		t.Run(expires, func(t *testing.T) {
			scenario{edit: edit("bin", tuftest.Set(expires, "expires")), want: patch.ErrMalformed, kept: all}.run(t)
		})
	}
	runAll(t, map[string]scenario{
		"the last that can be written": {edit: edit("bin", tuftest.Set("9999-12-31T23:59:59Z", "expires")), kept: all},
		"the first":                    {edit: edit("bin", tuftest.Set("0000-01-01T00:00:00Z", "expires")), want: patch.ErrExpired, kept: all},
		"the leap day":                 {edit: edit("bin", tuftest.Set("2028-02-29T00:00:00Z", "expires")), kept: all},
	})
}

// Prefixes of hashes are read differently by different programs, even beside
// patterns that all of them read alike.
func TestPathHashPrefixesAreMalformed(t *testing.T) {
	at := func(name string) func(*tuftest.Repo) {
		return edit("targets", tuftest.Set([]any{"00"}, "delegations", "roles", "1", name))
	}
	runAll(t, map[string]scenario{
		"beside paths":         {edit: at("path_hash_prefixes"), want: patch.ErrMalformed, kept: all},
		"in capitals":          {edit: at("PATH_HASH_PREFIXES"), want: patch.ErrMalformed, kept: all},
		"in place of paths":    {edit: then(at("path_hash_prefixes"), withoutPaths), want: patch.ErrMalformed, kept: all},
		"without any of these": {edit: withoutPaths, want: patch.ErrMalformed, kept: all},
	})
}

func withoutPaths(r *tuftest.Repo) {
	delete(tuftest.Path{"delegations", "roles", "1"}.Get(r.Roles["targets"].Signed).(tuftest.Object), "paths")
}

// Names that look alike are different names.
func TestNamesAreBytes(t *testing.T) {
	const composed, decomposed = "debian/\u00e9.ko", "debian/e\u0301.ko"
	r := newRepo()
	r.AddTarget(composed, []byte("composed"), nil)
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Find(composed, files.Load); err != nil {
		t.Errorf("composed: %v", err)
	}
	for _, name := range []string{decomposed, "debian/É.ko", "debian/\u00e9.ko\x00", " " + composed, composed + "/", "./" + composed} {
		if _, err := set.Find(name, files.Load); verdict(err) != patch.ErrNotFound {
			t.Errorf("%q: %v, want %v", name, err, patch.ErrNotFound)
		}
	}
}

// What stands in front of or behind a file, or how it is laid out, does not
// matter; what could be read in two ways is refused.
func TestShapeOfAFile(t *testing.T) {
	rewrite := func(f func(string) string) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			role(r, "bin").Rewrite = func(b []byte) []byte { return []byte(f(string(b))) }
		}
	}
	malformed := func(f func(string) string) scenario {
		return scenario{edit: rewrite(f), want: patch.ErrMalformed, kept: all}
	}
	runAll(t, map[string]scenario{
		"white space around": {edit: rewrite(func(s string) string { return "\r\n\t " + s + "\r\n\t " }), kept: all},
		"white space inside": {edit: rewrite(func(s string) string { return strings.ReplaceAll(s, `,"`, ",\n\t\"") }), kept: all},
		"empty":              malformed(func(string) string { return "" }),
		"blank":              malformed(func(string) string { return " \n" }),
		"null":               malformed(func(string) string { return "null" }),
		"a list":             malformed(func(s string) string { return "[" + s + "]" }),
		"a string":           malformed(func(string) string { return `"signed"` }),
		"truncated":          malformed(func(s string) string { return s[:len(s)/2] }),
		"one bracket less":   malformed(func(s string) string { return strings.TrimSuffix(strings.TrimSpace(s), "}") }),
		"one bracket more":   malformed(func(s string) string { return s + "}" }),
		"two files":          malformed(func(s string) string { return s + s }),
		"a comma more":       malformed(func(s string) string { return strings.TrimSuffix(strings.TrimSpace(s), "}") + ",}" }),
		"a comma at the end": malformed(func(s string) string { return s + "," }),
		"a NUL at the end":   malformed(func(s string) string { return s + "\x00" }),
		"a comment":          malformed(func(s string) string { return s + "// x" }),
		"a byte order mark":  malformed(func(s string) string { return "\ufeff" + s }),
		"UTF-16":             malformed(func(s string) string { return strings.Join(strings.Split(s, ""), "\x00") }),
		"another brace":      malformed(func(s string) string { return strings.TrimSuffix(strings.TrimSpace(s), "}") + "]" }),
		"other signed block": malformed(func(s string) string { return strings.Replace(s, `"signed":`, `"Signed":{},"signed":`, 1) }),
		"and after it":       malformed(func(s string) string { return strings.TrimSuffix(strings.TrimSpace(s), "}") + `,"SIGNED":{}}` }),
	})
}
