package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"livepatch/internal/tuftest"
)

// A generation is a root: whose signatures the next one needs, and who signed it.
type generation struct {
	keys      string // a letter for each
	threshold int
	signers   string
}

// TestRootRotation has the client follow chains of roots, the last of which it
// takes or refuses.
func TestRootRotation(t *testing.T) {
	tests := map[string]struct {
		roots   []generation
		refused bool
	}{
		"1 of 1, the key is replaced":                     {[]generation{{"b", 1, "b"}, {"c", 1, "cb"}, {"c", 1, "c"}}, false},
		"1 of 1, strangers sign as well":                  {[]generation{{"b", 1, "dbe"}, {"c", 1, "dcbe"}, {"c", 1, "dce"}}, false},
		"3 of 5, others sign each time":                   {[]generation{{"abcde", 3, "ace"}, {"abcde", 3, "aeb"}, {"abcde", 3, "abd"}, {"abcde", 3, "abd"}}, false},
		"3 of 5, one key is replaced":                     {[]generation{{"abcde", 3, "ace"}, {"abdef", 3, "aeb"}}, false},
		"3 of 5, one key is replaced in two steps":        {[]generation{{"abcde", 3, "ace"}, {"abdef", 3, "acef"}, {"abdef", 3, "aef"}}, false},
		"3 of 5, all keys are replaced":                   {[]generation{{"abcde", 3, "ace"}, {"fghij", 3, "acefgh"}, {"fghij", 3, "fgh"}}, false},
		"1 of 3 becomes 2 of 3":                           {[]generation{{"bcd", 1, "b"}, {"bcd", 2, "bc"}}, false},
		"2 of 3 becomes 1 of 3":                           {[]generation{{"bcd", 2, "bc"}, {"bcd", 1, "bc"}, {"bcd", 1, "b"}}, false},
		"1 of 1 becomes 2 of 2":                           {[]generation{{"b", 1, "b"}, {"bc", 2, "bc"}}, false},
		"the old key has not signed":                      {[]generation{{"b", 1, "b"}, {"c", 1, "cde"}}, true},
		"the new key has not signed":                      {[]generation{{"b", 1, "b"}, {"c", 1, "bde"}}, true},
		"3 of 5, too few new keys have signed":            {[]generation{{"abcde", 3, "ace"}, {"abdef", 3, "ace"}}, true},
		"3 of 5, too few old keys have signed":            {[]generation{{"abcde", 3, "ace"}, {"abdef", 3, "aef"}}, true},
		"1 of 3 becomes 2 of 3, and one has signed":       {[]generation{{"bcd", 1, "b"}, {"bcd", 2, "c"}}, true},
		"2 of 3 becomes 1 of 3, and one has signed":       {[]generation{{"bcd", 2, "bc"}, {"bcd", 1, "b"}}, true},
		"a key that was replaced signs the root after it": {[]generation{{"b", 1, "b"}, {"c", 1, "bc"}, {"d", 1, "bd"}}, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l := newFlatLab(t)
			for i, g := range tc.roots {
				root := l.repo.Root()
				if i > 0 {
					root = l.repo.AddRoot()
				}
				tuftest.Grant(root, "root", g.threshold, letters(g.keys)...)
				root.Signers = letters(g.signers)
			}
			l.publish()
			l.initialize()
			last, code := len(tc.roots), 0
			if tc.refused {
				last, code = last-1, 1
			}
			l.refresh(code)
			got, err := os.ReadFile(filepath.Join(l.metadata(), "root.json"))
			if want := l.files[fmt.Sprintf("/metadata/%d.root.json", last)]; err != nil || string(got) != string(want) {
				t.Errorf("root.json is not root %d: %v", last, err)
			}
		})
	}
}

// letters returns a key for each letter.
func letters(s string) []tuftest.Key {
	var keys []tuftest.Key
	for _, c := range s {
		keys = append(keys, tuftest.NewKey("key "+string(c)))
	}
	return keys
}

func TestRotationOfOtherRoles(t *testing.T) {
	tests := map[string]struct {
		g       generation
		refused bool
	}{
		"1 of 1, the key is replaced":            {generation{"c", 1, "c"}, false},
		"1 of 1, strangers sign as well":         {generation{"b", 1, "dbe"}, false},
		"1 of 1, the new key has not signed":     {generation{"c", 1, "bde"}, true},
		"3 of 5, one of three is a stranger":     {generation{"abdef", 3, "ace"}, true},
		"3 of 5, one is missing":                 {generation{"abdef", 3, "ae"}, true},
		"3 of 5, any three will do":              {generation{"abcde", 3, "ace"}, false},
		"3 of 5, any other three will do":        {generation{"abcde", 3, "cde"}, false},
		"3 of 5, in whatever order they sign":    {generation{"abcde", 3, "aeb"}, false},
		"5 of 5, all of them":                    {generation{"abcde", 5, "edcba"}, false},
		"5 of 5, and one of them a second time":  {generation{"abcde", 5, "abcdd"}, true},
		"1 of 1, and it signs a second time too": {generation{"a", 1, "aa"}, true}, // the specification has keys sign once
	}
	for name, tc := range tests {
		for _, role := range []string{"timestamp", "snapshot", "targets"} {
			t.Run(name+", "+role, func(t *testing.T) {
				l := newFlatLab(t)
				l.initialize()
				tuftest.Grant(l.repo.AddRoot(), role, tc.g.threshold, letters(tc.g.keys)...)
				l.repo.Roles[role].Signers = letters(tc.g.signers)
				l.next("targets")
				if tc.refused {
					l.refresh(1)
					if _, err := os.Stat(filepath.Join(l.metadata(), role+".json")); err == nil {
						t.Errorf("%s.json is there", role)
					}
					return
				}
				l.refresh(0)
				l.trusts("root 2, timestamp 2, snapshot 2, targets 2")
			})
		}
	}
}
