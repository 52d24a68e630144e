package lab

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/internal/patch"
)

// Release is the kernel that all machines of these tests run.
const (
	Release       = "6.1.0-53-amd64"
	kernelPackage = "6.1.170-3" // its Debian version
	BuildID       = "0123456789abcdef0123456789abcdef01234567"
	OtherBuildID  = "fedcba9876543210fedcba9876543210fedcba98"
)

// Running is that kernel.
var Running = patch.Kernel{Arch: "x86_64", Release: Release, BuildID: BuildID}

// Never as the time that a transition takes means that it does not end by itself.
const Never = time.Duration(-1)

// A Kernel is made of files: a folder with proc and sys, and this process, which
// carries out what the loader asks for and keeps the files as Linux would. It
// outlives every loader, so that one can be killed in the middle of a call.
//
// Its rules are those of Linux from 5.1 on: one transition at a time; a livepatch
// that was disabled or replaced loses its folder, while its module stays until it
// is unloaded; modules of one name exclude each other.
type Kernel struct {
	t   *testing.T
	Dir string
	lis net.Listener

	mu      sync.Mutex
	boots   int
	steer   Steering
	log     []Insertion
	changes int                  // calls that reached the kernel, of any kind and outcome
	ending  map[string]time.Time // livepatches in transition, and when it ends; zero: never
}

// Steering is what a test wants of the kernel.
type Steering struct {
	Errno         unix.Errno    // with which it refuses every module
	Transition    time.Duration // that each transition takes
	Before, After time.Duration // that an insertion takes before and after it is done
}

// An Insertion is a module that got in.
type Insertion struct {
	Name, SHA256 string
}

// newKernel boots a kernel made of files in dir.
func newKernel(t *testing.T, dir string) *Kernel {
	t.Helper()
	k := &Kernel{t: t, Dir: dir, ending: map[string]time.Time{}}
	k.Write("control/README", "The loader's system calls arrive at kernel.sock.\n")
	k.Write("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n")
	k.Write("proc/version", "Linux version "+Release+" (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP PREEMPT_DYNAMIC Debian "+kernelPackage+" (2026-05-08)\n")
	k.Write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Files and Folders at 2 GHz\n")
	k.Write("proc/stat", fmt.Sprintf("cpu 1 2 3\nbtime %d\n", time.Now().Add(-time.Minute).Unix()))
	k.Write("proc/sys/kernel/osrelease", Release+"\n")
	k.Write("proc/sys/kernel/ftrace_enabled", "1\n")
	k.Write("proc/sys/kernel/modules_disabled", "0\n")
	k.Write("proc/sys/kernel/tainted", "0\n")
	k.Write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
	k.Write("sys/module/ext4/refcnt", "1\n")
	k.Write("sys/module/module/parameters/sig_enforce", "N\n")
	k.SetBuildID(BuildID)
	k.boot(1)

	lis, err := net.Listen("unix", filepath.Join(dir, "control", "kernel.sock"))
	if err != nil {
		t.Fatal(err)
	}
	k.lis = lis
	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() { k.accept(&work) })
	work.Go(func() { k.watch(stop) })
	t.Cleanup(func() { close(stop); lis.Close(); work.Wait() })
	return k
}

// boot empties what does not survive a reboot and gives the boot its id.
func (k *Kernel) boot(n int) {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, dir := range []string{"sys/kernel/livepatch", "graveyard", "staging"} {
		k.Remove(dir)
	}
	for _, name := range k.listLocked("sys/module/lkp_*") {
		k.Remove("sys/module/" + name)
	}
	k.boots = n
	k.ending = map[string]time.Time{}
	for _, dir := range []string{"sys/kernel/livepatch", "graveyard", "staging"} {
		k.Mkdir(dir)
	}
	k.Write("proc/sys/kernel/tainted", "0\n")
	k.Write("proc/sys/kernel/random/boot_id", fmt.Sprintf("00000000-0000-4000-8000-%012d\n", n))
}

// SetBuildID makes the kernel another build of its release.
func (k *Kernel) SetBuildID(id string) {
	k.t.Helper()
	desc, err := hex.DecodeString(id)
	if err != nil {
		k.t.Fatal(err)
	}
	var b []byte
	for _, n := range []int{4, len(desc), 3} { // NT_GNU_BUILD_ID
		b = binary.NativeEndian.AppendUint32(b, uint32(n))
	}
	k.Write("sys/kernel/notes", string(append(append(b, "GNU\x00"...), desc...)))
}

// Path returns where a file of the kernel is, "proc/version".
func (k *Kernel) Path(name string) string { return filepath.Join(k.Dir, filepath.FromSlash(name)) }

// Mkdir makes a folder, and those that it lies in.
func (k *Kernel) Mkdir(name string) {
	k.check(os.MkdirAll(k.Path(name), 0o755))
}

// Write makes a file that everybody can read.
func (k *Kernel) Write(name, content string) {
	k.Mkdir(filepath.Dir(name))
	k.check(os.WriteFile(k.Path(name), []byte(content), 0o644))
}

// check fails the test. It does not end it, for the kernel runs beside it.
func (k *Kernel) check(err error) {
	if err != nil {
		k.t.Errorf("kernel made of files: %v", err)
	}
}

// Remove takes a file or folder away.
func (k *Kernel) Remove(name string) {
	k.check(os.RemoveAll(k.Path(name)))
}

// Set steers the kernel from now on.
func (k *Kernel) Set(s Steering) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.steer = s
}

// Insertions lists what got in since the kernel was made, also by earlier boots.
func (k *Kernel) Insertions() []Insertion {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.log)
}

// Calls counts what reached the kernel.
func (k *Kernel) Calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changes
}

// Livepatches lists the livepatches that are in force or in transition.
func (k *Kernel) Livepatches() []string { return k.list("sys/kernel/livepatch/*") }

// Modules lists the livepatch modules that are loaded.
func (k *Kernel) Modules() []string { return k.list("sys/module/lkp_*") }

func (k *Kernel) list(pattern string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.listLocked(pattern)
}

func (k *Kernel) listLocked(pattern string) []string {
	names := []string{}
	found, _ := filepath.Glob(k.Path(pattern))
	for _, f := range found {
		names = append(names, filepath.Base(f))
	}
	return names
}

// accept serves loaders until the listener is closed.
func (k *Kernel) accept(work *sync.WaitGroup) {
	for {
		conn, err := k.lis.Accept()
		if err != nil {
			return
		}
		work.Go(func() {
			defer conn.Close()
			k.serve(conn)
		})
	}
}

// serve carries out the calls of one loader. The fields are those of the call in
// loader/cmd/livepatch-loader/filekernel_test.go.
func (k *Kernel) serve(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var call struct{ Op, Name, SHA256 string }
		if err := json.Unmarshal(lines.Bytes(), &call); err != nil {
			k.t.Errorf("kernel got %q: %v", lines.Text(), err)
			return
		}
		var errno unix.Errno
		switch call.Op {
		case "insert":
			errno = k.insert(Insertion{call.Name, call.SHA256})
		case "delete":
			errno = k.delete(call.Name)
		}
		if _, err := fmt.Fprintln(conn, int(errno)); err != nil {
			return // the loader was killed
		}
	}
}

// insert is finit_module(2).
func (k *Kernel) insert(in Insertion) unix.Errno {
	k.mu.Lock()
	s, boot := k.steer, k.boots
	k.changes++
	k.mu.Unlock()
	time.Sleep(s.Before)
	defer time.Sleep(s.After)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tick()
	switch {
	case boot != k.boots:
		return unix.EINTR // the machine went down in the middle of the call
	case s.Errno != 0:
		return s.Errno
	case k.exists("sys/module/" + in.Name):
		return unix.EEXIST
	case len(k.ending) > 0:
		return unix.EBUSY
	}
	k.log = append(k.log, in)
	// Both folders appear whole, as those of Linux do.
	k.Write("staging/module/refcnt", "1\n")
	k.Write("staging/module/taint", "OEK\n")
	k.Write("staging/livepatch/enabled", "1\n")
	k.Write("staging/livepatch/transition", "1\n")
	k.move("staging/module", "sys/module/"+in.Name)
	k.move("staging/livepatch", "sys/kernel/livepatch/"+in.Name)
	k.put("proc/sys/kernel/tainted", "45056\n") // O, E and K
	k.begin(in.Name, "0")
	k.tick()
	return 0
}

// begin starts a transition that ends when the steering says. The tasks whose
// patch_state is waiting hold it up.
func (k *Kernel) begin(name, waiting string) {
	switch k.steer.Transition {
	case Never:
		k.ending[name] = time.Time{}
	default:
		k.ending[name] = time.Now().Add(k.steer.Transition)
	}
	k.tasks(waiting)
}

// tasks sets the patch_state of the tasks that a test has made.
func (k *Kernel) tasks(state string) {
	found, _ := filepath.Glob(k.Path("proc/*/task/*/patch_state"))
	for _, f := range found {
		k.check(os.WriteFile(f, []byte(state+"\n"), 0o644))
	}
}

// delete is delete_module(2) with O_NONBLOCK.
func (k *Kernel) delete(name string) unix.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.changes++
	k.tick()
	switch {
	case !k.exists("sys/module/" + name):
		return unix.ENOENT
	case k.exists("sys/kernel/livepatch/" + name):
		return unix.EWOULDBLOCK
	}
	k.move("sys/module/"+name, fmt.Sprintf("graveyard/%s.%d", name, time.Now().UnixNano()))
	return 0
}

// watch notices what is written to the files.
func (k *Kernel) watch(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		k.mu.Lock()
		k.tick()
		k.mu.Unlock()
	}
}

// tick begins the transitions that were asked for, and ends those whose time has
// come.
func (k *Kernel) tick() {
	for _, name := range k.listLocked("sys/kernel/livepatch/*") {
		dir := "sys/kernel/livepatch/" + name
		enabled := k.read(dir+"/enabled") != "0" // empty: it is being written
		ends, moving := k.ending[name]
		if !enabled && k.read(dir+"/transition") == "0" {
			k.put(dir+"/transition", "1\n")
			k.begin(name, "1")
			ends, moving = k.ending[name], true
		}
		switch {
		case !moving || ends.IsZero() && k.steer.Transition == Never || time.Now().Before(ends):
		case enabled:
			k.end(name)
			k.put(dir+"/transition", "0\n")
			k.retire(name)
		default:
			k.end(name)
			k.move(dir, fmt.Sprintf("graveyard/%s.%d", name, time.Now().UnixNano()))
			k.put("sys/module/"+name+"/refcnt", "0\n")
		}
	}
}

func (k *Kernel) end(name string) {
	delete(k.ending, name)
	k.tasks("-1")
}

// retire takes every livepatch but one out of force: each replaces all others.
func (k *Kernel) retire(inForce string) {
	for _, name := range k.listLocked("sys/kernel/livepatch/*") {
		if name != inForce {
			k.move("sys/kernel/livepatch/"+name, fmt.Sprintf("graveyard/%s.%d", name, time.Now().UnixNano()))
			k.put("sys/module/"+name+"/refcnt", "0\n")
		}
	}
}

func (k *Kernel) exists(name string) bool {
	_, err := os.Stat(k.Path(name))
	return err == nil
}

func (k *Kernel) read(name string) string {
	b, err := os.ReadFile(k.Path(name))
	if !errors.Is(err, os.ErrNotExist) {
		k.check(err)
	}
	return strings.TrimSpace(string(b))
}

// put changes what a file says without a moment in which it says nothing. The
// new content is as long as the old, or longer.
func (k *Kernel) put(name, content string) {
	f, err := os.OpenFile(k.Path(name), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(content), 0)
		err = errors.Join(err, f.Close())
	}
	k.check(err)
}

func (k *Kernel) move(from, to string) {
	k.check(os.Rename(k.Path(from), k.Path(to)))
}

// AddTask makes a task that holds up transitions. Its state is as in
// /proc/<tid>/status, "S (sleeping)".
func (k *Kernel) AddTask(tid int, comm, state string) {
	k.t.Helper()
	dir := fmt.Sprintf("proc/%d/task/%d/", tid, tid)
	k.Write(dir+"comm", comm+"\n")
	k.Write(dir+"status", "Name:\t"+comm+"\nState:\t"+state+"\n")
	k.Write(dir+"patch_state", "-1\n")
}
