//go:build integration

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
)

// The users of a machine, where tests run as root.
const (
	agentUID    = 64101
	strangerUID = 64102
)

// must ends the test with an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// folder returns a new folder that other users may enter.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "livepatch-test-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A machine is a computer with our client on it: a kernel, a loader that is
// started when it is needed, and an agent once it is switched on.
type machine struct {
	t      *testing.T
	dir    string
	uid    int // the agent's
	kernel *kernel
	loader *activator
	agent  *process
	log    *transcript // of all agents
	boots  int

	serves int           // uid that the loader takes requests from; the agent's
	idle   time.Duration // after which it leaves
}

// newMachine sets up a machine that trusts a TUF root. Its agent does not run.
func newMachine(t *testing.T, pinned []byte) *machine {
	t.Helper()
	m := &machine{t: t, dir: folder(t), uid: os.Getuid(), log: &transcript{}, boots: 1, idle: 300 * time.Millisecond}
	if root {
		m.uid = agentUID
	}
	m.serves = m.uid
	m.kernel = newKernel(t, m.path("kernel"))
	must(t, os.WriteFile(m.path("root.json"), pinned, 0o644))
	must(t, os.Mkdir(m.path("loader"), 0o700))
	must(t, os.Mkdir(m.path("agent"), 0o755))
	must(t, os.Chown(m.path("agent"), m.uid, -1))
	m.loader = activate(t, m.path("loader.sock"), m.uid, 0o600, func() *exec.Cmd { return m.loaderCommand() })
	showOnFailure(t, agentBin, m.log)
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, filepath.FromSlash(name)) }

// loaderCommand returns the command of a loader as systemd runs it, with what
// more a test wants.
func (m *machine) loaderCommand(more ...string) *exec.Cmd {
	args := append([]string{
		"-state", m.path("loader"), "-root", m.path("root.json"), "-kernel", m.kernel.dir,
		"-agent-uid", fmt.Sprint(m.serves), "-idle", m.idle.String(),
	}, more...)
	return program(context.Background(), 0, []string{"LIVEPATCH_FILE_KERNEL=" + m.kernel.dir}, loaderBin, args...)
}

// oneShot runs the loader with a flag that makes it do one thing and leave.
func (m *machine) oneShot(flag string) result {
	m.t.Helper()
	return runToEnd(m.t, m.loaderCommand(flag))
}

// client returns a client of the loader.
func (m *machine) client() loaderv1.LoaderServiceClient {
	m.t.Helper()
	conn, err := grpc.NewClient("unix:"+m.path("loader.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(m.t, err)
	m.t.Cleanup(func() { conn.Close() })
	return loaderv1.NewLoaderServiceClient(conn)
}

// switchOn starts the agent.
func (m *machine) switchOn(env ...string) {
	m.t.Helper()
	cmd := program(context.Background(), m.uid, env, agentBin, m.agentArgs()...)
	m.agent = start(m.t, agentBin, cmd, m.log)
	m.awaitAgent()
}

func (m *machine) agentArgs() []string {
	return []string{
		"-data", m.path("agent"), "-run", m.path("agent"), "-loader", m.path("loader.sock"),
		"-root", m.path("root.json"), "-kernel", m.kernel.dir,
	}
}

// awaitAgent waits until the agent answers.
func (m *machine) awaitAgent() {
	m.t.Helper()
	eventually(m.t, "agent answers", func() bool {
		if m.agent.ended() {
			m.t.Fatalf("agent ended: %v\n%s", m.agent.err, m.log)
		}
		return !strings.Contains(m.cli("status").stderr, "Connection to the daemon failed")
	})
}

// cli runs the command canonical-livepatch as the administrator.
func (m *machine) cli(args ...string) result { m.t.Helper(); return m.cliWith("", args...) }

// cliWith is cli with standard input.
func (m *machine) cliWith(stdin string, args ...string) result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := program(ctx, 0, []string{"LIVEPATCH_RUN_DIR=" + m.path("agent")}, cliBin, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return runToEnd(m.t, cmd)
}

// ok runs the command, which must succeed, and returns what it printed.
func (m *machine) ok(args ...string) string {
	m.t.Helper()
	r := m.cli(args...)
	if r.code != 0 {
		m.t.Fatalf("canonical-livepatch %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

// reboot ends everything, empties the kernel and boots it again. An orderly
// reboot lets the loader note it; a crash does not.
func (m *machine) reboot(orderly bool) {
	m.t.Helper()
	if m.agent != nil {
		m.agent.kill()
	}
	if orderly {
		if r := m.oneShot("-shutdown"); r.code != 0 {
			m.t.Fatalf("loader -shutdown: %v", r)
		}
	}
	m.loader.kill()
	m.boots++
	m.kernel.boot(m.boots)
}

// inForce returns the names of the livepatches that are in force, as the kernel
// says.
func (m *machine) inForce() []string {
	var names []string
	for _, name := range m.kernel.livepatches() {
		dir := "sys/kernel/livepatch/" + name + "/"
		if m.kernel.read(dir+"enabled") == "1" && m.kernel.read(dir+"transition") == "0" {
			names = append(names, name)
		}
	}
	return names
}

// A journal is what the loader remembers, as far as tests look at it.
type journal struct {
	Entries []struct {
		patch.Module
		Digest   patch.Digest
		Standing string
		BootID   string `json:"boot_id"`
		Proven   bool   // accepted once, and perhaps on its way in again
	}
	Floors map[patch.BuildID]struct {
		Sequence uint64
		Digest   patch.Digest
	}
}

// journal reads the loader's journal.
func (m *machine) journal() journal {
	m.t.Helper()
	var j journal
	b, err := os.ReadFile(m.path("loader/journal.json"))
	if os.IsNotExist(err) {
		return j
	}
	must(m.t, err)
	must(m.t, json.Unmarshal(b, &j))
	return j
}

// standing returns what the journal says of a livepatch, "" if nothing.
func (m *machine) standing(name string) string {
	m.t.Helper()
	for _, e := range m.journal().Entries {
		if e.Name == name {
			return e.Standing
		}
	}
	return ""
}

// A footprint is everything on a machine that a request which is refused has to
// leave alone: by path the hash of a file, and the calls that reached the kernel.
type footprint map[string]string

// footprint takes the journal, the modules kept for boot, the token and the cache
// of the agent. What changes even if nothing happens is left out: the agent's
// notes on how the last check went, and locks. With signedFiles, what is known of
// signed metadata belongs to it, too, and the index of the kernel.
func (m *machine) footprint(signedFiles bool) footprint {
	m.t.Helper()
	f := footprint{"kernel": fmt.Sprint(m.kernel.calls(), m.kernel.insertions(), m.kernel.modules())}
	for _, top := range []string{"loader", "agent"} {
		err := filepath.WalkDir(m.path(top), func(path string, d fs.DirEntry, err error) error {
			name, _ := filepath.Rel(m.dir, path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // it was there a moment ago
			case err != nil:
				return err
			case d.IsDir() || !d.Type().IsRegular() || slices.Contains([]string{"loader/lock", "agent/lock", "agent/state.json"}, name):
				return nil
			case !signedFiles && (name == "loader/trust.json" || strings.HasPrefix(name, "agent/cache/") && !strings.HasPrefix(name, "agent/cache/blobs/")):
				return nil
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) || !signedFiles && strings.HasPrefix(name, "agent/cache/blobs/") && json.Valid(b) {
				return nil
			}
			sum := sha256.Sum256(b)
			f[name] = hex.EncodeToString(sum[:8])
			return err
		})
		must(m.t, err)
	}
	return f
}

// wantSame fails the test unless two footprints are alike.
func wantSame(t *testing.T, before, after footprint) {
	t.Helper()
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if before[name] != after[name] {
			t.Errorf("%s has changed: %q, was %q", name, after[name], before[name])
		}
	}
}
