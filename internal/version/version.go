// Package version tells which build of the project this is.
package version

import (
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"time"
)

// Set by the linker: -X livepatch/internal/version.version=…
var (
	version = ""
	date    = "" // of the commit, in seconds since 1970
)

// Date returns when the commit was made that the program was built from, or the
// zero time if the build does not know it. It is not the time of the build, so
// that two builds of one commit are alike.
func Date() time.Time {
	sec, err := strconv.ParseInt(date, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(sec, 0).UTC()
}

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

// Print writes the line that a program answers -version with.
func Print(w io.Writer, program string) error {
	_, err := fmt.Fprintln(w, program, String())
	return err
}
