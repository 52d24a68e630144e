package tuf_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// workflow lists the client workflow of the TUF specification, version 1.0.33,
// and which tests look at each step. What needs a network or a disk, such as
// file names and what is persisted, is looked at where it is done:
// tests/attack/tufclient and the loader's own state.
var workflow = []struct {
	section, step, tests string
}{
	{"5", "an update that fails leaves the way to the next one open", "TestSection5_FailedUpdateLeavesTheWayOpen"},
	{"5.1", "the time is fixed at the start", "TestSection5_1_FixedTime"},
	{"5.2", "trusted root; that it has expired does not matter", "TestSection5_2_TrustedRoot"},
	{"5.3.1", "a chain of intermediate roots", "TestSection5_3_3_NewerRoots TestSection5_3_7_NextRootIsCheckedAgainstTheNewest"},
	{"5.3.2", "N is the version of the trusted root", "TestSection5_3_2_VersionOfTheTrustedRoot"},
	{"5.3.3", "root N+1, up to W bytes, up to Y of them", "TestSection5_3_3_NewerRoots TestSection5_3_3_LongChainTakesTwoUpdates"},
	{"5.3.4", "signed by a threshold of both", "TestSection5_3_4_RootSignatures"},
	{"5.3.5", "version is N+1", "TestSection5_3_5_RootVersion"},
	{"5.3.6", "an intermediate root may have expired", "TestSection5_3_6_IntermediateRootMayHaveExpired"},
	{"5.3.7", "the new root is the trusted one", "TestSection5_3_7_NextRootIsCheckedAgainstTheNewest"},
	{"5.3.8", "and is persisted at once", "TestSection5_3_8_RootIsKeptAtOnce"},
	{"5.3.9", "again", "TestSection5_3_3_NewerRoots"},
	{"5.3.10", "the last root has not expired", "TestSection5_3_10_LastRootMustNotHaveExpired"},
	{"5.3.11", "new online keys let go of the old floors", "TestSection5_3_11_FastForwardRecovery"},
	{"5.3.12", "consistent snapshots or not", "TestSection5_3_12_ConsistentSnapshot"},
	{"5.4.1", "timestamp, up to X bytes", "TestSection5_4_1_TimestampSize"},
	{"5.4.2", "signed by a threshold", "TestSection5_4_2_TimestampSignature"},
	{"5.4.3.1", "version does not go back; the same version is discarded", "TestSection5_4_3_TimestampRollback TestTimestampOfTheSameVersionIsNotRead"},
	{"5.4.3.2", "version of the snapshot does not go back", "TestSection5_4_3_TimestampRollback"},
	{"5.4.4", "has not expired", "TestSection5_4_4_TimestampExpiry"},
	{"5.4.5", "is persisted", "TestSection5_4_5_TimestampIsKept"},
	{"5.5.1", "snapshot, up to the listed length or Y bytes", "TestSection5_5_1_SnapshotSize"},
	{"5.5.2", "hashes as listed", "TestSection5_5_2_SnapshotHash"},
	{"5.5.3", "signed by a threshold", "TestSection5_5_3_SnapshotSignature"},
	{"5.5.4", "version as listed", "TestSection5_5_4_SnapshotVersion"},
	{"5.5.5", "no version goes back, no entry goes away", "TestSection5_5_5_SnapshotRollback"},
	{"5.5.6", "has not expired", "TestSection5_5_6_SnapshotExpiry"},
	{"5.5.7", "is persisted", "TestSection5_5_7_SnapshotIsKept"},
	{"5.6.1", "targets, up to the listed length or Z bytes", "TestSection5_6_1_TargetsSize"},
	{"5.6.2", "hashes as listed", "TestSection5_6_2_TargetsHash"},
	{"5.6.3", "signed by a threshold", "TestSection5_6_3_TargetsSignatures"},
	{"5.6.4", "version as listed", "TestSection5_6_4_TargetsVersion"},
	{"5.6.5", "has not expired", "TestSection5_6_5_TargetsExpiry"},
	{"5.6.6", "is kept, for as long as the update takes", "TestFindAsksForEachRoleOnce"},
	{"5.6.7", "pre-order, depth first; what cannot be had ends the search", "TestSection5_6_7_Delegations TestSection5_6_7_WhatCannotBeHadEndsTheSearch"},
	{"5.6.7.1", "no role twice, no more than so many", "TestSection5_6_7_1_RolesVisited TestSection5_6_7_Delegations"},
	{"5.6.7.2", "in order of appearance", "TestSection5_6_7_2_OrderOfAppearance TestSection5_6_7_2_PathPatterns TestSection5_6_7_2_PatternsWithClassesAreRefused"},
	{"5.6.7.2.1", "a terminating delegation ends the search", "TestSection5_6_7_2_1_Terminating"},
	{"5.6.7.2.2", "another one does not", "TestSection5_6_7_2_2_NotTerminating"},
	{"5.7.1", "the target against its metadata", "TestSection5_7_Target TestSection5_7_TargetLength"},
	{"5.7.2", "no such target", "TestSection5_7_2_NoSuchTarget"},
	{"5.7.3", "length and hashes", "TestSection5_7_Target TestTargetHasOneHash"},
	{"TAP 15", "hash bins", "TestTAP15_Bins"},
}

// TestEachStepOfTheWorkflowIsTested holds the table against the tests that there
// are, both ways.
func TestEachStepOfTheWorkflowIsTested(t *testing.T) {
	unlisted, known := map[string]bool{}, map[string]bool{}
	for _, name := range testFunctions(t) {
		known[name] = true
		unlisted[name] = strings.HasPrefix(name, "TestSection")
	}
	for _, step := range workflow {
		for _, name := range strings.Fields(step.tests) {
			if !known[name] {
				t.Errorf("section %s: no test %s", step.section, name)
			}
			unlisted[name] = false
		}
	}
	unlisted["TestSection5_4_TimestampListsTheSnapshotAlone"] = false // section 4.6, on the way
	for name, missing := range unlisted {
		if missing {
			t.Errorf("%s is named for a section, and the table does not list it", name)
		}
	}
}

// testFunctions returns the names of the functions in the test files here.
func testFunctions(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

// Whatever an update fails of, the next one succeeds once the repository is well.
func TestSection5_FailedUpdateLeavesTheWayOpen(t *testing.T) {
	for name, wrong := range map[string]func(*tuftest.Repo){
		"root is not signed":            func(r *tuftest.Repo) { r.AddRoot().Signers = nil },
		"root leaves out a version":     func(r *tuftest.Repo) { r.AddRoot().Signed["version"] = 7 },
		"root has expired":              func(r *tuftest.Repo) { r.AddRoot().Expire(start.Add(-day)) },
		"timestamp is not signed":       then(publish, signers("timestamp")),
		"timestamp has expired":         then(publish, func(r *tuftest.Repo) { r.Roles["timestamp"].Expire(start.Add(-day)) }),
		"timestamp goes back":           func(r *tuftest.Repo) { r.Roles["timestamp"].Signed["version"] = 1 },
		"snapshot goes back":            then(publish, func(r *tuftest.Repo) { r.Roles["snapshot"].Signed["version"] = 1 }),
		"snapshot is not signed":        then(publish, signers("snapshot")),
		"snapshot has expired":          then(publish, func(r *tuftest.Repo) { r.Roles["snapshot"].Expire(start.Add(-day)) }),
		"snapshot is not what is said":  then(publish, edit("snapshot", tuftest.Set(1, "version"))),
		"snapshot has lost an entry":    then(publish, edit("snapshot", tuftest.Delete("meta", "rollout.json"))),
		"an entry goes back":            then(publish, edit("snapshot", tuftest.Set(1, "meta", "targets.json", "version"))),
		"targets is not signed":         then(publish, signers("targets")),
		"a bin is not signed":           then(publish, signers("bin")),
		"a bin is of a version not yet": then(publish, edit("bin", tuftest.Set(9, "version"))),
		"a bin is no metadata":          then(publish, func(r *tuftest.Repo) { role(r, "bin").Rewrite = func([]byte) []byte { return []byte("null") } }),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo()
			for _, role := range r.Roles {
				role.Signed["version"] = 2
			}
			first := r.Files()
			set, err := update(t, tuf.Stored{Root: first.Roots[0]}, first, start)
			if err != nil {
				t.Fatal(err)
			}
			bad := r.Clone()
			wrong(bad)
			files := bad.Files()
			_, stored, err := find(t, set.Stored(), files, start, module)
			if err == nil {
				t.Fatal("the update succeeded")
			}
			for range 2 {
				r.AddRoot()
				publish(r)
			}
			if versions(stored) == "root 2, timestamp 2, snapshot 2" { // a root that has expired is a root
				r.Roots[1] = bad.Roots[1]
			}
			if _, _, err := find(t, stored, r.Files(), start, module); err != nil {
				t.Errorf("the next update: %v", err)
			}
		})
	}
}

func TestSection5_3_2_VersionOfTheTrustedRoot(t *testing.T) {
	r := newRepo()
	for range 4 {
		r.AddRoot()
	}
	files := r.Files()
	// A client may begin at any root that it trusts; it goes on from there.
	for n := int64(1); n <= 5; n++ {
		set, err := tuf.New(tuf.Stored{Root: files.Roots[n-1]}, start)
		if err != nil || set.RootVersion() != n {
			t.Fatalf("root %d: %v", n, err)
		}
		for i, b := range files.Roots {
			want := map[bool]error{true: patch.ErrRollback, false: patch.ErrMalformed}[int64(i) < n]
			if int64(i) == n {
				continue // the one that it takes
			}
			if err := set.Root(b); verdict(err) != want {
				t.Errorf("root %d after root %d: %v, want %v", i+1, n, err, want)
			}
		}
		if n == 5 {
			break
		}
		if err := set.Root(files.Roots[n]); err != nil || set.RootVersion() != n+1 {
			t.Errorf("root %d after root %d: %v, trusted is %d", n+1, n, err, set.RootVersion())
		}
	}
}

// Each root is checked against the one before it, not against the one that the
// update began with; and it is the last one that says who signs the rest.
func TestSection5_3_7_NextRootIsCheckedAgainstTheNewest(t *testing.T) {
	rotate := func(old, new string) func(*tuftest.Repo) {
		return func(r *tuftest.Repo) {
			next := r.AddRoot()
			tuftest.Grant(next, "root", 1, tuftest.NewKey(new))
			next.Signers = keysOf(strings.Fields(old + " " + new)...)
		}
	}
	first := func(r *tuftest.Repo) {
		next := r.AddRoot()
		tuftest.Grant(next, "root", 1, tuftest.NewKey("a"))
		next.Signers = keysOf("root 1", "root 2", "a")
	}
	runAll(t, map[string]scenario{
		"by the one before":               {edit: then(first, rotate("a", "b"), rotate("b", "c")), kept: "root 4, timestamp 1, snapshot 1"},
		"by the one before the last":      {edit: then(first, rotate("a", "b"), rotate("a", "c")), want: patch.ErrUntrusted, kept: "root 3, timestamp none, snapshot none"},
		"by the one that it began with":   {edit: then(first, rotate("a", "b"), signedByFirst), want: patch.ErrUntrusted, kept: "root 3, timestamp none, snapshot none"},
		"the last one names other online": {edit: then(first, newTimestampKey, signers("timestamp", "new timestamp")), kept: "root 3, timestamp 1, snapshot 1"},
		"and the old online key is out":   {edit: then(first, newTimestampKey), want: patch.ErrUntrusted, kept: "root 3, timestamp none, snapshot none"},
	})
}

func signedByFirst(r *tuftest.Repo) {
	next := r.AddRoot()
	tuftest.Grant(next, "root", 2, keysOf("root 1", "root 2")...)
	next.Signers = keysOf("root 1", "root 2")
}

func newTimestampKey(r *tuftest.Repo) {
	tuftest.Grant(r.AddRoot(), "timestamp", 1, tuftest.NewKey("new timestamp"))
}

func TestSection5_4_5_TimestampIsKept(t *testing.T) {
	files := newRepo().Files()
	set, err := tuf.New(tuf.Stored{Root: files.Roots[0]}, start)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Timestamp(files.Roles["timestamp"]); err != nil {
		t.Fatal(err)
	}
	// Before the snapshot: power may go at any time.
	want := tuf.Stored{Root: files.Roots[0], Timestamp: files.Roles["timestamp"]}
	if !sameStored(set.Stored(), want) {
		t.Errorf("stored is %s, want %s", versions(set.Stored()), versions(want))
	}
}

func TestSection5_5_7_SnapshotIsKept(t *testing.T) {
	files := newRepo().Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	want := tuf.Stored{Root: files.Roots[0], Timestamp: files.Roles["timestamp"], Snapshot: files.Roles["snapshot"]}
	if !sameStored(set.Stored(), want) {
		t.Errorf("stored is %s, want %s", versions(set.Stored()), versions(want))
	}
	// What was stored is where the next update begins, whatever it finds.
	if again, err := tuf.New(set.Stored(), start); err != nil || !sameStored(again.Stored(), want) {
		t.Errorf("New from what is stored: %v", err)
	}
}

func TestSection5_5_1_SnapshotSize(t *testing.T) {
	listed := func(length int) func(*tuftest.Repo) {
		return edit("timestamp", tuftest.Set(tuftest.Object{"version": 1, "length": length}, "meta", "snapshot.json"))
	}
	size := len(newRepo().Files().Roles["snapshot"])
	runAll(t, map[string]scenario{
		"as long as listed":     {edit: listed(size), kept: all},
		"longer than listed":    {edit: listed(size - 1), want: patch.ErrTampered, kept: timestamped},
		"shorter than listed":   {edit: listed(size + 1), want: patch.ErrTampered, kept: timestamped},
		"listed with no length": {edit: edit("timestamp", tuftest.Delete("meta", "snapshot.json", "length")), kept: all},
		"longer than any may be": {
			edit: then(listed(patch.MaxSnapshot+1), func(r *tuftest.Repo) { r.Roles["snapshot"].Rewrite = pad(patch.MaxSnapshot + 1) }),
			want: patch.ErrTooLarge, kept: timestamped,
		},
	})
}
