package lab

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"livepatch/tests/vm/guest"
	"livepatch/tests/vm/machine"
)

// Where systemd is, and where it finds its units.
const (
	systemd     = "/lib/systemd/systemd"
	systemUnits = "/lib/systemd/system"
	ourUnits    = "/etc/systemd/system"
)

// theirs are the units of systemd's own that a machine needs to come up.
var theirs = []string{
	"basic.target", "final.target", "local-fs.target", "local-fs-pre.target", "multi-user.target", "network-pre.target",
	"paths.target", "shutdown.target", "slices.target", "sockets.target", "swap.target", "sysinit.target", "timers.target",
	"umount.target", "systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket",
}

// wanted are the units that are enabled, each with the target that wants it.
var wanted = map[string]string{
	systemUnits + "/systemd-journald.service":   "sysinit",
	systemUnits + "/systemd-journald.socket":    "sockets",
	ourUnits + "/livepatch-loader.socket":       "sockets",
	ourUnits + "/livepatch-loader-boot.service": "multi-user",
	ourUnits + "/canonical-livepatchd.service":  "multi-user",
	ourUnits + "/harness.service":               "multi-user",
}

// settings are of systemd's parts: what services log goes to the console.
var settings = map[string]string{
	"/etc/systemd/system.conf":   "[Manager]\nLogTarget=kmsg\nShowStatus=no\n",
	"/etc/systemd/journald.conf": "[Journal]\nStorage=volatile\nForwardToConsole=yes\nTTYPath=/dev/ttyS0\nReadKMsg=no\n",
}

// harness is the service that the harness talks to.
const harness = `[Unit]
Description=Harness of the tests
After=livepatch-loader-boot.service livepatch-loader.socket

[Service]
ExecStart=/init manage
`

// BootSystemd starts a machine whose first process is the systemd of the host's
// Debian, with our units as they are shipped and their sandboxes. It has no disk
// and no network. The caller must Close it.
func (l *Lab) BootSystemd(ctx context.Context, s Setup) (*machine.Machine, error) {
	files := append(l.machineFiles(s),
		machine.File{Path: "/etc/livepatch/loader.env", Data: []byte("AGENT_UID=997\n")},
		machine.File{Path: path.Join(ourUnits, "harness.service"), Data: []byte(harness)},
		machine.File{Path: path.Join(ourUnits, "default.target"), Mode: fs.ModeSymlink, Data: []byte(path.Join(systemUnits, "multi-user.target"))},
		machine.File{Path: "/tmp", Mode: fs.ModeDir | fs.ModePerm},
		machine.File{Path: "/var/tmp", Mode: fs.ModeDir | fs.ModePerm},
		machine.File{Path: "/run", Mode: fs.ModeDir | 0o755},
	)
	for file, text := range settings {
		files = append(files, machine.File{Path: file, Data: []byte(text)})
	}
	for _, u := range theirs {
		unit := path.Join(systemUnits, u)
		files = append(files, machine.File{Path: unit, Source: unit})
	}
	for unit, target := range wanted {
		files = append(files, machine.File{
			Path: path.Join(ourUnits, target+".target.wants", path.Base(unit)), Mode: fs.ModeSymlink, Data: []byte(unit),
		})
	}
	ours, err := os.ReadDir(filepath.Join(l.tree, "packaging/systemd"))
	if err != nil {
		return nil, err
	}
	for _, u := range ours {
		files = append(files, machine.File{Path: path.Join(ourUnits, u.Name()), Source: filepath.Join(l.tree, "packaging/systemd", u.Name())})
	}
	for _, program := range []string{systemd, "/lib/systemd/systemd-journald", "systemctl", "systemd-analyze"} {
		_, found, err := machine.HostProgram(ctx, program)
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	return machine.Boot(ctx, machine.Options{
		Dir: s.Dir, Kernel: l.Kernel, Tools: l.tools, Accel: l.Accel, MemoryMB: s.MemoryMB,
		Config: guest.Config{Systemd: true}, Files: append(files, s.Files...), Append: "rdinit=" + systemd + " " + s.Append,
	})
}
