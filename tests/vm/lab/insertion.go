package lab

import (
	"context"
	"fmt"
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
	// Loader is from the start of Apply until finit_module has returned.
	Loader []time.Duration `json:"loader_ns"`
	// Steps are the parts of each Apply, by name; "transition" and "unload" come
	// after finit_module and are not in Loader.
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
		resp, err := agent.Apply(ctx, repo.Offer(target))
		if err != nil {
			return nil, err
		}
		in.add(resp)
	}
	return in, nil
}

// add notes the steps of an Apply.
func (in *Insertion) add(resp *loaderv1.ApplyResponse) {
	var total time.Duration
	inserted := false
	for _, s := range resp.GetSteps() {
		took := s.GetTook().AsDuration()
		in.Steps[s.GetName()] = append(in.Steps[s.GetName()], took)
		if !inserted {
			total += took
		}
		inserted = inserted || s.GetName() == "insert"
	}
	in.Loader = append(in.Loader, total)
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
