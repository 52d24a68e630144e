package status_test

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"livepatch/agent/internal/status"
)

// The tests of this file read our output as the programs do that are known to
// read it, each in the way of that program.

// mondooSample is what a client of version 11.0.2 wrote on a cloud machine.
const mondooSample = `{
  "Client-Version": "v11.0.2",
  "Machine-Id": "0000000000000000000000000000000",
  "Architecture": "amd64",
  "CPU-Model": "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz",
  "Last-Check": "2026-09-26T18:53:27Z",
  "Boot-Time": "2026-09-26T18:52:51Z",
  "Uptime": "46",
  "Status": [
    { "Kernel": "6.8.0-1047.50-aws", "Running": true,
      "Livepatch": { "CheckState": "checked", "State": "applied", "Version": "121.4",
        "Fixes": [ {"Name": "cve-2025-68263", "Description": "", "Bug": "", "Patched": true} ] },
      "Supported": "supported", "UpgradeRequiredDate": "2027-03-19" }
  ],
  "tier": "stable",
  "Fixed-CVEs": {
    "Timestamp": "2026-09-26T18:53:06Z",
    "Kernel-Package-Fixes": [ {"Package": "linux-image-6.8.0-1047-aws", "Fixed-CVEs": []} ],
    "Installed-Kernels": ["linux-image-6.8.0-1047-aws", "linux-image-6.8.0-1060-aws"],
    "Patched-CVEs": ["UBUNTU-CVE-2025-68263"],
    "Digest": "redacted"
  }
}`

func asJSON(t *testing.T, s status.Status, verbose bool) []byte {
	t.Helper()
	b, err := status.JSON(s, verbose)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unmarshal[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in:\n%s", err, b)
	}
	return v
}

func TestJSONIsTheSampleKeyForKey(t *testing.T) {
	got := unmarshal[map[string]any](t, asJSON(t, applied(), false))
	want := unmarshal[map[string]any](t, []byte(mondooSample))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("JSON differs from the sample (-want +got):\n%s", diff)
	}
}

func TestJSONKeepsTheOrderOfTheSample(t *testing.T) {
	got := asJSON(t, applied(), false)
	last := -1
	for _, key := range []string{
		"Client-Version", "Machine-Id", "Architecture", "CPU-Model", "Last-Check", "Boot-Time", "Uptime", "Status",
		"Kernel", "Running", "Livepatch", "CheckState", "State", "Version", "Fixes", "Supported", "UpgradeRequiredDate",
		"tier", "Fixed-CVEs",
	} {
		at := strings.Index(string(got), `"`+key+`":`)
		if at <= last {
			t.Errorf("%q is at %d, after %d was expected", key, at, last)
		}
		last = at
	}
}

func TestVerboseJSONOnlyAdds(t *testing.T) {
	plain := unmarshal[map[string]any](t, asJSON(t, applied(), false))
	verbose := unmarshal[map[string]any](t, asJSON(t, applied(), true))
	for key, want := range plain {
		if key != "Status" && !cmp.Equal(want, verbose[key]) {
			t.Errorf("%s = %v, want %v", key, verbose[key], want)
		}
	}
	for _, key := range []string{"Excluded-LSNs", "Blocking-Options"} {
		if list, ok := verbose[key].([]any); !ok || len(list) != 0 {
			t.Errorf("%s = %#v, want an empty list", key, verbose[key])
		}
	}
	if verbose["Using-Cutoff-Date"] != false {
		t.Errorf("Using-Cutoff-Date = %v, want false", verbose["Using-Cutoff-Date"])
	}
}

func TestVerboseJSONTellsWhatBlocks(t *testing.T) {
	got := unmarshal[struct {
		Excluded []string `json:"Excluded-LSNs"`
		Options  []string `json:"Blocking-Options"`
		Using    bool     `json:"Using-Cutoff-Date"`
	}](t, asJSON(t, blocked(), true))
	if !slices.Equal(got.Excluded, []string{"LSN-0108-1", "LSN-0109-1"}) ||
		!slices.Equal(got.Options, []string{"cutoff-date"}) || !got.Using {
		t.Errorf("blocked = %+v", got)
	}
}

func TestNothingToApplyHasNoFixesAndAnEmptyVersion(t *testing.T) {
	got := unmarshal[struct {
		Status []struct{ Livepatch map[string]any }
	}](t, asJSON(t, nothingToApply(), false))
	want := map[string]any{"CheckState": "checked", "State": "nothing-to-apply", "Version": ""}
	if diff := cmp.Diff(want, got.Status[0].Livepatch); diff != "" {
		t.Errorf("Livepatch (-want +got):\n%s", diff)
	}
}

// proClient reads as ubuntu-pro-client's DataObject does: the first entry, and
// each field has its type or the whole is thrown away.
func TestProClientReadsTheFirstEntry(t *testing.T) {
	for name, s := range fixtures() {
		if len(s.Kernels) == 0 {
			continue
		}
		got := unmarshal[struct {
			Status []struct {
				Kernel    *string
				Supported *string
				Livepatch *struct {
					State, Version *string
					Fixes          []struct {
						Name    *string
						Patched *bool
					}
				}
			}
		}](t, asJSON(t, s, true))
		first := got.Status[0]
		if first.Kernel == nil || first.Supported == nil || first.Livepatch == nil ||
			first.Livepatch.State == nil || first.Livepatch.Version == nil {
			t.Fatalf("%s: a field is missing", name)
		}
		known := []string{"supported", "kernel-upgrade-required", "kernel-end-of-life", "unsupported", "unknown"}
		if !slices.Contains(known, *first.Supported) {
			t.Errorf("%s: Supported = %q", name, *first.Supported)
		}
		for _, f := range first.Livepatch.Fixes {
			if f.Name == nil || f.Patched == nil || *f.Name != strings.ToLower(*f.Name) {
				t.Errorf("%s: fix = %v", name, f)
			}
		}
	}
}

func TestRunningKernelIsTheFirstEntry(t *testing.T) {
	got := unmarshal[struct {
		Status []struct {
			Kernel  string
			Running bool
		}
	}](t, asJSON(t, nothingToApply(), false))
	if len(got.Status) != 2 || !got.Status[0].Running || got.Status[1].Running {
		t.Errorf("Status = %+v, want the running kernel first", got.Status)
	}
}

// software-properties replaces text in the description, which therefore must
// be a string, and shows the last check, whose key must exist.
func TestSoftwarePropertiesFindsStrings(t *testing.T) {
	for name, s := range fixtures() {
		got := unmarshal[map[string]any](t, asJSON(t, s, true))
		if _, ok := got["Last-Check"].(string); !ok {
			t.Errorf("%s: Last-Check = %#v, want a string", name, got["Last-Check"])
		}
		for _, entry := range got["Status"].([]any) {
			patch := entry.(map[string]any)["Livepatch"].(map[string]any)
			fixes, _ := patch["Fixes"].([]any)
			for _, f := range fixes {
				if _, ok := f.(map[string]any)["Description"].(string); !ok {
					t.Errorf("%s: Description = %#v, want a string", name, f.(map[string]any)["Description"])
				}
			}
		}
	}
}

// The extension of Azure and monitoring checks know these values and no other.
func TestStatesAreKnownOnes(t *testing.T) {
	states := []string{
		"unapplied", "applying", "applied", "applied-with-bug", "apply-failed",
		"nothing-to-apply", "kernel-upgrade-required", "unknown",
	}
	for name, s := range fixtures() {
		got := unmarshal[struct {
			Status []struct {
				Livepatch struct{ CheckState, State string }
			}
		}](t, asJSON(t, s, true))
		for _, entry := range got.Status {
			if !slices.Contains([]string{"needs-check", "check-failed", "checked"}, entry.Livepatch.CheckState) {
				t.Errorf("%s: CheckState = %q", name, entry.Livepatch.CheckState)
			}
			if !slices.Contains(states, entry.Livepatch.State) {
				t.Errorf("%s: State = %q", name, entry.Livepatch.State)
			}
		}
	}
}

// parseHumane reads as landscape-client does: every line that is not empty is a
// key and a value, else the whole text is thrown away.
func parseHumane(t *testing.T, text string) map[string]string {
	t.Helper()
	data := make(map[string]string)
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if l == "" {
			continue
		}
		key, value, ok := strings.Cut(l, ":")
		if !ok {
			t.Errorf("line without a colon: %q", l)
		}
		data[strings.Trim(strings.TrimSpace(key), `"'`)] = strings.Trim(strings.TrimSpace(value), `"'`)
	}
	return data
}

func TestLandscapeReadsHumane(t *testing.T) {
	for name, s := range fixtures() {
		t.Run(name, func(t *testing.T) { parseHumane(t, status.Humane(s, false, now)) })
	}
	got := parseHumane(t, status.Humane(applied(), false, now))
	want := map[string]string{
		"last check":      "52 seconds ago",
		"kernel":          "6.8.0-1047.50-aws",
		"server check-in": "succeeded",
		"kernel state":    "✓ kernel series 6.8 is covered by Livepatch",
		"patch state":     "✓ all applicable live kernel patch modules applied",
		"patch version":   "121.4",
		"tier":            "stable",
		"machine id":      "0000000000000000000000000000000",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("humane (-want +got):\n%s", diff)
	}
}

func TestRightAfterEnablingThereAreThreeLines(t *testing.T) {
	got := parseHumane(t, status.Humane(justEnabled(), false, now))
	keys := slices.Sorted(maps.Keys(got))
	if !slices.Equal(keys, []string{"kernel", "last check", "server check-in"}) {
		t.Errorf("keys = %q", keys)
	}
}

// updateManager reads as update-manager does.
type updateManager struct {
	checkState, patchState string
	fixes                  []updateManagerFix
}

type updateManagerFix struct {
	Name    string
	Patched bool
}

func readAsUpdateManager(t *testing.T, s status.Status, verbose bool) updateManager {
	t.Helper()
	b, err := status.YAML(s, verbose)
	if err != nil {
		t.Fatal(err)
	}
	var data struct {
		Status []struct {
			Running   bool
			Livepatch struct {
				CheckState string `yaml:"checkState"`
				PatchState string `yaml:"patchState"`
				Fixes      string
			}
		}
	}
	if err := yaml.Unmarshal(b, &data); err != nil {
		t.Fatalf("%v in:\n%s", err, b)
	}
	var got updateManager
	for _, k := range data.Status {
		if !k.Running {
			continue
		}
		got.checkState, got.patchState = k.Livepatch.CheckState, k.Livepatch.PatchState
		for l := range strings.SplitSeq(strings.ReplaceAll(k.Livepatch.Fixes, "* ", ""), "\n") {
			if l != "" {
				name := strings.ReplaceAll(l, " (unpatched)", "")
				got.fixes = append(got.fixes, updateManagerFix{Name: name, Patched: name == l})
			}
		}
	}
	return got
}

func TestUpdateManagerReadsYAML(t *testing.T) {
	s := failed()
	s.Kernels[0].Livepatch.Fixes[1].Patched = true
	for _, verbose := range []bool{false, true} {
		got := readAsUpdateManager(t, s, verbose)
		want := updateManager{"check-failed", "apply-failed", []updateManagerFix{
			{"CVE-2024-1086: LP: #1852141", false},
			{"CVE-2025-68263", true},
		}}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(updateManager{})); diff != "" {
			t.Errorf("verbose %v (-want +got):\n%s", verbose, diff)
		}
	}
	if got := readAsUpdateManager(t, nothingToApply(), true); len(got.fixes) != 0 {
		t.Errorf("fixes = %v, want none", got.fixes)
	}
}

// Checks that use awk want each of these in a line of its own, with the value
// as the second word.
func TestAwkFindsTheYAMLFields(t *testing.T) {
	b, err := status.YAML(applied(), false)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for l := range strings.Lines(string(b)) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(l), "- "))
		if len(fields) == 2 {
			got[fields[0]] = fields[1]
		}
	}
	for key, want := range map[string]string{
		"kernel:": "6.8.0-1047.50-aws", "running:": "true", "checkState:": "checked",
		"patchState:": "applied", "version:": `"121.4"`, "fixes:": "|-", "last-check:": "2026-09-26T18:53:27Z",
		"uptime:": "46s", "upgradeRequiredDate:": `"2027-03-19"`,
	} {
		if got[key] != want {
			t.Errorf("%s %q, want %q in:\n%s", key, got[key], want, b)
		}
	}
}

func TestYAMLWithoutFixesHasEmptyQuotes(t *testing.T) {
	b, err := status.YAML(nothingToApply(), false)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "\n    fixes: \"\"\n") {
		t.Errorf("no empty fixes in:\n%s", b)
	}
}

// The reference page names every key of the JSON format.
func TestReferenceNamesEveryKey(t *testing.T) {
	page, err := os.ReadFile("../../../docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	s := inTransition()
	f := failed()
	s.CheckError, s.CheckHint, s.Notices, s.Others, s.Taints = f.CheckError, f.CheckHint, f.Notices, f.Others, f.Taints
	s.Blocked, s.MachineToken = blocked().Blocked, "secret"
	l := &s.Kernels[0].Livepatch
	l.Failure, l.PatchError, l.PatchHint = status.FailureCrash, "x", "y"
	checkKeys(t, string(page), unmarshal[any](t, asJSON(t, s, true)))
}

func checkKeys(t *testing.T, page string, v any) {
	t.Helper()
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			checkKeys(t, page, e)
		}
	case map[string]any:
		for key, e := range v {
			if !strings.Contains(page, "`"+key+"`") && !strings.Contains(page, "."+key+"`") {
				t.Errorf("cli.md does not name the key %q", key)
			}
			checkKeys(t, page, e)
		}
	}
}
