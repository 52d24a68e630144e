package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"livepatch/internal/service"
)

// An installation is an agent and a loader on a kernel that is made of files.
// The loader runs as an ordinary user: whatever it is asked, it cannot load a
// module into the kernel of this machine.
type installation struct {
	s     *site
	dir   string
	agent *process
}

func (i *installation) path(name string) string { return filepath.Join(i.dir, name) }

// kernelFiles are what the programs read. No livepatch exists for this kernel,
// so that the machine is at rest once it knows that.
func kernelFiles() map[string][]byte {
	return map[string][]byte{
		"proc/sys/kernel/osrelease":                []byte("6.1.0-0-bench\n"),
		"proc/sys/kernel/random/boot_id":           []byte("0b5f7f3c-6a0e-4c5e-9d53-000000000000\n"),
		"proc/sys/kernel/ftrace_enabled":           []byte("1\n"),
		"proc/sys/kernel/tainted":                  []byte("0\n"),
		"proc/version":                             []byte("Linux version 6.1.0-0-bench (gcc) #1 SMP Debian 6.1.187-1 (2026-01-01)\n"),
		"proc/cpuinfo":                             []byte("model name\t: bench\n"),
		"proc/stat":                                []byte("btime 1790000000\n"),
		"proc/cmdline":                             []byte("quiet\n"),
		"etc/os-release":                           []byte("ID=debian\nVERSION_ID=\"12\"\n"),
		"sys/kernel/notes":                         buildIDNote(bytes.Repeat([]byte{0xb1}, 20)),
		"sys/kernel/livepatch/.keep":               nil,
		"sys/kernel/security/lockdown":             []byte("[none] integrity confidentiality\n"),
		"sys/module/module/parameters/sig_enforce": []byte("N\n"),
	}
}

// buildIDNote returns an ELF note NT_GNU_BUILD_ID (elf(5)).
func buildIDNote(id []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 4)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(id)))
	b = binary.NativeEndian.AppendUint32(b, 3)
	return append(append(b, "GNU\x00"...), id...)
}

// install starts a loader and an agent in dir and enrols the machine with the
// server at addr.
func install(ctx context.Context, s *site, addr string) (*installation, error) {
	i := &installation{s: s, dir: s.path("machine")}
	for name, content := range kernelFiles() {
		file := i.path(filepath.Join("kernel", name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, fmt.Errorf("cannot make kernel: %w", err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return nil, fmt.Errorf("cannot make kernel: %w", err)
		}
	}
	root, err := s.tool(ctx, "livepatch-publish", "--repo", s.path("repository"), "root", "show")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(i.path("root.json"), []byte(root), 0o644); err != nil {
		return nil, fmt.Errorf("cannot pin root: %w", err)
	}
	// The programs lie where a user other than root may start them.
	for _, name := range []string{"canonical-livepatchd", "livepatch-loader"} {
		if err := copyFile(filepath.Join(s.bin, name), i.path(name)); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"data", "run", "state"} {
		if err := i.folder(name); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot open folder: %w", err)
	}
	return i, i.start(ctx, addr)
}

// folder makes a folder that belongs to the user the programs run as.
func (i *installation) folder(name string) error {
	if err := os.Mkdir(i.path(name), 0o755); err != nil {
		return fmt.Errorf("cannot make folder: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	if err := os.Chown(i.path(name), nobody, nobody); err != nil {
		return fmt.Errorf("cannot give folder away: %w", err)
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("cannot copy program: %w", err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		return fmt.Errorf("cannot copy program: %w", err)
	}
	return nil
}

// user returns the uid that the programs run as.
func user() int {
	if uid := os.Geteuid(); uid != 0 {
		return uid
	}
	return nobody
}

func (i *installation) start(ctx context.Context, addr string) error {
	agent := exec.CommandContext(ctx, i.path("canonical-livepatchd"), "-data", i.path("data"), "-run", i.path("run"),
		"-loader", i.path("run/loader.sock"), "-root", i.path("root.json"), "-kernel", i.path("kernel"),
		"-allow-uid", fmt.Sprint(os.Geteuid()))
	agent.Dir = i.path("data")
	asNobody(agent)
	err := activate(ctx, i.path("run/loader.sock"), user(), func() *exec.Cmd { return i.loader(ctx) })
	if err != nil {
		return err
	}
	if i.agent, err = start(agent); err != nil {
		return err
	}
	if err := i.agent.until(ctx, "ready", 20*time.Second, func() bool {
		info, err := os.Stat(i.path("run/livepatchd-priv.sock"))
		return err == nil && info.Mode()&fs.ModeSocket != 0
	}); err != nil {
		return err
	}
	ca, err := os.ReadFile(i.s.path("server/tls/ca.crt"))
	if err != nil {
		return fmt.Errorf("cannot read CA: %w", err)
	}
	auth, err := i.s.authToken(ctx)
	if err != nil {
		return err
	}
	for _, call := range []struct {
		stdin []byte
		args  []string
	}{
		{ca, []string{"config", "ca-certs=@stdin"}},
		{nil, []string{"config", "remote-server=https://" + addr}},
		{nil, []string{"enable", auth}},
	} {
		if err := i.cli(ctx, call.stdin, call.args...); err != nil {
			return err
		}
	}
	return nil
}

// cli runs canonical-livepatch, and then waits until the loader has left.
func (i *installation) cli(ctx context.Context, stdin []byte, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(i.s.bin, "canonical-livepatch"), args...)
	cmd.Env = append(os.Environ(), "LIVEPATCH_RUN_DIR="+i.path("run"))
	cmd.Stdin = bytes.NewReader(stdin)
	if _, err := output(cmd); err != nil {
		return err
	}
	return i.agent.until(ctx, "alone", 20*time.Second, func() bool { return running(i.path("livepatch-loader")) == 0 })
}

// loader returns the command of a loader for the socket that it is handed.
func (i *installation) loader(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, i.path("livepatch-loader"), "-state", i.path("state"),
		"-root", i.path("root.json"), "-kernel", i.path("kernel"), "-agent-uid", fmt.Sprint(user()), "-idle", "3s")
	asNobody(cmd)
	return cmd
}

// atRest measures an enrolled agent between two check-ins, and what an
// unchanged check-in of it puts on the wire.
func atRest(ctx context.Context, s *site, watch time.Duration) ([]row, error) {
	tap, err := newTap(ctx, s.addr)
	if err != nil {
		return nil, err
	}
	i, err := install(ctx, s, tap.addr())
	if i != nil && i.agent != nil {
		defer i.agent.stop()
	}
	if err != nil {
		return nil, err
	}
	if err := i.cli(ctx, nil, "refresh"); err != nil {
		return nil, err
	}
	requests, err := s.requests(ctx)
	if err != nil {
		return nil, err
	}
	connections, wire := tap.connections.Load(), tap.sent.Load()+tap.received.Load()
	if err := i.cli(ctx, nil, "refresh"); err != nil {
		return nil, err
	}
	after, err := s.requests(ctx)
	if err != nil {
		return nil, err
	}
	perRefresh := func(route string) float64 { return float64(after[route] - requests[route]) }
	rows := []row{
		{What: "unchanged check-in: requests to the check-in plane", Unit: "", Measured: perRefresh(service.PathCheckIn), Limit: 1},
		{What: "unchanged check-in: requests for signed files", Unit: "", Limit: 1,
			Measured: perRefresh(service.PathMetadata+"{file}") + perRefresh(service.PathTargets+"{vendor}/{file}")},
		{What: "unchanged check-in: connections of the agent", Unit: "", Measured: float64(tap.connections.Load() - connections), Informative: true},
		{What: "unchanged check-in: bytes of the agent", Unit: "B", Informative: true,
			Measured: float64(tap.sent.Load() + tap.received.Load() - wire)},
	}
	atRest, err := i.watch(ctx, watch)
	return append(rows, atRest...), err
}

// watch leaves the agent alone and counts.
func (i *installation) watch(ctx context.Context, d time.Duration) ([]row, error) {
	wait := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-i.agent.done:
			return fmt.Errorf("agent ended:\n%s", i.agent.logs.String())
		case <-time.After(d):
			return nil
		}
	}
	if err := wait(5 * time.Second); err != nil {
		return nil, err
	}
	before, err := wakeUps(i.agent.pid())
	if err != nil {
		return nil, err
	}
	if err := wait(d); err != nil {
		return nil, err
	}
	after, err := wakeUps(i.agent.pid())
	if err != nil {
		return nil, err
	}
	rss, err := resident(i.agent.pid())
	if err != nil {
		return nil, err
	}
	return []row{
		{What: "agent at rest: RSS", Unit: "MB", Measured: rss, Limit: 20, Note: "VmRSS, with the pages of the program itself"},
		{What: "agent at rest: wake-ups a minute", Unit: "", Measured: float64(after-before) / d.Minutes(), Limit: restWakeUps,
			Note: fmt.Sprintf("voluntary context switches of all threads in %v; Go's runtime collects garbage every two minutes", d)},
		{What: "processes of the loader at rest", Unit: "", Measured: float64(running(i.path("livepatch-loader"))), Limit: 0,
			Note: "the only program that would be root; it leaves after 3 s here, 30 s by default"},
	}, nil
}

// restWakeUps is what "none beyond its timers" may cost: Go's runtime wakes up
// by itself to collect garbage and to give memory back.
const restWakeUps = 10
