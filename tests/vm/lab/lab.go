// Package lab puts the whole system together for tests that need a real kernel:
// our programs as they are shipped, a service outside, a machine inside.
package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"livepatch/tests/vm/machine"
)

// Users and units of the machine.
const (
	AgentUID = 997  // the user "livepatch"
	UserUID  = 1000 // somebody else; member of no group but their own

	Agent  = "canonical-livepatchd"
	Loader = "livepatch-loader"
)

// programs are ours; those that run in the machine also lie in it, at the path in
// the second column.
var programs = []struct{ pkg, inMachine string }{
	{"livepatch/loader/cmd/livepatch-loader", "/usr/lib/livepatch/livepatch-loader"},
	{"livepatch/agent/cmd/canonical-livepatchd", "/usr/lib/livepatch/canonical-livepatchd"},
	{"livepatch/agent/cmd/canonical-livepatch", "/usr/bin/canonical-livepatch"},
	{"livepatch/server/cmd/livepatch-server", ""},
	{"livepatch/server/cmd/livepatch-admin", ""},
	{"livepatch/publisher/cmd/livepatch-publish", ""},
	{"livepatch/tests/vm/cmd/ask-loader", "/usr/local/bin/ask-loader"},
	{"livepatch/tests/vm/cmd/time-insmod", "/usr/local/bin/time-insmod"},
}

// A Lab holds what all machines and services of a run have in common.
type Lab struct {
	Cache  string // kernels and modules, kept between runs
	Bin    string // our programs, built for this run
	Kernel *machine.Kernel
	// Other is another release of the same kernel: its headers, to build for.
	Other *machine.Kernel
	Accel machine.Accel

	tree  string // root of the source tree
	tools *machine.Tools
}

// New builds our programs into bin, fetches the kernels into cache (by default
// .cache/vm of the tree) and finds out how machines can run here. Each step is
// told to note.
func New(ctx context.Context, cache, bin string, note func(step string, took time.Duration)) (*Lab, error) {
	tree, err := findTree(ctx)
	if err != nil {
		return nil, err
	}
	if cache == "" {
		cache = filepath.Join(tree, ".cache", "vm")
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return nil, err
	}
	l := &Lab{Cache: cache, Bin: bin, tree: tree}
	steps := []struct {
		name string
		do   func() error
	}{
		{"build the programs", func() error { return machine.Build(ctx, bin, packages()...) }},
		{"fetch Debian's kernel", func() (err error) {
			if l.Kernel, err = machine.Fetch(ctx, cache, "amd64", true); err != nil {
				return err
			}
			l.Other, err = machine.Fetch(ctx, cache, "cloud-amd64", false)
			return err
		}},
		{"find out how machines run here", func() (err error) {
			if l.tools, err = machine.NewTools(ctx, bin); err != nil {
				return err
			}
			l.Accel, err = machine.ProbeAccel(ctx, cache, l.Kernel, l.tools)
			return err
		}},
	}
	for _, s := range steps {
		start := time.Now()
		if err := s.do(); err != nil {
			return nil, err
		}
		note(s.name, time.Since(start))
	}
	return l, nil
}

func packages() []string {
	var list []string
	for _, p := range programs {
		list = append(list, p.pkg)
	}
	return list
}

// findTree returns the root of the module that the working directory is in.
func findTree(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("cannot find the source tree: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// Program returns the path of one of our programs on the host.
func (l *Lab) Program(name string) string { return filepath.Join(l.Bin, name) }

// A Patch says what to build from tests/vm/patches.
type Patch struct {
	Source  string          // name of the folder
	Version string          // of the patch; the last part of the module's name
	Answer  string          // what /proc/cmdline says where the patch is in force
	Padding int             // bytes to make the module larger by
	Kernel  *machine.Kernel // nil means the lab's
}

// A Module is a kernel module that was built.
type Module struct {
	Name    string // in the kernel
	File    string
	Content []byte
	// Cert is the file of the certificate whose key has signed it for the kernel;
	// empty if none has.
	Cert string
}

// Build builds a module.
func (l *Lab) Build(ctx context.Context, p Patch) (Module, error) {
	k := p.Kernel
	if k == nil {
		k = l.Kernel
	}
	src := machine.Source{
		File: filepath.Join(l.tree, "tests/vm/patches", p.Source, p.Source+".c"),
		Name: k.PatchName(p.Version),
	}
	if p.Answer != "" {
		src.Define = append(src.Define, fmt.Sprintf("ANSWER=%q", p.Answer))
	}
	if p.Padding > 0 {
		src.Define = append(src.Define, fmt.Sprintf("PADDING=%d", p.Padding))
	}
	file, err := k.BuildModule(ctx, l.Cache, src)
	if err != nil {
		return Module{}, err
	}
	content, err := os.ReadFile(file)
	return Module{Name: src.Name, File: file, Content: content}, err
}

// A Setup says what a machine of ours is like.
type Setup struct {
	Dir      string // an empty folder, for the disk and the logs
	Root     []byte // the TUF root that agent and loader are shipped with
	Service  string // address of the service on the host; empty means no network
	NoAgent  bool   // leave the agent stopped at boot
	Minimal  bool   // leave its programs out, too, and what the kernel logs at start
	MemoryMB int
	DiskMB   int    // 0 means 64
	Disk     string // as in [machine.Options]; then DiskMB says nothing
	Store    bool   // as in [machine.Options], and CPUs
	CPUs     int
	Append   string // to the kernel's command line
	// Firmware is as in [machine.Options].
	Firmware *machine.Firmware
	// RunLoader is put before the command of the loader's service, for a program
	// that watches it.
	RunLoader []string
	Files     []machine.File
}

// ServiceName is how the machine calls the service.
const ServiceName = "livepatch.test"

// The machine's network: itself, and the service.
const (
	machineAddress = "10.0.2.15/24"
	serviceAddress = "10.0.2.100"
	servicePort    = "8443"
)

// Boot starts a machine with our programs, installed as docs/how-to says. The
// caller must Close it.
func (l *Lab) Boot(ctx context.Context, s Setup) (*machine.Machine, error) {
	cfg, err := readUnits(filepath.Join(l.tree, "packaging/systemd"))
	if err != nil {
		return nil, err
	}
	opts := machine.Options{
		Dir: s.Dir, Kernel: l.Kernel, Tools: l.tools, Accel: l.Accel,
		MemoryMB: s.MemoryMB, CPUs: s.CPUs, Firmware: s.Firmware, DiskMB: s.DiskMB, Disk: s.Disk, Store: s.Store, Config: cfg, Append: s.Append,
		Files: append(l.machineFiles(s), s.Files...),
	}
	if opts.DiskMB == 0 && opts.Disk == "" {
		opts.DiskMB = 64
	}
	if s.Service != "" {
		opts.Config.Address = machineAddress
		opts.Forward = map[string]string{serviceAddress + ":" + servicePort: s.Service}
	}
	if s.NoAgent || s.Minimal {
		opts.Config.Units = opts.Config.Units[:1]
	}
	loader := &opts.Config.Units[0]
	loader.Command = append(slices.Clone(s.RunLoader), loader.Command...)
	if s.Minimal { // each line is sent by an emulated chip, letter by letter
		opts.Append += " loglevel=6"
	}
	return machine.Boot(ctx, opts)
}

// machineFiles returns our programs and what a Debian machine has in /etc.
func (l *Lab) machineFiles(s Setup) []machine.File {
	files := []machine.File{
		{Path: "/etc/livepatch/root.json", Data: s.Root},
		{Path: "/etc/os-release", Data: []byte("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n")},
		{Path: "/etc/machine-id", Data: []byte("6c6976657061746368746573746d6163\n")},
		{Path: "/etc/hosts", Data: fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n", serviceAddress, ServiceName)},
		{Path: "/etc/passwd", Data: fmt.Appendf(nil, "root:x:0:0:root:/root:/bin/sh\nlivepatch:x:%d:%d::/var/lib/canonical-livepatch:/bin/false\nuser:x:%d:%d::/:/bin/sh\n", AgentUID, AgentUID, UserUID, UserUID)},
		{Path: "/etc/group", Data: fmt.Appendf(nil, "root:x:0:\nlivepatch:x:%d:\nuser:x:%d:\n", AgentUID, UserUID)},
	}
	for _, p := range programs {
		if p.inMachine != "" && (!s.Minimal || !strings.Contains(p.pkg, "/agent/")) {
			files = append(files, machine.File{Path: p.inMachine, Mode: 0o755, Source: l.Program(filepath.Base(p.pkg))})
		}
	}
	return files
}
