// Package demote makes an ordinary process of one that was started as root, as
// snapd starts daemons: it gives the user what is the user's, and then becomes
// that user, with no way back.
package demote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Folders are those that the user and root share.
type Folders struct {
	// Root's alone, and made before the user could make it.
	Root string
	// The user makes files in them and cannot touch those of root: they belong to
	// root and the user's group, with the sticky bit.
	Shared []string
	// The user enters it; others do not.
	Enter string
}

// Prepare makes the folders what they are to be. Those that are right already are
// left alone, which keeps the log of the security modules quiet.
func Prepare(f Folders, gid int) error {
	// In this order: once a folder is shared, the user may make things in it.
	err := own(f.Root, fs.ModeDir|0o700, 0)
	for _, dir := range f.Shared {
		err = errors.Join(err, own(dir, fs.ModeDir|fs.ModeSticky|0o775, gid))
	}
	return errors.Join(err, own(f.Enter, fs.ModeDir|0o750, gid))
}

// own makes dir, if need be, and gives it to root and the group. Nobody else may
// have made it: its parent is root's, or has the sticky bit.
func own(dir string, mode fs.FileMode, gid int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to somebody else", dir)
	}
	if info.Mode() == mode && int(stat.Gid) == gid {
		return nil
	}
	// The mode first: to change that of a folder of another group takes a
	// capability that snapd does not grant.
	if err := os.Chmod(dir, mode.Perm()|mode&fs.ModeSticky); err != nil {
		return err
	}
	return os.Chown(dir, -1, gid)
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
