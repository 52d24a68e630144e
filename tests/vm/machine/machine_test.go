package machine

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/guest"
)

func TestInitramfsIsReadByCPIO(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, []byte("from the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	err := writeCPIO(&archive, []File{
		{Path: "/etc/hosts", Data: []byte("old")},
		{Path: "/usr/bin/tool", Mode: 0o755, Source: source},
		{Path: "/bin/sh", Mode: fs.ModeSymlink, Data: []byte("busybox")},
		{Path: "/etc/hosts", Data: []byte("new")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Fatal("busybox is needed; run tests/vm/setup.sh")
	}
	cmd := exec.CommandContext(t.Context(), "busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for path, want := range map[string]string{"etc/hosts": "new", "usr/bin/tool": "from the host"} {
		if b, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(b) != want {
			t.Errorf("%s = %q, %v, want %q", path, b, err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "usr/bin/tool")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of tool = %v, %v, want 0755", info, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "bin/sh")); err != nil || to != "busybox" {
		t.Errorf("sh leads to %q, %v, want busybox", to, err)
	}
}

func TestInitramfsNamesTheFileThatIsMissing(t *testing.T) {
	err := writeCPIO(&bytes.Buffer{}, []File{{Path: "/x", Source: filepath.Join(t.TempDir(), "nothing")}})
	if err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("error = %v, want one that names the file", err)
	}
}

// bzImage returns an image with the given payload where its header says.
func bzImage(payload []byte) []byte {
	image := make([]byte, 2*512+64, 2*512+64+len(payload))
	image[0x1f1] = 1 // sectors of set-up code after the first
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(image[0x248:], 64)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

func TestPayloadRefusesWhatIsNoKernel(t *testing.T) {
	whole := bzImage([]byte("not xz"))
	tests := map[string][]byte{
		"empty":                     {},
		"without the magic":         make([]byte, 4096),
		"cut before the payload":    whole[:1024],
		"cut inside the payload":    whole[:len(whole)-1],
		"packed with something new": whole,
	}
	for name, image := range tests {
		t.Run(name, func(t *testing.T) {
			if b, err := payload(image); err == nil {
				t.Errorf("payload = %d bytes, want an error", len(b))
			}
		})
	}
}

// FuzzPayload has seeds that are refused at each check of the header.
func FuzzPayload(f *testing.F) {
	whole := bzImage([]byte("\xfd7zXZ\x00 and then nothing that is xz"))
	f.Add([]byte{})
	f.Add(whole)
	f.Add(whole[:1024])
	far := bytes.Clone(whole)
	binary.LittleEndian.PutUint32(far[0x248:], 1<<32-1)
	f.Add(far)
	f.Fuzz(func(t *testing.T, image []byte) {
		if b, err := payload(image); err == nil && len(b) == 0 && len(image) == 0 {
			t.Error("nothing has a payload")
		}
	})
}

func TestPatchNameFollowsTheConvention(t *testing.T) {
	k := &Kernel{Release: "6.12.48+deb13-cloud-amd64"}
	if got, want := k.PatchName("113.1"), "lkp_Debian_6_12_48_deb13_cloud_amd64_113_1"; got != want {
		t.Errorf("name = %s, want %s", got, want)
	}
}

func TestKernelsOnTheCommandLineMayHaveCommas(t *testing.T) {
	args := qemuArgs(Options{
		Dir: "/a,b", Kernel: &Kernel{VMLinux: "/v"}, Tools: &Tools{forward: "/f"}, DiskMB: 1,
		Config:  guest.Config{Address: "10.0.2.15/24"},
		Forward: map[string]string{"10.0.2.100:8443": "127.0.0.1:1"},
	})
	for _, want := range []string{
		"file,id=console,append=on,path=/a,,b/console.log",
		"if=none,id=disk,format=raw,file=/a,,b/disk.img",
		"user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:8443-cmd:/f 127.0.0.1:1",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("arguments do not hold %q: %q", want, args)
		}
	}
}

// fakeGuest answers requests on conn as the machine's first process does.
func fakeGuest(t *testing.T) (c *control, machine net.Conn) {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close(); there.Close() })
	return newControl(here), there
}

func TestControlSkipsWhatAResetCutOff(t *testing.T) {
	c, machine := fakeGuest(t)
	go func() {
		_, _ = machine.Write([]byte(`{"id":7,"stdo` + "\n" + `{"id":0,"boot":"second"}` + "\n"))
	}()
	boot, err := c.waitBoot(t.Context())
	if err != nil || boot != "second" {
		t.Errorf("boot = %q, %v, want second", boot, err)
	}
}

func TestControlGivesUpRequestsWhenTheMachineRestarts(t *testing.T) {
	c, machine := fakeGuest(t)
	go func() {
		_, _ = machine.Read(make([]byte, 4096)) // the request, never answered
		_, _ = machine.Write([]byte("\n" + `{"id":0,"boot":"next"}` + "\n"))
	}()
	_, err := c.call(t.Context(), guest.Request{Op: guest.OpRun, Command: "sleep 1000"})
	if err == nil || err.Error() != errGone.Error() {
		t.Errorf("error = %v, want %v", err, errGone)
	}
}

func TestControlRefusesRequestsOnceTheMachineIsOff(t *testing.T) {
	c, machine := fakeGuest(t)
	machine.Close()
	if _, err := c.waitBoot(t.Context()); err == nil {
		t.Error("waitBoot returned no error")
	}
	deadline := time.After(5 * time.Second)
	for {
		if _, err := c.send(guest.Request{Op: guest.OpRun}); err != nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal("requests are still accepted")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestLibrariesAreFound(t *testing.T) {
	out := "\tlinux-vdso.so.1 (0x00007f2fec5ef000)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2fec01e000)\n\tlibmissing.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f2fec5f1000)\n"
	want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}
	if got := libraries(out); !slices.Equal(got, want) {
		t.Errorf("libraries = %q, want %q", got, want)
	}
	if got := libraries("\tnot a dynamic executable\n"); got != nil {
		t.Errorf("libraries = %q, want none", got)
	}
}
