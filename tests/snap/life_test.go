//go:build snap

package snap

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"livepatch/tests/snap/denial"
	"livepatch/tests/vm/debian"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// What the snap is called, and where it keeps things.
const (
	name   = "canonical-livepatch"
	common = "/var/snap/canonical-livepatch/common"
)

// plugs are those that a store's assertion connects.
var plugs = []string{"kernel-module-control", "kernel-livepatch", "kernel-identity"}

// A life is a machine, its service, and the secrets that nobody may find anywhere.
type life struct {
	*session
	system
	secrets []string
}

// TestSnap is the life of the snap on a machine, as its user lives it: installed,
// set up with every mistake that one can make, patched, rebooted, refreshed,
// reverted, disabled, removed. Its parts go on from each other.
func TestSnap(t *testing.T) {
	sys := newSystem(t)
	sys.publish(t, "1", "one")
	ca, err := os.ReadFile(sys.service.CA)
	if err != nil {
		t.Fatal(err)
	}
	first, second, third := sys.pack(t, "1.0"), sys.pack(t, "1.1"), sys.pack(t, "1.2", "SYSTEM_USER=_daemon_")
	l := life{system: sys, session: boot(t, sys.service,
		append(buildProbes(t),
			machine.File{Path: "/root/1.0.snap", Source: first}, machine.File{Path: "/root/1.1.snap", Source: second},
			machine.File{Path: "/root/1.2.snap", Source: third}, machine.File{Path: "/root/ca.crt", Data: ca})...,
	)}
	parts := []struct {
		name string
		do   func()
	}{
		{"is installed", l.install},
		{"refuses a wrong token and says why", l.wrongToken},
		{"keeps a token until the service can be reached", l.noService},
		{"says which interfaces are missing", l.noInterface},
		{"patches the kernel once they are connected", l.connect},
		{"tells its story and no secrets", l.story},
		{"has the privileges that it needs and no others", l.inside},
		{"has one configuration behind two doors", l.configuration},
		{"stays patched while the service is away", l.serviceAway},
		{"waits quietly without snapd, and has no root process at rest", l.quiet},
		{"is patched after a reboot without network", l.reboot},
		{"stays patched over a refresh, and gets the next patch", l.refresh},
		{"stays patched over a revert", l.revert},
		{"is disabled", l.disable},
		{"is removed, and the kernel stays patched", l.remove},
		{"runs as _daemon_ where snapd knows it, and takes its patch along if told so", l.secondLife},
	}
	defer l.wantOnlyExpectedDenials()
	for _, p := range parts {
		ok := t.Run(p.name, func(t *testing.T) {
			start := time.Now()
			l.in(t, p.do)
			t.Logf("took %.0fs", time.Since(start).Seconds())
		})
		if !ok {
			return
		}
	}
}

func (l *life) install() {
	l.does("snap install --dangerous /root/1.0.snap")
	l.does("snap list")
	l.does("snap services "+name).says(l.t, name+".canonical-livepatchd", "active")
	l.types("canonical-livepatch status").says(l.t, "Machine is not enabled")
	l.wantAnswer(own)
}

// setUp names the service.
const setUp = `snap set canonical-livepatch remote-server=` + lab.ServiceURL + ` ca-certs="$(cat /root/ca.crt)"`

// setToken sets the token that was offered last.
const setToken = `snap set canonical-livepatch token="$(cat /root/token)"`

// offer puts a token where setToken takes it from: what is typed is kept.
func (l *life) offer(token string) {
	if err := l.WriteFile(l.t.Context(), "/root/token", []byte(token)); err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) wrongToken() {
	l.does(setUp)
	wrong := "00000000000000000000000000000000"
	l.secrets = append(l.secrets, wrong)
	l.offer(wrong)
	l.refuses(setToken, "error:", "hint:")
	l.refuses("snap set canonical-livepatch check-interval=never", "check-interval", "hint:")
	l.refuses("snap get canonical-livepatch token")
	l.wantAnswer(own)
}

func (l *life) noService() {
	l.network(false)
	token := l.token(l.t)
	l.secrets = append(l.secrets, token)
	l.offer(token)
	l.does(setToken)
	l.types("canonical-livepatch status").says(l.t, "waiting for the service")
	l.does("snap get canonical-livepatch token").says(l.t, "set")
	l.network(true)
	l.eventually("the machine is enrolled", func() bool {
		return !strings.Contains(l.command("canonical-livepatch status"), "Machine is not enabled")
	})
	l.takeSecret(common + "/agent/machine-token")
}

func (l *life) noInterface() {
	l.types("canonical-livepatch refresh")
	l.eventually("status names what to connect", func() bool {
		return strings.Contains(l.command("canonical-livepatch status"), "snap connect canonical-livepatch:")
	})
	l.does("canonical-livepatch status --verbose")
	l.does("snap info canonical-livepatch").says(l.t, "health:", "blocked")
	l.wantAnswer(own)
}

func (l *life) connect() {
	for _, p := range plugs {
		l.does("snap connect canonical-livepatch:" + p)
	}
	l.does("snap connections canonical-livepatch")
	l.wantApplied("1", "one")
	l.does("canonical-livepatch status --verbose").says(l.t, "applied")
}

// story reads what the user can read.
func (l *life) story() {
	l.eventually("the patch is accepted", func() bool {
		return strings.Contains(l.command("canonical-livepatch status --verbose"), "accepted, applied again at boot")
	})
	logs := l.does("snap logs -n=all canonical-livepatch")
	wantInOrder(l.t, logs.out, "Started", "Enrolment waits", "Enabled", "Applied livepatch", "Accepted livepatch")
	l.does("snap services")
	l.does("snap get -d canonical-livepatch").says(l.t, `"token": "set"`)
	if out := l.does("snap list canonical-livepatch").out; strings.Contains(out, "blocked") || strings.Contains(out, "waiting") || strings.Contains(out, "error") {
		l.t.Errorf("health is not okay:\n%s", out)
	}
	l.asUser("canonical-livepatch status --verbose").says(l.t, "applied")
	l.wantNoSecrets()
}

// configuration changes something through each of the two doors.
func (l *life) configuration() {
	l.does("snap set canonical-livepatch check-interval=120")
	l.does("canonical-livepatch config").says(l.t, "check-interval: 120")
	l.does("canonical-livepatch config check-interval=180")
	l.does("snap get canonical-livepatch check-interval").says(l.t, "180")
	l.does("snap unset canonical-livepatch check-interval")
	l.does("canonical-livepatch config").says(l.t, "check-interval")
}

// serviceAway takes the service away, and has the daemon start while it is.
func (l *life) serviceAway() {
	if err := l.service.Stop(); err != nil {
		l.t.Fatal(err)
	}
	l.refuses("canonical-livepatch refresh", "error:", "hint:")
	l.waitsQuietly(time.Minute)
	l.does("canonical-livepatch status").says(l.t, "applied")
	l.wantAnswer("one")
	if err := l.service.Start(l.service.Address); err != nil {
		l.t.Fatal(err)
	}
	l.refreshes()
}

// quiet takes snapd away for two minutes and more, which is as long as the loader
// may stay after its last request: the daemon's at its start.
func (l *life) quiet() {
	l.run("systemctl mask --now snapd.service snapd.socket")
	l.waitsQuietly(2*time.Minute + 30*time.Second)
	l.does("snap run canonical-livepatch status").says(l.t, "applied")
	l.wantNoRootProcess()
	l.run("systemctl unmask snapd.service snapd.socket; systemctl start snapd.socket snapd.service")
}

// waitsQuietly starts the daemon anew and wants it to stay, without a word too much,
// for a time.
func (l *life) waitsQuietly(d time.Duration) {
	l.t.Helper()
	unit := service("canonical-livepatchd")
	pid := func() string { return l.run("systemctl show -P MainPID " + unit) }
	since := l.run("systemctl restart " + unit + " && date '+%F %T'")
	started := pid()
	select {
	case <-time.After(d):
	case <-l.t.Context().Done():
	}
	if now := pid(); now != started {
		l.t.Errorf("the daemon has started again, as process %s after %s", now, started)
	}
	l.wantNoRestarts()
	lines := l.does("journalctl --no-pager -o cat -u " + unit + " --since '" + since + "'")
	if n := strings.Count(lines.out, "\n"); n > 20 {
		l.t.Errorf("the daemon wrote %d lines in %v, want at most 20:\n%s", n, d, lines.out)
	}
}

func (l *life) reboot() {
	l.keepJournal()
	l.network(false)
	if err := l.Reboot(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	l.wantAnswer("one")
	l.does("cat /proc/cmdline")
	l.wantApplied("1", "one")
	l.does("snap logs -n=all canonical-livepatch")
	order := l.run("journalctl -b -o cat --no-pager -u 'snap.canonical-livepatch.*' | grep -n -E 'Finished.*boot|Started.*canonical-livepatchd' || true")
	wantInOrder(l.t, order, "boot", "canonical-livepatchd")
	l.network(true)
	l.refreshes()
}

func (l *life) refresh() {
	before := l.loaderJournal()
	l.does("snap install --dangerous /root/1.1.snap") // what "snap refresh" does without a store
	l.wantAnswer("one")
	l.does("snap list "+name).says(l.t, "1.1")
	l.wantApplied("1", "one")
	if after := l.loaderJournal(); after != before {
		l.t.Logf("the loader's journal was %s\nand is %s", before, after)
	}
	l.publish(l.t, "2", "two")
	l.refreshes()
	l.wantApplied("2", "two")
	l.eventually("the second patch is accepted", func() bool {
		return strings.Contains(l.command("canonical-livepatch status --verbose"), "accepted, applied again at boot")
	})
	l.does("snap get -d canonical-livepatch").says(l.t, `"token": "set"`)
}

func (l *life) revert() {
	l.does("snap revert canonical-livepatch")
	l.does("snap list "+name).says(l.t, "1.0")
	l.wantApplied("2", "two")
	l.refreshes()
	l.does("canonical-livepatch status --verbose").says(l.t, "applied")
}

func (l *life) disable() {
	l.wantNoSecrets()
	l.does("canonical-livepatch disable")
	l.types("canonical-livepatch status").says(l.t, "Machine is not enabled")
	l.refuses("snap get canonical-livepatch token")
	l.wantAnswer("two")
}

func (l *life) remove() {
	l.wantNoRestarts()
	l.does("snap remove canonical-livepatch")
	l.wantAnswer("two")
	out := l.does("journalctl --no-pager -o cat -b --since=-10min")
	out.says(l.t, "stays in the kernel")
	if left := l.run("ps -e -o user:20,args | grep -i '[l]ivepatch' | grep -v 'init manage' || true"); left != "" {
		l.t.Errorf("processes are left:\n%s", left)
	}
	l.keepJournal()
}

// secondLife is that of a build whose agent is the user _daemon_, which snapd has
// from 2.61 on; an older one refuses the snap. It is removed with its patch.
func (l *life) secondLife() {
	const install = "snap install --dangerous /root/1.2.snap"
	if disk.Suite == debian.Bookworm {
		l.refuses(install, "_daemon_")
		return
	}
	l.does(install)
	for _, p := range plugs {
		l.does("snap connect canonical-livepatch:" + p)
	}
	l.publish(l.t, "3", "three")
	l.offer(l.token(l.t))
	l.does(setUp + ` token="$(cat /root/token)" remove-patch=true`)
	l.wantApplied("3", "three")
	const daemon = "584792"
	wantFields(l.t, l.status("canonical-livepatchd"), map[string]string{"Uid": strings.Join([]string{daemon, daemon, daemon, daemon}, " "), "CapEff": none})
	l.does("snap remove canonical-livepatch")
	l.wantAnswer(own)
	l.keepJournal()
}

// refreshes checks in with the service, once the daemon and the network are up.
func (l *life) refreshes() {
	l.t.Helper()
	l.eventually("a refresh succeeds", func() bool { return l.types("canonical-livepatch refresh").code == 0 })
}

// network plugs the cable in or pulls it.
func (l *life) network(up bool) {
	l.t.Helper()
	if err := l.Network(up); err != nil {
		l.t.Fatal(err)
	}
}

// command runs a command that may fail and returns what it printed.
func (l *life) command(command string) string {
	return l.run("(" + command + ") 2>&1 || true")
}

// asUser types a command as an ordinary user who has logged in: snapd 2.77 refuses
// the commands of a snap to a user without a session.
func (l *life) asUser(command string) typed {
	l.t.Helper()
	return l.does("runuser -l user -c '" + command + "'")
}

// takeSecret adds what a file holds to the secrets.
func (l *life) takeSecret(file string) {
	l.secrets = append(l.secrets, l.run("tr -d '\\n' < "+file))
}

// wantApplied waits until status says that a version is applied, and asks the
// kernel.
func (l *life) wantApplied(version, answer string) {
	l.t.Helper()
	l.eventually("status says that version "+version+" is applied", func() bool {
		state, v := l.patchState()
		return state == "applied" && v == version
	})
	l.wantAnswer(answer)
}

// patchState returns the state and version of the patch as status says in JSON.
func (l *life) patchState() (state, version string) {
	var got struct {
		Status []struct {
			Livepatch struct{ State, Version string }
		}
	}
	out := l.command("canonical-livepatch status --format json")
	if json.Unmarshal([]byte(out), &got) != nil || len(got.Status) == 0 {
		return out, ""
	}
	return got.Status[0].Livepatch.State, got.Status[0].Livepatch.Version
}

// loaderJournal returns what the loader remembers.
func (l *life) loaderJournal() string { return l.run("cat " + common + "/loader/journal.json") }

// wantNoSecrets looks for what is secret where users, and those who are sent a bug
// report, look.
func (l *life) wantNoSecrets() {
	l.t.Helper()
	const secrets, grep = "/root/secrets", "grep -F -f /root/secrets"
	if err := l.WriteFile(l.t.Context(), secrets, []byte(strings.Join(l.secrets, "\n"))); err != nil {
		l.t.Fatal(err)
	}
	places := map[string]string{
		"the journal":                        "journalctl --no-pager -o cat | " + grep,
		"what snapd shows":                   "(snap get -d canonical-livepatch; snap changes; snap connections) | " + grep,
		"the configuration":                  "canonical-livepatch config | " + grep,
		"a command line, or an environment":  "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n' | " + grep,
		"a file that others can read":        "find /var/snap /var/lib/snapd /run/snapd /tmp -xdev -type f -perm /077 -exec " + grep + " -l {} +",
		"a file of root that is not snapd's": "find /var/snap /etc /run -xdev -type f -user root -exec " + grep + " -l {} +",
	}
	for place, command := range places {
		if found := l.run("(" + command + ") 2>/dev/null || true"); found != "" {
			l.t.Errorf("a secret is in %s:\n%s", place, found)
		}
	}
}

// wantNoRestarts fails the test if systemd has started any of our services again.
func (l *life) wantNoRestarts() {
	l.t.Helper()
	out := l.run("systemctl show -p Id,NRestarts 'snap.canonical-livepatch.*.service'")
	for n := range strings.Lines(out) {
		if count, ok := strings.CutPrefix(strings.TrimSpace(n), "NRestarts="); ok && count != "0" {
			l.t.Errorf("a service was restarted:\n%s", out)
		}
	}
}

// wantInOrder fails the test unless the words are in text, in this order.
func wantInOrder(t *testing.T, text string, words ...string) {
	t.Helper()
	rest := text
	for _, w := range words {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Errorf("%q is missing, or before %q:\n%s", w, words[0], text)
			return
		}
		rest = after
	}
}

// wantOnlyExpectedDenials looks at all that was refused in all of the test.
func (l *life) wantOnlyExpectedDenials() {
	console, err := l.Console()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, line := range denial.Lost(string(console)) {
		l.t.Errorf("the kernel's log is not complete: %s", line)
	}
	log := string(console)
	if before, rest, ok := strings.Cut(log, probesBegin); ok {
		_, after, _ := strings.Cut(rest, probesEnd)
		log = before + after
	}
	for _, d := range denial.Unexpected(denial.Parse(log), expected) {
		l.t.Errorf("denied, and not on the list: %s", d)
	}
}
