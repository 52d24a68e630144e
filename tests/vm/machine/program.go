package machine

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
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
	files, err = programFiles(ctx, "", path)
	return path, files, err
}

// UnpackedProgram returns the files of a program at a path below a folder of
// [Unpack], and of its libraries, which lie below that folder or are the host's.
// In the machine they lie as if the packages were installed.
func UnpackedProgram(ctx context.Context, root, path string) ([]File, error) {
	files, err := programFiles(ctx, root, filepath.Join(root, path))
	if err != nil {
		return nil, fmt.Errorf("cannot put %s into machine: %w", path, err)
	}
	return files, nil
}

func programFiles(ctx context.Context, root, program string) ([]File, error) {
	ldd := []string{"ldd", program}
	if root != "" {
		ldd = append([]string{"env", "LD_LIBRARY_PATH=" + root + "/usr/lib/x86_64-linux-gnu:" + root + "/lib/x86_64-linux-gnu"}, ldd...)
	}
	out, err := command(ctx, "", ldd[0], ldd[1:]...)
	if err != nil && !strings.Contains(err.Error(), "not a dynamic executable") {
		return nil, err
	}
	files := []File{{Path: strings.TrimPrefix(program, root), Mode: 0o755, Source: program}}
	for _, lib := range libraries(string(out)) {
		files = append(files, File{Path: strings.TrimPrefix(lib, root), Mode: 0o755, Source: lib})
	}
	return files, nil
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
