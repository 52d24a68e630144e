package snapd

import (
	"strings"
	"testing"
)

func FuzzConfig(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a": "b", "c": 1e400, "d": null, "e": true}`, `{"a": [1]}`, `{"a": {"b": 1}}`, `[]`, `{} {}`, `{"a":"\u0000"}`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		values, err := parseConfig(doc)
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than a line: %q", err)
		}
		for key, value := range values {
			if value == "" {
				t.Errorf("%q is there and empty", key)
			}
		}
	})
}

func FuzzServices(f *testing.F) {
	f.Add("Service Startup Current Notes\na.b enabled active -\n")
	f.Add("Service Startup Current Notes\na.b\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, table string) {
		services, err := parseServices(table)
		if err == nil && len(services) > strings.Count(table, "\n")+1 {
			t.Errorf("%d services in %q", len(services), table)
		}
	})
}

func FuzzAssignment(f *testing.F) {
	f.Add("key", "value")
	f.Add("key", "\xff\n<>&\u2028")
	f.Fuzz(func(t *testing.T, key, value string) {
		got := assignment(key, value)
		if !strings.HasPrefix(got, key) || strings.Contains(got[len(key):], "\n") {
			t.Errorf("assignment(%q, %q) = %q", key, value, got)
		}
	})
}
