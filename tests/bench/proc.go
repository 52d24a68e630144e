package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU time in /proc/<pid>/stat: USER_HZ, which is 100 on
// every architecture that we build for.
const tick = 10 * time.Millisecond

// cpu returns the CPU time that the processes have used since they started.
func cpu(pids ...int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("cannot read CPU time: %w", err)
		}
		used, err := parseStat(b)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// parseStat returns utime + stime of a /proc/<pid>/stat (proc(5), fields 14 and
// 15). The name of the program, field 2, may hold spaces and parentheses.
func parseStat(b []byte) (time.Duration, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, fmt.Errorf("cannot read CPU time: stat is %q", b)
	}
	fields := strings.Fields(string(b[i+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("cannot read CPU time: stat is %q", b)
	}
	var total time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cannot read CPU time: %w", err)
		}
		total += time.Duration(n) * tick
	}
	return total, nil
}

// children returns the processes whose parent is pid.
func children(pid int) ([]int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, fmt.Errorf("cannot list children of %d: %w", pid, err)
	}
	var pids []int
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("cannot list children of %d: %w", pid, err)
		}
		for _, f := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				return nil, fmt.Errorf("cannot list children of %d: %w", pid, err)
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// status returns a number of /proc/<pid>/status.
func status(path, field string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", field, err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if f := strings.Fields(value); name == field && len(f) > 0 {
			return strconv.ParseInt(f[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("cannot read %s: %s has no such line", field, path)
}

// resident returns the memory that a process has in RAM, in MB (10⁶ bytes).
func resident(pid int) (float64, error) {
	kib, err := status(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
	return float64(kib) * 1024 / 1e6, err
}

// wakeUps returns how often the threads of a process were put on a CPU after
// they had gone to sleep by themselves.
func wakeUps(pid int) (int64, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("cannot count wake-ups of %d: %w", pid, os.ErrNotExist)
	}
	var total int64
	for _, file := range files {
		n, err := status(file, "voluntary_ctxt_switches")
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// running returns how many processes of a program there are.
func running(program string) int {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return 0 // the pattern is a constant
	}
	n := 0
	for _, link := range links {
		// A process that ends meanwhile, or is somebody else's, is not ours.
		if exe, err := os.Readlink(link); err == nil && exe == program {
			n++
		}
	}
	return n
}

// median returns the middle one of samples, which it sorts.
func median(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return s[len(s)/2]
}
