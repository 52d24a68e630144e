package main

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// A baseline is a service that people watch: machines poll every hour and take the
// patch when its phase has reached them; a person sees that it harms, and stops it.
type baseline struct {
	phases []float64     // shares of the fleet
	each   time.Duration // length of a phase; after the last one everybody has it
	stop   time.Duration // after the start
}

// run lets a fleet live under the baseline. The machines are the same, and so is what
// the patch does to them.
func (b baseline) run(f *fleet) outcome {
	o := outcome{series: newSeries(f.Limit), machines: len(f.machines), units: 1}
	r := newRecord(f.Limit, f.honest())
	for i := range f.machines {
		b.one(f, int32(i), &r)
	}
	if !f.healthy() {
		o.halted, o.halt = 1, seconds(b.stop)
	}
	o.series, o.exposed, o.harmed = r.series, r.total(exposed), r.total(failed)
	o.covered = r.coveredAt()
	return o
}

// one is what becomes of a machine.
func (b baseline) one(f *fleet, i int32, r *record) {
	x := f.fate(i)
	at, ok := b.takes(f, i)
	if !ok || x.lie == saysFailed || !f.healthy() && at >= seconds(b.stop) {
		return
	}
	r.add(exposed, at)
	if x.dies {
		r.add(failed, at+x.after)
	} else {
		r.add(matured, at+hour)
	}
}

// takes returns when a machine takes the patch: at the first poll at which its phase has
// begun, and neither it nor the service nor the network is down.
func (b baseline) takes(f *fleet, i int32) (at int64, ok bool) {
	l, begin := f.newLife(i), b.begins(f, i)
	cut := f.Partition.For > 0 && f.dice(i, dicePartition).Float64() < f.Partition.Share
	for at = f.slot(i, begin-1); at < seconds(f.Limit); at = f.slot(i, at) {
		l.pass(at)
		if l.first().from > at && !f.Outage.during(at) && !(cut && f.Partition.during(at)) {
			return at, true
		}
	}
	return 0, false
}

// begins returns when the phase of a machine begins.
func (b baseline) begins(f *fleet, i int32) int64 {
	sum := sha256.Sum256(append([]byte("phases"), f.machines[i].id[:]...))
	u := float64(binary.BigEndian.Uint64(sum[:8])) / (1 << 64)
	for n, share := range b.phases {
		if u < share {
			return int64(n) * seconds(b.each)
		}
	}
	return int64(len(b.phases)) * seconds(b.each)
}

// coveredAt returns when nearly all machines had the patch; they were not counted in
// the order of time.
func (r *record) coveredAt() int64 {
	have := 0
	for minute, n := range r.series[exposed] {
		if have += int(n); float64(have) >= coverage*float64(r.machines) {
			return int64(minute+1) * 60
		}
	}
	return 0
}
