package house

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// decoder matches a call of a library function that makes something of bytes:
// who calls it has a parser.
var decoder = regexp.MustCompile(`\b(json\.(Unmarshal|NewDecoder)|yaml\.(Unmarshal|NewDecoder)|pem\.Decode|x509\.Parse\w+|elf\.NewFile|` +
	`bufio\.NewScanner|strconv\.(Atoi|Parse\w+)|fmt\.(Sscan\w*|Fscan\w*)|binary\.(Read|LittleEndian|BigEndian|NativeEndian)|` +
	`proto\.Unmarshal|url\.Parse)\b|\)\.FromBytes\(`)

// notFromOutside are the packages that call one and have no fuzz test, and why
// that is right.
var notFromOutside = map[string]string{
	"agent/cmd/canonical-livepatchd": "its own command line and environment",
	"agent/inprocess":                "the simulator's; the service is in the same process",
	"internal/version":               "what the linker wrote into the program",
	"publisher/internal/cli":         "options, and files that the operator names",
	"server/inprocess":               "the simulator's; it asks its own service",
	"server/internal/certs":          "the development CA that it has written itself",
	"server/cmd/livepatch-server":    "the constants of the rule, a file that the operator names",
	"server/internal/controller":     "steps and states that it has written itself",
	"server/internal/measure":        "a benchmark",
	"server/internal/rollout/table":  "its own command line",
	"server/internal/store/sqlite":   "rows that it has written itself",
}

// parsers returns the packages of what ships that call a decoder, and those that
// have a fuzz test.
func parsers(t *testing.T) (parsing, fuzzed map[string]bool) {
	t.Helper()
	parsing, fuzzed = map[string]bool{}, map[string]bool{}
	for _, f := range tree(t) {
		top, _, _ := strings.Cut(f.path, "/")
		dir := path.Dir(f.path)
		switch {
		case !slices.Contains([]string{"agent", "loader", "server", "publisher", "internal"}, top), strings.HasSuffix(dir, "test"):
		case strings.HasSuffix(f.path, "_test.go"):
			fuzzed[dir] = fuzzed[dir] || strings.Contains(f.text, "\nfunc Fuzz")
		case strings.HasSuffix(f.path, ".go") && !strings.Contains(f.text, "// Code generated"):
			parsing[dir] = parsing[dir] || decoder.MatchString(f.text)
		}
	}
	return parsing, fuzzed
}

func TestEveryParserOfOutsideBytesHasAFuzzTest(t *testing.T) {
	parsing, fuzzed := parsers(t)
	n := 0
	for dir := range parsing {
		if !parsing[dir] {
			continue
		}
		n++
		reason := notFromOutside[dir]
		switch {
		case !fuzzed[dir] && reason == "":
			t.Errorf("%s parses bytes and has no fuzz test", dir)
		case fuzzed[dir] && reason != "":
			t.Errorf("%s has a fuzz test, and is excused from it: %s", dir, reason)
		}
	}
	for dir := range notFromOutside {
		if !parsing[dir] {
			t.Errorf("%s is excused, and parses nothing", dir)
		}
	}
	if n < 20 {
		t.Errorf("found %d packages that parse: the pattern of this test is wrong", n)
	}
}

// TestFuzzScriptFindsEveryFuzzTest compares what "make fuzz" would run with what
// the tree holds.
func TestFuzzScriptFindsEveryFuzzTest(t *testing.T) {
	out, err := sh(t, "../../scripts/fuzz.sh", "--list")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	listed := strings.Split(strings.TrimSpace(out), "\n")
	declared := regexp.MustCompile(`(?m)^func (Fuzz[A-Za-z0-9_]*)\(f \*testing\.F\) \{$`)
	n := 0
	for _, f := range tree(t) {
		if !strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		for _, m := range declared.FindAllStringSubmatch(f.text, -1) {
			n++
			if want := "./" + path.Dir(f.path) + " " + m[1]; !slices.Contains(listed, want) {
				t.Errorf("scripts/fuzz.sh does not run %s", want)
			}
		}
	}
	if n != len(listed) {
		t.Errorf("scripts/fuzz.sh lists %d fuzz tests, the tree has %d", len(listed), n)
	}
}

func TestFuzzScriptFailsWhereThereIsNothingToRun(t *testing.T) {
	out, err := sh(t, "../../scripts/fuzz.sh", "1x", "./docs")
	if err == nil || !strings.Contains(out, "fuzz: error: cannot find a fuzz test in ./docs") {
		t.Errorf("left with %v: %s", err, out)
	}
}
