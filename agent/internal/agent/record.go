package agent

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"livepatch/agent/internal/machine"
	"livepatch/agent/internal/status"
	"livepatch/internal/durable"
	facts "livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// How the last check ended.
const (
	checkedOK   = status.Checked
	checkFailed = status.CheckFailed
)

// maxEvents bounds the events that wait for the service to be reachable.
const maxEvents = 64

// worth orders events by what is lost with them. A machine that is watched says each
// hour that it is well; after some days without the service that must not have pushed
// out that it is not.
func worth(e service.Event) int {
	switch e.Kind {
	case eventHeartbeat:
		return 0
	case eventIntent, eventBooted:
		return 1
	default:
		return 2
	}
}

// A record is what the agent remembers across restarts. The zero record is that
// of a machine that has never checked in.
type record struct {
	// About the service.
	Tier         string        `json:"tier,omitempty"`
	Generation   int64         `json:"generation,omitempty"`
	Interval     time.Duration `json:"interval,omitempty"`      // that the service asks for
	TokenProblem string        `json:"token_problem,omitempty"` // why the service refuses the token
	EnrolledWith string        `json:"enrolled_with,omitempty"` // fingerprint of the auth token
	Dropped      *problem      `json:"dropped,omitempty"`       // what came of a change that waited and was refused
	LastAttempt  time.Time     `json:"last_attempt"`
	LastCheck    time.Time     `json:"last_check"` // the last one that succeeded

	// FileMode is what the file of the loader's folder switches off, as far as that is
	// known; it is for the next start only, and otherwise live.fileMode counts.
	FileMode facts.Mode `json:"file_mode,omitempty"`

	// About the last check since start.
	CheckState status.CheckState `json:"-"`
	CheckError string            `json:"-"`
	CheckHint  string            `json:"-"`

	// About the kernel of the boot BootID.
	BootID     string           `json:"boot_id,omitempty"`
	Release    string           `json:"release,omitempty"`
	Upgraded   bool             `json:"upgraded,omitempty"` // Release is not that of the boot before
	Supported  status.Support   `json:"supported,omitempty"`
	Until      string           `json:"until,omitempty"` // last day of coverage, "2026-11-22"
	Unpatched  []string         `json:"unpatched,omitempty"`
	FixedIn    string           `json:"fixed_in,omitempty"` // kernel that closes what no patch can
	State      status.State     `json:"state,omitempty"`
	Version    string           `json:"version,omitempty"` // of the patch that State is about
	Fixes      []patch.Fix      `json:"fixes,omitempty"`
	Failure    status.Failure   `json:"failure,omitempty"`
	PatchError string           `json:"patch_error,omitempty"`
	PatchHint  string           `json:"patch_hint,omitempty"`
	Blocked    []status.Blocked `json:"blocked,omitempty"`
	BlockedBy  []string         `json:"blocked_by,omitempty"`
	Holds      []problem        `json:"holds,omitempty"`  // why newer patches are not brought in yet
	Offered    []string         `json:"offered,omitzero"` // modules for this kernel in the index; nil: not known
	Soak       *soak            `json:"soak,omitempty"`
	Failed     *failed          `json:"failed,omitempty"`
	SigningKey string           `json:"signing_key,omitempty"` // of the newest patch for this machine
	Refused    string           `json:"refused,omitempty"`     // what the service was last told that the kernel would refuse
	Heeded     patch.Digest     `json:"heeded"`                // the timestamp that the loader was last told of

	// Pending is the event to report when the transition is over that an Apply
	// has begun. It is on the disk before the loader is asked, so that a killed
	// agent still tells how it ended.
	Pending *service.Event  `json:"pending,omitempty"`
	Leaving bool            `json:"leaving,omitempty"` // tasks are being moved away from the patch
	Watch   *watch          `json:"watch,omitempty"`   // gets heartbeats
	Ended   string          `json:"ended,omitempty"`   // boot before this one, if how it ended was not reported
	Blamed  []string        `json:"blamed,omitempty"`  // what was reported of suspects and complaints
	Events  []service.Event `json:"events,omitempty"`  // not yet reported
}

// A soak is what the rollout says of the trial of a patch.
type soak struct {
	Digest  patch.Digest  `json:"digest"`
	For     time.Duration `json:"for"`
	Running bool          `json:"running"` // neither halted nor revoked
}

// A problem is one that a person has to see to.
type problem struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// A failed is a patch that the kernel or the loader has refused for a reason
// that will not go away by itself in this boot.
type failed struct {
	Digest  patch.Digest   `json:"digest"`
	BootID  string         `json:"boot_id"`
	Failure status.Failure `json:"failure,omitempty"`
	Error   string         `json:"error"`
	Hint    string         `json:"hint,omitempty"`
}

func (r *record) clone() record {
	c := *r
	c.Events = slices.Clone(r.Events)
	if r.Watch != nil {
		c.Watch = new(*r.Watch)
	}
	if r.Pending != nil {
		c.Pending = new(*r.Pending)
	}
	return c
}

// addEvent queues an event. If there are too many, the oldest goes of those that are
// worth least, which may be this one.
func (r *record) addEvent(e service.Event) {
	r.Events = append(r.Events, e)
	for len(r.Events) > maxEvents {
		least := 0
		for i, e := range r.Events {
			if worth(e) < worth(r.Events[least]) {
				least = i
			}
		}
		r.Events = slices.Delete(r.Events, least, least+1)
	}
}

// newEventID returns an id by which the service knows an event again.
func newEventID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails; see crypto/rand
	return hex.EncodeToString(b)
}

// afterReboot forgets what was about the kernel of another boot.
func (r *record) afterReboot(f machine.Facts) {
	ended := r.Ended
	if r.BootID != f.BootID {
		ended = r.BootID
	}
	var offered []string
	if r.Release == f.Kernel.Release {
		offered = r.Offered // or nothing would be said of a suspect until a check succeeds
	}
	*r = record{
		Tier: r.Tier, Generation: r.Generation, Interval: r.Interval, TokenProblem: r.TokenProblem,
		EnrolledWith: r.EnrolledWith, Dropped: r.Dropped, LastAttempt: r.LastAttempt, LastCheck: r.LastCheck, Events: r.Events,
		BootID: f.BootID, Release: f.Kernel.Release, Ended: ended, Blamed: r.Blamed, Offered: offered,
		Upgraded: r.Release != "" && r.Release != f.Kernel.Release,
	}
}

// loadRecord reads the record. One that is damaged is forgotten: all of it can
// be learned again.
func (a *Agent) loadRecord() record {
	b, err := os.ReadFile(a.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}
	}
	var r record
	if err == nil {
		r, err = parseRecord(b)
	}
	if err != nil {
		a.log.Warn("Cannot read state, starting anew", "err", err)
		return record{}
	}
	return r
}

func parseRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	r.Interval = max(r.Interval, 0)
	r.FileMode &= facts.Stop
	return r, nil
}

// saveRecord writes the record. The caller holds a.mu.
func (a *Agent) saveRecord() error {
	a.rec.FileMode = a.live.fileMode
	b, err := json.Marshal(a.rec)
	if err != nil {
		return err
	}
	return durable.WriteFile(a.path(stateFile), b, 0o600)
}
