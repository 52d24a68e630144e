package patch

import (
	"fmt"
	"path"
	"strings"
)

// RolloutRole is the delegated role, signed online by the server, that says who
// gets a valid patch and when. It is responsible for "rollout/*".
const RolloutRole = "rollout"

// ModulePath returns where the module of a vendor lies in the repository:
// "debian/lkp_Debian_6_1_0_53_amd64_1.x86_64.ko".
func ModulePath(vendor string, m Module) string {
	return path.Join(vendor, m.Name+"."+m.Arch+".ko")
}

// IndexPath returns where a vendor's index for a kernel lies:
// "debian/6.1.0-53-amd64.x86_64.index.json". An agent can compute it from what
// it knows about its own machine.
func IndexPath(vendor, release, arch string) string {
	return path.Join(vendor, release+"."+arch+".index.json")
}

// RolloutPath returns the target under which the rollout role describes one
// version of a vendor's patch: "rollout/debian_113.1". The target has no
// content; its custom block is a [Rollout].
func RolloutPath(vendor, version string) string {
	return path.Join(RolloutRole, vendor+"_"+version)
}

// VendorOf returns the vendor that a target path belongs to, which is also the
// name of the TUF role that is responsible for it. Paths that could be
// something else on a disk or in a URL are refused.
func VendorOf(target string) (string, error) {
	vendor, file, ok := strings.Cut(target, "/")
	if !ok || CheckWord("a vendor", vendor) != nil || CheckWord("a file", file) != nil || vendor == RolloutRole {
		return "", fmt.Errorf("cannot use %.100q as the path of a patch: %w", target, ErrInvalid)
	}
	return vendor, nil
}
