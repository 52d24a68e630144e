package repo

import (
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/authority"
)

// parseRoot reads a root that anybody may have written.
func parseRoot(b []byte) (*authority.Root, error) {
	m, err := parse[metadata.RootType](b)
	if err == nil {
		err = authority.CheckRoot(m)
	}
	return m, err
}

// parseTargets is parseRoot for targets, vendors and bins.
func parseTargets(b []byte) (*authority.Targets, error) {
	m, err := parse[metadata.TargetsType](b)
	if err == nil {
		err = authority.CheckTargets(m)
	}
	return m, err
}

func parse[T metadata.Roles](b []byte) (m *metadata.Metadata[T], err error) {
	defer func() { // go-tuf 2.4.2 panics on null in the place of an object
		if recover() != nil {
			m, err = nil, fmt.Errorf("%w: null in the place of an object", patch.ErrMalformed)
		}
	}()
	return new(metadata.Metadata[T]).FromBytes(b)
}
