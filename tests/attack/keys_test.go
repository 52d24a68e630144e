//go:build attack

package attack

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/tuftest"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// A thief has keys by name and makes of them what can be made: every file whose keys
// he has is signed properly; the one that lists his patch is signed with what he has
// and with keys that nobody granted; all others stay as their owners signed them.
type thief map[string]bool

func newThief(stolen ...string) thief {
	t := thief{}
	for _, name := range stolen {
		t[tuftest.NewKey(name).ID] = true
	}
	return t
}

// has tells whether all keys that signed a role were stolen.
func (t thief) has(r *tuftest.Role) bool {
	return !slices.ContainsFunc(r.Signers, func(k tuftest.Key) bool { return !t[k.ID] })
}

// forge puts the evil patch into a copy of a repository.
func (t thief) forge(honest lab.Repository) lab.Repository {
	files := honest.Files()
	forged := lab.Repository{Repo: honest.Clone()}
	adds(evil)(forged)
	for name, role := range forged.Roles {
		switch {
		case t.has(role):
		case strings.HasPrefix(name, lab.Vendor+"-"):
			for i, k := range role.Signers {
				if !t[k.ID] {
					role.Signers[i] = strangers(3)[i]
				}
			}
			if !t.has(forged.Roles["snapshot"]) { // which still says the version of before
				role.Signed["version"] = honest.Roles[name].Version()
			}
		default:
			role.Rewrite = func([]byte) []byte { return files.Roles[name] }
		}
	}
	return forged
}

// Whoever has stolen one key, or all of the server's, gets nothing into the kernel.
func TestStolenKeys(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	tests := map[string][]string{
		"timestamp":                             {"timestamp"},
		"snapshot":                              {"snapshot"},
		"rollout":                               {"rollout"},
		"all online keys":                       {"timestamp", "snapshot", "rollout"},
		"builder":                               {"debian builder"},
		"approver":                              {"debian approver"},
		"builder and all online keys":           {"debian builder", "timestamp", "snapshot", "rollout"},
		"approver and all online keys":          {"debian approver", "timestamp", "snapshot", "rollout"},
		"one of targets":                        {"targets 1"},
		"one of targets, and all online keys":   {"targets 1", "timestamp", "snapshot", "rollout"},
		"one of root":                           {"root 1"},
		"one of each role, and all online keys": {"root 1", "targets 1", "debian builder", "timestamp", "snapshot", "rollout"},
	}
	for name, stolen := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := report.Begin(t, report.Key, "stolen: "+name)
			v := newVictim(t, s)
			forged := newThief(stolen...).forge(v.repo)
			v.serve(forged)
			v.refresh(t, a)
			v.straight(t, a, forged, evil, patch.ErrUntrusted, patch.ErrTampered)
		})
	}
}

// One root key signs no root that would hand out the rest.
func TestStolenRootKeySignsNoRoot(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Key, "stolen: one of root, which signs a new root for its thief")
	v := newVictim(t, s)
	forged := lab.Repository{Repo: v.repo.Clone()}
	root := forged.AddRoot()
	mine := strangers(2)
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		tuftest.Grant(root, role, 1, mine...)
	}
	root.Signers = []tuftest.Key{tuftest.NewKey("root 1"), mine[0], mine[1]}
	for _, role := range []string{"snapshot", "timestamp"} {
		forged.Roles[role].Signers = mine[:1]
	}
	adds(evil)(forged)
	v.serve(forged)
	v.refresh(t, a, patch.ErrUntrusted)
	v.straight(t, a, forged, evil, patch.ErrUntrusted)
	v.recovers(t)
}

// besideAnother has the service trust a second vendor, which the victim learns of, and
// returns a copy of its repository.
func (v *victim) besideAnother(vendor string) lab.Repository {
	v.repo.AddVendor(vendor, 2)
	v.repo.Publish("targets")
	v.serve(v.repo)
	v.OK("refresh")
	return lab.Repository{Repo: v.repo.Clone()}
}

// Builder and approver of a vendor together are believed, for their own folder and
// for nothing else.
func TestStolenVendorKeysStayInTheirFolder(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Key, "stolen: builder and approver of another vendor, and all online keys")
	v := newVictim(t, s)
	// The machine's vendor is debian; the keys are those of ubuntu.
	forged := v.besideAnother("ubuntu")
	bin := forged.Roles[forged.Bin("ubuntu/x")]
	bin.Signed["targets"].(tuftest.Object)[evil.Path()] = tuftest.TargetEntry(evil.Content, evil.Module)
	for i := range 4 {
		name := "debian-" + string(rune('0'+i))
		version := forged.Roles[name].Version()
		forged.Roles[name] = bin.Clone()
		forged.Roles[name].Signed["version"] = version + 1
	}
	forged.Publish()
	forged.Content[evil.Path()] = evil.Content
	v.serve(forged)
	v.refresh(t, a, patch.ErrUntrusted)
	v.straight(t, a, forged, evil, patch.ErrUntrusted)
	v.recovers(t)
}

// In their own folder they sign what they like, but a kernel that another distribution
// built takes nothing from there.
func TestStolenVendorKeysSayNothingOfAnotherKernel(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Key, "stolen: builder and approver of another distribution, all online keys, and the agent")
	v := newVictim(t, s)
	// The machine's kernel is debian's; file names of modules do not tell vendors apart.
	forged := v.besideAnother("ubuntu")
	path := patch.ModulePath("ubuntu", evil.Module)
	forged.AddTarget(path, evil.Content, evil.Module)
	forged.AddTarget(patch.RolloutPath("ubuntu", evil.Version), nil, patch.Rollout{
		State: patch.Running, Tiers: map[string]patch.Stage{"stable": {Share: patch.Everyone}},
	})
	forged.Publish(forged.Bin(path), patch.RolloutRole)
	opening := forged.Opening(evil)
	roles := forged.Files().Roles
	opening.Target, opening.Vendor, opening.Bin = path, roles["ubuntu"], roles[forged.Bin(path)]
	_, err := lab.Apply(t, v.Client(), opening, evil.Content)
	if !errors.Is(err, patch.ErrWrongKernel) {
		t.Errorf("the loader said %v, want %v", err, patch.ErrWrongKernel)
	}
	a.StoppedBy("loader: %s", rpcerr.Reason(err))
	v.unharmed(t)
	v.recovers(t)
}
