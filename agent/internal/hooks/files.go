package hooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"livepatch/agent/internal/config"
	"livepatch/internal/durable"
)

// Names of what hooks keep. The agent may make files where it takes its changes,
// so what is not root's is not believed.
const (
	// seenFile holds what snapd's configuration showed when it was last seen. It
	// is in the folder of the revision, because a revert brings back that folder
	// and snapd's configuration together.
	seenFile = "snapd-config.json"
	// The agent takes what is left here when it starts; see package agent.
	leftFolder = "waiting"
	leftFile   = "change.json"
)

// maxFile bounds what is read of either, in bytes.
const maxFile = 4 << 20

// snapUser is the uid and gid of snap_daemon, which is the same on all machines
// (snapd, snap/system_usernames.go).
const snapUser = 584788

// GroupOf returns the group of a folder of the agent's; before its first start
// there is none, and the group is the one that it is going to have.
func GroupOf(dir string) int {
	info, err := os.Stat(dir)
	if err != nil {
		return snapUser
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Gid == 0 {
		return snapUser
	}
	return int(stat.Gid)
}

// loadSeen returns what snapd's configuration showed when it was last seen. If
// that is not known everything counts as new, which repeats what was set and
// forgets what was unset.
func (e Env) loadSeen() map[string]string {
	seen := map[string]string{}
	b, err := readOwn(filepath.Join(e.Data, seenFile))
	if err == nil {
		err = json.Unmarshal(b, &seen)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			e.Note("cannot read what snapd's configuration was: " + err.Error())
		}
		return map[string]string{}
	}
	return seen
}

func (e Env) saveSeen(shown map[string]string) error {
	b, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(e.Data, seenFile), b, 0o600)
}

// readOwn reads a file that is this user's own; another's is not there.
func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a link: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s belongs to somebody else: %w", path, fs.ErrNotExist)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return b, err
}

// leave leaves a change for the agent to take. The agent's group can read it, for
// root is not allowed to read a file of the agent's again.
func (e Env) leave(c config.Change) error {
	dir := filepath.Join(e.Common, leftFolder)
	if err := e.share(dir); err != nil {
		return fmt.Errorf("cannot leave the change for the daemon: %w", err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := durable.Create(dir, 0o640)
	if err != nil {
		return fmt.Errorf("cannot leave the change for the daemon: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chown(-1, e.Group)
	}
	if err != nil {
		f.Abort()
		return fmt.Errorf("cannot leave the change for the daemon: %w", err)
	}
	return f.Commit(leftFile)
}

// share makes a folder of root's in which the agent's group can remove files.
func (e Env) share(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		// The mode first: that of a folder of another group is not root's to change
		// inside a snap.
		return errors.Join(os.Chmod(dir, 0o770), os.Chown(dir, -1, e.Group))
	}
	info, serr := os.Lstat(dir)
	if serr != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to somebody else", dir)
	}
	return nil
}

// takeLeft takes back what was left for the agent and was not taken. What cannot be
// understood is thrown away.
func (e Env) takeLeft() (config.Change, error) {
	path := filepath.Join(e.Common, leftFolder, leftFile)
	b, err := readOwn(path)
	if errors.Is(err, fs.ErrNotExist) {
		return config.Change{}, nil
	}
	var c config.Change
	if err == nil {
		if c, err = config.ParseChange(b); err != nil {
			e.Note("cannot read what was left for the daemon: " + err.Error())
		}
		err = durable.Remove(path)
	}
	if err != nil {
		return config.Change{}, fmt.Errorf("cannot take back what was left for the daemon: %w", err)
	}
	return c, nil
}
