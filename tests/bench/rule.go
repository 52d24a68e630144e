package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// perStep is how many signs of life BenchmarkStep of the rule takes at a time.
const perStep = 500

// ruleAlone measures the rule without server, database and network.
func ruleAlone(ctx context.Context) ([]row, error) {
	out, err := output(exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkStep$/^kernels=10$", "-timeout", "20m",
		"./server/internal/rollout"))
	if err != nil {
		return nil, err
	}
	steps := parseSteps(out)
	if len(steps) < 2 {
		return nil, fmt.Errorf("cannot find the rule's figures in %q", out)
	}
	var rows []row
	for _, s := range steps {
		rows = append(rows, row{What: "rule alone: an event, " + count(s.trials) + " under watch", Unit: "µs", Measured: s.event, Informative: true})
	}
	first, last := steps[0], steps[len(steps)-1]
	return append(rows, row{
		What: fmt.Sprintf("rule alone: an event, from %s to %s", count(first.trials), count(last.trials)), Unit: "µs",
		Measured: last.event, Peer: first.event, PeerName: "at " + count(first.trials), Relative: true, Limit: latencyGrowth,
		Note: "signs of life, 500 at an instant, of machines of ten kernels",
	}), nil
}

// A stepped is how long the rule takes for an event.
type stepped struct {
	trials int
	event  float64 // µs
}

var benchmarkStep = regexp.MustCompile(`(?m)^BenchmarkStep/kernels=\d+/trials=(\d+)(?:-\d+)?\s+\d+\s+([0-9.]+) ns/op`)

// parseSteps reads what go test prints, https://go.dev/design/14313-benchmark-format.
func parseSteps(out string) (steps []stepped) {
	for _, m := range benchmarkStep.FindAllStringSubmatch(out, -1) {
		trials, err := strconv.Atoi(m[1])
		ns, bad := strconv.ParseFloat(m[2], 64)
		if err == nil && bad == nil {
			steps = append(steps, stepped{trials, ns / perStep / 1000})
		}
	}
	return steps
}
