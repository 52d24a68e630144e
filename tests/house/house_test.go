// Package house holds tests of the tree itself: that the documents tell the
// truth where a program can see it, and that rules which no compiler knows are
// kept.
package house

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// top is the root of the tree, seen from this package.
const top = "../.."

// A file is one text file of the tree.
type file struct {
	path string // from the root, with slashes
	text string
}

// tree returns the files below the root that could be committed: everything but
// what is built or fetched.
func tree(t *testing.T) []file {
	t.Helper()
	var files []file
	err := fs.WalkDir(os.DirFS(top), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", ".cache", "build", "node_modules"}, d.Name()) {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(top, path))
		if err != nil {
			return err
		}
		if !bytes.Contains(b[:min(len(b), 8000)], []byte{0}) {
			files = append(files, file{path, string(b)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// documents returns the Markdown files of the tree.
func documents(t *testing.T) []file {
	t.Helper()
	return slices.DeleteFunc(tree(t), func(f file) bool { return !strings.HasSuffix(f.path, ".md") })
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	makeVerb = regexp.MustCompile(`(?m)^([a-z][a-z-]*):.*## `)
	// In documents a verb stands in code: at the start of a line of a block, or
	// between back-ticks.
	makeUse   = regexp.MustCompile(`(?m)^(?:\$ )?make ([a-z][a-z-]*)`)
	makeQuote = regexp.MustCompile("`make ([a-z][a-z-]*)[^`]*`")
)

func TestEveryMakeCommandInTheDocumentsExists(t *testing.T) {
	verbs := map[string]bool{}
	for _, m := range makeVerb.FindAllStringSubmatch(read(t, "Makefile"), -1) {
		verbs[m[1]] = true
	}
	uses := 0
	for _, f := range documents(t) {
		blocks := strings.Join(fence.FindAllString(f.text, -1), "\n")
		found := makeUse.FindAllStringSubmatch(blocks, -1)
		for _, m := range append(found, makeQuote.FindAllStringSubmatch(f.text, -1)...) {
			uses++
			if !verbs[m[1]] {
				t.Errorf("%s says make %s, which the Makefile does not know", f.path, m[1])
			}
		}
	}
	if uses == 0 {
		t.Error("no document names a make command: the pattern of this test is wrong")
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.*)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```")
	notSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns the fragments that the headings of a document make, as forges
// make them: lower case, without punctuation, spaces as dashes.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		slug := notSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		found[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return found
}

func TestEveryLinkInTheDocumentsResolves(t *testing.T) {
	for _, f := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(f.text, ""), -1) {
			if err := resolve(f, m[1]); err != nil {
				t.Errorf("%s links to %s: %v", f.path, m[1], err)
			}
		}
	}
}

// resolve returns an error unless a link in f leads somewhere in the tree.
// Links to other hosts are not followed.
func resolve(f file, to string) error {
	if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
		return nil
	}
	path, fragment, _ := strings.Cut(to, "#")
	text := f.text
	if path != "" {
		full := filepath.Join(top, filepath.Dir(f.path), path)
		info, err := os.Stat(full)
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(full)
		if err != nil {
			return err
		}
		text = string(b)
	}
	if fragment != "" && !anchors(text)[fragment] {
		return fmt.Errorf("no heading makes the fragment %q", fragment)
	}
	return nil
}

// pathName matches a path of the tree between back-ticks.
var pathName = regexp.MustCompile("`((?:agent|loader|server|publisher|internal|proto|packaging|tests|tools|scripts|docs)/[A-Za-z0-9_./-]*)`")

func TestEveryPathInTheDocumentsExists(t *testing.T) {
	found := 0
	for _, f := range documents(t) {
		for _, m := range pathName.FindAllStringSubmatch(f.text, -1) {
			found++
			if _, err := os.Stat(filepath.Join(top, m[1])); err != nil {
				t.Errorf("%s names %s, which does not exist", f.path, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("no document names a path: the pattern of this test is wrong")
	}
}

var adrFile = regexp.MustCompile(`^(\d{4})-[a-z0-9-]+\.md$`)

func TestDecisionsAreNumberedListedAndComplete(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join(top, "docs/adr"))
	if err != nil {
		t.Fatal(err)
	}
	index := read(t, "docs/adr/README.md")
	next := 1
	for _, e := range entries {
		if e.Name() == "README.md" {
			continue
		}
		m := adrFile.FindStringSubmatch(e.Name())
		if m == nil {
			t.Errorf("%s is not named NNNN-words.md", e.Name())
			continue
		}
		if want := fmt.Sprintf("%04d", next); m[1] != want {
			t.Errorf("%s should have the number %s", e.Name(), want)
		}
		next++
		text := read(t, "docs/adr/"+e.Name())
		for _, part := range []string{"**Problem.**", "**Decision.**", "**Cost.**"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no %s", e.Name(), part)
			}
		}
		if !strings.Contains(index, "("+e.Name()+")") {
			t.Errorf("docs/adr/README.md does not list %s", e.Name())
		}
	}
	if next == 1 {
		t.Error("there is no decision in docs/adr")
	}
}

// forbidden are words that do not belong into a tree that strangers build. They
// are put together here so that this file does not hold them itself.
var forbidden = map[string]*regexp.Regexp{
	"a mark of unfinished work":    regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX|HA` + `CK)\b`),
	"the host of a registry":       regexp.MustCompile(`(proxy|sum)\.golang` + `\.org|registry\.npmjs` + `\.org|deb\.debian` + `\.org|pypi` + `\.org|archive\.ubuntu` + `\.com`),
	"a path of somebody's machine": regexp.MustCompile(`(^|[\s"'=(:])/(work|farm|tmp/lp|tmp/bin|home/[a-z]+)/`),
}

func TestTheTreeIsFitForStrangers(t *testing.T) {
	for _, f := range tree(t) {
		if strings.HasSuffix(f.path, "go.sum") || f.path == "LICENSE" {
			continue
		}
		for n, line := range strings.Split(f.text, "\n") {
			for what, pattern := range forbidden {
				if pattern.MatchString(line) {
					t.Errorf("%s:%d holds %s: %s", f.path, n+1, what, strings.TrimSpace(line))
				}
			}
		}
	}
}

// testName matches a test's name in a table of the threat model.
var testName = regexp.MustCompile("`(Test[A-Z][A-Za-z0-9_]*|Fuzz[A-Z][A-Za-z0-9_]*)(/[^`]*)?`")

func TestEveryTestThatADocumentNamesExists(t *testing.T) {
	var code strings.Builder
	for _, f := range tree(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			code.WriteString(f.text)
		}
	}
	for _, f := range documents(t) {
		for _, m := range testName.FindAllStringSubmatch(f.text, -1) {
			if !strings.Contains(code.String(), "func "+m[1]+"(") {
				t.Errorf("%s relies on %s, which does not exist", f.path, m[1])
			}
		}
	}
}

var linterLine = regexp.MustCompile(`(?m)^    - ([a-z]+)(.*)$`)

func TestEveryLinterHasAReason(t *testing.T) {
	_, text, _ := strings.Cut(read(t, ".golangci.yml"), "  enable:\n")
	text, _, _ = strings.Cut(text, "  settings:\n")
	lines := linterLine.FindAllStringSubmatch(text, -1)
	if len(lines) < 10 {
		t.Fatalf("found %d linters: the pattern of this test is wrong", len(lines))
	}
	for _, m := range lines {
		if len(strings.TrimSpace(strings.TrimLeft(m[2], " #"))) < 10 {
			t.Errorf("linter %s has no reason beside it", m[1])
		}
	}
}

func TestEveryProgramIsDescribed(t *testing.T) {
	programs, err := filepath.Glob(filepath.Join(top, "*/cmd/*"))
	if err != nil {
		t.Fatal(err)
	}
	architecture := read(t, "ARCHITECTURE.md")
	for _, p := range programs {
		if name := filepath.Base(p); !strings.Contains(architecture, "`"+name+"`") {
			t.Errorf("ARCHITECTURE.md does not say what %s is", name)
		}
	}
	if len(programs) == 0 {
		t.Error("found no program: the pattern of this test is wrong")
	}
}

// sh runs a program and returns what it printed on both streams.
func sh(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	return string(out), err
}
