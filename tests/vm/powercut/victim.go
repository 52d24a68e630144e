package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"time"

	"livepatch/tests/vm/disk"
	"livepatch/tests/vm/lab"
	"livepatch/tests/vm/machine"
)

// diskMB is the size of the disk in MiB. It holds the loader's state only.
const diskMB = 16

// A victim is a machine whose power is cut again and again, and what we know
// about it.
type victim struct {
	model   model
	report  *report
	patches *patches
	random  *rand.Rand
	repo    *lab.Repo // without any patch; each offer has one of its own
	meta    int       // version of the signed metadata, one for each offer
	next    uint64    // sequence number of the next patch
	stale   *lab.Offer

	machine *machine.Machine
	disk    *disk.Disk
	console int // how much of the log was looked at
	usual   map[operation]extent
	wounds  []wound // since the last look
	close   func()
}

// newVictim makes a machine in dir and boots it. The caller has to close it.
func newVictim(ctx context.Context, l *lab.Lab, dir string, p *patches, seed uint64, r *report) (*victim, error) {
	repo := l.NewRepo()
	d, socket, stop, err := newDisk(ctx, dir)
	if err != nil {
		return nil, err
	}
	m, err := l.Boot(ctx, lab.Setup{Dir: dir, Root: repo.Root(), Minimal: true, CPUs: 1, Disk: socket})
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &victim{
		report: r, patches: p, random: rand.New(rand.NewPCG(seed, 0)), repo: repo, next: 2,
		machine: m, disk: d, usual: map[operation]extent{},
		close: func() { _ = m.Close(); _ = stop() },
	}, nil
}

// newDisk makes a disk with an empty file system and serves it on a socket in
// dir.
func newDisk(ctx context.Context, dir string) (d *disk.Disk, socket string, stop func() error, err error) {
	image := filepath.Join(dir, "empty.img")
	if err := machine.MakeDisk(ctx, image, diskMB); err != nil {
		return nil, "", nil, err
	}
	content, err := os.ReadFile(image)
	if err != nil {
		return nil, "", nil, err
	}
	if d, err = disk.New(content); err != nil {
		return nil, "", nil, err
	}
	socket = filepath.Join(dir, "disk.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, "", nil, err
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(listener) }()
	return d, socket, func() error { return errors.Join(listener.Close(), <-served) }, nil
}

// agent calls the loader as somebody who holds the agent's user.
func (v *victim) agent() lab.Caller { return lab.AgentOf(v.machine) }

// offer signs a patch in metadata newer than all before.
func (v *victim) offer(p *patch) *lab.Offer {
	r := v.repo.Copy()
	o := r.Offer(r.Publish(p.Module, p.version, p.sequence, nil))
	v.meta++
	return o
}

// fresh returns the next patch.
func (v *victim) fresh() *patch {
	p := v.patches.get(v.next)
	v.next += 2 // those between are never sent before a newer one: see offerOlder
	return p
}

// cut runs an operation, takes the power away at a moment, and tells whether the
// operation was answered before. The machine is off then.
func (v *victim) cut(at moment, do func() error) (answered bool, err error) {
	stop := make(chan struct{})
	watched := v.watch(at, v.disk.Changes(), stop)
	done := make(chan error, 1)
	go func() { done <- do() }()
	running := true
	select {
	case err = <-done:
		running = false
		v.linger(at.linger)
	case <-watched:
	}
	v.disk.Cut()
	v.machine.PowerOff()
	close(stop)
	if running {
		err = <-done // it may have been answered while the power went
	}
	var refused *lab.RefusedError
	if err != nil && running && !errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// watch closes the channel it returns when the power goes, or is to go: at a
// moment after an operation has begun, with the disk changed so often. It gives up
// when stop is closed.
func (v *victim) watch(at moment, changes int, stop <-chan struct{}) <-chan struct{} {
	if at.changes > 0 && at.after == 0 {
		v.disk.CutAfter(at.changes - 1)
	}
	off, reached := v.disk.Off(), make(chan struct{})
	go func() {
		defer close(reached)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			if at.after > 0 && v.disk.Changes() >= changes+max(0, at.changes-1) {
				select {
				case <-time.After(at.after):
				case <-stop:
				}
				return
			}
			select {
			case <-tick.C:
			case <-off:
				return
			case <-stop:
				return
			}
		}
	}()
	return reached
}

// linger waits, unless the disk has its power cut before.
func (v *victim) linger(d time.Duration) {
	select {
	case <-time.After(d):
	case <-v.disk.Off():
	}
}

// errCut ends a boot that is cut short.
var errCut = errors.New("power was cut during boot")

// start boots the machine that was cut before. keep is how likely an unflushed
// sector is to have reached the disk.
func (v *victim) start(ctx context.Context, keep float64) error {
	kept, lost := v.disk.PowerOn(func() bool { return v.random.Float64() < keep })
	v.report.unflushed(kept, lost)
	return v.powerOn(ctx)
}

func (v *victim) powerOn(ctx context.Context) error {
	began := time.Now()
	err := v.machine.PowerOn(ctx)
	v.report.booted(time.Since(began))
	return err
}

// startAndCut boots the machine and takes the power away meanwhile. It tells
// whether the boot was through before.
func (v *victim) startAndCut(ctx context.Context, at moment, keep float64) (through bool, err error) {
	kept, lost := v.disk.PowerOn(func() bool { return v.random.Float64() < keep })
	v.report.unflushed(kept, lost)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	watched := v.watch(at, 1, stop) // before the first change there is nothing to lose
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-watched
		v.disk.Cut()
		cancel(errCut)
	}()
	err = v.powerOn(ctx)
	close(stop)
	<-ended
	v.machine.PowerOff()
	if errors.Is(err, errCut) {
		return false, nil
	}
	return err == nil, err
}

// enteredSince returns the livepatches that the kernel has enabled since the last
// call, in any boot.
func (v *victim) enteredSince() ([]string, error) {
	log, err := v.machine.Console()
	if err != nil {
		return nil, err
	}
	names := entered(log[v.console:])
	v.console = len(log)
	return names, nil
}

// looking bounds how long one look at the machine may take.
const looking = 3 * time.Minute

// check looks at the machine after a boot, and offers it something older.
func (v *victim) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, looking)
	defer cancel()
	o, err := observe(ctx, v.machine)
	if err != nil {
		return fmt.Errorf("cannot look at machine: %w", err)
	}
	if _, err := v.audit(); err != nil { // of this boot, before the model goes on
		return err
	}
	v.heal(o)
	for _, text := range v.model.check(o) {
		v.report.violation("%s", text)
	}
	return v.offerOlder(ctx)
}

// offerOlder offers what must not get in any more, in turns: a patch that is older
// than the newest and was never sent; one that was; signed metadata that was
// replaced since; and the newest patch if it is suspect.
func (v *victim) offerOlder(ctx context.Context) error {
	if v.model.floor.min == 0 {
		return nil
	}
	floor := uint64(v.model.floor.min)
	newest := v.patches.get(floor)
	turn := v.random.IntN(4)
	if turn == 3 && v.model.fate(newest.Name).may[0] != suspect {
		turn = 0
	}
	var o *lab.Offer
	want := "ROLLBACK"
	switch turn {
	case 0:
		o = v.offer(v.patches.get(floor - 1))
	case 1:
		o = v.offer(v.older(floor))
	case 2:
		o = v.stale
	case 3:
		o, want = v.offer(newest), "SUSPECT"
	}
	_, err := v.agent().Apply(ctx, o)
	var refused *lab.RefusedError
	switch {
	case err == nil:
		v.report.violation("something older was let in (kind %d, floor %d)", turn, floor)
	case errors.As(err, &refused) && refused.Reason == want:
		v.report.refused(want)
	default:
		return fmt.Errorf("cannot offer something older: want %s: %w", want, err)
	}
	if turn != 2 {
		v.model.learning(v.meta, nil)
		v.model.learnt(nil)
	}
	return nil
}

// older returns a patch that was sent before. One that is revoked is passed over:
// to offer it is to say in newer metadata that it is not.
func (v *victim) older(floor uint64) *patch {
	f := v.model.fates[v.random.IntN(len(v.model.fates))]
	if f.patch.sequence >= floor || f.revoked {
		return v.patches.get(floor - 1)
	}
	return f.patch
}
