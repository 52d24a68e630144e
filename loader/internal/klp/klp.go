// Package klp reads and changes the state of livepatches in the kernel.
//
// The files are described in Documentation/ABI/testing/sysfs-kernel-livepatch
// and Documentation/livepatch/livepatch.rst in the kernel tree.
package klp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
)

// A State is what the kernel says of a livepatch.
type State int

// The states, with the numbers that they have in proto/loader/v1. The zero State
// is none of them.
const (
	Absent    State = iota + 1 // not in the kernel
	Enabled                    // in force for every task
	Enabling                   // tasks are being moved to the patched functions
	Disabling                  // tasks are being moved back
	Disabled                   // loaded and not in force
)

// InTransition tells whether a transition is running.
func (s State) InTransition() bool { return s == Enabling || s == Disabling }

// A Kernel is the livepatch part of the kernel below one root, normally "/".
type Kernel struct {
	root string
	fsys fs.FS
}

// New returns the Kernel whose /sys and /proc lie below root.
func New(root string) *Kernel { return &Kernel{root: root, fsys: os.DirFS(root)} }

const sysfs = "sys/kernel/livepatch"

// List returns the names of the livepatches in the kernel, none for a kernel
// without livepatch.
func (k *Kernel) List() (names []string, err error) {
	entries, err := fs.ReadDir(k.fsys, sysfs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list livepatches: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// State returns the state of the livepatch called name.
func (k *Kernel) State(name string) (State, error) {
	// The two files cannot be read at one instant. In this order the answer was
	// true at some moment during the call; in the other, a patch whose revert
	// began between the reads would look disabled while tasks still run it.
	enabled, err := k.flag(name, "enabled")
	transition := false
	if err == nil {
		transition, err = k.flag(name, "transition")
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Since 5.1 the folder goes when the livepatch is disabled or replaced.
		// Its module may still be there.
		if module, _ := fs.Glob(k.fsys, path.Join("sys/module", name)); module == nil {
			return Absent, nil
		}
	case err != nil:
		return 0, fmt.Errorf("cannot read state of %q: %w", name, err)
	case transition && enabled:
		return Enabling, nil
	case transition:
		return Disabling, nil
	case enabled:
		return Enabled, nil
	}
	return Disabled, nil
}

// flag reads a sysfs attribute that holds "0\n" or "1\n".
func (k *Kernel) flag(name, attr string) (bool, error) {
	b, err := fs.ReadFile(k.fsys, path.Join(sysfs, name, attr))
	text := strings.TrimSuffix(string(b), "\n")
	if err == nil && text != "0" && text != "1" {
		err = fmt.Errorf("%s is %q, want 0 or 1", attr, text)
	}
	return text == "1", err
}

// Settled returns an error matching [patch.ErrBusy] while the kernel moves tasks
// to or from a livepatch, other than the one called except: it does so for one at
// a time. One whose state cannot be read counts.
func (k *Kernel) Settled(except string) error {
	names, err := k.List()
	for _, name := range names {
		if state, err := k.State(name); name != except && (err != nil || state.InTransition()) {
			return fmt.Errorf("%w: of %s", patch.ErrBusy, name)
		}
	}
	return err
}

// Disable begins the transition that takes a livepatch out of force. During
// the transition that brings it in, it reverses that one.
func (k *Kernel) Disable(name string) error {
	err := os.WriteFile(filepath.Join(k.root, sysfs, name, "enabled"), []byte("0"), 0)
	if err != nil {
		return fmt.Errorf("cannot disable %q: %w: %w", name, patch.ErrKernel, err)
	}
	return nil
}

// Blockers returns the tasks that the running transition waits for, those with
// the lowest ids first, and how many there are in all. s says which way the
// transition goes.
func (k *Kernel) Blockers(s State, limit int) (blockers []*loaderv1.Blocker, count int32) {
	// patch_state is -1 outside transitions, 0 unpatched, 1 patched.
	waiting := map[State]string{Enabling: "0", Disabling: "1"}[s]
	if waiting == "" {
		return nil, 0
	}
	if _, err := fs.ReadFile(k.fsys, "proc/self/patch_state"); errors.Is(err, fs.ErrPermission) {
		return nil, 0 // in a snap; every try would be logged
	}
	files, _ := fs.Glob(k.fsys, "proc/[0-9]*/task/[0-9]*/patch_state")
	for _, file := range files {
		// Tasks come and go; one that cannot be read blocks nothing we know of.
		if k.text(file) != waiting {
			continue
		}
		dir := path.Dir(file)
		tid, _ := strconv.ParseInt(path.Base(dir), 10, 32)
		_, status, _ := strings.Cut(k.text(dir+"/status"), "State:")
		state, _, _ := strings.Cut(status, "\n")
		blockers = append(blockers, &loaderv1.Blocker{Tid: int32(tid), Comm: k.text(dir + "/comm"), State: strings.TrimSpace(state)})
	}
	slices.SortFunc(blockers, func(a, b *loaderv1.Blocker) int { return int(a.GetTid() - b.GetTid()) })
	return blockers[:min(len(blockers), limit)], int32(len(blockers))
}

func (k *Kernel) text(name string) string {
	b, _ := fs.ReadFile(k.fsys, name) // "" where it cannot be read
	return strings.ToValidUTF8(strings.TrimSpace(string(b)), "?")
}
