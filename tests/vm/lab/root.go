package lab

import (
	"context"
	"fmt"

	"livepatch/tests/vm/guest"
	"livepatch/tests/vm/machine"
)

// On returns the lab with another kernel to build, sign and publish for.
func (l *Lab) On(k *machine.Kernel) *Lab {
	on := *l
	on.Kernel, on.Other = k, nil
	return &on
}

// Tools returns the programs that machines need.
func (l *Lab) Tools() *machine.Tools { return l.tools }

// Tree returns the root of the source tree.
func (l *Lab) Tree() string { return l.tree }

// A RootSetup says what a machine is like that has a system of its own on a disk,
// and nothing of ours.
type RootSetup struct {
	Dir      string // an empty folder, for the logs
	Disk     string // of the system; it is not changed
	Service  string // address of the service on the host; empty means that there is none
	MemoryMB int    // as in [machine.Options]
	CPUs     int    // as in [machine.Options]
	Files    []machine.File
}

// BootRoot starts such a machine with the lab's kernel. The caller must Close it.
func (l *Lab) BootRoot(ctx context.Context, s RootSetup) (*machine.Machine, error) {
	opts := machine.Options{
		Dir: s.Dir, Kernel: l.Kernel, Tools: l.tools, Accel: l.Accel, MemoryMB: s.MemoryMB, CPUs: s.CPUs,
		Config: guest.Config{Address: machineAddress}, Root: &machine.Root{Disk: s.Disk},
		Files: append([]machine.File{
			{Path: "/etc/hosts", Data: fmt.Appendf(nil, "127.0.0.1 localhost machine\n%s %s\n", serviceAddress, ServiceName)},
		}, s.Files...),
	}
	if s.Service != "" {
		opts.Forward = map[string]string{serviceAddress + ":" + servicePort: s.Service}
	}
	return machine.Boot(ctx, opts)
}

// ServiceURL is where machines find the service.
const ServiceURL = "https://" + ServiceName + ":" + servicePort
