package machine

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

// HostProgram returns the files of a program of the host, which is in its PATH or
// given with its path, and of the libraries that it is linked with. They lie in
// the machine where they lie on the host.
func HostProgram(ctx context.Context, name string) (path string, files []File, err error) {
	if path, err = exec.LookPath(name); err != nil {
		return "", nil, fmt.Errorf("cannot put %s into machine: %w; run tests/vm/setup.sh", name, err)
	}
	out, err := command(ctx, "", "ldd", path)
	if err != nil && !strings.Contains(err.Error(), "not a dynamic executable") {
		return "", nil, err
	}
	files = []File{{Path: path, Mode: 0o755, Source: path}}
	for _, lib := range libraries(string(out)) {
		files = append(files, File{Path: lib, Mode: 0o755, Source: lib})
	}
	return path, files, nil
}

// library matches where ldd(1) found a library, and the loader of libraries,
// which has no name of its own there.
var library = regexp.MustCompile(`(?m)^\t(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$`)

// libraries returns the paths that ldd printed.
func libraries(ldd string) (paths []string) {
	for _, m := range library.FindAllStringSubmatch(ldd, -1) {
		paths = append(paths, m[1])
	}
	return paths
}
