package catalog

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// fileName is a versioned metadata file: "7.debian-3ff.json". A version has no
// leading zero, so that each file has one name.
var fileName = regexp.MustCompile(`^([1-9][0-9]{0,14})\.([A-Za-z0-9][A-Za-z0-9._+~-]{0,127})\.json$`)

// parseName splits the name of a versioned metadata file.
func parseName(name string) (role string, version int64, err error) {
	m := fileName.FindStringSubmatch(name)
	if m == nil || strings.Contains(m[2], "..") {
		return "", 0, fmt.Errorf("cannot use %q as the name of a metadata file: %w", name, patch.ErrInvalid)
	}
	version, err = strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("cannot use %q as the name of a metadata file: %w", name, patch.ErrInvalid)
	}
	return m[2], version, nil
}

func nameOf(role string, version int64) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}

// online tells whether a role is signed by the server itself.
func online(role string) bool {
	return role == metadata.SNAPSHOT || role == metadata.TIMESTAMP || role == patch.RolloutRole
}

// reserved tells whether a role has a fixed meaning and so cannot be a vendor.
func reserved(role string) bool {
	return online(role) || role == metadata.ROOT || role == metadata.TARGETS
}

// maxSize is the largest metadata file of a role, in bytes.
func maxSize(role string) int {
	if role == metadata.ROOT {
		return service.MaxRoot
	}
	return service.MaxRole
}
