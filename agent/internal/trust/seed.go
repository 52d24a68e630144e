package trust

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/durable"
	"livepatch/internal/service"
)

// seedName is what signed files are called in a repository: "timestamp.json",
// "7.root.json", "12.snapshot.json".
var seedName = regexp.MustCompile(`^(?:([1-9][0-9]{0,9})\.)?([a-z][a-z0-9-]{0,63})\.json$`)

// Seed fills a cache that has never been filled with signed files that came with
// the program, so that a new machine believes nothing that is older than those.
// They are verified as the cache always is, when it is used; those that are
// damaged or expired do no harm.
func (k *Keeper) Seed(files fs.FS) error {
	if _, err := os.Stat(k.path(metadata.TIMESTAMP)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := fs.ReadDir(files, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read signed files that came with the program: %w", err)
	}
	newest := map[string]int64{} // of each role
	for _, e := range entries {
		m := seedName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		version, _ := strconv.ParseInt(m[1], 10, 64) // 0 if the name has none
		to := k.path(m[2])
		switch {
		case m[2] == metadata.ROOT && version > 0:
			to = k.rootPath(version)
		case version < newest[m[2]]:
			continue
		default:
			newest[m[2]] = version
		}
		if err := seed(files, e.Name(), to); err != nil {
			return fmt.Errorf("cannot use signed file that came with the program: %w", err)
		}
	}
	return nil
}

// seed copies one file, which is no longer than the longest of them may be.
func seed(files fs.FS, name, to string) error {
	f, err := files.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, service.MaxRole+1))
	if err != nil {
		return err
	}
	if len(b) > service.MaxRole {
		return fmt.Errorf("%s is longer than %d bytes", filepath.Base(name), service.MaxRole)
	}
	return durable.WriteFile(to, b, 0o600)
}
