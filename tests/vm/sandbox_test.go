//go:build vm

package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// What the kernel says of each thread of the loader, in /proc/<tid>/status
// (proc(5)). Bit 16 is CAP_SYS_MODULE, bit 2 is CAP_DAC_READ_SEARCH, bit 34 is
// CAP_SYSLOG (linux/capability.h).
var confined = map[string]string{
	"CapInh":          "0000000000000000",
	"CapPrm":          "0000000400010004",
	"CapEff":          "0000000400010004",
	"CapAmb":          "0000000000000000",
	"NoNewPrivs":      "1",
	"Seccomp":         "2", // a filter
	"Seccomp_filters": "1",
}

// limited are limits of the process, in /proc/<pid>/limits.
var limited = map[string]string{
	"Max core file size": "0",
	"Max file size":      "67108864", // the largest module
	"Max open files":     "64",
	"Max data size":      "536870912",
}

// TestSandboxAsTheKernelSeesIt looks at the loader while it serves.
func TestSandboxAsTheKernelSeesIt(t *testing.T) {
	repo := here.NewRepo()
	m := boot(t, lab.Setup{Root: repo.Root(), NoAgent: true, Files: []machine.File{sandboxTest(t)}})
	agent := lab.AgentOf(m.Machine)
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	apply(t, agent, repo.Offer(repo.Publish(one, "1", 1, nil)), loaderv1.Outcome_OUTCOME_APPLIED)

	t.Run("every thread has three capabilities, a filter, and no way to gain more", func(t *testing.T) {
		threads := strings.Split(m.run("for t in /proc/$(pidof livepatch-loader)/task/*; do cat $t/status; echo; done"), "\n\n")
		if len(threads) < 3 {
			t.Errorf("%d threads, want those of a Go program that has worked", len(threads))
		}
		for _, status := range threads {
			wantFields(t, status, confined)
		}
	})
	t.Run("resources are limited", func(t *testing.T) {
		limits := m.run("cat /proc/$(pidof livepatch-loader)/limits")
		for what, want := range limited {
			line := regexp.MustCompile(`(?m)^` + what + ` +(\S+) +(\S+)`).FindStringSubmatch(limits)
			if line == nil || line[1] != want || line[2] != want {
				t.Errorf("%s = %q, want %s\n%s", what, line, want, limits)
			}
		}
	})
	t.Run("nobody reads its memory", func(t *testing.T) {
		if owner := m.run("stat -c %U /proc/$(pidof livepatch-loader)/mem"); owner != "root" {
			t.Errorf("its memory belongs to %s", owner)
		}
		res, err := m.RunAs(t.Context(), lab.AgentUID, lab.AgentUID, "cat /proc/$(pidof livepatch-loader)/maps")
		if err != nil || res.Code == 0 {
			t.Errorf("the agent's user reads its maps: %+v, %v", res, err)
		}
	})
	t.Run("it holds no file that it does not need", func(t *testing.T) {
		files := strings.Fields(m.run("for f in /proc/$(pidof livepatch-loader)/fd/*; do readlink $f; done"))
		for _, f := range files {
			if !openFile.MatchString(f) {
				t.Errorf("it has %s open", f)
			}
		}
		if !slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(f, "socket:") }) {
			t.Errorf("open files = %q, want a socket among them", files)
		}
	})
	t.Run("what it tries beyond that is refused", func(t *testing.T) {
		// The same process makes the attempts, behind the same sandbox: the package's
		// own test, on this kernel and as root.
		res, err := m.Run(t.Context(), sandboxProgram+" -test.v -test.run TestTheSandboxHolds -test.parallel 1")
		if err != nil {
			t.Fatal(err)
		}
		passed := strings.Count(res.Stdout, "    --- PASS: TestTheSandboxHolds/")
		t.Logf("%d attempts ended as they should", passed)
		if res.Code != 0 || passed < 25 {
			t.Errorf("exit status %d, %d passed\n%s%s", res.Code, passed, res.Stdout, res.Stderr)
		}
	})
}

// openFile matches what the loader may hold: its standard files and its socket,
// its lock, and what Go's runtime waits with.
var openFile = regexp.MustCompile(`^(/dev/null|/dev/ttyS0|pipe:.*|socket:.*|/var/lib/livepatch-loader/lock|anon_inode:\[?(eventpoll|eventfd)\]?)$`)

// wantFields reports fields of a status file that are not as wanted.
func wantFields(t *testing.T, status string, want map[string]string) {
	t.Helper()
	for field, value := range want {
		m := regexp.MustCompile(`(?m)^` + field + `:\s*(\S+)`).FindStringSubmatch(status)
		if m == nil || m[1] != value {
			t.Errorf("%s = %q, want %s\n%s", field, m, value, status)
		}
	}
}

// sandboxProgram is where the test of package sandbox lies in the machine.
const sandboxProgram = "/usr/local/bin/sandbox.test"

// sandboxTest builds it.
func sandboxTest(t *testing.T) machine.File {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sandbox.test")
	goTest(t, file, "livepatch/loader/internal/sandbox")
	return machine.File{Path: sandboxProgram, Mode: 0o755, Source: file}
}

// goTest builds the test of a package into a file, as programs are built.
func goTest(t *testing.T, file, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-trimpath", "-o", file, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the test of %s: %v\n%s", pkg, err, out)
	}
}

// mayBeUnseen are system calls that the filter allows and a recording need not
// show, each with the reason.
var mayBeUnseen = map[string]string{
	"restart_syscall": "the kernel makes it itself when a stopped process goes on inside a timed wait",
	"sched_yield":     "the runtime's, when threads race for a lock",
	"tgkill":          "the runtime's, to interrupt a goroutine that runs for long",
	"rt_sigreturn":    "ends the handler of that signal",
	"sigaltstack":     "the runtime's, for a new thread",
	"madvise":         "the runtime's, when it gives memory back",
	"munmap":          "the runtime's, for memory of an odd alignment",
	"clone":           "the runtime's, for a new thread; there may be enough",
	"exit":            "of a thread; the runtime keeps most of them",
	"epoll_create1":   "the runtime's poller, made at the first file or socket; the loader happens to read the pinned root before",
	"eventfd2":        "the same poller's",
	"prctl":           "the runtime's, to name its memory, where the kernel is configured to let it",
	"mprotect":        "the runtime's, for a new thread's stack with cgo or by the race detector",
}

// TestFilterAllowsNoMoreThanIsUsed records the loader's system calls on this
// kernel, behind its filter, through all that it does, and compares them with what
// the filter allows. That none is missing shows by itself: the filter ends a
// process that makes another one.
func TestFilterAllowsNoMoreThanIsUsed(t *testing.T) {
	strace, files, err := machine.HostProgram(t.Context(), "strace")
	if err != nil {
		t.Fatal(err)
	}
	repo := here.NewRepo()
	record := []string{strace, "-f", "-A", "-o", "/tmp/trace"}
	m := boot(t, lab.Setup{
		Root: repo.Root(), NoAgent: true, MemoryMB: 1024, Files: files,
		RunLoader: append(slices.Clone(record), "-D"), // the loader keeps its number
	})
	everythingTheLoaderDoes(t, m, repo, strings.Join(record, " "))
	trace := m.run("cat /tmp/trace")
	seen := callsBehindFilter(trace)
	allowed := allowedCalls(t)
	if *keep != "" {
		if err := os.WriteFile(filepath.Join(*keep, "loader.strace"), []byte(trace), 0o644); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d lines, %d calls seen of %d that are allowed", strings.Count(trace, "\n"), len(seen), len(allowed))
	for name, lines := range seen {
		if !slices.Contains(allowed, name) && !refusedCall(lines) {
			t.Errorf("the loader calls %s, which its filter does not allow: %s", name, lines[0])
		}
	}
	for _, name := range allowed {
		if len(seen[name]) == 0 && mayBeUnseen[name] == "" {
			t.Errorf("the filter allows %s, which the loader does not call", name)
		}
	}
	for name := range mayBeUnseen {
		if !slices.Contains(allowed, name) {
			t.Errorf("%s need not be seen, nor is it allowed", name)
		}
	}
}

// everythingTheLoaderDoes has it do all that it can: serve every call, refuse,
// report what holds a transition up, leave when it is told to, come back at boot
// and note a shutdown.
func everythingTheLoaderDoes(t *testing.T, m guest, repo *lab.Repo, record string) {
	ctx := t.Context()
	agent := lab.AgentOf(m.Machine)
	accept := func(mod lab.Module) {
		t.Helper()
		if _, err := agent.Accept(ctx, mod.Name); err != nil {
			t.Fatal(err)
		}
	}
	// Recorded, it may need longer to start than a client waits for it.
	eventually(t, 2*time.Minute, "loader answers", func() bool { _, err := agent.Status(ctx); return err == nil })
	one := build(t, lab.Patch{Source: "answer", Version: "1", Answer: "one"})
	two := build(t, lab.Patch{Source: "answer", Version: "2", Answer: "two"})
	stuck := build(t, lab.Patch{Source: "stuck", Version: "9", Answer: "stuck"})
	apply(t, agent, repo.Offer(repo.Publish(one, "1", 1, nil)), loaderv1.Outcome_OUTCOME_APPLIED)
	accept(one)
	second := repo.Publish(two, "2", 2, nil)
	apply(t, agent, repo.Offer(second), loaderv1.Outcome_OUTCOME_APPLIED)
	accept(two)
	tampered := repo.Offer(second)
	tampered.Module = append(slices.Clone(tampered.Module), 0)
	_, err := agent.Apply(ctx, tampered)
	wantRefused(t, err, "TAMPERED")
	if _, err := agent.ApplyLarge(ctx, repo.Offer(second), 1<<20); err == nil {
		t.Fatal("a module of another size was let in")
	}
	stranger := lab.Caller{Machine: m.Machine, UID: lab.UserUID, GID: lab.AgentUID}
	if _, err := stranger.Status(ctx); err == nil {
		t.Fatal("a stranger was served")
	}
	// A transition that does not end, and the one back.
	m.run("echo always > /sys/kernel/mm/transparent_hugepage/enabled")
	apply(t, agent, repo.Offer(repo.Publish(stuck, "9", 9, nil)).Wait(2*time.Second), loaderv1.Outcome_OUTCOME_TRANSITION_PENDING)
	if lp := find(t, agent, stuck.Name); lp.GetBlockerCount() == 0 {
		t.Errorf("livepatch = %v, want blockers", lp)
	}
	m.run("echo never > /sys/kernel/mm/transparent_hugepage/enabled")
	eventually(t, time.Minute, "transition ends", func() bool {
		return find(t, agent, stuck.Name).GetState() == loaderv1.State_STATE_ENABLED
	})
	repo.SetRollout("9", patch.Revoked)
	metadata, _ := repo.Metadata()
	if _, err := agent.Update(ctx, metadata); err != nil { // goes back to two
		t.Fatal(err)
	}
	m.wantAnswer("two")
	stop(t, m)
	// At boot: the accepted patch is not in the kernel.
	m.run("echo 0 > /sys/kernel/livepatch/" + two.Name + "/enabled; until rmmod " + two.Name + " 2>/dev/null; do sleep 0.2; done")
	m.run(record + " " + commandOf(t, "livepatch-loader-boot.service", "ExecStart"))
	m.wantAnswer("two")
	eventually(t, 2*time.Minute, "loader answers", func() bool { _, err := agent.Status(ctx); return err == nil })
	if _, err := agent.Remove(ctx, two.Name); err != nil {
		t.Fatal(err)
	}
	stop(t, m)
	m.run(record + " " + commandOf(t, "livepatch-loader-boot.service", "ExecStop"))
	// On a machine where it has never been.
	m.run(record + " " + strings.Replace(commandOf(t, "livepatch-loader-boot.service", "ExecStart"), "-state /var/lib/livepatch-loader", "-state /var/lib/first", 1))
}

// stop has the loader leave, as systemd does.
func stop(t *testing.T, m guest) {
	t.Helper()
	m.run("kill $(pidof livepatch-loader)")
	eventually(t, 30*time.Second, "loader leaves", func() bool { return m.run("pidof livepatch-loader || true") == "" })
}

// commandOf returns a command of a unit that we ship.
func commandOf(t *testing.T, unit, key string) string {
	t.Helper()
	text := string(readFile(t, filepath.Join("../../packaging/systemd", unit)))
	m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no %s", unit, key)
	}
	return m[1]
}

var (
	// A line of strace's: the thread, then a call, whole or the end of one.
	call = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed>)`)
	// The filter is installed: whole, or the end of the only call that was cut.
	filter = regexp.MustCompile(`^\d+ +(?:seccomp\(SECCOMP_SET_MODE_FILTER\b.*|<\.\.\. seccomp resumed>.*)= 0$`)
	// A constant of package unix in the source of the list.
	constant = regexp.MustCompile(`unix\.SYS_(\w+)`)
)

// callsBehindFilter returns the system calls in a trace of several processes, by
// name: those that each made after it had its filter.
func callsBehindFilter(trace string) map[string][]string {
	seen := map[string][]string{}
	behind := false
	for line := range strings.Lines(trace) {
		line = strings.TrimSpace(line)
		switch m := call.FindStringSubmatch(line); {
		case filter.MatchString(line):
			behind = true
		case strings.Contains(line, "execve(") && strings.HasSuffix(line, "= 0"):
			behind = false // the next process
		case behind && m != nil:
			seen[m[1]] = append(seen[m[1]], line)
		}
	}
	return seen
}

// refusedCall tells whether every one of some calls was refused.
func refusedCall(lines []string) bool {
	return !slices.ContainsFunc(lines, func(l string) bool { return !strings.Contains(l, "EPERM") })
}

// allowedCalls reads the list that the loader's filter is made from. What is only
// refused with an errno is not among them.
func allowedCalls(t *testing.T) (names []string) {
	t.Helper()
	source := string(readFile(t, "../../loader/internal/sandbox/sandbox.go"))
	for _, list := range []string{"\tAllow: []uintptr{", "\tIf: []confine.Rule{"} {
		_, text, ok := strings.Cut(source, list)
		text, _, end := strings.Cut(text, "\n\t},\n")
		if !ok || !end {
			t.Fatalf("the source of the loader's sandbox has no %q", list)
		}
		for _, m := range constant.FindAllStringSubmatch(text, -1) {
			names = append(names, strings.ToLower(m[1]))
		}
	}
	return names
}

func TestTraceIsRead(t *testing.T) {
	trace := strings.Join([]string{
		`100 execve("/usr/lib/livepatch/livepatch-loader", ["x"], 0x7 /* 2 vars */) = 0`,
		`100 socket(AF_UNIX, SOCK_STREAM, 0) = 3`,
		`100 seccomp(SECCOMP_SET_MODE_STRICT, 0, NULL) = -1 EINVAL (Invalid argument)`,
		`100 seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=9, filter=0xc}) = 0`,
		`101 futex(0xc, FUTEX_WAIT_PRIVATE, 0, NULL <unfinished ...>`,
		`100 --- SIGURG {si_signo=SIGURG} ---`,
		`100 openat(AT_FDCWD, "x", O_RDONLY) = 4`,
		`101 <... futex resumed>) = 0`,
		`101 <... nanosleep resumed>NULL) = 0`,
		`100 --- SIGURG {si_signo=SIGURG} ---`,
		`100 +++ exited with 0 +++`,
		`102 execve("/usr/lib/livepatch/livepatch-loader", ["x"], 0x7 /* 2 vars */) = 0`,
		`102 bind(3, {sa_family=AF_UNIX}, 2) = 0`,
		`102 seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, {len=9, filter=0xc} <unfinished ...>`,
		`103 socket(AF_UNIX, SOCK_STREAM, 0) = 3`,
		`102 <... seccomp resumed>)            = 0`,
		`102 getpid() = 102`,
	}, "\n")
	var got []string
	for name, lines := range callsBehindFilter(trace) {
		got = append(got, fmt.Sprint(name, len(lines)))
	}
	slices.Sort(got)
	if want := "[futex2 getpid1 nanosleep1 openat1]"; fmt.Sprint(got) != want {
		t.Errorf("seen = %v, want %s", got, want)
	}
}
