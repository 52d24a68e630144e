// Package inprocess runs agents of the product in the simulator of rollouts, tests/sim:
// with a kernel in memory, and a service that is called and not dialled. Production
// code must not import it.
package inprocess

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing/fstest"

	"livepatch/agent/internal/agent"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/loadertest"
	"livepatch/internal/patch"
)

// A Machine is an agent with the kernel and the loader that it talks to.
type Machine struct {
	kernel patch.Kernel
	dir    string
	root   []byte
	call   Call
	loader *dying
	agent  *agent.Agent
}

// New returns a machine whose files are in a folder. The agent begins with a TUF root.
// It is enabled with an auth token.
func New(ctx context.Context, dir string, k patch.Kernel, root []byte, call Call, token string) (*Machine, error) {
	m := &Machine{kernel: k, dir: dir, root: root, call: call, loader: &dying{Fake: loadertest.New(k)}}
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return nil, fmt.Errorf("cannot make agent: %w", err)
	}
	m.agent, err = agent.New(agent.Options{
		Log: slog.New(slog.DiscardHandler), Data: dir, Root: root, Kernel: files(k), Loader: m.loader, Vendor: "debian", Version: "v1.0.0",
		Connect: func(config.Config) (agent.Service, error) { return client{call}, nil },
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make agent: %w", err)
	}
	if _, err := m.agent.Enable(ctx, token); err != nil {
		return nil, fmt.Errorf("cannot enable agent: %w", err)
	}
	return m, nil
}

// Run lets the machine live until ctx is done, or the patch has killed it.
func (m *Machine) Run(ctx context.Context) {
	ctx, die := context.WithCancel(ctx)
	defer die()
	m.loader.onInsert(die)
	_ = m.agent.Run(ctx) // says only that ctx is done
}

// Kill makes the patch kill the machine as soon as it is in the kernel.
func (m *Machine) Kill() { m.loader.deadly = true }

// Patched tells whether a patch has been in the kernel.
func (m *Machine) Patched() (patched bool) {
	m.loader.Do(func(f *loadertest.Fake) { patched = len(f.Applied) > 0 })
	return patched
}

// dying is a loader of a kernel that a patch may kill.
type dying struct {
	*loadertest.Fake
	deadly bool

	mu  sync.Mutex
	die func()
}

func (d *dying) onInsert(die func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.die = die
}

// Apply is [loadertest.Fake.Apply], from which a machine may not come back.
func (d *dying) Apply(ctx context.Context, r loader.Request) (loader.Result, error) {
	res, err := d.Fake.Apply(ctx, r)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.deadly && d.die != nil {
		d.die()
		return loader.Result{}, context.Canceled
	}
	return res, err
}

// files are those of a machine that the agent reads.
func files(k patch.Kernel) fstest.MapFS {
	id, err := hex.DecodeString(string(k.BuildID))
	if err != nil {
		panic(err) // it was checked when it was made
	}
	var note []byte
	for _, n := range []uint32{4, uint32(len(id)), 3} { // as elf(5) lays out NT_GNU_BUILD_ID
		note = binary.NativeEndian.AppendUint32(note, n)
	}
	note = append(append(note, "GNU\x00"...), id...)
	return fstest.MapFS{
		"proc/sys/kernel/osrelease":      {Data: []byte(k.Release + "\n")},
		"proc/sys/kernel/random/boot_id": {Data: []byte("0b6a4a63-7b36-4a2e-8a0d-6e1f5a5c9d11\n")},
		"proc/stat":                      {Data: []byte("btime 946684000\n")},
		"etc/os-release":                 {Data: []byte("ID=debian\n")},
		"sys/kernel/notes":               {Data: note},
	}
}
