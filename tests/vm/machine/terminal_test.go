package machine

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTerminalShowsWhatFirmwareDraws(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there, here := net.Pipe()
		term := newTerminal(here)
		defer there.Close()
		// As MokManager does: it clears, goes to places, and frames in the letters of
		// the first PCs.
		go io.WriteString(there, "old\x1b[2J\x1b[02;03H\xda\xc4\xbf\x1b[03;03H\xb3 Yes\r\n")
		screen, err := term.WaitForAll(t.Context(), "Yes")
		if err != nil {
			t.Fatal(err)
		}
		if want := "\n  ┌─┐\n  │ Yes\n"; screen != want {
			t.Errorf("screen = %q, want %q", screen, want)
		}
	})
}

func TestTerminalWaitsUntilAScreenIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there, here := net.Pipe()
		term := newTerminal(here)
		defer there.Close()
		go func() {
			for _, piece := range []string{"Enroll", " the", " key?"} {
				io.WriteString(there, piece)
				time.Sleep(quiet / 2)
			}
		}()
		if screen, err := term.WaitFor(t.Context(), "Enroll"); err != nil || screen != "Enroll\n" {
			t.Errorf("screen = %q, %v, want what came first", screen, err)
		}
		if screen, err := term.WaitForAll(t.Context(), "Enroll"); err != nil || screen != "Enroll the key?\n" {
			t.Errorf("screen = %q, %v, want all", screen, err)
		}
	})
}

func TestTerminalSaysWhatWasThereInstead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there, here := net.Pipe()
		term := newTerminal(here)
		go io.WriteString(there, "Shell>")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := term.WaitFor(ctx, "Password:")
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Shell>") {
			t.Errorf("error = %v, want one that shows the screen", err)
		}
		there.Close()
		if _, err = term.WaitFor(t.Context(), "Password:"); !errors.Is(err, io.EOF) {
			t.Errorf("error = %v, want that the machine is gone", err)
		}
	})
}

func TestTerminalPressesKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		there, here := net.Pipe()
		term := newTerminal(here)
		defer there.Close()
		got := make([]byte, 3)
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(there, got)
			read <- err
		}()
		if err := term.Press(t.Context(), KeyDown); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil || string(got) != "\x1b[B" {
			t.Errorf("machine got %q, %v, want the sequence of the arrow", got, err)
		}
	})
}

func TestFirmwareStartsFromWhatItIsGiven(t *testing.T) {
	f := &Firmware{Code: "/c/code.fd", Vars: []byte("vars"), Image: "/k/vmlinuz"}
	o := Options{Dir: t.TempDir(), Firmware: f, CPUs: 1, MemoryMB: 512, Accel: TCG}
	if err := f.prepare(o); err != nil {
		t.Fatal(err)
	}
	line := strings.Join(qemuArgs(o), " ")
	for _, want := range []string{"readonly=on,file=/c/code.fd", filepath.Join(o.Dir, varsFile), "secure,value=on", "-kernel /k/vmlinuz"} {
		if !strings.Contains(line, want) {
			t.Errorf("QEMU is not told %q: %s", want, line)
		}
	}
	f.Loader = &BootLoader{Shim: "/b/shim", MokManager: "/b/mm", Grub: "/b/grub"}
	if err := f.prepare(o); err != nil {
		t.Fatal(err)
	}
	if args := qemuArgs(o); slices.Contains(args, "-kernel") {
		t.Error("QEMU starts the kernel past the boot loader")
	}
	for file, want := range map[string]string{"EFI/BOOT/BOOTX64.EFI": "/b/shim", "EFI/BOOT/mmx64.efi": "/b/mm", "EFI/BOOT/grubx64.efi": "/b/grub", "vmlinuz": "/k/vmlinuz"} {
		if got, err := os.Readlink(filepath.Join(o.Dir, espDir, file)); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", file, got, err, want)
		}
	}
}
