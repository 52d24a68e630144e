package lab

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	loaderv1 "livepatch/proto/loader/v1"
)

// An Insertion holds how long each of several insertions of one module took, in
// one machine: by insmod, and by the loader. Times are nanoseconds in JSON.
type Insertion struct {
	Kernel      string        `json:"kernel"`
	Accel       string        `json:"accel"`
	ModuleBytes int           `json:"module_bytes"`
	Boot        time.Duration `json:"boot_ns"`
	// Insmod is from the start of the process to its end.
	Insmod []time.Duration `json:"insmod_ns"`
	// Loader is from the caller's beginning of Apply until finit_module has
	// returned, as the kernel's own trace has it.
	Loader []time.Duration `json:"loader_ns"`
	// Steps are the parts of each Apply: "check" is all that comes before
	// finit_module, "insert" the system call, and "settle", which is not in Loader,
	// what comes after it, the transition and the answer.
	Steps map[string][]time.Duration `json:"steps_ns"`
	// Cold is one Apply that had to start the loader first, as the agent sees it:
	// from its call to the response, transition included.
	Cold time.Duration `json:"cold_ns"`
}

// moduleSize is that of the module that is measured, in bytes: the padding that
// makes it so is found from the size without.
const moduleSize = 250 << 10

// MeasureInsertion inserts a module of 250 KiB n times with insmod and n times
// with the loader, in turns, in a machine in dir.
func (l *Lab) MeasureInsertion(ctx context.Context, dir string, n int) (*Insertion, error) {
	repo := l.NewRepo()
	mod, err := l.largeModule(ctx)
	if err != nil {
		return nil, err
	}
	m, err := l.Boot(ctx, Setup{Dir: dir, Root: repo.Root(), NoAgent: true})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := m.WriteFile(ctx, "/root/module.ko", mod.Content); err != nil {
		return nil, err
	}
	in := &Insertion{
		Kernel: l.Kernel.Release, Accel: string(l.Accel), ModuleBytes: len(mod.Content),
		Boot: m.BootTime(), Steps: make(map[string][]time.Duration),
	}
	agent := AgentOf(m)
	target := repo.Publish(mod, "1", 1, nil)
	start := time.Now()
	if _, err := agent.Apply(ctx, repo.Offer(target)); err != nil {
		return nil, err
	}
	in.Cold = time.Since(start)
	for range n {
		// Taking it out first leaves each turn with the kernel as it found it.
		if _, err := agent.Remove(ctx, mod.Name); err != nil {
			return nil, err
		}
		res, err := m.Run(ctx, "time-insmod 1 /root/module.ko "+mod.Name)
		if err != nil {
			return nil, err
		}
		took, err := strconv.ParseInt(strings.TrimSpace(res.Stdout), 10, 64)
		if err != nil || res.Code != 0 {
			return nil, fmt.Errorf("cannot measure insmod: %s%s", res.Stdout, res.Stderr)
		}
		in.Insmod = append(in.Insmod, time.Duration(took))
		if err := in.measure(ctx, agent, repo.Offer(target)); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// tracing is where the kernel is asked to trace; its clock is the one that
// ask-loader tells the time by (Documentation/trace/ftrace.rst).
const tracing = "/sys/kernel/tracing/"

// measure applies an offer while the kernel traces finit_module.
func (in *Insertion) measure(ctx context.Context, c Caller, o *Offer) error {
	encoded, err := o.encode()
	if err != nil {
		return err
	}
	if _, err := c.Machine.Run(ctx, "cd "+tracing+" && echo mono > trace_clock && echo > trace && echo 1 | tee events/syscalls/sys_*_finit_module/enable"); err != nil {
		return err
	}
	resp := new(loaderv1.ApplyResponse)
	if err := c.call(ctx, "ask-loader -clock /tmp/clock apply", encoded, resp); err != nil {
		return err
	}
	res, err := c.Machine.Run(ctx, "cat /tmp/clock; echo 0 | tee "+tracing+"events/syscalls/sys_*_finit_module/enable >/dev/null; grep sys_finit_module "+tracing+"trace")
	if err != nil {
		return err
	}
	return in.add(res.Stdout)
}

// event matches when, in seconds, the kernel entered and left finit_module.
var event = regexp.MustCompile(`(\d+\.\d+): sys_finit_module(\(| -> 0x0)`)

// add notes one Apply: a line with the clock at its beginning and end, in
// nanoseconds, and the trace.
func (in *Insertion) add(text string) error {
	var began, ended int64
	if _, err := fmt.Sscan(text, &began, &ended); err != nil {
		return fmt.Errorf("cannot read the clock in %q: %w", text, err)
	}
	marks := []int64{began}
	for _, m := range event.FindAllStringSubmatch(text, -1) {
		seconds, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return fmt.Errorf("cannot read trace: %w", err)
		}
		marks = append(marks, int64(seconds*1e9))
	}
	marks = append(marks, ended)
	if len(marks) != 4 || !slices.IsSorted(marks) {
		return fmt.Errorf("cannot find one insertion in trace: %q", text)
	}
	for i, name := range []string{"check", "insert", "settle"} {
		in.Steps[name] = append(in.Steps[name], time.Duration(marks[i+1]-marks[i]))
	}
	in.Loader = append(in.Loader, time.Duration(marks[2]-began))
	return nil
}

// largeModule builds a livepatch of the size that is measured.
func (l *Lab) largeModule(ctx context.Context) (Module, error) {
	p := Patch{Source: "answer", Version: "250", Answer: "large"}
	small, err := l.Build(ctx, p)
	if err != nil {
		return Module{}, err
	}
	p.Padding = max(1, moduleSize-len(small.Content))
	return l.Build(ctx, p)
}
