package machine

import (
	"fmt"
	"os"
	"path/filepath"
)

// A Firmware is UEFI, from which a machine starts in place of QEMU's own way of
// starting a kernel. Whether it checks signatures, and which, is in its variables.
type Firmware struct {
	// Code is the flash image of a build of OVMF that protects its variables from
	// the system (with SMM). It is only read.
	Code string
	// Vars is the flash image with the variables that the machine has when it is
	// made. What it writes there outlives reboots and power cuts.
	Vars []byte
	// Image is the kernel, as the firmware or the boot loader is to find it: with
	// the signature that they look for.
	Image string
	// Loader starts the kernel. Nil means that the firmware does, which then wants
	// a signature by one of its own keys.
	Loader *BootLoader
}

// A BootLoader is a distribution's way to start a kernel, as files of the host.
type BootLoader struct {
	Shim       string // signed by Microsoft; started by the firmware
	MokManager string // signed by the distribution; started by shim when there are requests
	Grub       string // signed by the distribution; started by shim otherwise
}

// The files of a machine with firmware, in its folder.
const (
	varsFile = "vars.fd"
	espDir   = "esp"
)

// prepare makes the files from which the firmware starts.
func (f *Firmware) prepare(o Options) error {
	if err := os.WriteFile(filepath.Join(o.Dir, varsFile), f.Vars, 0o600); err != nil {
		return fmt.Errorf("cannot make the firmware's variables: %w", err)
	}
	if f.Loader == nil {
		return nil
	}
	if err := f.makeESP(o); err != nil {
		return fmt.Errorf("cannot make the EFI system partition: %w", err)
	}
	return nil
}

// makeESP makes the folder that the machine has as its EFI system partition. The
// paths are those of removable media, which a firmware tries without having been
// told, and the one where Debian's GRUB looks for its configuration.
func (f *Firmware) makeESP(o Options) error {
	esp := filepath.Join(o.Dir, espDir)
	links := map[string]string{
		"EFI/BOOT/BOOTX64.EFI": f.Loader.Shim,
		"EFI/BOOT/mmx64.efi":   f.Loader.MokManager,
		"EFI/BOOT/grubx64.efi": f.Loader.Grub,
		"vmlinuz":              f.Image,
		"initrd.img":           filepath.Join(o.Dir, initramfs),
	}
	for path, file := range links {
		path = filepath.Join(esp, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(file, path); err != nil {
			return err
		}
	}
	config := filepath.Join(esp, "EFI/debian/grub.cfg")
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		return err
	}
	return os.WriteFile(config, fmt.Appendf(nil, "linux /vmlinuz %s\ninitrd /initrd.img\nboot\n", commandLine(o)), 0o644)
}

// args returns QEMU's options for a machine with this firmware. The variables are
// writable to code in SMM only, as on a real machine: otherwise root could enrol
// keys by writing to the flash.
func (f *Firmware) args(o Options) []string {
	args := []string{
		"-machine", "q35,smm=on",
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + comma(f.Code),
		"-drive", "if=pflash,unit=1,format=raw,file=" + comma(filepath.Join(o.Dir, varsFile)),
	}
	if f.Loader == nil {
		return append(args, "-kernel", f.Image, "-initrd", filepath.Join(o.Dir, initramfs), "-append", commandLine(o))
	}
	return args
}

// espArgs returns QEMU's options for the EFI system partition. It is the last
// disk, because the system takes the first for its own.
func (f *Firmware) espArgs(o Options) []string {
	if f == nil || f.Loader == nil {
		return nil
	}
	return []string{
		"-drive", "if=none,id=esp,format=raw,readonly=on,file=fat:" + comma(filepath.Join(o.Dir, espDir)),
		"-device", "virtio-blk-pci,drive=esp,bootindex=1",
	}
}
