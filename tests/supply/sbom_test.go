//go:build integration

package supply

import (
	"debug/buildinfo"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A bom is what this test reads of a CycloneDX document.
type bom struct {
	Format   string `json:"bomFormat"`
	Serial   string `json:"serialNumber"`
	Metadata struct {
		Timestamp string
		Component struct{ Name, Version string }
	}
	Components []struct {
		Name, Version string
		Hashes        []struct{ Alg, Content string }
	}
}

func readBOM(t *testing.T, path string) bom {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc bom
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestBillOfMaterialsListsWhatIsLinked compares the bill of each program with
// what Go itself says that it was built of: "go version -m".
func TestBillOfMaterialsListsWhatIsLinked(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(top, "build", "bin")
	must(t, top, nil, script(t, "sbom.sh"), "build/bin", dir, "v1.2.3")
	for _, program := range programs(t, bin) {
		t.Run(filepath.Base(program), func(t *testing.T) {
			doc := readBOM(t, filepath.Join(dir, filepath.Base(program)+".cdx.json"))
			if c := doc.Metadata.Component; doc.Format != "CycloneDX" || c.Name != "livepatch" || c.Version != "v1.2.3" {
				t.Errorf("bill is a %q of %+v", doc.Format, c)
			}
			listed := map[string]string{}
			for _, c := range doc.Components {
				listed[c.Name] = c.Version
				if c.Name != "std" && (len(c.Hashes) != 1 || c.Hashes[0].Alg != "SHA-256") {
					t.Errorf("%s has the hashes %v, want what go.sum says", c.Name, c.Hashes)
				}
			}
			if diff := cmp.Diff(linked(t, program), listed); diff != "" {
				t.Errorf("bill differs from the program (-program +bill):\n%s", diff)
			}
		})
	}
}

// linked returns the versions of the modules in a program, Go's own as "std".
func linked(t *testing.T, program string) map[string]string {
	t.Helper()
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	modules := map[string]string{"std": info.GoVersion}
	for _, m := range info.Deps {
		if m.Replace != nil {
			t.Errorf("%s is replaced by %s", m.Path, m.Replace.Path)
		}
		modules[m.Path] = m.Version
	}
	if len(modules) < 2 {
		t.Fatalf("%s says nothing of its modules", program)
	}
	return modules
}

func TestBillOfMaterialsIsTheSameEachTime(t *testing.T) {
	dir := t.TempDir()
	var texts [2]string
	for i, env := range [][]string{{"TZ=UTC"}, {"TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "HOME=" + t.TempDir()}} {
		out := filepath.Join(dir, "sbom", string(rune('a'+i)))
		env = append(env, "GOMODCACHE="+strings.TrimSpace(must(t, top, nil, "go", "env", "GOMODCACHE")))
		must(t, top, env, script(t, "sbom.sh"), "build/bin", out, "v1.2.3")
		for _, program := range programs(t, out) {
			b, err := os.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			texts[i] += string(b)
		}
	}
	if diff := cmp.Diff(texts[0], texts[1]); diff != "" {
		t.Errorf("bills differ:\n%s", diff)
	}
}
