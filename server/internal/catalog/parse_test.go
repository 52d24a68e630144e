package catalog

import (
	"errors"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

func TestNullInThePlaceOfAnObjectDoesNotStopTheServer(t *testing.T) {
	const head = `{"signatures":[],"signed":{"_type":"targets","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z",`
	for name, rest := range map[string]string{
		"a target":    `"targets":{"debian/x":null}}}`,
		"targets":     `"targets":null}}`,
		"a key":       `"targets":{},"delegations":{"keys":{"k":null},"roles":[]}}}`,
		"delegations": `"targets":{},"delegations":null}}`,
	} {
		m, err := parse[metadata.TargetsType](offline{role: "debian-000", version: 1, body: []byte(head + rest)})
		if err != nil && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v, want %v", name, err, ErrUntrusted)
		}
		if name == "a target" && err == nil {
			t.Errorf("%s: accepted as %+v", name, m.Signed)
		}
	}
}
