package tuf_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// The tests of this file are named for the sections of the specification,
// version 1.0.33.

func TestSection5_1_FixedTime(t *testing.T) {
	r := newRepo()
	files := r.Files()
	expiry := start.Add(day) // of the timestamp

	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, expiry.Add(-time.Nanosecond))
	if err != nil {
		t.Fatalf("one nanosecond before the expiry: %v", err)
	}
	if _, err := set.Find(module, files.Load); err != nil {
		t.Errorf("one nanosecond before the expiry: %v", err)
	}
	if _, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, expiry); verdict(err) != patch.ErrExpired {
		t.Errorf("at the expiry: %v, want %v", err, patch.ErrExpired)
	}
	if _, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, expiry.In(time.FixedZone("", -8*3600))); verdict(err) != patch.ErrExpired {
		t.Errorf("at the expiry, in another zone: %v, want %v", err, patch.ErrExpired)
	}
}

func TestSection5_2_TrustedRoot(t *testing.T) {
	tests := map[string]struct {
		edit func(*tuftest.Repo)
		want error
	}{
		"as it is":                 {asIs, nil},
		"expired is still trusted": {func(r *tuftest.Repo) { r.Root().Expire(start.Add(-day)) }, nil},
		"signed by too few":        {signers("root", "root 1"), patch.ErrUntrusted},
		"signed by nobody":         {signers("root"), patch.ErrUntrusted},
		"signed by strangers":      {signers("root", "targets 1", "targets 2"), patch.ErrUntrusted},
		"another role":             {edit("root", tuftest.Set("targets", "_type")), patch.ErrMalformed},
		"not a root at all": {func(r *tuftest.Repo) {
			r.Root().Rewrite = func([]byte) []byte { return []byte("hello") }
		}, patch.ErrMalformed},
		"missing": {func(r *tuftest.Repo) {
			r.Root().Rewrite = func([]byte) []byte { return nil }
		}, patch.ErrMalformed},
		"larger than allowed": {func(r *tuftest.Repo) { r.Root().Rewrite = pad(patch.MaxRoot + 1) }, patch.ErrTooLarge},
		"as large as allowed": {func(r *tuftest.Repo) { r.Root().Rewrite = pad(patch.MaxRoot) }, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRepo()
			tc.edit(r)
			set, err := tuf.New(tuf.Stored{Root: r.Files().Roots[0]}, start)
			if verdict(err) != tc.want {
				t.Errorf("verdict = %v, want %v", err, tc.want)
			}
			if (set == nil) != (err != nil) {
				t.Errorf("New = %v, %v", set, err)
			}
		})
	}
}

// pad returns a rewrite that makes a file n bytes long.
func pad(n int) func([]byte) []byte {
	return func(b []byte) []byte { return append(b, bytes.Repeat([]byte{' '}, n-len(b))...) }
}

func TestSection5_3_3_NewerRoots(t *testing.T) {
	addRoots := func(n int) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			for range n {
				r.AddRoot()
			}
		}
	}
	runAll(t, map[string]scenario{
		"there is none":                {kept: all},
		"there is one":                 {edit: addRoots(1), kept: "root 2, timestamp 1, snapshot 1"},
		"there are several":            {edit: addRoots(5), kept: "root 6, timestamp 1, snapshot 1"},
		"there are as many as allowed": {edit: addRoots(256), kept: "root 257, timestamp 1, snapshot 1"},
		"the chain does not end": {
			edit: addRoots(257), want: patch.ErrMalformed, kept: "root 257, timestamp none, snapshot none",
		},
		"it is larger than allowed": {
			edit: func(r *tuftest.Repo) { r.AddRoot().Rewrite = pad(patch.MaxRoot + 1) },
			want: patch.ErrTooLarge, kept: nothing,
		},
	})
}

// A chain that is longer than one update takes is continued by the next one.
func TestSection5_3_3_LongChainTakesTwoUpdates(t *testing.T) {
	r := newRepo()
	for range 300 {
		r.AddRoot()
	}
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if verdict(err) != patch.ErrMalformed {
		t.Fatalf("first update: %v, want %v", err, patch.ErrMalformed)
	}
	set, err = update(t, set.Stored(), files, start)
	if err != nil {
		t.Fatalf("second update: %v", err)
	}
	if set.RootVersion() != 301 {
		t.Errorf("root is %d, want 301", set.RootVersion())
	}
}

func TestSection5_3_4_RootSignatures(t *testing.T) {
	// rotate appends a root whose root keys are new ones.
	rotate := func(threshold int, names []string, signers ...string) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			next := r.AddRoot()
			tuftest.Grant(next, "root", threshold, keysOf(names...)...)
			next.Signers = keysOf(signers...)
		}
	}
	fresh := []string{"new 1", "new 2", "new 3"}
	runAll(t, map[string]scenario{
		"by both": {
			edit: rotate(2, fresh, "root 1", "root 3", "new 1", "new 2"), kept: "root 2, timestamp 1, snapshot 1",
		},
		"by the old keys only":       {edit: rotate(2, fresh, "root 1", "root 2", "root 3"), want: patch.ErrUntrusted, kept: nothing},
		"by the new keys only":       {edit: rotate(2, fresh, "new 1", "new 2", "new 3"), want: patch.ErrUntrusted, kept: nothing},
		"by too few of the old":      {edit: rotate(2, fresh, "root 1", "new 1", "new 2"), want: patch.ErrUntrusted, kept: nothing},
		"by too few of the new":      {edit: rotate(2, fresh, "root 1", "root 2", "new 1"), want: patch.ErrUntrusted, kept: nothing},
		"by nobody":                  {edit: rotate(2, fresh), want: patch.ErrUntrusted, kept: nothing},
		"one key stays, rest is new": {edit: rotate(2, []string{"root 1", "new 1"}, "root 1", "root 2", "new 1"), kept: "root 2, timestamp 1, snapshot 1"},
		"the new threshold is higher than before": {
			edit: rotate(3, []string{"root 1", "root 2", "root 3"}, "root 1", "root 2"), want: patch.ErrUntrusted, kept: nothing,
		},
		"the new threshold is lower, the old one still counts": {
			edit: rotate(1, []string{"root 1"}, "root 1"), want: patch.ErrUntrusted, kept: nothing,
		},
		"the new threshold is lower": {
			edit: rotate(1, []string{"root 1"}, "root 1", "root 2"), kept: "root 2, timestamp 1, snapshot 1",
		},
		"the new threshold cannot be reached": {
			edit: rotate(4, []string{"root 1", "root 2", "root 3"}, "root 1", "root 2", "root 3"), want: patch.ErrUntrusted, kept: nothing,
		},
		"a revoked key signs the root after next": {
			edit: then(rotate(2, fresh, "root 1", "root 2", "new 1", "new 2"), rotate(2, fresh, "root 1", "root 2")),
			want: patch.ErrUntrusted, kept: "root 2, timestamp none, snapshot none",
		},
		"keys of other roles": {
			edit: rotate(2, fresh, "root 1", "root 2", "targets 1", "targets 2"), want: patch.ErrUntrusted, kept: nothing,
		},
	})
}

func TestSection5_3_5_RootVersion(t *testing.T) {
	second := func(version int) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) { r.AddRoot().Signed["version"] = version }
	}
	runAll(t, map[string]scenario{
		"is one higher":     {edit: second(2), kept: "root 2, timestamp 1, snapshot 1"},
		"is the same":       {edit: second(1), want: patch.ErrRollback, kept: nothing},
		"leaves out one":    {edit: second(3), want: patch.ErrMalformed, kept: nothing},
		"is zero":           {edit: second(0), want: patch.ErrMalformed, kept: nothing},
		"is below zero":     {edit: second(-1), want: patch.ErrMalformed, kept: nothing},
		"is the largest":    {edit: second(1<<53 - 1), want: patch.ErrMalformed, kept: nothing},
		"goes back":         {edit: then(second(2), second(1)), want: patch.ErrRollback, kept: "root 2, timestamp none, snapshot none"},
		"stays after going": {edit: then(second(2), second(2)), want: patch.ErrRollback, kept: "root 2, timestamp none, snapshot none"},
	})
}

func TestSection5_3_6_IntermediateRootMayHaveExpired(t *testing.T) {
	runAll(t, map[string]scenario{
		"the first": {
			edit: func(r *tuftest.Repo) {
				r.AddRoot().Expire(start.Add(-day))
				r.AddRoot().Expire(start.Add(day))
			},
			kept: "root 3, timestamp 1, snapshot 1",
		},
	})
}

// Roots that were verified before a bad one stay.
func TestSection5_3_8_RootIsKeptAtOnce(t *testing.T) {
	runAll(t, map[string]scenario{
		"the third is bad": {
			edit: func(r *tuftest.Repo) {
				r.AddRoot()
				r.AddRoot().Signers = nil
			},
			want: patch.ErrUntrusted, kept: "root 2, timestamp none, snapshot none",
		},
		"the timestamp is bad": {
			edit: then(func(r *tuftest.Repo) { r.AddRoot() }, signers("timestamp")),
			want: patch.ErrUntrusted, kept: "root 2, timestamp none, snapshot none",
		},
	})
}

func TestSection5_3_10_LastRootMustNotHaveExpired(t *testing.T) {
	runAll(t, map[string]scenario{
		"it has just expired": {edit: func(r *tuftest.Repo) { r.Root().Expire(start) }, want: patch.ErrExpired, kept: nothing},
		"it expires in a second": {
			edit: func(r *tuftest.Repo) { r.AddRoot().Expire(start.Add(time.Second)) }, kept: "root 2, timestamp 1, snapshot 1",
		},
		"the one before had not": {
			edit: func(r *tuftest.Repo) { r.AddRoot().Expire(start.Add(-time.Second)) },
			want: patch.ErrExpired, kept: "root 2, timestamp none, snapshot none",
		},
	})
}

// Whoever had the online keys could have raised versions as far as they go.
// A root that replaces the keys is the way back.
func TestSection5_3_11_FastForwardRecovery(t *testing.T) {
	const far = 1 << 40
	forward := func(r *tuftest.Repo) {
		r.Roles["timestamp"].Signed["version"] = far
		r.Roles["snapshot"].Signed["version"] = far
		r.Roles["rollout"].Signed["version"] = far
	}
	back := func(r *tuftest.Repo) {
		r.Roles["timestamp"].Signed["version"] = 2
		r.Roles["snapshot"].Signed["version"] = 2
		r.Roles["rollout"].Signed["version"] = 2
	}
	// replace appends a root with new keys for roles.
	replace := func(roles ...string) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			next := r.AddRoot()
			for _, name := range roles {
				tuftest.Grant(next, name, 1, tuftest.NewKey("new "+name))
				r.Roles[name].Signers = keysOf("new " + name)
			}
		}
	}
	farTimestamp := fmt.Sprintf("root 2, timestamp %d, snapshot %d", far, far)
	runAll(t, map[string]scenario{
		"no key is replaced": {
			past: forward, edit: then(func(r *tuftest.Repo) { r.AddRoot() }, back), want: patch.ErrRollback, kept: farTimestamp,
		},
		"both keys are replaced": {past: forward, edit: then(replace("timestamp", "snapshot"), back), kept: "root 2, timestamp 2, snapshot 2"},
		// The stored snapshot is still signed by a good key: its floors are real.
		"the timestamp key is replaced": {
			past: forward, edit: then(replace("timestamp"), back), want: patch.ErrRollback,
			kept: fmt.Sprintf("root 2, timestamp 2, snapshot %d", far),
		},
		"the timestamp key is replaced, and only the timestamp had been raised": {
			past: func(r *tuftest.Repo) { r.Roles["timestamp"].Signed["version"] = far },
			edit: then(replace("timestamp"), func(r *tuftest.Repo) { r.Roles["timestamp"].Signed["version"] = 2 }),
			kept: "root 2, timestamp 2, snapshot 1",
		},
		// The stored timestamp is still signed by a good key, and names a snapshot.
		"the snapshot key is replaced": {
			past: forward, edit: then(replace("snapshot"), back), want: patch.ErrRollback, kept: farTimestamp,
		},
		"the old key is kept beside the new one": {
			past: forward,
			edit: then(func(r *tuftest.Repo) {
				next := r.AddRoot()
				tuftest.Grant(next, "timestamp", 1, keysOf("timestamp", "new timestamp")...)
			}, back),
			want: patch.ErrRollback, kept: farTimestamp,
		},
	})
}

func TestSection5_3_12_ConsistentSnapshot(t *testing.T) {
	for _, want := range []bool{true, false} {
		r := newRepo()
		r.AddRoot().Signed["consistent_snapshot"] = want
		files := r.Files()
		set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
		if err != nil {
			t.Fatal(err)
		}
		if set.ConsistentSnapshot() != want {
			t.Errorf("ConsistentSnapshot = %v, want %v", !want, want)
		}
	}
}

func TestSection5_4_1_TimestampSize(t *testing.T) {
	runAll(t, map[string]scenario{
		"as large as allowed": {edit: func(r *tuftest.Repo) { r.Roles["timestamp"].Rewrite = pad(patch.MaxTimestamp) }, kept: all},
		"larger than allowed": {
			edit: func(r *tuftest.Repo) { r.Roles["timestamp"].Rewrite = pad(patch.MaxTimestamp + 1) },
			want: patch.ErrTooLarge, kept: nothing,
		},
	})
}

func TestSection5_4_2_TimestampSignature(t *testing.T) {
	runAll(t, map[string]scenario{
		"is missing":                   {edit: signers("timestamp"), want: patch.ErrUntrusted, kept: nothing},
		"is of another role's key":     {edit: signers("timestamp", "snapshot"), want: patch.ErrUntrusted, kept: nothing},
		"is of an offline key":         {edit: signers("timestamp", "root 1", "targets 1"), want: patch.ErrUntrusted, kept: nothing},
		"is one among others":          {edit: signers("timestamp", "snapshot", "timestamp", "stranger"), kept: all},
		"is of other content":          {edit: forge("timestamp", tuftest.Set(2, "signed", "version")), want: patch.ErrUntrusted, kept: nothing},
		"is below a threshold of two":  {edit: needTwo("timestamp", "timestamp"), want: patch.ErrUntrusted, kept: "root 2, timestamp none, snapshot none"},
		"is one of two, and both sign": {edit: needTwo("timestamp", "timestamp", "second"), kept: "root 2, timestamp 1, snapshot 1"},
		"is of a key that a new root dropped": {
			edit: func(r *tuftest.Repo) { tuftest.Grant(r.AddRoot(), "timestamp", 1, tuftest.NewKey("second")) },
			want: patch.ErrUntrusted, kept: "root 2, timestamp none, snapshot none",
		},
		"is cut short": {
			edit: forge("timestamp", func(o tuftest.Object) any {
				return tuftest.Path{"signatures", "0", "sig"}.Edit(o, func(old any) any { return old.(string)[:126] })
			}),
			want: patch.ErrUntrusted, kept: nothing,
		},
		"stands under another key's id": {
			edit: forge("timestamp", tuftest.Set(tuftest.NewKey("snapshot").ID, "signatures", "0", "keyid")),
			want: patch.ErrUntrusted, kept: nothing,
		},
	})
}

// forge returns an edit that changes a role after it was signed.
func forge(name string, f func(tuftest.Object) any) func(*tuftest.Repo) {
	return func(r *tuftest.Repo) { role(r, name).Forge = f }
}

// needTwo returns an edit after which an online role needs two signatures.
func needTwo(name string, signers ...string) func(*tuftest.Repo) {
	return func(r *tuftest.Repo) {
		tuftest.Grant(r.AddRoot(), name, 2, keysOf(name, "second")...)
		r.Roles[name].Signers = keysOf(signers...)
	}
}

func TestSection5_4_3_TimestampRollback(t *testing.T) {
	at := func(timestamp, snapshot int) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			r.Roles["timestamp"].Signed["version"] = timestamp
			r.Roles["snapshot"].Signed["version"] = snapshot
		}
	}
	runAll(t, map[string]scenario{
		"both go on":                         {past: at(5, 5), edit: at(6, 6), kept: "root 1, timestamp 6, snapshot 6"},
		"versions may be left out":           {past: at(5, 5), edit: at(60, 600), kept: "root 1, timestamp 60, snapshot 600"},
		"only the timestamp goes on":         {past: at(5, 5), edit: at(6, 5), kept: "root 1, timestamp 6, snapshot 5"},
		"nothing goes on":                    {past: at(5, 5), edit: at(5, 5), kept: "root 1, timestamp 5, snapshot 5"},
		"the timestamp goes back":            {past: at(5, 5), edit: at(4, 5), want: patch.ErrRollback, kept: "root 1, timestamp 5, snapshot 5"},
		"both go back":                       {past: at(5, 5), edit: at(4, 4), want: patch.ErrRollback, kept: "root 1, timestamp 5, snapshot 5"},
		"the snapshot goes back behind it":   {past: at(5, 5), edit: at(6, 4), want: patch.ErrRollback, kept: "root 1, timestamp 5, snapshot 5"},
		"the same timestamp, older snapshot": {past: at(5, 5), edit: at(5, 4), want: patch.ErrRollback, kept: "root 1, timestamp 5, snapshot 5"},
		// The stored timestamp stays, so the newer snapshot is not the one it lists.
		"the same timestamp, newer snapshot": {past: at(5, 5), edit: at(5, 6), want: patch.ErrTampered, kept: "root 1, timestamp 5, snapshot 5"},
		// What has expired still says how far the client has come.
		"the stored one has expired, and goes back": {
			past: at(5, 5), after: 36 * time.Hour, edit: then(at(4, 5), renew("timestamp")),
			want: patch.ErrRollback, kept: "root 1, timestamp 5, snapshot 5",
		},
		"the stored one has expired, and its version comes with a new expiry": {
			past: at(5, 5), after: 36 * time.Hour, edit: then(at(5, 5), renew("timestamp")),
			want: patch.ErrExpired, kept: "root 1, timestamp 5, snapshot 5",
		},
	})
}

// renew gives roles another week.
func renew(names ...string) func(*tuftest.Repo) {
	return func(r *tuftest.Repo) {
		for _, n := range names {
			role(r, n).Expire(start.Add(7 * day))
		}
	}
}

func TestSection5_4_4_TimestampExpiry(t *testing.T) {
	runAll(t, map[string]scenario{
		"in its last second": {after: day - time.Second, kept: all},
		"at the end":         {after: day, want: patch.ErrExpired, kept: nothing},
		"a newer one that has expired does not replace the stored one": {
			past: asIs, edit: publish, after: day, want: patch.ErrExpired, kept: all,
		},
	})
}

func TestSection5_4_TimestampListsTheSnapshotAlone(t *testing.T) {
	runAll(t, map[string]scenario{
		"nothing":  {edit: edit("timestamp", tuftest.Set(tuftest.Object{}, "meta")), want: patch.ErrMalformed, kept: nothing},
		"too much": {edit: edit("timestamp", tuftest.Set(tuftest.Listing(1, nil), "meta", "targets.json")), want: patch.ErrMalformed, kept: nothing},
		"another": {edit: edit("timestamp", tuftest.Set(tuftest.Object{"targets.json": tuftest.Listing(1, nil)}, "meta")),
			want: patch.ErrMalformed, kept: nothing},
	})
}

func TestSection5_5_2_SnapshotHash(t *testing.T) {
	listed := func(f func(snapshot []byte) tuftest.Object) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			snapshot := r.Files().Roles["snapshot"]
			r.Roles["timestamp"].Edit = tuftest.Set(f(snapshot), "meta", "snapshot.json")
		}
	}
	other := tuftest.Listing(1, []byte("other"))
	runAll(t, map[string]scenario{
		"length and hash": {kept: all},
		"version only":    {edit: listed(func([]byte) tuftest.Object { return tuftest.Listing(1, nil) }), kept: all},
		"sha512": {edit: listed(func(b []byte) tuftest.Object {
			sum := sha512.Sum512(b)
			return tuftest.Object{"version": 1, "hashes": tuftest.Object{"sha512": hex.EncodeToString(sum[:])}}
		}), want: patch.ErrMalformed, kept: nothing},
		"another length": {
			edit: listed(func(b []byte) tuftest.Object { return tuftest.Object{"version": 1, "length": len(b) + 1} }),
			want: patch.ErrTampered, kept: timestamped,
		},
		"another hash": {
			edit: listed(func([]byte) tuftest.Object { return tuftest.Object{"version": 1, "hashes": other["hashes"]} }),
			want: patch.ErrTampered, kept: timestamped,
		},
		"two hashes": {
			edit: listed(func(b []byte) tuftest.Object {
				o := tuftest.Listing(1, b)
				sum := sha512.Sum512(b)
				o["hashes"].(tuftest.Object)["sha512"] = hex.EncodeToString(sum[:])
				return o
			}),
			want: patch.ErrMalformed, kept: nothing,
		},
		"one byte of white space more": {
			files: func(f *tuftest.Files) { f.Roles["snapshot"] = append(f.Roles["snapshot"], ' ') },
			want:  patch.ErrTampered, kept: timestamped,
		},
		"truncated": {
			files: func(f *tuftest.Files) { f.Roles["snapshot"] = f.Roles["snapshot"][:100] },
			want:  patch.ErrTampered, kept: timestamped,
		},
		"larger than allowed": {
			edit: func(r *tuftest.Repo) { r.Roles["snapshot"].Rewrite = pad(patch.MaxSnapshot + 1) },
			want: patch.ErrTooLarge, kept: timestamped,
		},
		"as large as allowed": {edit: func(r *tuftest.Repo) { r.Roles["snapshot"].Rewrite = pad(patch.MaxSnapshot) }, kept: all},
	})
}

func TestSection5_5_3_SnapshotSignature(t *testing.T) {
	runAll(t, map[string]scenario{
		"is missing":                  {edit: signers("snapshot"), want: patch.ErrUntrusted, kept: timestamped},
		"is of the timestamp key":     {edit: signers("snapshot", "timestamp"), want: patch.ErrUntrusted, kept: timestamped},
		"is of an offline key":        {edit: signers("snapshot", "root 1", "targets 1"), want: patch.ErrUntrusted, kept: timestamped},
		"is below a threshold of two": {edit: needTwo("snapshot", "snapshot"), want: patch.ErrUntrusted, kept: "root 2, timestamp 1, snapshot none"},
		"is a threshold of two":       {edit: needTwo("snapshot", "snapshot", "second"), kept: "root 2, timestamp 1, snapshot 1"},
	})
}

func TestSection5_5_4_SnapshotVersion(t *testing.T) {
	listed := func(version int) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			r.Roles["snapshot"].Signed["version"] = 5
			r.Roles["timestamp"].Edit = tuftest.Set(tuftest.Listing(version, nil), "meta", "snapshot.json")
		}
	}
	runAll(t, map[string]scenario{
		"is the listed one": {edit: listed(5), kept: "root 1, timestamp 1, snapshot 5"},
		"is lower":          {edit: listed(6), want: patch.ErrTampered, kept: timestamped},
		"is higher":         {edit: listed(4), want: patch.ErrTampered, kept: timestamped},
	})
}

func TestSection5_5_5_SnapshotRollback(t *testing.T) {
	entry := func(name string, value any) func(*tuftest.Repo) {
		return edit("snapshot", tuftest.Set(value, "meta", name))
	}
	old := func(r *tuftest.Repo) {
		for _, role := range r.Roles {
			role.Signed["version"] = 5
		}
		r.Roles["extra"] = r.Roles["debian-0"].Clone()
	}
	const before, after = "root 1, timestamp 5, snapshot 5", "root 1, timestamp 6, snapshot 6"
	// The timestamp is signed and listed, so it is new in each case.
	const refused = "root 1, timestamp 6, snapshot 5"
	runAll(t, map[string]scenario{
		"everything stays": {past: old, edit: func(r *tuftest.Repo) { r.Publish() }, kept: after},
		"a bin goes on":    {past: old, edit: publish, kept: after},
		"a bin is new":     {past: old, edit: func(r *tuftest.Repo) { r.AddRole("new"); r.Publish() }, kept: after},
		"targets goes back": {
			past: old, edit: then(publish, entry("targets.json", tuftest.Listing(4, nil))), want: patch.ErrRollback, kept: refused,
		},
		"a bin goes back": {
			past: old, edit: then(publish, entry("debian-0.json", tuftest.Listing(4, nil))), want: patch.ErrRollback, kept: refused,
		},
		"rollout goes back": {
			past: old, edit: then(publish, entry("rollout.json", tuftest.Listing(4, nil))), want: patch.ErrRollback, kept: refused,
		},
		"an entry is gone": {past: old, edit: then(publish, entry("extra.json", tuftest.Deleted)), want: patch.ErrRollback, kept: refused},
		"an entry is gone and would come back older": {
			past: old, edit: then(publish, entry("debian-0.json", tuftest.Deleted)), want: patch.ErrRollback, kept: refused,
		},
		"an entry is there under a name of other case": {
			past: old,
			edit: then(publish, edit("snapshot", func(o tuftest.Object) any {
				o = tuftest.Delete("meta", "extra.json")(o).(tuftest.Object)
				return tuftest.Set(tuftest.Listing(5, nil), "meta", "EXTRA.json")(o)
			})),
			want: patch.ErrRollback, kept: refused,
		},
		"the stored one has expired, and a bin goes back": {
			past: old, after: 3 * day,
			edit: then(publish, renew("timestamp", "snapshot", "rollout"), entry("debian-0.json", tuftest.Listing(4, nil))),
			want: patch.ErrRollback, kept: refused,
		},
		"the stored one has expired": {
			past: old, after: 3 * day, edit: then(publish, renew("timestamp", "snapshot", "rollout")), kept: after,
		},
		// The same version twice is the same file twice.
		"the same version with other content": {
			past: old,
			edit: func(r *tuftest.Repo) {
				r.Roles["timestamp"].Bump()
				r.Roles["debian-0"].Bump()
			},
			want: patch.ErrTampered, kept: refused,
		},
		"the same version with another signature": {
			past: old,
			edit: func(r *tuftest.Repo) {
				r.Roles["timestamp"].Bump()
				r.Roles["snapshot"].Signers = keysOf("stranger", "snapshot")
			},
			kept: "root 1, timestamp 6, snapshot 5",
		},
		"the same version, and a timestamp without a hash": {
			past: func(r *tuftest.Repo) {
				old(r)
				r.Roles["timestamp"].Edit = tuftest.Set(tuftest.Listing(5, nil), "meta", "snapshot.json")
			},
			edit: func(r *tuftest.Repo) { r.Roles["debian-0"].Bump() },
			want: patch.ErrTampered, kept: before,
		},
	})
}

func TestSection5_5_6_SnapshotExpiry(t *testing.T) {
	runAll(t, map[string]scenario{
		"in its last second": {edit: renew("timestamp", "rollout"), after: 2*day - time.Second, kept: all},
		"at the end":         {edit: renew("timestamp", "rollout"), after: 2 * day, want: patch.ErrExpired, kept: timestamped},
		"a newer one that has expired does not replace the stored one": {
			past: asIs, edit: then(publish, renew("timestamp")), after: 2 * day,
			want: patch.ErrExpired, kept: "root 1, timestamp 2, snapshot 1",
		},
	})
}

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

func TestCallsOutOfOrderAreRefused(t *testing.T) {
	r := newRepo()
	r.AddRoot() // would be taken at any other time
	files := r.Files()
	stored := tuf.Stored{Root: files.Roots[0]}
	set, err := tuf.New(stored, start)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if v := set.SnapshotVersion(); v != 0 {
		t.Errorf("SnapshotVersion before Timestamp = %d, want 0", v)
	}
	refused("snapshot before timestamp", set.Snapshot(files.Roles["snapshot"]))
	_, err = set.Find(module, files.Load)
	refused("Find before snapshot", err)
	if err := set.Timestamp(files.Roles["timestamp"]); err != nil {
		t.Fatal(err)
	}
	if v := set.SnapshotVersion(); v != 1 {
		t.Errorf("SnapshotVersion = %d, want 1", v)
	}
	refused("root after timestamp", set.Root(files.Roots[1]))
	_, err = set.Find(module, files.Load)
	refused("Find before snapshot", err)
	if err := set.Snapshot(files.Roles["snapshot"]); err != nil {
		t.Fatal(err)
	}
	refused("timestamp after snapshot", set.Timestamp(files.Roles["timestamp"]))
	if _, err := set.Find(module, files.Load); err != nil {
		t.Fatal(err)
	}
	refused("snapshot after targets", set.Snapshot(files.Roles["snapshot"]))
	if want := (tuf.Stored{Root: files.Roots[0], Timestamp: files.Roles["timestamp"], Snapshot: files.Roles["snapshot"]}); !sameStored(set.Stored(), want) {
		t.Errorf("stored = %s, want %s", versions(set.Stored()), versions(want))
	}
}

// An error of the loader of files reaches the caller, and nothing is remembered.
func TestFindReturnsTheErrorOfItsLoader(t *testing.T) {
	files := newRepo().Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	_, err = set.Find(module, func(string, int64) ([]byte, error) { return nil, fs.ErrNotExist })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find = %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := set.Find(module, files.Load); err != nil {
		t.Errorf("Find, asked again: %v", err)
	}
}

// Find asks for each role once, in the version that the snapshot lists.
func TestFindAsksForEachRoleOnce(t *testing.T) {
	r := newRepo()
	for range 6 {
		role(r, "bin").Bump()
	}
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]int{}
	load := func(name string, version int64) ([]byte, error) {
		asked[fmt.Sprintf("%d.%s", version, name)]++
		return files.Load(name, version)
	}
	for range 3 {
		for _, target := range []string{module, rollout} {
			if _, err := set.Find(target, load); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]int{"1.targets": 1, "1.debian": 1, "7." + r.Bin(module): 1, "1.rollout": 1}
	if fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}
