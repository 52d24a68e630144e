package tuf_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// Targets: sections 5.6 and 5.7 of the specification, and TAP 15.

// A role below root is each of the three kinds of roles that Find loads.
var rolesBelowRoot = []string{"targets", "debian", "bin"}

func forEachRole(t *testing.T, f func(t *testing.T, name string)) {
	t.Helper()
	for _, name := range rolesBelowRoot {
		t.Run(name, func(t *testing.T) { f(t, name) })
	}
}

func TestSection5_6_1_TargetsSize(t *testing.T) {
	forEachRole(t, func(t *testing.T, name string) {
		runAll(t, map[string]scenario{
			"as large as allowed": {edit: func(r *tuftest.Repo) { role(r, name).Rewrite = pad(patch.MaxRole) }, kept: all},
			"larger than allowed": {edit: func(r *tuftest.Repo) { role(r, name).Rewrite = pad(patch.MaxRole + 1) }, want: patch.ErrTooLarge, kept: all},
		})
	})
}

func TestSection5_6_2_TargetsHash(t *testing.T) {
	forEachRole(t, func(t *testing.T, name string) {
		hashed := func(r *tuftest.Repo) { r.HashBins = true }
		space := func(f *tuftest.Files) {
			for n, b := range f.Roles {
				if n == name || name == "bin" && strings.HasPrefix(n, "debian-") {
					f.Roles[n] = append([]byte{' '}, b...)
				}
			}
		}
		runAll(t, map[string]scenario{
			"hash and length are right":                {edit: hashed, kept: all},
			"a byte of white space more":               {edit: hashed, files: space, want: patch.ErrTampered, kept: all},
			"without hashes, white space says nothing": {files: space, kept: all},
		})
	})
}

func TestSection5_6_3_TargetsSignatures(t *testing.T) {
	forEachRole(t, func(t *testing.T, name string) {
		enough := []string{"debian builder", "debian approver"}
		if name == "targets" {
			enough = []string{"targets 2", "targets 3"}
		}
		runAll(t, map[string]scenario{
			"are enough":                {edit: signers(name, enough...), kept: all},
			"are enough, among others":  {edit: signers(name, append(enough, "stranger", "root 1")...), kept: all},
			"are too few":               {edit: signers(name, enough[0]), want: patch.ErrUntrusted, kept: all},
			"are the other one":         {edit: signers(name, enough[1]), want: patch.ErrUntrusted, kept: all},
			"are missing":               {edit: signers(name), want: patch.ErrUntrusted, kept: all},
			"are of the online keys":    {edit: signers(name, "snapshot", "timestamp", "rollout"), want: patch.ErrUntrusted, kept: all},
			"are one and an online key": {edit: signers(name, enough[0], "rollout"), want: patch.ErrUntrusted, kept: all},
			"are of root":               {edit: signers(name, "root 1", "root 2"), want: patch.ErrUntrusted, kept: all},
			"are of other content":      {edit: forge(name, tuftest.Set("2099-01-01T00:00:00Z", "signed", "expires")), want: patch.ErrUntrusted, kept: all},
		})
	})
}

func TestSection5_6_4_TargetsVersion(t *testing.T) {
	forEachRole(t, func(t *testing.T, name string) {
		runAll(t, map[string]scenario{
			"is lower than listed":  {edit: then(bump(name), edit(name, tuftest.Set(1, "version"))), want: patch.ErrTampered, kept: all},
			"is higher than listed": {edit: edit(name, tuftest.Set(2, "version")), want: patch.ErrTampered, kept: all},
			"is the listed one":     {edit: bump(name), kept: all},
		})
	})
}

func bump(name string) func(*tuftest.Repo) { return func(r *tuftest.Repo) { role(r, name).Bump() } }

func TestSection5_6_5_TargetsExpiry(t *testing.T) {
	forEachRole(t, func(t *testing.T, name string) {
		runAll(t, map[string]scenario{
			"in its last second": {edit: func(r *tuftest.Repo) { role(r, name).Expire(start.Add(time.Second)) }, kept: all},
			"at the end":         {edit: func(r *tuftest.Repo) { role(r, name).Expire(start) }, want: patch.ErrExpired, kept: all},
		})
	})
}

func TestSection5_6_7_Delegations(t *testing.T) {
	a, b := tuftest.NewKey("a"), tuftest.NewKey("b")
	// delegate adds a role below another, before or after what is there.
	first := func(name string, terminating bool, paths ...string) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			r.AddRole(name, a)
			r.Delegate("targets", tuftest.Delegation(name, tuftest.Threshold(1, a), terminating, paths...), a)
			del := r.Roles["targets"].Signed["delegations"].(tuftest.Object)
			list := del["roles"].([]any)
			del["roles"] = append([]any{list[len(list)-1]}, list[:len(list)-1]...)
		}
	}
	target := func(role, path string, content string) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) { r.AddTargetTo(role, path, []byte(content), nil) }
	}
	runAll(t, map[string]scenario{
		"a vendor's module":                {kept: all},
		"the rollout":                      {target: rollout, kept: all},
		"a path in no bin":                 {target: "debian/other.ko", want: patch.ErrNotFound, kept: all},
		"a path of no vendor":              {target: "fedora/other.ko", want: patch.ErrNotFound, kept: all},
		"a path without a folder":          {target: "debian", want: patch.ErrNotFound, kept: all},
		"the empty path":                   {target: " ", want: patch.ErrNotFound, kept: all},
		"targets itself may list a target": {edit: target("targets", module, "own"), kept: all},
		"the first role that lists it wins": {
			edit: then(first("alpha", false, "debian/*"), target("alpha", module, "alpha")), kept: all,
		},
		"a role that is not terminating is passed": {edit: first("alpha", false, "debian/*"), kept: all},
		"a terminating role ends the search":       {edit: first("alpha", true, "debian/*"), want: patch.ErrNotFound, kept: all},
		"a terminating role for other paths does not": {
			edit: first("alpha", true, "ubuntu/*"), kept: all,
		},
		"bins end the search": {
			edit: then(
				func(r *tuftest.Repo) {
					r.AddRole("omega", a)
					r.Delegate("targets", tuftest.Delegation("omega", tuftest.Threshold(1, a), true, "*/*"), a)
					// The vendor's delegation itself does not terminate.
					tuftest.Path{"delegations", "roles", "1"}.Get(r.Roles["targets"].Signed).(tuftest.Object)["terminating"] = false
				},
				target("omega", "debian/other.ko", "omega")),
			target: "debian/other.ko", want: patch.ErrNotFound, kept: all,
		},
		"a role may not list what it was not made responsible for": {
			edit: target("rollout", "debian/other.ko", "rollout"), target: "debian/other.ko", want: patch.ErrNotFound, kept: all,
		},
		"one vendor may not list for another": {
			edit: then(func(r *tuftest.Repo) { r.AddVendor("ubuntu", 1) },
				target("ubuntu", "debian/other.ko", "ubuntu"), target("ubuntu-0", "debian/other.ko", "ubuntu"), target("ubuntu-1", "debian/other.ko", "ubuntu")),
			target: "debian/other.ko", want: patch.ErrNotFound, kept: all,
		},
		"another bin may not list it": {
			edit: then(
				func(r *tuftest.Repo) {
					for _, bin := range []string{"debian-0", "debian-1", "debian-2", "debian-3"} {
						if bin != r.Bin("debian/other.ko") {
							r.AddTargetTo(bin, "debian/other.ko", nil, nil)
						}
					}
				}),
			target: "debian/other.ko", want: patch.ErrNotFound, kept: all,
		},
		"roles below roles": {
			edit: then(first("alpha", false, "debian/x-*"), func(r *tuftest.Repo) {
				r.AddRole("beta", b)
				r.Delegate("alpha", tuftest.Delegation("beta", tuftest.Threshold(1, b), false, "debian/*"), b)
			}, target("beta", "debian/x-1.ko", "beta")),
			target: "debian/x-1.ko", kept: all,
		},
		"roles below roles get no more than their parents": {
			edit: then(first("alpha", false, "debian/x-*"), func(r *tuftest.Repo) {
				r.AddRole("beta", b)
				r.Delegate("alpha", tuftest.Delegation("beta", tuftest.Threshold(1, b), false, "debian/*"), b)
			}, target("beta", "debian/y-1.ko", "beta")),
			target: "debian/y-1.ko", want: patch.ErrNotFound, kept: all,
		},
		"depth first": {
			edit: then(first("gamma", false, "debian/*"), first("alpha", false, "debian/*"), func(r *tuftest.Repo) {
				r.AddRole("beta", b)
				r.Delegate("alpha", tuftest.Delegation("beta", tuftest.Threshold(1, b), false, "debian/*"), b)
			}, target("gamma", module, "gamma"), target("beta", module, "beta")),
			kept: all,
		},
		"a circle ends": {
			edit: then(first("alpha", false, "debian/*"), func(r *tuftest.Repo) {
				r.Delegate("alpha", tuftest.Delegation("alpha", tuftest.Threshold(1, a), false, "debian/*"), a)
			}),
			kept: all,
		},
		"the bin is not listed in the snapshot": {
			edit: func(r *tuftest.Repo) {
				r.Roles["snapshot"].Edit = tuftest.Delete("meta", r.Bin(module)+".json")
			},
			want: patch.ErrMalformed, kept: all,
		},
		"targets is not listed in the snapshot": {
			edit: edit("snapshot", tuftest.Delete("meta", "targets.json")), want: patch.ErrMalformed, kept: all,
		},
	})
}

func TestSection5_6_7_1_RolesVisited(t *testing.T) {
	// A chain of n roles below targets, which the last one ends with the target.
	chain := func(n int) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			key, parent := tuftest.NewKey("a"), "targets"
			for i := range n {
				name := fmt.Sprintf("link-%d", i)
				r.AddRole(name, key)
				r.Delegate(parent, tuftest.Delegation(name, tuftest.Threshold(1, key), true, "far/*"), key)
				parent = name
			}
			r.AddTargetTo(parent, "far/target", []byte("far"), nil)
		}
	}
	runAll(t, map[string]scenario{
		"few":             {edit: chain(3), target: "far/target", kept: all},
		"as many as can":  {edit: chain(32), target: "far/target", kept: all},
		"one more":        {edit: chain(33), target: "far/target", want: patch.ErrNotFound, kept: all},
		"no end in sight": {edit: chain(200), target: "far/target", want: patch.ErrNotFound, kept: all},
	})
}

func TestSection5_6_7_2_PathPatterns(t *testing.T) {
	tests := []struct {
		pattern, target string
		want            bool
	}{
		{"debian/*", "debian/a.ko", true},
		{"debian/*", "debian/", true},
		{"debian/*", "debian/sub/a.ko", false},
		{"debian/*", "debianx/a.ko", false},
		{"debian/*", "xdebian/a.ko", false},
		{"debian/*", "debian", false},
		{"debian/*", "/debian/a.ko", false},
		{"debian/*", "./debian/a.ko", false},
		{"debian/*", "debian//a.ko", false},
		{"*", "a.ko", true},
		{"*", "debian/a.ko", false},
		{"*/*", "debian/a.ko", true},
		{"debian/a.ko", "debian/a.ko", true},
		{"debian/a.ko", "debian/A.ko", false},
		{"debian/?.ko", "debian/a.ko", true},
		{"debian/?.ko", "debian/é.ko", true},
		{"", "", true},
		{"", "a.ko", false},
		{"debian/*", "", false},
	}
	for _, tc := range tests {
		t.Run(tc.pattern+" and "+tc.target, func(t *testing.T) {
			r := tuftest.New(start)
			key := tuftest.NewKey("a")
			r.AddRole("alpha", key)
			r.AddTargetTo("alpha", tc.target, []byte("content"), nil)
			entry := tuftest.Delegation("alpha", tuftest.Threshold(1, key), true, "never/this", tc.pattern)
			r.Roles["targets"].Signed["delegations"] = tuftest.Object{"keys": tuftest.Keys(key), "roles": []any{entry}}
			files := r.Files()
			_, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, tc.target)
			want := patch.ErrNotFound
			if tc.want {
				want = nil
			}
			if verdict(err) != want {
				t.Errorf("verdict = %v, want %v", err, want)
			}
		})
	}
}

// A class could match a "/", and escapes and unfinished classes are read
// differently by different programs.
func TestSection5_6_7_2_PatternsWithClassesAreRefused(t *testing.T) {
	for _, pattern := range []string{"debian/[ab].ko", "debian[^x]a.ko", "debian/[a.ko", `debian/\*`, `\`} {
		r := tuftest.New(start)
		key := tuftest.NewKey("a")
		r.AddRole("alpha", key)
		entry := tuftest.Delegation("alpha", tuftest.Threshold(1, key), true, "never/this", pattern)
		r.Roles["targets"].Signed["delegations"] = tuftest.Object{"keys": tuftest.Keys(key), "roles": []any{entry}}
		files := r.Files()
		_, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, "debian/a.ko")
		if verdict(err) != patch.ErrMalformed {
			t.Errorf("%q: verdict = %v, want %v", pattern, err, patch.ErrMalformed)
		}
	}
}

// TestTAP15_Bins has each bit length find a target in the bin whose name was
// computed by hand, with sha256sum.
func TestTAP15_Bins(t *testing.T) {
	tests := []struct {
		bits   int
		target string
		bin    string
	}{
		{1, "v/a.ko", "v-1"},
		{3, "v/a.ko", "v-6"},
		{4, "v/a.ko", "v-c"},
		{5, "v/a.ko", "v-19"},
		{8, "v/a.ko", "v-ca"},
		{10, "v/a.ko", "v-32a"},
		{12, "v/a.ko", "v-caa"},
		{16, "v/a.ko", "v-caa4"},
		{17, "v/a.ko", "v-19549"},
		{31, "v/a.ko", "v-6552751f"},
		{32, "v/a.ko", "v-caa4ea3f"},
		{1, "v/b.ko", "v-0"},
		{3, "v/b.ko", "v-3"},
		{4, "v/b.ko", "v-6"},
		{5, "v/b.ko", "v-0c"},
		{8, "v/b.ko", "v-65"},
		{10, "v/b.ko", "v-195"},
		{12, "v/b.ko", "v-656"},
		{16, "v/b.ko", "v-656c"},
		{17, "v/b.ko", "v-0cad9"},
		{31, "v/b.ko", "v-32b6676b"},
		{32, "v/b.ko", "v-656cced6"},
	}
	for _, tc := range tests {
		t.Run(fmt.Sprintf("%d bits, %s", tc.bits, tc.target), func(t *testing.T) {
			r := tuftest.New(start)
			r.AddVendor("v", 1)
			tuftest.Path{"delegations", "succinct_roles"}.Get(r.Roles["v"].Signed).(tuftest.Object)["bit_length"] = tc.bits
			r.AddRole(tc.bin, keysOf("v builder", "v approver")...)
			r.AddTargetTo(tc.bin, tc.target, nil, nil)
			files := r.Files()
			if _, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, tc.target); err != nil {
				t.Error(err)
			}
		})
	}
	for _, bits := range []int{0, -1, 33, 64, 1 << 40} {
		t.Run(fmt.Sprintf("%d bits", bits), func(t *testing.T) {
			scenario{
				edit: edit("debian", tuftest.Set(bits, "delegations", "succinct_roles", "bit_length")),
				want: patch.ErrMalformed, kept: all,
			}.run(t)
		})
	}
}

func TestSection5_7_Target(t *testing.T) {
	r := newRepo()
	files := r.Files()
	found, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, module)
	if err != nil {
		t.Fatal(err)
	}
	if found.Path != module || found.Length != 3 {
		t.Errorf("found %q of %d bytes, want %q of 3", found.Path, found.Length, module)
	}
	if got, want := string(found.Custom), `{"name":"lkp_Debian_6_1_0_53_amd64_1","sequence":7}`; got != want {
		t.Errorf("custom = %s, want %s", got, want)
	}
	if found.Digest != sha256.Sum256([]byte("ELF")) {
		t.Errorf("digest = %v", found.Digest)
	}
	tests := map[string]struct {
		content string
		want    error
	}{
		"the file":      {"ELF", nil},
		"one bit else":  {"ELG", patch.ErrTampered},
		"truncated":     {"EL", patch.ErrTampered},
		"one byte more": {"ELF\x00", patch.ErrTampered},
		"empty":         {"", patch.ErrTampered},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if err := found.Check([]byte(tc.content)); verdict(err) != tc.want {
				t.Errorf("Check = %v, want %v", err, tc.want)
			}
		})
	}
}

// A hash without the length that belongs to it.
func TestSection5_7_TargetLength(t *testing.T) {
	for _, length := range []int{0, 2, 4, 1<<53 - 1} {
		r := newRepo()
		role(r, "bin").Edit = tuftest.Set(length, "targets", module, "length")
		files := r.Files()
		found, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, module)
		if err != nil {
			t.Fatal(err)
		}
		if err := found.Check([]byte("ELF")); verdict(err) != patch.ErrTampered {
			t.Errorf("length %d: %v, want %v", length, err, patch.ErrTampered)
		}
	}
}
