package tuf_test

import (
	"crypto/sha512"
	"encoding/hex"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
)

// Timestamp and snapshot: sections 5.4 and 5.5 of the specification.

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
