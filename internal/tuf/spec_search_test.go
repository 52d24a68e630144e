package tuf_test

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// The search through delegations, section 5.6.7, on trees of plain roles.

// A tree is a repository of plain roles below targets. "A>B" delegates "x/*" from
// A to B, "A!B" does so and terminates, and "B=" has B list the target "x/y".
func tree(steps ...string) *tuftest.Repo {
	r := tuftest.New(start)
	delete(r.Roles["targets"].Signed, "delegations")
	for _, step := range steps {
		if name, ok := strings.CutSuffix(step, "="); ok {
			r.AddTargetTo(name, "x/y", []byte("of "+name), nil)
			continue
		}
		parent, name, open := strings.Cut(step, ">")
		if !open {
			parent, name, _ = strings.Cut(step, "!")
		}
		key := tuftest.NewKey("key of " + name)
		if r.Roles[name] == nil {
			r.AddRole(name, key)
		}
		r.Delegate(parent, tuftest.Delegation(name, tuftest.Threshold(1, key), !open, "x/*"), key)
	}
	return r
}

// search looks for "x/y" and returns which roles were asked for, and whose target
// it found, if any.
func search(t *testing.T, r *tuftest.Repo) (asked []string, found string, err error) {
	t.Helper()
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	target, err := set.Find("x/y", func(name string, version int64) ([]byte, error) {
		asked = append(asked, name)
		return files.Load(name, version)
	})
	if err == nil {
		for _, name := range asked {
			if target.Check([]byte("of "+name)) == nil {
				found = name
			}
		}
	}
	return asked, found, err
}

type searchCase struct {
	tree  string
	asked string // after targets
	found string // "" if nobody lists it
}

func runSearches(t *testing.T, cases map[string]searchCase) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			asked, found, err := search(t, tree(strings.Fields(tc.tree)...))
			if want := append([]string{"targets"}, strings.Fields(tc.asked)...); !slices.Equal(asked, want) {
				t.Errorf("asked for %v, want %v", asked, want)
			}
			if found != tc.found || (err == nil) != (tc.found != "") {
				t.Errorf("found it in %q, %v, want %q", found, err, tc.found)
			}
			if err != nil && verdict(err) != patch.ErrNotFound {
				t.Errorf("verdict = %v, want %v", err, patch.ErrNotFound)
			}
		})
	}
}

func TestSection5_6_7_2_OrderOfAppearance(t *testing.T) {
	runSearches(t, map[string]searchCase{
		"the first of two that list it":              {"targets>A targets>B A= B=", "A", "A"},
		"the second, if the first does not":          {"targets>A targets>B B=", "A B", "B"},
		"a child of the first before the second":     {"targets>A targets>B A>C C= B=", "A C", "C"},
		"grandchildren before the second":            {"targets>A targets>B A>C C>D D= B=", "A C D", "D"},
		"children in their order":                    {"targets>A A>C A>B B= C=", "A C", "C"},
		"a parent before its children":               {"targets>A A>B A= B=", "A", "A"},
		"targets itself before everybody":            {"targets>A A= targets=", "", "targets"},
		"the branch of the second, last of all":      {"targets>A targets>B B>C C=", "A B C", "C"},
		"nobody":                                     {"targets>A targets>B A>C B>D", "A C B D", ""},
		"a circle is left":                           {"targets>A A>B B>A targets>C C=", "A B C", "C"},
		"a role that names itself is looked at once": {"targets>A A>A targets>C C=", "A C", "C"},
		"a role of two parents is looked at once":    {"targets>A targets>B A>C B>C targets>D D=", "A C B D", "D"},
	})
}

func TestSection5_6_7_2_1_Terminating(t *testing.T) {
	runSearches(t, map[string]searchCase{
		"the next one is not asked":              {"targets!A targets>B B=", "A", ""},
		"its own children are":                   {"targets!A targets>B A>C C= B=", "A C", "C"},
		"those before it were":                   {"targets>A targets!B targets>C A= C=", "A", "A"},
		"those before it were, and had nothing":  {"targets>A targets!B targets>C C=", "A B", ""},
		"further down, it ends all of it":        {"targets>A targets>B A!C B=", "A C", ""},
		"further down, and before its siblings":  {"targets>A A!C A>D D= targets>B B=", "A C", ""},
		"one below another":                      {"targets!A A!C A>D C>E E= D=", "A C E", "E"},
		"one that is reached last ends nothing":  {"targets>A targets>B A= B!C", "A", "A"},
		"a sibling that comes later has no vote": {"targets>A targets!B A>C C=", "A C", "C"},
	})
}

func TestSection5_6_7_2_2_NotTerminating(t *testing.T) {
	runSearches(t, map[string]searchCase{
		"the next one is asked":                       {"targets>A targets>B B=", "A B", "B"},
		"and after its whole branch":                  {"targets>A targets>B A>C C>D B=", "A C D B", "B"},
		"but not once there is a result":              {"targets>A targets>B targets>C B= C=", "A B", "B"},
		"it ends only the branch that it has":         {"targets>A A>C A>D targets>B D=", "A C D", "D"},
		"a result further down ends all levels above": {"targets>A A>C C>D C>E D= E= targets>B B=", "A C D", "D"},
	})
}

// A role that cannot be fetched or verified ends the search. To go on without it
// would let a server choose which of two roles is asked by leaving one out.
func TestSection5_6_7_WhatCannotBeHadEndsTheSearch(t *testing.T) {
	for name, tc := range map[string]struct {
		wrong func(*tuftest.Repo)
		want  error
	}{
		"it is not signed":         {func(r *tuftest.Repo) { r.Roles["A"].Signers = nil }, patch.ErrUntrusted},
		"it has expired":           {func(r *tuftest.Repo) { r.Roles["A"].Expire(start.Add(-day)) }, patch.ErrExpired},
		"it is of another version": {func(r *tuftest.Repo) { r.Roles["A"].Edit = tuftest.Set(2, "version") }, patch.ErrTampered},
		"it is malformed":          {func(r *tuftest.Repo) { r.Roles["A"].Edit = tuftest.Delete("targets") }, patch.ErrMalformed},
		"it is too large":          {func(r *tuftest.Repo) { r.Roles["A"].Rewrite = pad(patch.MaxRole + 1) }, patch.ErrTooLarge},
		"it is not listed":         {func(r *tuftest.Repo) { r.Roles["snapshot"].Edit = tuftest.Delete("meta", "A.json") }, patch.ErrMalformed},
		"it has an odd child": {func(r *tuftest.Repo) {
			r.Delegate("A", tuftest.Delegation("../B", tuftest.Threshold(1, keysOf("a")...), false, "x/*"), keysOf("a")...)
		}, patch.ErrMalformed},
		"its child is not listed": {func(r *tuftest.Repo) {
			r.Delegate("A", tuftest.Delegation("E", tuftest.Threshold(1, keysOf("a")...), false, "x/*"), keysOf("a")...)
		}, patch.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			r := tree("targets>A", "targets>B", "B=")
			tc.wrong(r)
			asked, found, err := search(t, r)
			if verdict(err) != tc.want || found != "" || slices.Contains(asked, "B") {
				t.Errorf("asked for %v, found it in %q, %v; want %v", asked, found, err, tc.want)
			}
		})
	}
	t.Run("it cannot be fetched", func(t *testing.T) {
		files := tree("targets>A", "targets>B", "B=").Files()
		delete(files.Roles, "A")
		_, _, err := find(t, tuf.Stored{Root: files.Roots[0]}, files, start, "x/y")
		if err == nil || !strings.Contains(fmt.Sprint(err), fs.ErrNotExist.Error()) {
			t.Errorf("find = %v, want %v", err, fs.ErrNotExist)
		}
	})
}

func TestSection5_7_2_NoSuchTarget(t *testing.T) {
	r := tree("targets>A", "A=")
	files := r.Files()
	set, err := update(t, tuf.Stored{Root: files.Roots[0]}, files, start)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x/z", "x", "x/", "x/y/z", "X/Y", "", "/", "*", "x/*", "targets", strings.Repeat("x", 1<<16)} {
		if target, err := set.Find(name, files.Load); verdict(err) != patch.ErrNotFound || target != nil {
			t.Errorf("%.20q: %v, %v, want %v", name, target, err, patch.ErrNotFound)
		}
	}
	// The search that failed does not stand in the way of one that succeeds.
	if _, err := set.Find("x/y", files.Load); err != nil {
		t.Error(err)
	}
}
