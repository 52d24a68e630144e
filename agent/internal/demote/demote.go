// Package demote makes an ordinary process of one that was started as root, as
// snapd starts daemons: it gives the user what is the user's, and then becomes
// that user, with no way back.
package demote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Folders are what the user needs; their parents are root's, and stay so.
type Folders struct {
	// Own belong to the user. Others may look into them.
	Own []string
	// Enter is root's; the user may enter it, others may not.
	Enter string
	// Share is root's; both put files into it and take them out. Others do not.
	Share string
	// Links are made where other programs look for what lies in a folder of the
	// user's: path and content of each.
	Links map[string]string
}

// Prepare makes the folders what they are to be. Those that are right already are
// left alone, which keeps the log of the security modules quiet.
func Prepare(f Folders, id int) error {
	var err error
	for _, dir := range f.Own {
		err = errors.Join(err, give(dir, 0o755, id, id))
	}
	err = errors.Join(err, give(f.Enter, 0o750, os.Geteuid(), id), give(f.Share, 0o770, os.Geteuid(), id))
	for path, to := range f.Links {
		err = errors.Join(err, link(path, to))
	}
	return err
}

// give makes dir, if need be, and gives it to an owner and a group.
func give(dir string, mode fs.FileMode, uid, gid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if owner := int(stat.Uid); !info.IsDir() || owner != os.Geteuid() && owner != uid {
		return fmt.Errorf("%s is no folder of ours", dir)
	}
	// The mode first: to change that of somebody else's folder takes a capability
	// that snapd does not grant.
	if info.Mode().Perm() != mode {
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	if int(stat.Uid) == uid && int(stat.Gid) == gid {
		return nil
	}
	return os.Lchown(dir, uid, gid)
}

// link makes a symbolic link. What is there already, and is no such link, is
// somebody's file and stays.
func link(path, to string) error {
	err := os.Symlink(to, path)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// To makes the process that of the user, and group, id: without supplementary
// groups, and so without capabilities (capabilities(7), "Effect of user ID changes
// on capabilities"). What is left of root would be an error, not a weakness.
func To(id int) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("cannot leave the groups of root: %w", err)
	}
	if err := syscall.Setgid(id); err != nil {
		return fmt.Errorf("cannot become group %d: %w", id, err)
	}
	if err := syscall.Setuid(id); err != nil {
		return fmt.Errorf("cannot become user %d: %w", id, err)
	}
	if syscall.Setuid(0) == nil || os.Getuid() == 0 || os.Geteuid() == 0 {
		return errors.New("cannot give up root: there is a way back")
	}
	return nil
}
