package machine

import (
	"io/fs"
	"path"

	"livepatch/tests/vm/guest"
)

// A Root is a disk that holds a whole system, as an installer leaves one. The
// initramfs mounts it and gives it over to the init of that system, which is
// systemd; the harness is one of its services then. [Options].Files lie in that
// system.
type Root struct {
	// Disk is the file with the file system: ext4, without a partition table.
	Disk string
	// Keep says that what the machine writes stays in Disk. Without it, Disk is
	// not changed, and what was written is gone when the power is.
	Keep bool
}

// rootDevice is what the machine calls the disk.
const rootDevice = "/dev/vda"

// args returns QEMU's options for the disk. The host need not flush what the
// machine flushes: nobody cuts the power of such a machine.
func (r *Root) args() []string {
	drive := "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=" + comma(r.Disk)
	if !r.Keep {
		drive += ",snapshot=on"
	}
	return []string{"-drive", drive, "-device", "virtio-blk-pci,drive=disk"}
}

// rootFiles returns the files that bring a machine to its root.
func (t *Tools) rootFiles() []File {
	return []File{{Path: "/init", Mode: 0o755, Source: t.init}, {Path: "/etc", Mode: fs.ModeDir | 0o755}}
}

// overlay returns files as the initramfs carries them for the root.
func overlay(files []File) []File {
	moved := make([]File, len(files))
	for i, f := range files {
		f.Path = path.Join(guest.Overlay, f.Path)
		moved[i] = f
	}
	return moved
}
