package lab

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
	"regexp"
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
	AgentUID    = 64101
	StrangerUID = 64102
)

// Must ends the test with an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Folder returns a new folder that other users may enter.
func Folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "livepatch-test-")
	Must(t, err)
	Must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A Machine is a computer with our client on it: a kernel, a loader that is
// started when it is needed, and an agent once it is switched on.
type Machine struct {
	t      *testing.T
	Dir    string
	UID    int // the agent's
	Kernel *Kernel
	Loader *Activator
	Agent  *Process
	Log    *Transcript // of all agents
	boots  int

	Serves int           // uid that the loader takes requests from; the agent's
	Idle   time.Duration // after which it leaves
}

// NewMachine sets up a machine that trusts a TUF root. Its agent does not run.
func NewMachine(t *testing.T, pinned []byte) *Machine {
	t.Helper()
	m := &Machine{t: t, Dir: Folder(t), UID: os.Getuid(), Log: &Transcript{}, boots: 1, Idle: 2 * time.Second}
	if AsRoot {
		m.UID = AgentUID
	}
	m.Serves = m.UID
	m.Kernel = newKernel(t, m.Path("kernel"))
	Must(t, os.WriteFile(m.Path("root.json"), pinned, 0o644))
	Must(t, os.Mkdir(m.Path("loader"), 0o700))
	Must(t, os.Mkdir(m.Path("agent"), 0o755))
	Must(t, os.Chown(m.Path("agent"), m.UID, -1))
	m.Loader = activate(t, m.Path("loader.sock"), m.UID, 0o600, func() *exec.Cmd { return m.LoaderCommand() })
	showOnFailure(t, AgentBin, m.Log)
	return m
}

// Path returns where a file of the machine is, "agent/machine-token".
func (m *Machine) Path(name string) string { return filepath.Join(m.Dir, filepath.FromSlash(name)) }

// LoaderCommand returns the command of a loader as systemd runs it, with what
// more a test wants.
func (m *Machine) LoaderCommand(more ...string) *exec.Cmd {
	args := append([]string{
		"-state", m.Path("loader"), "-root", m.Path("root.json"), "-kernel", m.Kernel.Dir,
		"-agent-uid", fmt.Sprint(m.Serves), "-idle", m.Idle.String(),
	}, more...)
	return Program(context.Background(), 0, []string{"LIVEPATCH_FILE_KERNEL=" + m.Kernel.Dir}, LoaderBin, args...)
}

// OneShot runs the loader with a flag that makes it do one thing and leave.
func (m *Machine) OneShot(flag string) Result {
	m.t.Helper()
	return RunToEnd(m.t, m.LoaderCommand(flag))
}

// Client returns a client of the loader.
func (m *Machine) Client() loaderv1.LoaderServiceClient {
	m.t.Helper()
	conn, err := grpc.NewClient("unix:"+m.Path("loader.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	Must(m.t, err)
	m.t.Cleanup(func() { conn.Close() })
	return loaderv1.NewLoaderServiceClient(conn)
}

// SwitchOn starts the agent.
func (m *Machine) SwitchOn(env ...string) {
	m.t.Helper()
	cmd := Program(context.Background(), m.UID, env, AgentBin, m.AgentArgs()...)
	m.Agent = Start(m.t, AgentBin, cmd, m.Log)
	m.awaitAgent()
}

// AgentArgs returns the flags that the agent is started with.
func (m *Machine) AgentArgs() []string {
	return []string{
		"-data", m.Path("agent"), "-run", m.Path("agent"), "-loader", m.Path("loader.sock"),
		"-root", m.Path("root.json"), "-kernel", m.Kernel.Dir,
	}
}

// awaitAgent waits until the agent answers.
func (m *Machine) awaitAgent() {
	m.t.Helper()
	Eventually(m.t, "agent answers", func() bool {
		if m.Agent.ended() {
			m.t.Fatalf("agent ended: %v\n%s", m.Agent.err, m.Log)
		}
		return !strings.Contains(m.CLI("status").Stderr, "Connection to the daemon failed")
	})
}

// CLI runs the command canonical-livepatch as the administrator.
func (m *Machine) CLI(args ...string) Result { m.t.Helper(); return m.CLIWith("", args...) }

// CLIWith is cli with standard input.
func (m *Machine) CLIWith(stdin string, args ...string) Result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := Program(ctx, 0, []string{"LIVEPATCH_RUN_DIR=" + m.Path("agent")}, CLIBin, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return RunToEnd(m.t, cmd)
}

// OK runs the command, which must succeed, and returns what it printed.
func (m *Machine) OK(args ...string) string {
	m.t.Helper()
	r := m.CLI(args...)
	if r.Code != 0 {
		m.t.Fatalf("canonical-livepatch %s: %v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// Reboot ends everything, empties the kernel and boots it again. An orderly
// reboot lets the loader note it; a crash does not.
func (m *Machine) Reboot(orderly bool) {
	m.t.Helper()
	if m.Agent != nil {
		m.Agent.Kill()
	}
	if orderly {
		m.Loader.stop() // its unit ends before the one that runs -shutdown
		if r := m.OneShot("-shutdown"); r.Code != 0 {
			m.t.Fatalf("loader -shutdown: %v", r)
		}
	}
	m.Loader.Kill()
	m.boots++
	m.Kernel.boot(m.boots)
}

// InForce returns the names of the livepatches that are in force, as the kernel
// says.
func (m *Machine) InForce() []string {
	var names []string
	for _, name := range m.Kernel.Livepatches() {
		dir := "sys/kernel/livepatch/" + name + "/"
		if m.Kernel.read(dir+"enabled") == "1" && m.Kernel.read(dir+"transition") == "0" {
			names = append(names, name)
		}
	}
	return names
}

// A Journal is what the loader remembers, as far as tests look at it.
type Journal struct {
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

// Journal reads the loader's journal.
func (m *Machine) Journal() Journal {
	m.t.Helper()
	var j Journal
	b, err := os.ReadFile(m.Path("loader/journal.json"))
	if os.IsNotExist(err) {
		return j
	}
	Must(m.t, err)
	Must(m.t, json.Unmarshal(b, &j))
	return j
}

// Standing returns what the journal says of a livepatch, "" if nothing.
func (m *Machine) Standing(name string) string {
	m.t.Helper()
	for _, e := range m.Journal().Entries {
		if e.Name == name {
			return e.Standing
		}
	}
	return ""
}

// A Footprint is everything on a machine that a request which is refused has to
// leave alone: by path the hash of a file, and the calls that reached the kernel.
type Footprint map[string]string

// Footprint takes the journal, the modules kept for boot, the token and the cache
// of the agent. What changes even if nothing happens is left out: the agent's
// notes on how the last check went, and locks. With signedFiles, what is known of
// signed metadata belongs to it, too, and the index of the kernel.
func (m *Machine) Footprint(signedFiles bool) Footprint {
	m.t.Helper()
	f := Footprint{"kernel": fmt.Sprint(m.Kernel.Calls(), m.Kernel.Insertions(), m.Kernel.Modules())}
	for _, top := range []string{"loader", "agent"} {
		err := filepath.WalkDir(m.Path(top), func(path string, d fs.DirEntry, err error) error {
			name, _ := filepath.Rel(m.Dir, path)
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
			if !signedFiles && name == "loader/journal.json" {
				b = rolloutWord.ReplaceAll(b, nil)
			}
			sum := sha256.Sum256(b)
			f[name] = hex.EncodeToString(sum[:8])
			return err
		})
		Must(m.t, err)
	}
	return f
}

// rolloutWord is what the journal keeps of signed files: what they say of a patch.
var rolloutWord = regexp.MustCompile(`,"rollout":"[a-z]+"`)

// WantSame fails the test unless two footprints are alike.
func WantSame(t *testing.T, before, after Footprint) {
	t.Helper()
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if before[name] != after[name] {
			t.Errorf("%s has changed: %q, was %q", name, after[name], before[name])
		}
	}
}
