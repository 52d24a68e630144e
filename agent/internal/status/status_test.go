package status_test

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"

	"livepatch/agent/internal/status"
)

// render writes s in every way there is, as the files of an archive.
func render(tb testing.TB, s status.Status) []txtar.File {
	tb.Helper()
	var files []txtar.File
	for _, query := range []string{
		"format=humane", "format=humane&verbose=true", "summary=true",
		"format=json", "format=json&verbose=true", "format=yaml", "format=yaml&verbose=true",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			tb.Fatal(err)
		}
		r, err := status.ParseRequest(q)
		if err != nil {
			tb.Fatalf("%s: %v", query, err)
		}
		b, err := r.Render(s, now)
		if err != nil {
			tb.Fatalf("%s: %v", query, err)
		}
		files = append(files, txtar.File{Name: query, Data: b})
	}
	return files
}

// TestGolden holds every byte of every format. UPDATE=1 writes the files anew;
// the difference is what a reviewer has to read, with the eyes of a program
// that parses it.
func TestGolden(t *testing.T) {
	for name, s := range fixtures() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".txtar")
			got := txtar.Format(&txtar.Archive{Files: render(t, s)})
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(path, got, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s differs (-want +got):\n%s", path, diff)
			}
		})
	}
}

func TestRenderingLeavesTheStatusAlone(t *testing.T) {
	for name, s := range fixtures() {
		render(t, s)
		if diff := cmp.Diff(fixtures()[name], s); diff != "" {
			t.Errorf("%s was changed (-want +got):\n%s", name, diff)
		}
	}
}

func TestKernelStateLines(t *testing.T) {
	soon, later := now.AddDate(0, 0, 20), now.AddDate(0, 6, 0)
	tests := map[string]struct {
		supported status.Support
		until     time.Time
		want      string
	}{
		"covered":                       {status.Supported, later, "✓ kernel series 5.4 is covered by Livepatch"},
		"covered without an end":        {status.Supported, time.Time{}, "✓ kernel series 5.4 is covered by Livepatch"},
		"covered, end is near":          {status.Supported, soon, "✓ kernel 5.4.0-216.236-generic is covered by Livepatch until 2026-10-16, please install available kernel updates and reboot before then"},
		"never was covered":             {status.Unsupported, time.Time{}, "✗ kernel is not covered by Livepatch"},
		"end of life":                   {status.SupportEndOfLife, later, "✗ kernel is no longer covered by Livepatch"},
		"coverage ended":                {status.SupportUpgradeRequired, time.Time{}, "✗ Livepatch coverage has ended; please upgrade the kernel and reboot"},
		"coverage ended on a known day": {status.SupportUpgradeRequired, soon, "✗ Livepatch coverage ended 2026-10-16; please upgrade the kernel and reboot"},
		"service does not know":         {status.SupportUnknown, time.Time{}, "✗ unable to determine kernel support status; please contact Canonical support"},
		"service says something new":    {"half-supported", time.Time{}, "✗ unable to determine kernel support status; please contact Canonical support"},
		"not heard yet":                 {"", time.Time{}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := status.Status{Kernels: []status.Kernel{{
				Version: "5.4.0-216.236-generic", Running: true, Supported: tc.supported, UpgradeRequiredDate: tc.until,
			}}}
			if got := parseHumane(t, status.Humane(s, false, now))["kernel state"]; got != tc.want {
				t.Errorf("kernel state: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPatchStateLines(t *testing.T) {
	const journal = "journalctl -f -u snap.canonical-livepatch.canonical-livepatchd"
	tests := map[string]struct {
		patch status.Livepatch
		want  string
	}{
		"downloaded":            {status.Livepatch{State: status.Unapplied}, "⧗ live kernel patches are downloaded, but the kernel module is not yet inserted"},
		"in transition":         {status.Livepatch{State: status.Applying}, "⧗ patching the kernel"},
		"nothing to do":         {status.Livepatch{State: status.NothingToApply}, "✓ no live kernel patches available for kernel 6.8.0-1-aws"},
		"came up with a newer":  {status.Livepatch{State: status.NothingToApply, KernelUpgraded: true}, "✓ kernel upgraded after a reboot"},
		"in force":              {status.Livepatch{State: status.Applied}, "✓ all applicable live kernel patch modules applied"},
		"kernel complains":      {status.Livepatch{State: status.AppliedWithBug}, "✗ Livepatch kernel module inserted but kernel bug detected"},
		"cannot be patched":     {status.Livepatch{State: status.KernelUpgradeRequired}, "✗ kernel 6.8.0-1-aws contains a vulnerability that cannot be remediated with live kernel patching, please upgrade and reboot"},
		"went down on trial":    {status.Livepatch{State: status.ApplyFailed, Failure: status.FailureCrash}, "✗ detected a crash last time the Livepatch kernel module was applied, check system logs with " + journal},
		"bad signature":         {status.Livepatch{State: status.ApplyFailed, Failure: status.FailureSignature}, "✗ failed to verify the signature of the Livepatch kernel module"},
		"unreadable":            {status.Livepatch{State: status.ApplyFailed, Failure: status.FailureExtract}, "✗ failed to extract information about the Livepatch kernel module"},
		"no key":                {status.Livepatch{State: status.ApplyFailed, Failure: status.FailureCertificate}, "✗ failed to load certificate used to verify the signature of the Livepatch kernel module"},
		"never seen in force":   {status.Livepatch{State: status.ApplyFailed, Failure: status.FailureUnconfirmed}, "✗ failed to confirm that the Livepatch kernel module was applied successfully"},
		"failed in another way": {status.Livepatch{State: status.ApplyFailed}, "✗ failed to confirm that the Livepatch kernel module was applied successfully"},
		"unknown":               {status.Livepatch{State: status.Unknown}, "✗ unknown error occurred, please check system logs with " + journal},
		"state of the future":   {status.Livepatch{State: "melted"}, "✗ unknown error occurred, please check system logs with " + journal},
		"not known yet":         {status.Livepatch{}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := status.Status{Kernels: []status.Kernel{{Version: "6.8.0-1-aws", Running: true, Livepatch: tc.patch}}}
			if got := parseHumane(t, status.Humane(s, false, now))["patch state"]; got != tc.want {
				t.Errorf("patch state: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestLastCheck(t *testing.T) {
	tests := map[string]struct {
		ago  time.Duration
		want string
	}{
		"this moment":             {0, "just now"},
		"one second":              {time.Second, "1 second ago"},
		"seconds":                 {52 * time.Second, "52 seconds ago"},
		"one minute":              {time.Minute, "1 minute ago"},
		"an hour but a second":    {time.Hour - time.Second, "59 minutes ago"},
		"one hour":                {time.Hour, "1 hour ago"},
		"a day is told in hours":  {25 * time.Hour, "25 hours ago"},
		"days":                    {72 * time.Hour, "3 days ago"},
		"clock set back a little": {-10 * time.Second, "just now"},
		"clock set back a lot":    {-time.Hour, "2026-09-26 19:54:19 UTC, which is in the future; is the clock right?"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := status.Status{LastCheck: now.Add(-tc.ago)}
			if got := parseHumane(t, status.Humane(s, false, now))["last check"]; got != tc.want {
				t.Errorf("last check: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestParseRequest(t *testing.T) {
	tests := map[string]struct {
		query   string
		want    status.Request
		wantErr string
	}{
		"nothing asked means YAML":            {"", status.Request{Format: status.FormatYAML}, ""},
		"update-manager writes Python's True": {"verbose=True", status.Request{Format: status.FormatYAML, Verbose: true}, ""},
		"software-properties has verbosity":   {"verbosity=3&format=json", status.Request{Format: status.FormatJSON, Verbose: true}, ""},
		"verbosity 1 is the usual":            {"verbosity=1&format=json", status.Request{Format: status.FormatJSON}, ""},
		"verbose=false":                       {"verbose=false&format=humane", status.Request{Format: status.FormatHumane}, ""},
		"one line":                            {"summary=true&format=humane", status.Request{Format: status.FormatHumane, Summary: true}, ""},
		"unknown keys are let by":             {"colour=blue", status.Request{Format: status.FormatYAML}, ""},
		"format does not exist":               {"format=xml", status.Request{}, `cannot use "xml" as a format, need humane, json or yaml`},
		"verbose is neither":                  {"verbose=perhaps", status.Request{}, `cannot use "perhaps" for verbose, need true or false`},
		"summary is neither":                  {"summary=2", status.Request{}, `cannot use "2" for summary, need true or false`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			q, err := url.ParseQuery(tc.query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := status.ParseRequest(q)
			if text := errText(err); text != tc.wantErr {
				t.Errorf("error = %q, want %q", text, tc.wantErr)
			}
			if got != tc.want {
				t.Errorf("request = %+v, want %+v", got, tc.want)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// checkSafe fails if a program or a terminal could trip over what is rendered.
func checkSafe(t *testing.T, s status.Status) {
	t.Helper()
	for _, f := range render(t, s) {
		text := string(f.Data)
		if !utf8.ValidString(text) {
			t.Errorf("%s is not UTF-8", f.Name)
		}
		for _, r := range text {
			if r != '\n' && !unicode.IsGraphic(r) {
				t.Errorf("%s holds %U", f.Name, r)
			}
		}
		switch {
		case strings.HasPrefix(f.Name, "format=json") && !json.Valid(f.Data):
			t.Errorf("%s is not JSON:\n%s", f.Name, text)
		case strings.HasPrefix(f.Name, "format=yaml"):
			var v any
			if err := yaml.Unmarshal(f.Data, &v); err != nil {
				t.Errorf("%s is not YAML: %v\n%s", f.Name, err, text)
			}
		case f.Name == "format=humane":
			parseHumane(t, text)
		case f.Name == "summary=true" && strings.Count(text, "\n") != 1:
			t.Errorf("%s has not one line: %q", f.Name, text)
		}
	}
}

func TestHostileTextReachesNobody(t *testing.T) { checkSafe(t, hostile()) }

func FuzzRender(f *testing.F) {
	f.Add("6.8.0-1047.50-aws", "cve-2025-1", "it broke: badly\x1b[31m", int64(0))
	f.Add("", "* x (unpatched)", "- a\n- b", int64(-1))
	f.Add("|-", "#", "\"'`\\\t\u0085\ufeff", int64(1<<40))
	f.Fuzz(func(t *testing.T, version, name, text string, unix int64) {
		s := failed()
		when := time.Unix(unix, 0)
		s.LastCheck, s.BootTime, s.Uptime = when, when, time.Duration(unix)
		s.CPUModel, s.CheckError, s.CheckHint, s.Tier, s.TierNote = text, text, text, text, text
		s.Notices = []status.Notice{{Message: text, Hint: name}}
		s.Blocked = []status.Blocked{{CVE: name, Published: when, Notice: text}}
		s.Taints[0].Meaning = text
		k := &s.Kernels[0]
		k.Version, k.UpgradeRequiredDate = version, when
		k.Livepatch.PatchError, k.Livepatch.Version = text, version
		k.Livepatch.Fixes[0] = status.Fix{Name: name, Description: text, Bug: text}
		k.Livepatch.Transition = &status.Transition{Since: when, Blockers: []status.Blocker{{Task: text, State: name}}}
		checkSafe(t, s)
	})
}
