package rollout

// This file is about a rollout that people have halted as a whole. It does not widen
// until they let it go on. Who has the patch is still watched, and the tests may halt units
// meanwhile. Room is what it was: to let nobody in is for who knows what people want now.

// Suspended tells whether people have halted the rollout as a whole.
func (r *Rollout) Suspended() bool { return r.s.Suspended != 0 }

func (r *Rollout) suspend() {
	if !r.Suspended() {
		r.s.Suspended = r.s.Now
	}
}

// proceed lets the rollout go on. Nobody could come to a stage while it was halted, so that
// time is no part of the stage's age.
func (r *Rollout) proceed() {
	if !r.Suspended() {
		return
	}
	for _, u := range r.s.Units {
		u.Held = nil // why it holds now is news
		for i := range u.Lanes {
			if l := &u.Lanes[i]; l.Stage > 0 {
				l.Began += r.s.Now - r.s.Suspended
			}
		}
	}
	r.s.Suspended = 0
}

// awake is now, or when the rollout was halted.
func (r *Rollout) awake() int64 {
	if r.Suspended() {
		return r.s.Suspended
	}
	return r.s.Now
}
