//go:build attack

package attack

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// A victim is a machine whose agent asks a service that somebody has taken over, or
// that a hostile mirror stands in front of. The signed files are those of a
// repository whose keys the test has, so that any of them can be stolen.
type victim struct {
	*lab.Machine
	f    *lab.Front
	repo lab.Repository
	one  lab.Module // in force
	seen *requests
}

// The patch that the attacker wants in the kernel, and one that comes honestly later.
var (
	evil   = lab.NewModule(66)
	honest = lab.NewModule(99)
)

// newVictim enrols a machine and has it apply a patch.
func newVictim(t *testing.T, s *lab.Service) *victim {
	t.Helper()
	one := lab.NewModule(1)
	repo := lab.NewRepository(time.Now(), one)
	repo.List(one)
	v := &victim{Machine: lab.NewMachine(t, repo.Pinned()), f: lab.NewHonestFront(t, s), repo: repo, one: one, seen: &requests{}}
	v.serve(repo)
	v.Join(s, v.f.URL)
	v.Enable(s)
	v.OK("refresh")
	v.WantInForce(one)
	return v
}

// serve makes the service hand out the files of a repository, and then what changes
// make of them.
func (v *victim) serve(r lab.Repository, changes ...func(path string, res *http.Response)) {
	serve := lab.Serving(r)
	v.f.Set(func(path string, res *http.Response) {
		v.seen.note(res.Request)
		serve(path, res)
		for _, change := range changes {
			change(path, res)
		}
	})
}

// refresh has the agent check, and says in the row what stopped the attack and what
// the user was told. Nothing may have reached the kernel.
func (v *victim) refresh(t *testing.T, a *report.Attack, want ...error) lab.Result {
	t.Helper()
	r := v.CLI("refresh")
	line, _, _ := strings.Cut(r.Stderr, "\n")
	reason, sentinel := reasonIn(line)
	if len(want) > 0 && !slices.ContainsFunc(want, func(w error) bool { return errors.Is(sentinel, w) || w == nil && r.Code == 0 }) {
		t.Errorf("the agent said %v, want %v", r, want)
	}
	switch {
	case r.Code == 0:
		a.StoppedBy("agent: takes nothing new")
		a.Sees(r.Stdout)
	case sentinel != nil:
		a.StoppedBy("agent: %s", reason)
		a.Sees(line)
	default:
		a.StoppedBy("agent: %.90s", reason)
		a.Sees(line)
	}
	if strings.ContainsFunc(r.Stdout+r.Stderr, func(c rune) bool { return c < ' ' && c != '\n' && c != '\t' || c >= 0x7f && c < 0xa0 }) {
		t.Errorf("the user's terminal was sent %q", r.Stdout+r.Stderr)
	}
	v.unharmed(t)
	return r
}

// unharmed fails the test unless the patch of before is the only one that ever was in
// the kernel.
func (v *victim) unharmed(t *testing.T) {
	t.Helper()
	if got := v.Kernel.Insertions(); len(got) != 1 || got[0].Name != v.one.Name {
		t.Errorf("insertions = %v, want %s only", got, v.one.Name)
	}
	v.WantInForce(v.one)
}

// straight hands what the attacker has to the loader, as an agent would that does not
// verify anything.
func (v *victim) straight(t *testing.T, a *report.Attack, r lab.Repository, m lab.Module, want ...error) {
	t.Helper()
	_, err := lab.Apply(t, v.Client(), r.Opening(m), m.Content)
	if err == nil || len(want) > 0 && !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
		t.Errorf("the loader said %v, want %v", err, want)
	}
	a.StoppedBy("loader: %s", rpcerr.Reason(err))
	v.unharmed(t)
}

// recovers fails the test unless the next patch arrives once the service is honest
// again.
func (v *victim) recovers(t *testing.T) {
	t.Helper()
	r := v.repo.Clone()
	for range 20 {
		r.Publish(slices.Sorted(rolesBelow(r.Roles))...)
	}
	next := lab.Repository{Repo: r}
	next.Add(honest)
	next.List(v.one, honest)
	v.serve(next)
	v.OK("refresh")
	v.WantInForce(honest)
}

// rolesBelow yields the names of roles that snapshot lists.
func rolesBelow[R any](roles map[string]R) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for name := range roles {
			if name != "timestamp" && name != "snapshot" && !yield(name) {
				return
			}
		}
	}
}

// where is what stands before the reason in a line that a user was shown.
var where = regexp.MustCompile(`^canonical-livepatch: error: (cannot [a-z ]+ https://[^ ]+: )?([0-9.:]+ )?`)

// reasonIn returns the reason of the sentinel whose text is in a line that a user was
// shown, or what the line says if there is none.
func reasonIn(line string) (reason string, sentinel error) {
	for _, err := range []error{
		patch.ErrInvalid, patch.ErrTooLarge, patch.ErrNotFound, patch.ErrUntrusted, patch.ErrExpired, patch.ErrRollback, patch.ErrMalformed,
		patch.ErrTampered, patch.ErrHalted, patch.ErrRevoked, patch.ErrWrongKernel, patch.ErrNotLivepatch, patch.ErrNameTaken,
	} {
		if strings.Contains(line, err.Error()) {
			return rpcerr.Reason(err), err
		}
	}
	return where.ReplaceAllString(line, ""), nil
}

// requests are what an agent has asked of a service.
type requests struct {
	mu  sync.Mutex
	all []*http.Request
}

func (r *requests) note(req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, req)
}

// list returns the requests so far.
func (r *requests) list() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}
