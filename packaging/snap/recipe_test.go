package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// recipe returns the recipe of the snap.
func recipe(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../snapcraft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func decode(t *testing.T, b []byte) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := yaml.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// What snapd reads is what the recipe says, key by key.
func TestMetaIsTheRecipe(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64", "ppc64el", "s390x"} {
		meta, hooks, err := derive([]byte(recipe(t)), "1.2", arch)
		if err != nil {
			t.Fatal(err)
		}
		want := decode(t, []byte(recipe(t)))
		for _, key := range []string{"platforms", "build-base", "parts"} {
			delete(want, key)
		}
		want["version"], want["architectures"] = "1.2", []any{arch}
		if diff := cmp.Diff(want, decode(t, meta)); diff != "" {
			t.Errorf("%s:\n%s", arch, diff)
		}
		if strings.Contains(string(meta), "#") {
			t.Error("a comment is left")
		}
		if !slices.Contains(hooks, "configure") || !slices.Contains(hooks, "remove") {
			t.Errorf("hooks are %v", hooks)
		}
	}
}

func TestRecipeThatNobodyUnderstandsIsRefused(t *testing.T) {
	tests := map[string]struct {
		old, new      string // changed in the recipe
		version, arch string
		want          string
	}{
		"a key that is new":         {"grade: stable", "grade: stable\nprovenance: us", "1", "amd64", `"provenance"`},
		"a key of an app":           {"    restart-condition: never", "    restart-condition: never\n    timer: daily", "1", "amd64", `"timer" of app loader`},
		"an app without a command":  {"apps:\n", "apps:\n  other:\n    daemon: simple\n", "1", "amd64", "app other has no command"},
		"a version of its own":      {"version: git", "version: '1'", "1", "amd64", `version is not "git"`},
		"an architecture":           {"", "", "1", "riscv64", "no platform riscv64"},
		"a version of 33 letters":   {"", "", strings.Repeat("1", 33), "amd64", "is no version"},
		"a version with a slash":    {"", "", "1/2", "amd64", "is no version"},
		"a version that ends badly": {"", "", "1.", "amd64", "is no version"},
		"no version":                {"", "", "", "amd64", "is no version"},
		"a list":                    {recipe(t), "- name", "1", "amd64", "it is no mapping"},
		"nothing":                   {recipe(t), "", "1", "amd64", "it is no mapping"},
		"no YAML":                   {"grade: stable", "grade: [", "1", "amd64", "cannot read recipe"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			text := recipe(t)
			if !strings.Contains(text, tc.old) {
				t.Fatalf("the recipe has no %q", tc.old)
			}
			_, _, err := derive([]byte(strings.Replace(text, tc.old, tc.new, 1)), tc.version, tc.arch)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("derive = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestNewerSystemUser(t *testing.T) {
	old, _, err := derive([]byte(recipe(t)), "1", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	text, err := withUser([]byte(recipe(t)), "_daemon_")
	if err != nil {
		t.Fatal(err)
	}
	meta, _, err := derive(text, "1", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(meta), "584788") || strings.Contains(string(meta), "snap_daemon") {
		t.Errorf("the old user is left:\n%s", meta)
	}
	// The agent becomes it, and the loader serves it.
	if was, is := strings.Count(string(old), "584788"), strings.Count(string(meta), "584792"); was != is || was != 2 {
		t.Errorf("the user is named %d times, was %d times", is, was)
	}
	if got := decode(t, meta); !slices.Equal(got["assumes"].([]any), []any{"snapd2.61"}) {
		t.Errorf("assumes %v", got["assumes"])
	}
	if _, err := withUser([]byte(recipe(t)), "root"); err == nil {
		t.Error("root was taken")
	}
}

// The rules for what runs as root, as a reviewer would check them by eye.
func TestRecipeGivesNoMoreThanIsNeeded(t *testing.T) {
	top, err := parse([]byte(recipe(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"canonical-livepatch":  nil,
		"canonical-livepatchd": {"network", "network-bind", "kernel-identity"},
		"loader":               {"kernel-module-control", "kernel-livepatch", "network-bind"},
		"boot":                 {"kernel-module-control", "kernel-livepatch"},
	}
	got := map[string][]string{}
	for name, app := range pairs(get(top, "apps")) {
		got[name] = nil
		if plugs := get(app, "plugs"); plugs != nil {
			for _, p := range plugs.Content {
				got[name] = append(got[name], p.Value)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if c := get(top, "confinement"); c == nil || c.Value != "strict" {
		t.Error("it is not confined strictly")
	}
}
