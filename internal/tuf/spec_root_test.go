package tuf_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// The time and the root: sections 5.1 to 5.3 of the specification.

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
		"there are as many as allowed": {edit: addRoots(64), kept: "root 65, timestamp 1, snapshot 1"},
		"the chain does not end": {
			edit: addRoots(65), want: patch.ErrMalformed, kept: "root 65, timestamp none, snapshot none",
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
	for range 100 {
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
	if set.RootVersion() != 101 {
		t.Errorf("root is %d, want 101", set.RootVersion())
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
