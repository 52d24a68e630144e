package hooks

import (
	"context"
	"fmt"
)

// A Loader takes livepatches out of the kernel when the snap is removed.
type Loader interface {
	// RemoveOurs removes those that this snap has inserted and returns their names.
	// None returns at boot then, nor does one that was not in the kernel.
	RemoveOurs(ctx context.Context) ([]string, error)
}

// remove says what becomes of the livepatch in the kernel, or takes it out if the
// configuration says so. The snap is removed in any case.
func (e Env) remove(ctx context.Context) {
	const stays = "a livepatch that was applied stays in the kernel until the next reboot"
	values, err := e.Snapd.Config(ctx, RemovePatch)
	switch {
	case err != nil:
		e.Note(stays + ": " + err.Error())
		return
	case values[RemovePatch] != "true":
		e.Note(stays)
		return
	}
	names, err := e.Loader.RemoveOurs(ctx)
	for _, name := range names {
		e.Note(fmt.Sprintf("removed livepatch %s from the kernel", name))
	}
	if err != nil {
		e.Note(stays + ": " + err.Error())
	}
}
