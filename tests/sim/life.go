package main

import (
	"math/rand/v2"
	"slices"
	"time"
)

// A life is when a machine is off. It is drawn as far as it is looked at, from the
// machine's own random numbers, so that it does not depend on who else is
// simulated.
type life struct {
	rng   *rand.Rand
	loss  float64 // an hour
	next  gap     // that is not over, of those that are drawn
	known []gap   // others that are not over
}

// A gap is a time at which a machine is off, in seconds of the simulation.
type gap struct {
	from, to int64
	clean    bool // it was shut down in order
}

// never is after the end of every simulation.
const never = int64(1) << 40

func (f *fleet) newLife(i int32) life {
	l := life{rng: f.dice(i, diceLife), loss: f.Loss, next: gap{from: never, to: never}}
	if n := f.Night; n.For > 0 && l.rng.Float64() < n.Share {
		from := seconds(n.At) + l.rng.Int64N(600)
		l.known = append(l.known, gap{from: from, to: from + seconds(n.For), clean: true})
	}
	if l.loss > 0 {
		l.next = l.draw(0)
	}
	return l
}

// draw returns the first gap after a time: a crash, or some hours off.
func (l *life) draw(after int64) gap {
	from := after + 1 + int64(3600*l.rng.ExpFloat64()/l.loss)
	if l.rng.IntN(2) == 0 {
		return gap{from: from, to: from + 120 + l.rng.Int64N(240)}
	}
	return gap{from: from, to: from + 8*3600 + l.rng.Int64N(4*3600)}
}

// first returns the gap that begins first, of those that are not over.
func (l *life) first() gap {
	g := l.next
	for _, k := range l.known {
		if k.from < g.from {
			g = k
		}
	}
	return g
}

// pass forgets the gaps that are over, and returns them.
func (l *life) pass(now int64) (over []gap) {
	for g := l.first(); g.to <= now; g = l.first() {
		over = append(over, g)
		if i := slices.Index(l.known, g); i >= 0 {
			l.known = slices.Delete(l.known, i, i+1)
		} else {
			l.next = l.draw(g.to)
		}
	}
	return over
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
