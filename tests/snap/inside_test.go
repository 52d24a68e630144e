//go:build snap

package snap

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"livepatch/tests/vm/machine"
)

// Where the probe and its helper lie in the machine. The helper has to lie where
// the confinement lets programs be started.
const (
	probePath   = "/root/probe"
	sandboxPath = "/root/sandbox.test"
	helperPath  = common + "/probe-sandbox"
)

// buildProbes builds what stands in for agent and loader: the probe, and the tests
// of the loader's sandbox.
func buildProbes(t *testing.T) []machine.File {
	t.Helper()
	dir := t.TempDir()
	if err := machine.Build(t.Context(), dir, "livepatch/tests/snap/probe"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", filepath.Join(dir, "sandbox.test"), "livepatch/loader/internal/sandbox")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the tests of the sandbox: %v\n%s", err, out)
	}
	return []machine.File{
		{Path: probePath, Mode: 0o755, Source: filepath.Join(dir, "probe")},
		{Path: sandboxPath, Mode: 0o755, Source: filepath.Join(dir, "sandbox.test")},
	}
}

// inside looks at the snap's processes while they work, and then lets somebody
// take over each of them.
func (l *life) inside() {
	l.agentFromOutside()
	filters := l.loaderFromOutside()
	// Nobody is to call the loader while somebody else is in its place, and no call
	// is to wait for it.
	l.run("systemctl stop " + service("canonical-livepatchd") + " " + service("loader") + " && systemctl restart snap.canonical-livepatch.loader.grpc.socket")
	l.kernelLog(probesBegin)
	l.agentTakenOver()
	l.loaderTakenOver(filters)
	l.kernelLog(probesEnd)
	l.run("systemctl start " + service("canonical-livepatchd"))
	l.refreshes()
}

// Lines of the kernel's log, between which all that is denied is denied to the
// probes.
const (
	probesBegin = "tests: the probes begin"
	probesEnd   = "tests: the probes end"
)

// kernelLog writes a line into the kernel's log.
func (l *life) kernelLog(line string) { l.run("echo '" + line + "' > /dev/kmsg") }

// service returns the unit of an app.
func service(app string) string { return "snap.canonical-livepatch." + app + ".service" }

// status returns what the kernel says of the main process of a service.
func (l *life) status(app string) map[string]string {
	l.t.Helper()
	pid := l.run("systemctl show -P MainPID " + service(app))
	if pid == "0" {
		l.t.Fatalf("%s does not run", app)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(l.does("cat /proc/" + pid + "/status").out) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	fields["profile"] = strings.Trim(l.run("cat /proc/"+pid+"/attr/current"), "\x00")
	return fields
}

// snapDaemon is the user and group of snapd's "snap_daemon".
const snapDaemon = "584788"

// none is a set without any capability.
const none = "0000000000000000"

func (l *life) agentFromOutside() {
	four := strings.Join([]string{snapDaemon, snapDaemon, snapDaemon, snapDaemon}, " ")
	wantFields(l.t, l.status("canonical-livepatchd"), map[string]string{
		"Uid": four, "Gid": four, "Groups": "", "CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2",
		"profile": "snap.canonical-livepatch.canonical-livepatchd (enforce)",
	})
}

// loaderFromOutside makes the loader work and returns how many filters it has.
func (l *life) loaderFromOutside() (filters int) {
	l.does("canonical-livepatch refresh")
	status := l.status("loader")
	wantFields(l.t, status, map[string]string{
		"Uid": "0 0 0 0", "NoNewPrivs": "1", "Seccomp": "2", "profile": "snap.canonical-livepatch.loader (enforce)",
	})
	filters, err := strconv.Atoi(status["Seccomp_filters"])
	if err != nil {
		l.t.Fatal(err)
	}
	// A socket that is not of this machine's unix domain would be in one of these.
	sockets := l.run(fmt.Sprintf("ls -l /proc/%s/fd | sed -n 's/.*socket:\\[\\([0-9]*\\)\\]/\\1/p'", status["Pid"]))
	if sockets == "" {
		l.t.Error("the loader has no socket at all, want the agent's connection")
	}
	for _, inode := range strings.Fields(sockets) {
		if found := l.run("grep -l -w " + inode + " /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 /proc/net/raw /proc/net/raw6 /proc/net/packet /proc/net/netlink 2>/dev/null || true"); found != "" {
			l.t.Errorf("the loader has a socket that is in %s", found)
		}
		if l.run("grep -c -w "+inode+" /proc/net/unix || true") == "0" {
			l.t.Errorf("the loader has a socket, %s, that is no unix socket", inode)
		}
	}
	return filters
}

// takeOver lets the probe stand in for a program of an app, in the confinement
// that snapd gives it, and returns what it reports.
func (l *life) takeOver(app, program string, env ...string) (r struct {
	Status, Tries, Sandbox map[string]string
}) {
	l.t.Helper()
	in := "/snap/canonical-livepatch/current/bin/" + program
	unit := service(app)
	var dropIn strings.Builder
	dropIn.WriteString("[Service]\nRestart=no\n")
	for _, e := range env {
		fmt.Fprintf(&dropIn, "Environment=\"%s\"\n", e)
	}
	folder := "/run/systemd/system/" + unit + ".d"
	l.run("mkdir -p " + folder)
	if err := l.WriteFile(l.t.Context(), folder+"/probe.conf", []byte(dropIn.String())); err != nil {
		l.t.Fatal(err)
	}
	l.run("systemctl daemon-reload && mount --bind " + probePath + " " + in)
	defer l.run("umount " + in + "; rm -r " + folder + "; systemctl daemon-reload; systemctl reset-failed " + unit)
	l.run("systemctl start " + unit)
	var line string
	l.eventually("the probe in place of "+app+" reports", func() bool {
		line = l.run("journalctl -o cat --no-pager -u " + unit + " | grep '^{\"role\"' || true")
		return line != "" && l.run("systemctl is-active "+unit+" || true") != "active"
	})
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		l.t.Fatalf("cannot read the report of the probe in place of %s: %v\n%s", app, err, line)
	}
	return r
}

func (l *life) agentTakenOver() {
	r := l.takeOver("canonical-livepatchd", "canonical-livepatchd", "LIVEPATCH_PROBE=agent")
	wantFields(l.t, r.Status, map[string]string{"CapPrm": none, "CapEff": none, "Groups": ""})
	allowed := map[string]bool{"open a socket": true, "read which kernel runs": true}
	for try, got := range r.Tries {
		if refused := got == "EPERM" || got == "EACCES"; refused == allowed[try] || !refused && got != "ok" {
			l.t.Errorf("in place of the agent, %s: %s", try, got)
		}
	}
	if n := len(r.Tries); n != agentTries {
		l.t.Errorf("in place of the agent %d things were tried, want %d", n, agentTries)
	}
}

// agentTries is how many things the probe tries as the agent.
const agentTries = 15

// sandboxed is what the loader's sandbox makes of tries, also where snapd would
// allow them. The names are those of loader/internal/sandbox.
var sandboxed = map[string]string{
	"an internet socket":               "operation not permitted",
	"an internet socket, version 6":    "operation not permitted",
	"a unix socket":                    "operation not permitted",
	"a netlink socket":                 "operation not permitted",
	"another program in its own place": "operation not permitted",
	"a new process":                    "SIGSYS: bad system call",
	"a module by init_module":          "SIGSYS: bad system call",
	"tracing a process":                "SIGSYS: bad system call",
	"mounting":                         "SIGSYS: bad system call",
	"a file in its state":              "ok",
	"many threads":                     "ok",
}

func (l *life) loaderTakenOver(filters int) {
	var tries []string
	for try := range sandboxed {
		tries = append(tries, try)
	}
	l.run("cp " + sandboxPath + " " + helperPath)
	r := l.takeOver("loader", "livepatch-loader",
		"LIVEPATCH_PROBE=loader", "LIVEPATCH_SANDBOX="+helperPath, "LIVEPATCH_TRIES="+strings.Join(tries, ";"))
	l.run("rm " + helperPath + "; rm -r " + common + "/loader/probe")
	// That snapd allows it the network is why the loader has a sandbox of its own.
	wantFields(l.t, r.Tries, map[string]string{"open a socket": "ok", "list livepatches": "ok", "trace a process": "EPERM"})
	for try, want := range sandboxed {
		if got := r.Sandbox[try]; !strings.HasSuffix(got, want) {
			l.t.Errorf("in the loader's sandbox, %s: %q, want %q", try, got, want)
		}
	}
	snapds, err := strconv.Atoi(r.Status["Seccomp_filters"])
	if err != nil || filters <= snapds {
		l.t.Errorf("the loader has %d filters, want more than snapd's own %d (%v)", filters, snapds, err)
	}
}

// wantFields fails the test for each field that is not as it should be.
func wantFields(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s = %q, want %q", name, got[name], value)
		}
	}
}

// wantNoRootProcess fails the test if a process of ours that belongs to root stays. A
// heartbeat may have started the loader just now, which leaves once it was idle for half
// a minute.
func (l *life) wantNoRootProcess() {
	l.t.Helper()
	var left []string
	for range 20 {
		if left = l.rootProcesses(); len(left) == 0 {
			return
		}
		l.run("sleep 5")
	}
	l.t.Errorf("%q run as root", left)
}

// rootProcesses returns the programs of ours that run as root.
func (l *life) rootProcesses() (programs []string) {
	l.t.Helper()
	processes := l.run("for p in /proc/[0-9]*; do echo \"$(stat -c %u $p) $(readlink $p/exe)\"; done 2>/dev/null")
	for line := range strings.Lines(processes) {
		if uid, exe, _ := strings.Cut(strings.TrimSpace(line), " "); uid == "0" && strings.HasPrefix(exe, "/snap/canonical-livepatch/") {
			programs = append(programs, exe)
		}
	}
	return programs
}
