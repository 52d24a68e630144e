//go:build vm

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
)

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), os.Getenv("LIVEPATCH_CACHE"), t.TempDir(), func(step string, took time.Duration) {
		t.Logf("%s: %.1fs", step, took.Seconds())
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// shortDir returns a folder whose path leaves room for the name of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "powercut")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// testLog lets a report note things in a test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// TestPowerCuts is a short campaign; "make powercut N=200" is a long one.
func TestPowerCuts(t *testing.T) {
	l, dir := newLab(t), shortDir(t)
	r := newReport(testLog{t})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const cuts = 8
	err := campaign{lab: l, dir: dir, cuts: cuts, jobs: 1, seed: seed}.run(t.Context(), r)
	var table strings.Builder
	r.print(&table)
	t.Logf("\n%s", table.String())
	if err != nil {
		t.Error(err)
	}
	if len(r.violations) > 0 {
		t.Errorf("%d promises were broken: go run ./tests/vm/powercut -seed %d -n %d -jobs 1", len(r.violations), seed, cuts)
	}
	if err == nil && r.total() != cuts {
		t.Errorf("%d cuts were counted, want %d", r.total(), cuts)
	}
}

// TestWritesThatWereNotFlushedAreLost holds the disk to what the campaign relies
// on, as seen from inside the machine.
func TestWritesThatWereNotFlushedAreLost(t *testing.T) {
	v := newTestVictim(t, newReport(testLog{t}))
	run := func(command string) string {
		res, err := v.machine.Run(t.Context(), command)
		if err != nil || res.Code != 0 {
			t.Fatalf("%s: %+v, %v", command, res, err)
		}
		return strings.TrimSpace(res.Stdout)
	}
	run("printf '%4096s' | tr ' ' o > /var/file; cp /var/file /var/flushed; sync")
	// Past the cache of the file system: the disk itself has both. A flush is for
	// all of the disk, so it comes first.
	run("printf '%4096s' | tr ' ' n > /tmp/new; dd if=/tmp/new of=/var/flushed bs=4096 oflag=direct conv=notrunc,fsync 2>/dev/null")
	run("dd if=/tmp/new of=/var/file bs=4096 oflag=direct conv=notrunc 2>/dev/null")
	if got := run("head -c 1 /var/file; head -c 1 /var/flushed"); got != "nn" {
		t.Fatalf("the files begin with %q", got)
	}
	v.disk.Cut()
	v.machine.PowerOff()
	if err := v.start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if got := run("head -c 1 /var/file; head -c 1 /var/flushed"); got != "on" {
		t.Errorf("after the cut the files begin with %q, want the old and the new", got)
	}
}

// TestCampaignNoticesADiskThatLies takes the floor from under the loader: where
// nothing is ever durable, promises are broken, and that must be seen.
func TestCampaignNoticesADiskThatLies(t *testing.T) {
	r := newReport(testLog{t})
	v := newTestVictim(t, r)
	v.disk.IgnoreFlush = true
	if err := v.apply(t.Context(), v.fresh(), 0); err != nil {
		t.Fatal(err)
	}
	answered, err := v.cut(moment{after: time.Minute}, func() error { return v.accept(t.Context()) })
	if err != nil || !answered {
		t.Fatalf("accept: %t, %v", answered, err)
	}
	if err := v.after(accepting, v.newest(), moment{}, answered); err != nil {
		t.Fatal(err)
	}
	if err := v.start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	o, err := observe(t.Context(), v.machine)
	if err != nil {
		t.Fatal(err)
	}
	violations := strings.Join(v.model.check(o), "\n")
	for _, want := range []string{"floor is 0", "metadata has version 0", `journal says ""`} {
		if !strings.Contains(violations, want) {
			t.Errorf("violations lack %q:\n%s", want, violations)
		}
	}
}

// newTestVictim makes a machine for one test.
func newTestVictim(t *testing.T, r *report) *victim {
	t.Helper()
	l := newLab(t)
	p, err := newPatches(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(shortDir(t), "machine")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	v, err := newVictim(context.WithoutCancel(t.Context()), l, dir, p, 1, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.close)
	return v
}

// TestRenamedModuleIsOneToTheKernel lets the kernel say so.
func TestRenamedModuleIsOneToTheKernel(t *testing.T) {
	v := newTestVictim(t, newReport(testLog{t}))
	for _, sequence := range []uint64{2, 123456} {
		p := v.patches.get(sequence)
		if err := v.apply(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		v.model.applied(p)
		o, err := observe(t.Context(), v.machine)
		if err != nil {
			t.Fatal(err)
		}
		if o.answer != p.answer || fmt.Sprint(o.loaded) != fmt.Sprint([]string{p.Name}) {
			t.Errorf("kernel answers %q with %q loaded, want %+v", o.answer, o.loaded, p)
		}
	}
}
