package description_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/description"
)

const full = `# a patch
kernel:
  release: 6.1.0-53-amd64
  arch: x86_64
  flavour: amd64
  version: 6.1.187-1
version: 113.10
notice: LSN-0113-1
sequence: 7
fixes:
  - name: CVE-2025-68263
    priority: high
    summary: "A use after free."
    bug: "LP: #1851550"
support: {from: 2026-11-22, until: 2027-11-22}
unpatchable:
  - {name: CVE-2025-40300, priority: medium, fixed_in: 6.1.0-54-amd64}
`

func TestParse(t *testing.T) {
	d, err := description.Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := description.Description{
		Kernel:      description.Kernel{Release: "6.1.0-53-amd64", Arch: "x86_64", Flavour: "amd64", Version: "6.1.187-1"},
		Version:     "113.10", // a number in YAML, which would be 113.1
		Notice:      "LSN-0113-1",
		Sequence:    7,
		Fixes:       []description.Fix{{Name: "CVE-2025-68263", Priority: "high", Summary: "A use after free.", Bug: "LP: #1851550"}},
		Support:     &description.Support{From: "2026-11-22", Until: "2027-11-22"},
		Unpatchable: []description.Unpatchable{{Fix: description.Fix{Name: "CVE-2025-40300", Priority: "medium"}, FixedIn: "6.1.0-54-amd64"}},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("description (-want +got):\n%s", diff)
	}
	fixes := []patch.Fix{{Name: "CVE-2025-68263", Priority: patch.High, Summary: "A use after free.", Bug: "LP: #1851550"}}
	if diff := cmp.Diff(fixes, d.PatchFixes()); diff != "" {
		t.Errorf("fixes (-want +got):\n%s", diff)
	}
	if err := d.ForPatch(); err != nil {
		t.Errorf("ForPatch = %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]struct{ old, new, says string }{
		"an unknown field":                 {"notice:", "notise:", `unknown field "notise"`},
		"an unknown field of a fix":        {"    bug:", "    bugs:", `unknown field "bugs"`},
		"a field said twice":               {"notice: LSN-0113-1", "notice: LSN-0113-1\nnotice: LSN-0113-2", "already"},
		"a list for a text":                {"notice: LSN-0113-1", "notice: [a, b]", "line"},
		"an unknown priority":              {"priority: high", "priority: urgent", `fixes[0].priority: "urgent", want negligible`},
		"a priority in capitals":           {"priority: high", "priority: High", "fixes[0].priority"},
		"no priority":                      {"    priority: high\n", "", "fixes[0].priority"},
		"a name that is none":              {"CVE-2025-68263", "heartbleed", "fixes[0].name"},
		"the same fix twice":               {"CVE-2025-40300", "CVE-2025-68263", "stands in fixes[0] already"},
		"a summary of two lines":           {"A use after free.", `A use\nafter free.`, "fixes[0].summary"},
		"a summary that moves the cursor":  {"A use after free.", `\e[2J`, "fixes[0].summary"},
		"a summary that is a story":        {"A use after free.", strings.Repeat("a", 501), "fixes[0].summary"},
		"until before from":                {"until: 2027-11-22", "until: 2026-11-21", "support.until: 2026-11-21, want a day not before"},
		"until that is no date":            {"until: 2027-11-22", "until: soon", `support.until: "soon"`},
		"the 31st of November":             {"from: 2026-11-22", "from: 2026-11-31", "support.from"},
		"no until":                         {", until: 2027-11-22", "", "support.until"},
		"a version that is none":           {"113.10", "v113", `version: "v113"`},
		"a negative sequence":              {"sequence: 7", "sequence: -7", "line"},
		"a sequence that JSON cannot hold": {"sequence: 7", "sequence: 9007199254740993", "sequence"},
		"a release that climbs":            {"release: 6.1.0-53-amd64", "release: ../../etc", "kernel.release"},
		"a flavour with a space":           {"flavour: amd64", "flavour: a b", "kernel.flavour"},
		"no kernel to go to":               {", fixed_in: 6.1.0-54-amd64", "", "unpatchable[0].fixed_in"},
		"a second document":                {"unpatchable:", "---\nunpatchable:", "after the end of the first document"},
		"broken YAML":                      {"kernel:", "kernel: [", "line"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(full, tc.old, tc.new, 1)
			if text == full {
				t.Fatalf("%q is not in the description", tc.old)
			}
			_, err := description.Parse([]byte(text))
			if !errors.Is(err, description.ErrField) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error = %v, want it to say %q", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than one line: %q", err)
			}
		})
	}
	if _, err := description.Parse(make([]byte, description.MaxLength+1)); !errors.Is(err, patch.ErrTooLarge) {
		t.Errorf("1 MiB and a byte: %v", err)
	}
}

func TestWhatIsNeeded(t *testing.T) {
	forPatch := map[string]string{
		"  flavour: amd64\n": "kernel.flavour", "  version: 6.1.187-1\n": "kernel.version",
		"version: 113.10\n": "version", "notice: LSN-0113-1\n": "notice",
		full[strings.Index(full, "fixes:"):strings.Index(full, "support:")]: "fixes",
	}
	for line, field := range forPatch {
		d, err := description.Parse([]byte(strings.Replace(full, line, "", 1)))
		if err != nil {
			t.Errorf("without %s: %v", field, err)
			continue
		}
		if err := d.ForPatch(); !errors.Is(err, description.ErrField) || !strings.Contains(err.Error(), field+": missing") {
			t.Errorf("ForPatch without %s = %v", field, err)
		}
	}
	d, err := description.Parse([]byte("kernel: {release: 6.1.0, arch: x86_64}\n"))
	if err != nil || d.ForKernel() != nil {
		t.Errorf("a kernel: %v, %v", err, d.ForKernel())
	}
	for _, text := range []string{"", "kernel: {release: 6.1.0}\n", full} {
		d, err := description.Parse([]byte(text))
		if err != nil || d.ForKernel() == nil {
			t.Errorf("ForKernel of %q: %v, %v", text, err, d.ForKernel())
		}
	}
}

func TestAnEmptyListIsNotAMissingOne(t *testing.T) {
	d, err := description.Parse([]byte("fixes: []\nunpatchable: []\n"))
	if err != nil || d.Fixes == nil || d.PatchUnpatchable() == nil {
		t.Errorf("description = %+v, %v; want lists that are empty and there", d, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("fixes: [{name: CVE-2025-1, priority: low}]"))
	f.Add([]byte("support: {from: 2026-11-22, until: 2026-11-22}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := description.Parse(b)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error is not one line: %q", err)
			}
			return
		}
		for _, fix := range d.PatchFixes() {
			if _, err := patch.ParsePriority(string(fix.Priority)); err != nil {
				t.Errorf("accepted %+v: %v", fix, err)
			}
		}
		if s := d.Support; s != nil && s.Until < s.From {
			t.Errorf("accepted %+v", s)
		}
	})
}
