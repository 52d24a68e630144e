package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// An inserted is what tests/vm/bench writes: how long each insertion of one
// module took, in one virtual machine. Times are nanoseconds.
type inserted struct {
	Kernel      string               `json:"kernel"`
	Accel       string               `json:"accel"`
	ModuleBytes int                  `json:"module_bytes"`
	Insmod      []float64            `json:"insmod_ns"`
	Loader      []float64            `json:"loader_ns"`
	Steps       map[string][]float64 `json:"steps_ns"`
	Cold        float64              `json:"cold_ns"`
}

// steps of an Apply, in their order.
var steps = []string{"check", "insert", "settle"}

// insertion measures the loader beside insmod, in a virtual machine.
func insertion(ctx context.Context, times int) ([]row, error) {
	cmd := exec.CommandContext(ctx, "go", "run", "./tests/vm/bench", "-n", strconv.Itoa(times))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("cannot measure in a virtual machine: %w", err)
	}
	var in inserted
	if err := json.Unmarshal(out, &in); err != nil {
		return nil, fmt.Errorf("cannot read what tests/vm/bench measured: %w", err)
	}
	return in.rows(), nil
}

func (in inserted) rows() []row {
	ours, theirs := milliseconds(in.Loader), milliseconds(in.Insmod)
	rows := []row{{
		What: "loader: Apply until finit_module returned", Unit: "ms", Limit: 1.5, Relative: true,
		Measured: median(ours), Samples: ours, Peer: median(theirs), PeerSamples: theirs, PeerName: "insmod",
		Note: fmt.Sprintf("module of %d bytes, kernel %s, %s; medians of %d, in turns", in.ModuleBytes, in.Kernel, in.Accel, len(ours)),
	}}
	for _, name := range steps {
		took := milliseconds(in.Steps[name])
		rows = append(rows, row{What: "  of it " + name, Unit: "ms", Measured: median(took), Samples: took, Informative: true})
		if name == "settle" {
			rows[len(rows)-1].What = "  then " + name
		}
	}
	return append(rows, row{
		What: "loader: first Apply, starting the loader, in force", Unit: "ms", Measured: milliseconds([]float64{in.Cold})[0], Informative: true,
	})
}

func milliseconds(ns []float64) []float64 {
	ms := make([]float64, len(ns))
	for i, n := range ns {
		ms[i] = n / float64(time.Millisecond)
	}
	return ms
}
