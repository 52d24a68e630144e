package tuf_test

import (
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// The tests of this file are mistakes that TUF implementations have made.

// alias returns an edit that lists a key a second time, under another id, and
// names both ids for a role. The key signs under both.
func alias(r *tuftest.Role, signed tuftest.Path, keys tuftest.Path, key tuftest.Key, spell func(tuftest.Object) tuftest.Object) {
	other := strings.Repeat("a", 64)
	role := signed.Get(r.Signed).(tuftest.Object)
	role["keyids"] = []any{key.ID, other}
	role["threshold"] = 2
	keys.Get(r.Signed).(tuftest.Object)[other] = spell(key.Object())
}

func signTwice(key tuftest.Key) func(tuftest.Object) any {
	return func(envelope tuftest.Object) any {
		sig := key.Sign(tuftest.Canonical(envelope["signed"]))
		other := tuftest.Object{"keyid": strings.Repeat("a", 64), "sig": sig["sig"]}
		return tuftest.Set([]any{sig, other}, "signatures")(envelope)
	}
}

func TestOneKeyCountsOnce(t *testing.T) {
	same := func(o tuftest.Object) tuftest.Object { return o }
	extra := func(o tuftest.Object) tuftest.Object { o["note"] = "makes another key id"; return o }
	capitals := func(o tuftest.Object) tuftest.Object {
		val := o["keyval"].(tuftest.Object)
		val["public"] = strings.ToUpper(val["public"].(string))
		return o
	}
	for name, tc := range map[string]struct {
		spell func(tuftest.Object) tuftest.Object
		want  error
	}{
		"the same key under two ids":             {same, patch.ErrUntrusted},
		"with another field, so with another id": {extra, patch.ErrUntrusted},
		"in capitals":                            {capitals, patch.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			runAll(t, map[string]scenario{
				"vendor": {edit: func(r *tuftest.Repo) {
					key := tuftest.NewKey("debian builder")
					alias(r.Roles["targets"], tuftest.Path{"delegations", "roles", "1"}, tuftest.Path{"delegations", "keys"}, key, tc.spell)
					r.Roles["debian"].Forge = signTwice(key)
				}, want: tc.want, kept: all},
				"bin": {edit: func(r *tuftest.Repo) {
					key := tuftest.NewKey("debian builder")
					alias(r.Roles["debian"], tuftest.Path{"delegations", "succinct_roles"}, tuftest.Path{"delegations", "keys"}, key, tc.spell)
					role(r, "bin").Forge = signTwice(key)
				}, want: tc.want, kept: all},
				"targets": {edit: func(r *tuftest.Repo) {
					key := tuftest.NewKey("targets 1")
					alias(r.AddRoot(), tuftest.Path{"roles", "targets"}, tuftest.Path{"keys"}, key, tc.spell)
					r.Roles["targets"].Forge = signTwice(key)
				}, want: tc.want, kept: map[error]string{
					patch.ErrUntrusted: "root 2, timestamp 1, snapshot 1", patch.ErrMalformed: nothing,
				}[tc.want]},
				"new root": {edit: func(r *tuftest.Repo) {
					key, next := tuftest.NewKey("root 1"), r.AddRoot()
					alias(next, tuftest.Path{"roles", "root"}, tuftest.Path{"keys"}, key, tc.spell)
					next.Forge = func(envelope tuftest.Object) any {
						twice := signTwice(key)(envelope).(tuftest.Object)["signatures"].([]any)
						second := tuftest.NewKey("root 2").Sign(tuftest.Canonical(envelope["signed"]))
						return tuftest.Set(append(twice, second), "signatures")(envelope)
					}
				}, want: tc.want, kept: nothing},
			})
		})
	}
}

func TestOneSignatureCountsOnce(t *testing.T) {
	// twice repeats the first signature.
	twice := func(envelope tuftest.Object) any {
		sigs := envelope["signatures"].([]any)
		return tuftest.Set([]any{sigs[0], sigs[0]}, "signatures")(envelope)
	}
	// capitals repeats it under the same id in capitals.
	capitals := func(envelope tuftest.Object) any {
		first := envelope["signatures"].([]any)[0].(tuftest.Object)
		second := tuftest.Object{"keyid": strings.ToUpper(first["keyid"].(string)), "sig": first["sig"]}
		return tuftest.Set([]any{first, second}, "signatures")(envelope)
	}
	runAll(t, map[string]scenario{
		"bin, twice":            {edit: forge("bin", twice), want: patch.ErrMalformed, kept: all},
		"vendor, twice":         {edit: forge("debian", twice), want: patch.ErrMalformed, kept: all},
		"targets, twice":        {edit: forge("targets", twice), want: patch.ErrMalformed, kept: all},
		"bin, in capitals":      {edit: forge("bin", capitals), want: patch.ErrUntrusted, kept: all},
		"first of two is wrong": {edit: forge("bin", wrongSignature("0")), want: patch.ErrUntrusted, kept: all},
		"second is wrong":       {edit: forge("bin", wrongSignature("1")), want: patch.ErrUntrusted, kept: all},
		"the id twice in a role": {edit: func(r *tuftest.Repo) {
			key := tuftest.NewKey("debian builder")
			tuftest.Path{"delegations", "succinct_roles"}.Get(r.Roles["debian"].Signed).(tuftest.Object)["keyids"] = []any{key.ID, key.ID}
			role(r, "bin").Signers = []tuftest.Key{key}
		}, want: patch.ErrMalformed, kept: all},
	})
}

// wrongSignature changes one digit.
func wrongSignature(index string) func(tuftest.Object) any {
	return func(envelope tuftest.Object) any {
		return tuftest.Path{"signatures", index, "sig"}.Edit(envelope, func(old any) any {
			s := old.(string)
			if s[0] == '0' {
				return "1" + s[1:]
			}
			return "0" + s[1:]
		})
	}
}

func TestThresholdBelowOneIsMalformed(t *testing.T) {
	scenarios := map[string]scenario{}
	for what, n := range map[string]int{"zero": 0, "minus one": -1} {
		scenarios["bins, "+what] = scenario{edit: then(
			edit("debian", tuftest.Set(n, "delegations", "succinct_roles", "threshold")), signers("bin"),
		), want: patch.ErrMalformed, kept: all}
		scenarios["vendor, "+what] = scenario{edit: then(
			edit("targets", tuftest.Set(n, "delegations", "roles", "1", "threshold")), signers("debian"),
		), want: patch.ErrMalformed, kept: all}
		scenarios["timestamp, "+what] = scenario{edit: then(
			func(r *tuftest.Repo) { r.AddRoot().Edit = tuftest.Set(n, "roles", "timestamp", "threshold") }, signers("timestamp"),
		), want: patch.ErrMalformed, kept: nothing}
	}
	runAll(t, scenarios)
}

func TestNoKeysIsMalformed(t *testing.T) {
	runAll(t, map[string]scenario{
		"bins": {edit: then(edit("debian", tuftest.Set([]any{}, "delegations", "succinct_roles", "keyids")), signers("bin")),
			want: patch.ErrMalformed, kept: all},
		"a key that is not there": {
			edit: edit("debian", tuftest.Delete("delegations", "keys", tuftest.NewKey("debian approver").ID)),
			want: patch.ErrMalformed, kept: all,
		},
	})
}

// Names of roles become names of files in other programs.
func TestRoleNamesCannotLeaveTheirFolder(t *testing.T) {
	names := []string{
		"", ".", "..", "../debian", "a/b", "/etc/passwd", `a\b`, "a\x00b", "a b", "a\nb", "%2e%2e", "-debian", "a..b",
		"*", "é", "debian\u200b", strings.Repeat("a", 129),
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			scenario{
				edit: func(r *tuftest.Repo) {
					key := tuftest.NewKey("a")
					r.Delegate("targets", tuftest.Delegation(name, tuftest.Threshold(1, key), false, "a/*"), key)
				},
				want: patch.ErrMalformed, kept: all,
			}.run(t)
			scenario{
				edit: edit("debian", tuftest.Set(name, "delegations", "succinct_roles", "name_prefix")),
				want: patch.ErrMalformed, kept: all,
			}.run(t)
		})
	}
}

// A delegation to a role that root is responsible for would be a second way to
// say who signs it.
func TestTopLevelRolesCannotBeDelegated(t *testing.T) {
	for _, name := range []string{"root", "timestamp", "snapshot", "targets"} {
		t.Run(name, func(t *testing.T) {
			key := tuftest.NewKey("a")
			scenario{
				edit: func(r *tuftest.Repo) {
					r.Delegate("targets", tuftest.Delegation(name, tuftest.Threshold(1, key), false, "a/*"), key)
				},
				want: patch.ErrMalformed, kept: all,
			}.run(t)
		})
	}
}

// A program that knows only one kind of delegations would read the file in its
// own way.
func TestDelegationsAreOfOneKind(t *testing.T) {
	both := func(r *tuftest.Repo) {
		succinct := tuftest.Path{"delegations", "succinct_roles"}.Get(r.Roles["debian"].Signed)
		tuftest.Path{"delegations"}.Get(r.Roles["targets"].Signed).(tuftest.Object)["succinct_roles"] = tuftest.Copy(succinct)
	}
	runAll(t, map[string]scenario{
		"both kinds":              {edit: both, want: patch.ErrMalformed, kept: all},
		"neither":                 {edit: edit("debian", tuftest.Delete("delegations", "succinct_roles")), want: patch.ErrMalformed, kept: all},
		"an empty list":           {edit: edit("targets", tuftest.Set([]any{}, "delegations", "roles")), want: patch.ErrMalformed, kept: all},
		"an empty list with both": {edit: edit("debian", tuftest.Set([]any{}, "delegations", "roles")), want: patch.ErrMalformed, kept: all},
		"none for a bin":          {kept: all},
	})
}

func TestRoleDelegatedTwiceByOneParentIsMalformed(t *testing.T) {
	key := tuftest.NewKey("a")
	scenario{
		edit: func(r *tuftest.Repo) {
			r.Delegate("targets", tuftest.Delegation("debian", tuftest.Threshold(1, key), false, "a/*"), key)
		},
		want: patch.ErrMalformed, kept: all,
	}.run(t)
}

// A role that was verified with the keys of one parent says nothing below
// another parent, which names other keys.
func TestRoleOfTwoParentsIsRefused(t *testing.T) {
	r := newRepo()
	a, b, shared := tuftest.NewKey("a"), tuftest.NewKey("b"), tuftest.NewKey("shared")
	for name, key := range map[string]tuftest.Key{"alpha": a, "beta": b} {
		r.AddRole(name, key)
		r.Delegate("targets", tuftest.Delegation(name, tuftest.Threshold(1, key), true, name+"/*"), key)
	}
	r.AddRole("shared", shared)
	r.AddTargetTo("shared", "alpha/x", []byte("x"), nil)
	r.AddTargetTo("shared", "beta/x", []byte("x"), nil)
	r.Delegate("alpha", tuftest.Delegation("shared", tuftest.Threshold(1, shared), true, "alpha/*"), shared)
	// Below beta, another key has to sign it, and did not.
	r.Delegate("beta", tuftest.Delegation("shared", tuftest.Threshold(1, b), true, "beta/*"), b)
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Find("beta/x", files.Load); verdict(err) != patch.ErrUntrusted {
		t.Errorf("below beta: %v, want %v", err, patch.ErrUntrusted)
	}
	if _, err := set.Find("alpha/x", files.Load); err != nil {
		t.Errorf("below alpha: %v", err)
	}
	if _, err := set.Find("beta/x", files.Load); verdict(err) != patch.ErrMalformed {
		t.Errorf("below beta, after alpha: %v, want %v", err, patch.ErrMalformed)
	}
}

// Bins share their keys, and metadata does not say which role it is.
func TestOneBinShownAsAnother(t *testing.T) {
	swap := func(from, to string) func(*tuftest.Files) {
		return func(f *tuftest.Files) { f.Roles[to] = f.Roles[from] }
	}
	r := newRepo()
	bin := r.Bin(module)
	other := "debian-0"
	if bin == other {
		other = "debian-1"
	}
	runAll(t, map[string]scenario{
		"of the same version, it lists nothing": {files: swap(other, bin), want: patch.ErrNotFound, kept: all},
		"of another version":                    {edit: bump("bin"), files: swap(other, bin), want: patch.ErrTampered, kept: all},
		"with hashes in the snapshot": {
			edit: func(r *tuftest.Repo) { r.HashBins = true }, files: swap(other, bin), want: patch.ErrTampered, kept: all,
		},
		"the vendor role instead, which delegates to the bin again": {files: swap("debian", bin), want: patch.ErrNotFound, kept: all},
		"the rollout role instead":                                  {files: swap("rollout", bin), want: patch.ErrUntrusted, kept: all},
		"targets instead of the vendor":                             {files: swap("targets", "debian"), want: patch.ErrUntrusted, kept: all},
		"the timestamp instead":                                     {files: swap("timestamp", bin), want: patch.ErrMalformed, kept: all},
		"the timestamp as the snapshot":                             {files: swap("timestamp", "snapshot"), want: patch.ErrTampered, kept: timestamped},
		"the snapshot as the timestamp":                             {files: swap("snapshot", "timestamp"), want: patch.ErrMalformed, kept: nothing},
	})
}

// An older file of the same role, still fresh and well signed.
func TestOldFilesUnderNewOnes(t *testing.T) {
	before := newRepo()
	old := before.Files()
	for _, name := range []string{"targets", "debian", before.Bin(module)} {
		t.Run(name, func(t *testing.T) {
			scenario{
				past:  asIs,
				edit:  func(r *tuftest.Repo) { r.Publish(name) },
				files: func(f *tuftest.Files) { f.Roles[name] = old.Roles[name] },
				want:  patch.ErrTampered, kept: "root 1, timestamp 2, snapshot 2",
			}.run(t)
		})
	}
	t.Run("the whole repository", func(t *testing.T) {
		scenario{past: publish, files: func(f *tuftest.Files) { *f = old }, want: patch.ErrRollback, kept: "root 1, timestamp 2, snapshot 2"}.run(t)
	})
	t.Run("the snapshot", func(t *testing.T) {
		scenario{
			past: asIs, edit: publish, files: func(f *tuftest.Files) { f.Roles["snapshot"] = old.Roles["snapshot"] },
			want: patch.ErrTampered, kept: "root 1, timestamp 2, snapshot 1",
		}.run(t)
	})
}

// Two timestamps of one version: the one that was seen first counts.
func TestTimestampOfTheSameVersionIsNotRead(t *testing.T) {
	r := newRepo()
	first := r.Files()
	set, err := update(t, tuf.Stored{Root: first.Roots[0]}, first, start)
	if err != nil {
		t.Fatal(err)
	}
	stored := set.Stored()

	r.Roles["timestamp"].Expire(start.Add(30 * day))
	second := r.Files()
	if set, err = update(t, stored, second, start); err != nil {
		t.Fatal(err)
	}
	if !sameStored(set.Stored(), stored) {
		t.Error("the other timestamp is stored")
	}
	if _, err := update(t, stored, second, start.Add(day)); verdict(err) != patch.ErrExpired {
		t.Errorf("after the expiry of the first: %v, want %v", err, patch.ErrExpired)
	}
}

// What the client does not know is signed too.
func TestUnknownFields(t *testing.T) {
	paths := map[string][]string{
		"root":      {"", "keys/" + tuftest.NewKey("root 1").ID, "keys/" + tuftest.NewKey("root 1").ID + "/keyval", "roles/root"},
		"timestamp": {"", "meta/snapshot.json"},
		"snapshot":  {"", "meta/targets.json"},
		"targets":   {"", "delegations", "delegations/roles/0"},
		"debian":    {"", "delegations", "delegations/succinct_roles"},
		"bin":       {"", "targets/" + strings.ReplaceAll(module, "/", "|")},
	}
	for name, under := range paths {
		for _, p := range under {
			t.Run(name+" "+p, func(t *testing.T) {
				path := tuftest.Path(strings.Split(p, "/"))
				if p == "" {
					path = nil
				}
				for i := range path {
					path[i] = strings.ReplaceAll(path[i], "|", "/")
				}
				add := func(prefix ...string) func(tuftest.Object) any {
					return tuftest.Set(tuftest.Object{"list": []any{1, "a \"b\" \\ <&> é \u2028 \x01", nil}}, append(append(prefix, path...), "x-new")...)
				}
				scenario{edit: edit(name, add()), kept: all}.run(t)

				r := newRepo()
				role(r, name).Forge = add("signed")
				files := r.Files()
				_, _, err := find(t, tuf.Stored{Root: newRepo().Files().Roots[0]}, files, start, module)
				if name == "root" {
					_, err = tuf.New(tuf.Stored{Root: files.Roots[0]}, start)
				}
				if verdict(err) != patch.ErrUntrusted {
					t.Errorf("added after signing: %v, want %v", err, patch.ErrUntrusted)
				}
			})
		}
	}
}

func TestKeysAreEd25519(t *testing.T) {
	id := tuftest.NewKey("debian builder").ID
	at := func(value any, path ...string) func(*tuftest.Repo) {
		return edit("targets", tuftest.Set(value, append([]string{"delegations", "keys", id}, path...)...))
	}
	runAll(t, map[string]scenario{
		"ecdsa":            {edit: at("ecdsa", "keytype"), want: patch.ErrMalformed, kept: all},
		"rsa":              {edit: at("rsassa-pss-sha256", "scheme"), want: patch.ErrMalformed, kept: all},
		"Ed25519":          {edit: at("Ed25519", "keytype"), want: patch.ErrMalformed, kept: all},
		"too short":        {edit: at(strings.Repeat("ab", 31), "keyval", "public"), want: patch.ErrMalformed, kept: all},
		"too long":         {edit: at(strings.Repeat("ab", 33), "keyval", "public"), want: patch.ErrMalformed, kept: all},
		"not hexadecimal":  {edit: at(strings.Repeat("zz", 32), "keyval", "public"), want: patch.ErrMalformed, kept: all},
		"odd":              {edit: at(strings.Repeat("a", 63), "keyval", "public"), want: patch.ErrMalformed, kept: all},
		"of somebody else": {edit: at(strings.Repeat("ab", 32), "keyval", "public"), want: patch.ErrUntrusted, kept: all},
	})
}
