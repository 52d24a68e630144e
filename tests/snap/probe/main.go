// Command probe stands in for a program of the snap, in the very confinement that
// snapd gives that program, and tries what somebody would who has taken it over.
// What came of each try is one line of JSON on standard output.
//
//	probe agent -user UID …    as the agent, once it is no longer root
//	probe loader …             as the loader, before its own sandbox and in it
//
// It is started by snapd, with the arguments of the program it stands in for, so
// what it is comes from the environment: LIVEPATCH_PROBE is "agent" or "loader",
// LIVEPATCH_SANDBOX a program that enters the loader's sandbox (the tests of
// loader/internal/sandbox), LIVEPATCH_TRIES what that is to try, parted by ";".
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A report is what the probe found.
type report struct {
	Role    string            `json:"role"`
	Status  map[string]string `json:"status"`  // of the process, from /proc
	Tries   map[string]string `json:"tries"`   // by name: "ok" or the error
	Sandbox map[string]string `json:"sandbox"` // what the loader's sandbox made of tries
}

func main() {
	r, err := probe(os.Getenv("LIVEPATCH_PROBE"), os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe: error:", err)
		os.Exit(1)
	}
}

func probe(role string, args []string) (report, error) {
	r := report{Role: role}
	var list map[string]func() error
	common := os.Getenv("SNAP_COMMON")
	switch role {
	case "agent":
		if err := become(args); err != nil {
			return r, err
		}
		list = agentTries(common)
	case "loader":
		list = loaderTries()
		r.Sandbox = inSandbox(os.Getenv("LIVEPATCH_SANDBOX"), filepath.Join(common, "loader", "probe"), strings.Split(os.Getenv("LIVEPATCH_TRIES"), ";"))
	default:
		return r, fmt.Errorf("cannot be %q: want agent or loader", role)
	}
	r.Tries = make(map[string]string)
	for name, try := range list {
		r.Tries[name] = outcome(try())
	}
	status, err := os.ReadFile("/proc/self/status")
	r.Status = fields(string(status))
	return r, err
}

// outcome returns an error as its number is called, without what was tried.
func outcome(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	default:
		return err.Error()
	}
}

// fields reads "Name: value" lines.
func fields(status string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(status) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			m[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return m
}

// become gives up root for the user behind "-user", as the agent does.
func become(args []string) error {
	i := slices.Index(args, "-user")
	if i < 0 || i+1 == len(args) {
		return errors.New("cannot find -user among the arguments")
	}
	id, err := strconv.Atoi(args[i+1])
	if err != nil {
		return err
	}
	if err := unix.Setgroups(nil); err != nil {
		return fmt.Errorf("cannot leave root's groups: %w", err)
	}
	if err := unix.Setgid(id); err != nil {
		return fmt.Errorf("cannot become group %d: %w", id, err)
	}
	if err := unix.Setuid(id); err != nil {
		return fmt.Errorf("cannot become user %d: %w", id, err)
	}
	return nil
}

// agentTries are what the agent's user must not be able to do, and at the end what
// it must.
func agentTries(common string) map[string]func() error {
	loader := filepath.Join(common, "loader")
	return map[string]func() error{
		"load a module":                finitModule,
		"load a module by init_module": initModule,
		"unload a module":              deleteModule,
		"list livepatches":             reading("/sys/kernel/livepatch"),
		"list the loader's state":      reading(loader),
		"read the loader's journal":    reading(filepath.Join(loader, "journal.json")),
		"write into the loader's state": func() error {
			return os.WriteFile(filepath.Join(loader, "planted"), nil, 0o600)
		},
		"move the loader's state away": func() error { return os.Rename(loader, loader+".moved") },
		"plant a file beside it":       func() error { return os.WriteFile(filepath.Join(common, "planted"), nil, 0o600) },
		"become root":                  func() error { return unix.Setuid(0) },
		"read the kernel's log":        reading("/dev/kmsg"),
		"mount":                        func() error { return unix.Mount("tmpfs", common, "tmpfs", 0, "") },
		"trace a process":              func() error { return unix.PtraceAttach(1) },
		"open a socket":                inetSocket,
		"read which kernel runs":       reading("/sys/kernel/notes"),
	}
}

// loaderTries are what the loader's confinement by snapd lets it do or not. That
// it may have a socket is what its own sandbox is there for.
func loaderTries() map[string]func() error {
	return map[string]func() error{
		"open a socket":    inetSocket,
		"list livepatches": reading("/sys/kernel/livepatch"),
		"mount":            func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
		"trace a process":  func() error { return unix.PtraceAttach(1) },
	}
}

// inSandbox returns what a program printed that enters the loader's sandbox for
// each try, or its last words.
func inSandbox(program, state string, tries []string) map[string]string {
	results := make(map[string]string)
	for _, try := range tries {
		cmd := exec.Command(program)
		cmd.Env = []string{"LIVEPATCH_TRY=" + try, "LIVEPATCH_STATE=" + state}
		out, err := cmd.CombinedOutput()
		first, _, _ := strings.Cut(string(out), "\n")
		if first == "" {
			first = fmt.Sprint(err)
		}
		results[try] = first
	}
	return results
}

// reading returns a try to read a file or folder.
func reading(path string) func() error {
	return func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.IsDir() {
			_, err = f.Readdirnames(0)
			return err
		}
		_, err = f.Read(make([]byte, 1))
		return err
	}
}

func inetSocket() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// finitModule offers the kernel something that is no module: who may load one is
// asked first.
func finitModule() error {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func initModule() error { return unix.InitModule([]byte("no module"), "") }

func deleteModule() error { return unix.DeleteModule("no_such_module", unix.O_NONBLOCK) }
