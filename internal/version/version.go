// Package version tells which build of the project this is.
package version

import "runtime/debug"

// version is set by the linker: -X livepatch/internal/version.version=…
var version = ""

// String returns the version of the running program, "v1.2.3", or "devel" with
// the commit where the build knows it.
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}
