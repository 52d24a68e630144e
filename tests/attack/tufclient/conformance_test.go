package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/internal/tuftest"
)

// The tests of this file are the behaviours that the tuf-conformance suite looks
// for, on a repository with ed25519 keys.

func versionOf(t *testing.T, b []byte) int64 {
	t.Helper()
	var f signedFile
	if err := json.Unmarshal(b, &f); err != nil {
		t.Errorf("what is stored is no metadata: %v", err)
	}
	return f.Signed.Version
}

const all1 = "root 1, timestamp 1, snapshot 1, targets 1"

func TestInitAndRefresh(t *testing.T) {
	l := newFlatLab(t)
	l.initialize()
	l.trusts("root 1")
	l.refresh(0)
	l.asked("2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json")
	l.trusts(all1)
	l.refresh(0)
	l.asked("2.root.json", "timestamp.json")
	for name, file := range map[string]string{"root": "1.root", "timestamp": "timestamp", "snapshot": "1.snapshot", "targets": "1.targets"} {
		b, err := os.ReadFile(filepath.Join(l.metadata(), name+".json"))
		if err != nil || string(b) != string(l.files["/metadata/"+file+".json"]) {
			t.Errorf("%s.json is not the file that was served: %v", name, err)
		}
	}
}

func TestDownloadRefreshesFirst(t *testing.T) {
	l := newFlatLab(t)
	l.initialize()
	l.download(1, "nonexistent artifact")
	l.asked("2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json")
	l.trusts(all1)
}

func TestInitialRootThatIsBad(t *testing.T) {
	for name, f := range map[string]func(*tuftest.Role){
		"without a version":    func(r *tuftest.Role) { r.Edit = tuftest.Delete("version") },
		"not signed":           func(r *tuftest.Role) { r.Signers = nil },
		"signed by a stranger": func(r *tuftest.Role) { r.Signers = []tuftest.Key{tuftest.NewKey("stranger")} },
	} {
		t.Run(name, func(t *testing.T) {
			l := newFlatLab(t)
			f(l.repo.Root())
			l.publish()
			root := filepath.Join(l.dir, "initial_root.json")
			if err := os.WriteFile(root, l.files["/metadata/1.root.json"], 0o600); err != nil {
				t.Fatal(err)
			}
			l.run(1, "--metadata-dir", l.metadata(), "init", root)
			l.refresh(1)
			l.asked()
			// As if it had been put there by somebody else.
			if err := os.Rename(root, filepath.Join(l.metadata(), "root.json")); err != nil {
				t.Fatal(err)
			}
			l.refresh(1)
			l.asked()
		})
	}
}

func TestUnsignedMetadata(t *testing.T) {
	for name, want := range map[string]string{
		"root":      "root 1",
		"timestamp": "root 1",
		"snapshot":  "root 1, timestamp 1",
		"targets":   "root 1, timestamp 1, snapshot 1",
	} {
		t.Run(name, func(t *testing.T) {
			l := newFlatLab(t)
			if name == "root" {
				l.repo.AddRoot().Signers = nil
			} else {
				l.repo.Roles[name].Signers = nil
			}
			l.publish()
			l.initialize()
			l.refresh(1)
			l.trusts(want)
		})
	}
}

func TestTimestampOfTheSameVersionIsDiscarded(t *testing.T) {
	l := newFlatLab(t)
	l.initialize()
	l.refresh(0)
	l.seen()
	before, err := os.ReadFile(filepath.Join(l.metadata(), "timestamp.json"))
	if err != nil {
		t.Fatal(err)
	}
	l.repo.Roles["timestamp"].Edit = tuftest.Set(100, "meta", "snapshot.json", "version")
	l.publish()
	l.refresh(0)
	l.asked("2.root.json", "timestamp.json")
	if after, err := os.ReadFile(filepath.Join(l.metadata(), "timestamp.json")); err != nil || string(after) != string(before) {
		t.Errorf("timestamp.json has changed: %v", err)
	}
}

func TestHashesOfMetadata(t *testing.T) {
	l := newFlatLab(t)
	l.repo.HashBins = true
	l.next("targets")
	l.initialize()
	l.refresh(0)
	l.trusts("root 1, timestamp 2, snapshot 2, targets 2")
	l.repo.Roles["snapshot"].Edit = tuftest.Set(strings.Repeat("ab", 32), "meta", "targets.json", "hashes", "sha256")
	l.next("targets")
	l.refresh(1)
	l.trusts("root 1, timestamp 3, snapshot 3, targets 2")
}

func TestTargetsThatTheSnapshotDoesNotList(t *testing.T) {
	l := newFlatLab(t)
	l.initialize()
	l.refresh(0)
	l.seen()
	targets := l.repo.Roles["targets"].Clone()
	targets.Bump()
	l.files["/metadata/2.targets.json"] = targets.Bytes()
	l.refresh(0)
	l.trusts(all1)
	l.asked("2.root.json", "timestamp.json")
}

func TestUnknownFields(t *testing.T) {
	l := newFlatLab(t)
	l.initialize()
	l.refresh(0)
	root := l.repo.AddRoot()
	root.Signed["custom-field"] = "value"
	roles, keys := root.Signed["roles"].(tuftest.Object), root.Signed["keys"].(tuftest.Object)
	roles["root"].(tuftest.Object)["another-field"] = "value"
	keys[tuftest.NewKey("root 1").ID].(tuftest.Object)["extra-field"] = tuftest.Object{"a": 1, "b": 2}
	keys[tuftest.NewKey("snapshot").ID].(tuftest.Object)["keyid_hash_algorithms"] = []any{"md5"}
	l.publish()
	l.refresh(0)
	l.trusts("root 2, timestamp 1, snapshot 1, targets 1")
}

func TestExpired(t *testing.T) {
	past := func(l *lab, name string) { l.repo.Roles[name].Expire(l.now.Add(-5 * day)) }
	for name, tc := range map[string]struct {
		edit func(*lab)
		want string
	}{
		"root": {func(l *lab) {
			l.repo.AddRoot()
			l.repo.AddRoot().Expire(l.now.Add(-day))
			l.next("targets")
		}, "root 3, timestamp 1, snapshot 1, targets 1"},
		"a root in between": {func(l *lab) {
			l.repo.AddRoot().Expire(l.now.Add(-day))
			l.repo.AddRoot().Expire(l.now.Add(day))
			l.publish()
		}, ""},
		"timestamp": {func(l *lab) { past(l, "timestamp"); l.next() }, all1},
		"snapshot":  {func(l *lab) { past(l, "snapshot"); l.next() }, "root 1, timestamp 2, snapshot 1, targets 1"},
		"targets":   {func(l *lab) { past(l, "targets"); l.next("targets") }, "root 1, timestamp 2, snapshot 2, targets 1"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newFlatLab(t)
			l.initialize()
			l.refresh(0)
			tc.edit(l)
			if tc.want == "" {
				l.refresh(0)
				l.trusts("root 3, timestamp 1, snapshot 1, targets 1")
				return
			}
			l.refresh(1)
			l.trusts(tc.want)
		})
	}
}

// What is stored and has expired is where the next update begins.
func TestExpiredMetadataIsStillAFloor(t *testing.T) {
	l := newFlatLab(t)
	l.repo.Roles["timestamp"].Expire(l.now.Add(7 * day))
	l.repo.Roles["snapshot"].Expire(l.now.Add(30 * day))
	l.publish()
	l.initialize()
	l.refresh(0)
	l.setClock(l.now.Add(18 * day))
	l.refresh(1)
	l.repo.Roles["timestamp"].Expire(l.now.Add(21 * day))
	l.next("targets")
	l.refresh(0)
	l.trusts("root 1, timestamp 2, snapshot 2, targets 2")
}

func TestDelegatedRoleThatHasExpired(t *testing.T) {
	setup := func(t *testing.T, life time.Duration) *lab {
		l := newFlatLab(t)
		l.repo.Roles["timestamp"].Expire(l.now.Add(30 * day))
		l.repo.Roles["snapshot"].Expire(l.now.Add(30 * day))
		l.delegate("targets", "delegated", false, "delegatedpath/*")
		l.repo.Roles["delegated"].Expire(l.now.Add(life))
		l.repo.AddTargetTo("delegated", "delegatedpath/first", []byte("first"), nil)
		l.repo.AddTargetTo("delegated", "delegatedpath/second", []byte("second"), nil)
		l.publish()
		l.initialize()
		return l
	}
	first := map[string]string{"delegatedpath/first": "first"}
	both := map[string]string{"delegatedpath/first": "first", "delegatedpath/second": "second"}
	t.Run("before it is seen", func(t *testing.T) {
		l := setup(t, -day)
		l.refresh(0)
		l.download(1, "delegatedpath/first")
		l.holds(map[string]string{})
		l.trusts(all1)
	})
	t.Run("since it was stored", func(t *testing.T) {
		l := setup(t, 7*day)
		l.download(0, "delegatedpath/first")
		l.setClock(l.now.Add(18 * day))
		l.download(1, "delegatedpath/second")
		l.holds(first)
	})
	t.Run("and was renewed", func(t *testing.T) {
		l := setup(t, 7*day)
		l.download(0, "delegatedpath/first")
		l.repo.Roles["delegated"].Expire(l.now.Add(21 * day))
		l.next("delegated")
		l.setClock(l.now.Add(18 * day))
		l.download(0, "delegatedpath/second")
		l.holds(both)
		l.trusts("root 1, timestamp 2, snapshot 2, targets 1, delegated 2")
	})
}

func TestThresholdOfKeys(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*lab)
		code int
	}{
		"is reached": {func(l *lab) { l.rotate("snapshot", 3, "a", "b", "c") }, 0},
		"is higher than there are keys": {func(l *lab) {
			l.rotate("snapshot", 3, "a", "b", "c")
			tuftest.Path{"roles", "snapshot"}.Get(l.repo.Root().Signed).(tuftest.Object)["threshold"] = 4
		}, 1},
		"is higher than there are signatures": {func(l *lab) {
			l.rotate("snapshot", 3, "a", "b", "c")
			l.repo.Roles["snapshot"].Signers = l.repo.Roles["snapshot"].Signers[:2]
		}, 1},
		"is reached with one key under several ids": {func(l *lab) {
			l.rotate("snapshot", 2, "a")
			root := l.repo.Root().Signed
			root["keys"].(tuftest.Object)[strings.Repeat("f", 64)] = tuftest.NewKey("a").Object()
			snapshot := tuftest.Path{"roles", "snapshot"}.Get(root).(tuftest.Object)
			snapshot["keyids"] = []any{tuftest.NewKey("a").ID, strings.Repeat("f", 64)}
			l.repo.Roles["snapshot"].Forge = func(o tuftest.Object) any {
				sig := o["signatures"].([]any)[0].(tuftest.Object)
				return tuftest.Set([]any{sig, tuftest.Object{"keyid": strings.Repeat("f", 64), "sig": sig["sig"]}}, "signatures")(o)
			}
		}, 1},
		"is reached with one signature twice": {func(l *lab) {
			l.rotate("snapshot", 2, "a", "b")
			a := tuftest.NewKey("a")
			l.repo.Roles["snapshot"].Signers = []tuftest.Key{a, a}
		}, 1},
		"counts only keys of the role": {func(l *lab) {
			l.rotate("snapshot", 2, "a", "b")
			l.repo.Roles["snapshot"].Signers = []tuftest.Key{tuftest.NewKey("a"), tuftest.NewKey("timestamp"), tuftest.NewKey("root 1")}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newFlatLab(t)
			l.initialize()
			l.refresh(0)
			tc.edit(l)
			l.next()
			l.refresh(tc.code)
			if tc.code == 0 {
				l.trusts("root 2, timestamp 2, snapshot 2, targets 1")
			} else {
				l.trusts("root 2, timestamp 2, targets 1") // the old snapshot's key is gone
			}
		})
	}
}

func TestRollback(t *testing.T) {
	for _, hashes := range []bool{false, true} {
		set := func(l *lab, name string, version int) { l.repo.Roles[name].Signed["version"] = version }
		for name, tc := range map[string]struct {
			edit     func(*lab)
			code     int
			want     string
			requests []string
		}{
			"of the snapshot, which the timestamp does not list": {
				func(l *lab) { l.files["/metadata/2.snapshot.json"] = l.files["/metadata/1.snapshot.json"] },
				0, "root 1, timestamp 2, snapshot 2, targets 2", []string{"2.root.json", "timestamp.json"},
			},
			"of the timestamp": {
				func(l *lab) { set(l, "timestamp", 1); l.publish() },
				1, "root 1, timestamp 2, snapshot 2, targets 2", []string{"2.root.json", "timestamp.json"},
			},
			"of the snapshot": {
				func(l *lab) { set(l, "timestamp", 3); set(l, "snapshot", 1); l.publish() },
				1, "root 1, timestamp 2, snapshot 2, targets 2", []string{"2.root.json", "timestamp.json"},
			},
			"of targets": {
				func(l *lab) { set(l, "targets", 1); l.next() },
				1, "root 1, timestamp 3, snapshot 2, targets 2", []string{"2.root.json", "timestamp.json", "3.snapshot.json"},
			},
			"of targets, by an entry that is gone for one version": {
				func(l *lab) { l.repo.Roles["snapshot"].Edit = tuftest.Delete("meta", "targets.json"); l.next() },
				1, "root 1, timestamp 3, snapshot 2, targets 2", []string{"2.root.json", "timestamp.json", "3.snapshot.json"},
			},
		} {
			t.Run(fmt.Sprintf("%s, hashes %v", name, hashes), func(t *testing.T) {
				l := newFlatLab(t)
				l.repo.HashBins = hashes
				l.next("targets")
				l.initialize()
				l.refresh(0)
				l.trusts("root 1, timestamp 2, snapshot 2, targets 2")
				l.seen()
				tc.edit(l)
				l.refresh(tc.code)
				l.asked(tc.requests...)
				l.trusts(tc.want)
			})
		}
	}
}

func TestSnapshotOfAnotherVersionThanListed(t *testing.T) {
	l := newFlatLab(t)
	l.repo.Roles["snapshot"].Signed["version"] = 2
	l.repo.Roles["timestamp"].Edit = tuftest.Set(tuftest.Listing(1, nil), "meta", "snapshot.json")
	l.publish()
	l.files["/metadata/1.snapshot.json"] = l.files["/metadata/2.snapshot.json"]
	l.initialize()
	l.refresh(1)
	l.trusts("root 1, timestamp 1")
	l.asked("2.root.json", "timestamp.json", "1.snapshot.json")
}

// Whoever had online keys raised versions as far as they go. New keys are the
// way back.
func TestFastForwardRecovery(t *testing.T) {
	const far = 1 << 40
	for name, tc := range map[string]struct {
		raised, replaced []string
		want             string
	}{
		"of the timestamp": {[]string{"timestamp"}, []string{"timestamp"}, "root 2, timestamp 3, snapshot 2, targets 1"},
		"of the snapshot":  {[]string{"timestamp", "snapshot"}, []string{"timestamp", "snapshot"}, "root 3, timestamp 3, snapshot 3, targets 1"},
		"of targets":       {[]string{"targets"}, []string{"snapshot"}, "root 2, timestamp 3, snapshot 3, targets 2"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newFlatLab(t)
			for _, role := range tc.raised {
				l.repo.Roles[role].Signed["version"] = far
			}
			l.publish()
			l.initialize()
			l.refresh(0)
			for _, role := range tc.raised {
				l.repo.Roles[role].Signed["version"] = 2
			}
			if slices.Contains(tc.raised, "targets") {
				l.repo.Publish()
			}
			l.publish()
			l.refresh(1)
			for _, role := range tc.replaced {
				l.rotate(role, 1, "new "+role)
			}
			l.next()
			l.refresh(0)
			l.trusts(tc.want)
		})
	}
}

// What the newest root does not vouch for does not lie among what is trusted,
// even if the update gets no further.
func TestWhatIsNoLongerTrustedGoes(t *testing.T) {
	l := newFlatLab(t)
	l.initialize()
	l.refresh(0)
	for _, role := range []string{"timestamp", "snapshot", "targets"} {
		l.rotate(role, 1, "new "+role)
	}
	l.publish()
	delete(l.files, "/metadata/timestamp.json")
	l.refresh(1)
	l.trusts("root 4")
}
