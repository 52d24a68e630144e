//go:build integration

package supply

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The vulnerability that this test makes up, in the layout of
// https://go.dev/doc/security/vuln/database.
const (
	vulnerabilityID = "GO-2026-0000"
	vulnerablePkg   = "strings"
)

// database makes a vulnerability database that knows one function of package
// strings, and returns its URL.
func database(t *testing.T, symbol string) string {
	t.Helper()
	const day = "2026-11-22T00:00:00Z"
	type object = map[string]any
	type list = []any
	dir := t.TempDir()
	for name, v := range map[string]any{
		"index/db.json":      object{"modified": day},
		"index/modules.json": list{object{"path": "stdlib", "vulns": list{object{"id": vulnerabilityID, "modified": day}}}},
		"index/vulns.json":   list{object{"id": vulnerabilityID, "modified": day}},
		"ID/" + vulnerabilityID + ".json": object{
			"schema_version": "1.3.1", "id": vulnerabilityID, "modified": day, "published": day, "summary": "Made up",
			"database_specific": object{"url": "https://example.com/" + vulnerabilityID, "review_status": "REVIEWED"},
			"affected": list{object{
				"package":            object{"name": "stdlib", "ecosystem": "Go"},
				"ranges":             list{object{"type": "SEMVER", "events": list{object{"introduced": "0"}}}},
				"ecosystem_specific": object{"imports": list{object{"path": vulnerablePkg, "symbols": list{symbol}}}},
			}},
		},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return "file://" + dir
}

// TestKnownVulnerabilitiesAreFound runs the check of "make check" on a program
// that calls strings.ToTitle, with databases of the test's own.
func TestKnownVulnerabilitiesAreFound(t *testing.T) {
	nowhere := "file://" + filepath.Join(t.TempDir(), "nowhere")
	tests := map[string]struct {
		db   string
		fail bool
		want string
	}{
		"function that is called":                     {database(t, "ToTitle"), true, "vulnerable.main calls strings.ToTitle"},
		"function that is linked by nobody":           {database(t, "NewReplacer"), false, "nothing that is called has a vulnerability"},
		"database that somebody named and is not":     {nowhere, true, "error: cannot read the vulnerability database " + nowhere},
		"database that refuses connections":           {"http://127.0.0.1:1", true, "error: cannot read the vulnerability database"},
		"database in which the vulnerability is lost": {broken(t), true, "error: govulncheck left with status"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, top, []string{"LIVEPATCH_VULNDB=" + tc.db}, script(t, "vulncheck.sh"),
				"-C", "tests/supply/testdata/vulnerable", ".")
			if (err != nil) != tc.fail || !strings.Contains(out, tc.want) {
				t.Errorf("left with %v, want failure = %t and %q:\n%s", err, tc.fail, tc.want, out)
			}
		})
	}
}

// broken makes a database whose index names a file that is not there.
func broken(t *testing.T) string {
	t.Helper()
	db := database(t, "ToTitle")
	if err := os.Remove(filepath.Join(strings.TrimPrefix(db, "file://"), "ID", vulnerabilityID+".json")); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestNoNetworkIsSaid runs the check where the Go project's database cannot be
// reached: there, that is one line and no failure.
func TestNoNetworkIsSaid(t *testing.T) {
	out, err := run(t, top, []string{"LIVEPATCH_VULNDB=", "https_proxy=http://127.0.0.1:1", "no_proxy="}, script(t, "vulncheck.sh"))
	if err != nil || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "vulncheck: NOT CHECKED for known vulnerabilities: ") {
		t.Errorf("left with %v:\n%s", err, out)
	}
}
