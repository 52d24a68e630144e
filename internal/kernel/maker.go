package kernel

import (
	"fmt"
	"slices"
	"strings"

	"livepatch/internal/patch"
)

// makers are the distributions that name themselves in what uname -v prints of their
// kernels, by the names of their TUF roles.
var makers = []string{"debian", "ubuntu"}

// maker returns which of them built the kernel, or "", from /proc/version. Only what
// follows the last "#" is the kernel's own; the compiler before it has a distribution too:
// "Linux version 6.8.0-47-generic (…) (… (Ubuntu 13.2.0-23ubuntu4) …) #47-Ubuntu SMP …",
// "Linux version 6.1.0-53-amd64 (…) (gcc-12 (Debian 12.2.0-14) …) #1 SMP … Debian 6.1.170-3 (2026-05-08)".
func maker(version string) string {
	_, after, _ := strings.Cut(version, "#")
	own := after[strings.LastIndex(after, "#")+1:]
	number, rest, _ := strings.Cut(own, " ")
	switch {
	case strings.HasSuffix(number, "-Ubuntu"):
		return "ubuntu"
	case slices.Contains(strings.Fields(rest), "Debian"):
		return "debian"
	}
	return ""
}

// TakesFrom returns an error if vendor is a distribution and this kernel was built by
// another one: the keys of one say nothing about the kernels of another. A vendor of
// another kind, such as a site that patches its own kernels, may speak of any kernel, and
// of one whose maker is unknown so may everybody whose role is trusted.
func (f Facts) TakesFrom(vendor string) error {
	if f.Maker == "" || f.Maker == vendor || !slices.Contains(makers, vendor) {
		return nil
	}
	return fmt.Errorf("%w: patch is signed by %s, kernel was built by %s", patch.ErrWrongKernel, vendor, f.Maker)
}
