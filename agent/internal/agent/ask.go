package agent

import (
	"context"
	"fmt"
	"slices"

	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// ask tells the service that the machine is about to insert a patch, and returns
// whether it may begin: signed files say how many machines may have a patch, the
// service's answer how many at a time.
//
// The intent reaches the service before the loader is asked, so that a machine that
// does not live to tell is missed. One that is not let in is not kept: the next
// check asks anew.
func (r *round) ask(ctx context.Context, got choice) bool {
	intent := r.event(eventIntent, got.entry)
	err := r.tell(ctx, intent)
	let := slices.Contains(r.let, got.entry.Version)
	if err != nil {
		// Where the patch has come to everybody there is no canary to be counted, and a
		// service that is not there is no reason to stay unpatched.
		let = r.everyone(got)
	}
	if !let {
		r.hold(got.entry, r.turn(err))
		return false
	}
	if err != nil {
		r.rec.addEvent(intent)
	}
	applied := r.event(eventApplied, got.entry)
	r.rec.Pending = &applied
	r.rec.Watch = &watch{Version: got.entry.Version, Name: got.entry.Name, Since: intent.At}
	r.rec.State = status.Applying
	r.save(ctx)
	return true
}

// turn says why a patch is not begun with, after an ask that ended with err.
func (r *round) turn(err error) problem {
	hint := byItself(r.cfg, "the agent asks again by itself")
	if err != nil {
		return problem{fmt.Sprintf("waits until the service can be asked, for it has not come to every machine yet: %v", err), hint}
	}
	return problem{"waits for its turn: the service lets in a few machines at a time", hint}
}

// everyone tells whether the patch has come to all machines of this one's kernel and
// tier.
func (r *round) everyone(got choice) bool {
	stage, ok := got.rollout.Stage(r.facts.Kernel, r.rec.Tier)
	return ok && stage.Share >= patch.Everyone
}

// tell sends what is to be reported, and events that are not kept if that fails.
func (r *round) tell(ctx context.Context, asks ...service.Event) error {
	svc, err := r.service(ctx)
	if err == nil {
		_, err = r.checkIn(ctx, svc, asks...)
	}
	return err
}
