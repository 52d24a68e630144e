package rollout_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"livepatch/server/internal/rollout"
)

// TestReasonsAreListed: every constant of the type Reason is in the list, once.
func TestReasonsAreListed(t *testing.T) {
	halts, others := rollout.Reasons()
	var listed []string
	for _, r := range slices.Concat(halts, others) {
		listed = append(listed, string(r))
	}
	declared := declaredReasons(t)
	slices.Sort(listed)
	slices.Sort(declared)
	if !slices.Equal(listed, declared) {
		t.Errorf("listed are   %q\ndeclared are %q", listed, declared)
	}
	for _, r := range halts {
		if !strings.HasPrefix(string(r), "test-") && r != rollout.TestSiblings {
			t.Errorf("%q is no reason of a halt", r)
		}
	}
}

// declaredReasons reads the constants from the source.
func declaredReasons(t *testing.T) (values []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != "Reason" {
				return true
			}
			for _, v := range spec.Values {
				literal, ok := v.(*ast.BasicLit)
				if !ok {
					t.Fatalf("%s: a reason is not written as a string", file)
				}
				value, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				values = append(values, value)
			}
			return true
		})
	}
	return values
}
