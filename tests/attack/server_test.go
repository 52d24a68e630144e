//go:build attack

package attack

import (
	"math"
	"strings"
	"testing"
	"time"

	"livepatch/internal/patch"
	"livepatch/internal/tuftest"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// A forgery is a repository that is not what its owners signed.
type forgery struct {
	by report.Actor
	// forge changes a copy of the repository, in which nothing is new yet.
	forge  func(r lab.Repository)
	module lab.Module // that is to get in; the zero one stands for evil
	// What the agent and the loader must say; a nil one: the agent stays as it is.
	agent, loader []error
}

// strangers are keys that nobody has granted anything.
func strangers(n int) []tuftest.Key {
	return []tuftest.Key{tuftest.NewKey("stranger 1"), tuftest.NewKey("stranger 2"), tuftest.NewKey("stranger 3")}[:n]
}

// adds puts a patch into a repository as its owners would.
func adds(m lab.Module) func(r lab.Repository) {
	return func(r lab.Repository) { r.Add(m); r.List(lab.NewModule(1), m) }
}

// signers has somebody else sign the bins that list the attacker's patch.
func signers(keys ...tuftest.Key) func(r lab.Repository) {
	return func(r lab.Repository) {
		adds(evil)(r)
		r.Roles[r.Bin(evil.Path())].Signers = keys
		r.Roles[r.Bin(patch.IndexPath(lab.Vendor, lab.Release, "x86_64"))].Signers = keys
	}
}

// late makes a role run out a minute ago.
func late(role string) func(r lab.Repository) {
	return func(r lab.Repository) {
		adds(evil)(r)
		if role == "bin" {
			role = r.Bin(patch.IndexPath(lab.Vendor, lab.Release, "x86_64"))
			r.Roles[r.Bin(evil.Path())].Expire(time.Now().Add(-time.Minute))
		}
		r.Roles[role].Expire(time.Now().Add(-time.Minute))
		r.Publish(role)
	}
}

// content is a module whose bytes are not those of its name.
func content(m lab.Module, b []byte) lab.Module {
	m.Content = b
	return m
}

func forgeries() map[string]forgery {
	builder, approver := tuftest.NewKey("debian builder"), tuftest.NewKey("debian approver")
	other := patch.Kernel{Arch: "x86_64", Release: "6.1.0-54-amd64", BuildID: lab.BuildID}
	build := patch.Kernel{Arch: "x86_64", Release: lab.Release, BuildID: lab.OtherBuildID}
	arch := patch.Kernel{Arch: "aarch64", Release: lab.Release, BuildID: lab.BuildID}
	untrusted, expired := []error{patch.ErrUntrusted}, []error{patch.ErrExpired}
	wrong := func(m lab.Module) forgery {
		return forgery{by: report.Server, forge: adds(m), module: m, agent: []error{patch.ErrWrongKernel, nil}, loader: []error{patch.ErrWrongKernel}}
	}
	plain := content(evil, lab.ElfFile("license=GPL", "name="+evil.Name, "vermagic="+lab.Release+" SMP"))
	renamed := content(evil, lab.Livepatch("lkp_renamed", lab.Release))
	return map[string]forgery{
		"arbitrary software, signed by strangers": {by: report.Server, forge: signers(strangers(2)...), agent: untrusted, loader: untrusted},
		"arbitrary software, signed by nobody":    {by: report.Mirror, forge: signers(), agent: untrusted, loader: untrusted},
		"arbitrary software, signed by one person twice": {by: report.Key, forge: signers(builder, builder),
			agent: []error{patch.ErrUntrusted, patch.ErrMalformed}, loader: []error{patch.ErrUntrusted, patch.ErrMalformed}},
		"arbitrary software in a role of a new vendor": {by: report.Server, forge: func(r lab.Repository) {
			adds(evil)(r)
			r.Delegate("targets", tuftest.Delegation("thief", tuftest.Threshold(1, strangers(1)...), true, "debian/*"), strangers(1)...)
			r.Roles["targets"].Signers = strangers(2)
			r.Publish("targets")
		}, agent: untrusted, loader: untrusted},
		"root that hands all roles to strangers": {by: report.Server, forge: func(r lab.Repository) {
			root := r.AddRoot()
			for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
				tuftest.Grant(root, role, 1, strangers(1)...)
			}
			root.Signers = strangers(1)
			signers(strangers(2)...)(r)
		}, agent: untrusted, loader: untrusted},
		"freeze: timestamp has run out":       {by: report.Mirror, forge: late("timestamp"), agent: expired, loader: expired},
		"freeze: snapshot has run out":        {by: report.Server, forge: late("snapshot"), agent: expired, loader: expired},
		"freeze: bins have run out":           {by: report.Server, forge: late("bin"), agent: expired, loader: expired},
		"freeze: vendor role has run out":     {by: report.Server, forge: late("debian"), agent: expired, loader: expired},
		"freeze: targets has run out":         {by: report.Server, forge: late("targets"), agent: expired, loader: expired},
		"freeze: rollout has run out":         {by: report.Server, forge: late("rollout"), agent: expired, loader: expired},
		"wrong software: for another release": wrong(lab.NewModuleFor(other, 66)),
		"wrong software: for another build":   wrong(lab.NewModuleFor(build, 66)),
		"wrong software: for another machine": wrong(lab.NewModuleFor(arch, 66)),
		"wrong software: no livepatch":        {by: report.Key, forge: adds(plain), module: plain, loader: []error{patch.ErrNotLivepatch}},
		"wrong software: of another name":     {by: report.Key, forge: adds(renamed), module: renamed, loader: []error{patch.ErrTampered}},
		"extraneous: a target outside of its vendor's folder": {by: report.Key, forge: func(r lab.Repository) {
			adds(evil)(r)
			r.AddTargetTo(r.Bin(evil.Path()), "ubuntu/lkp_evil.x86_64.ko", evil.Content, evil.Module)
			ix := `{"arch":"x86_64","release":"` + lab.Release + `","flavour":"amd64","from":"2026-01-01","until":"2036-01-01","patches":[{"target":"ubuntu/lkp_evil.x86_64.ko","name":"` +
				evil.Name + `","version":"66.1","sequence":66,"build_id":"` + lab.BuildID + `","notice":"LSN-0066-1","added":"2026-01-01T00:00:00Z"}]}`
			index := patch.IndexPath(lab.Vendor, lab.Release, "x86_64")
			r.AddTarget(index, []byte(ix), nil)
			r.Publish(r.Bin(index))
		}, module: lab.NewModule(65), agent: []error{patch.ErrMalformed}, loader: []error{patch.ErrNotFound}},
		"extraneous: a thousand delegations": {by: report.Server, forge: func(r lab.Repository) {
			adds(evil)(r)
			for i := range 1000 {
				r.Delegate("targets", tuftest.Delegation("thief-"+strings.Repeat("x", i%50), tuftest.Threshold(1, strangers(1)...), false, "*/*"), strangers(1)...)
			}
			r.Roles["targets"].Signers = strangers(2)
			r.Publish("targets")
		}, agent: untrusted, loader: []error{patch.ErrUntrusted, patch.ErrMalformed}},
		"one bin shown as another": {by: report.Server, forge: func(r lab.Repository) {
			adds(evil)(r)
			for name := range r.Roles {
				if strings.HasPrefix(name, "debian-") && name != r.Bin(evil.Path()) {
					r.Roles[r.Bin(evil.Path())] = r.Roles[name].Clone()
				}
			}
			r.Roles[r.Bin(evil.Path())].Bump()
			r.Publish()
		}, loader: []error{patch.ErrNotFound, patch.ErrRollback, patch.ErrTampered, patch.ErrMalformed}},
		"rollback of the root": {by: report.Server, forge: func(r lab.Repository) {
			adds(evil)(r)
			old := r.AddRoot()
			old.Signed["version"] = 1
			signers(builder, approver)(r)
			tuftest.Grant(old, "root", 1, strangers(1)...)
		}, agent: []error{patch.ErrRollback, patch.ErrUntrusted}, loader: []error{patch.ErrRollback, patch.ErrUntrusted}},
	}
}

// What a hostile server or mirror makes of the signed files is refused twice: by the
// agent with go-tuf, and by the loader, to which it is handed as by an agent that does
// not look.
func TestHostileServerForgeries(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	for name, f := range forgeries() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := report.Begin(t, f.by, name)
			v := newVictim(t, s)
			forged := lab.Repository{Repo: v.repo.Clone()}
			forged.Publish()
			f.forge(forged)
			if f.module.Name == "" {
				f.module = evil
			}
			v.serve(forged)
			v.refresh(t, a, f.agent...)
			v.straight(t, a, forged, f.module, f.loader...)
			v.recovers(t)
		})
	}
}

// Files that were signed once do not come back.
func TestHostileServerRollback(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	index := patch.IndexPath(lab.Vendor, lab.Release, "x86_64")
	tests := map[string]func(old, now lab.Repository) lab.Repository{
		"everything is as it was": func(old, _ lab.Repository) lab.Repository { return old },
		"timestamp is as it was": func(old, now lab.Repository) lab.Repository {
			now.Roles["timestamp"] = old.Roles["timestamp"]
			return now
		},
		"an older bin in new snapshot and timestamp (online keys stolen)": func(old, now lab.Repository) lab.Repository {
			now.Roles[now.Bin(index)] = old.Roles[old.Bin(index)]
			now.Roles[now.Bin(lab.NewModule(2).Path())] = old.Roles[old.Bin(lab.NewModule(2).Path())]
			now.Publish()
			return now
		},
		"older rollouts in new snapshot and timestamp (online keys stolen)": func(old, now lab.Repository) lab.Repository {
			now.Roles["rollout"] = old.Roles["rollout"]
			now.Publish()
			return now
		},
		"a bin is gone from new snapshot (online keys stolen)": func(_, now lab.Repository) lab.Repository {
			now.Publish()
			name := now.Bin(index) + ".json"
			now.Roles["snapshot"].Edit = tuftest.Delete("meta", name)
			return now
		},
		"snapshot of before under the new timestamp": func(old, now lab.Repository) lab.Repository {
			now.Roles["snapshot"].Rewrite = func([]byte) []byte { return old.Files().Roles["snapshot"] }
			now.Roles["timestamp"].Edit = tuftest.Set(now.Roles["snapshot"].Version()+1, "meta", "snapshot.json", "version")
			now.Publish()
			return now
		},
	}
	for name, mix := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := report.Begin(t, report.Server, "rollback: "+name)
			v := newVictim(t, s)
			old := lab.Repository{Repo: v.repo.Clone()}
			two := lab.NewModule(2)
			v.repo.Add(two)
			v.repo.List(v.one, two)
			v.serve(v.repo)
			v.OK("refresh")
			v.WantInForce(two)
			was := len(v.Kernel.Insertions())

			forged := mix(old, lab.Repository{Repo: v.repo.Clone()})
			v.serve(forged)
			r := v.CLI("refresh")
			reason, sentinel := reasonIn(r.Stderr)
			if r.Code != 1 || sentinel == nil {
				t.Errorf("the agent said %v", r)
			}
			a.StoppedBy("agent: %s", reason)
			a.Sees(r.Stderr)
			_, err := lab.Apply(t, v.Client(), forged.Opening(v.one), v.one.Content)
			if err == nil {
				t.Error("the loader took the older patch")
			}
			a.StoppedBy("%s", checkOf(err))
			v.WantInForce(two)
			if got := v.Kernel.Insertions(); len(got) != was {
				t.Errorf("insertions = %v", got)
			}
		})
	}
}

// A patch that was replaced does not come back, however freshly it is signed.
func TestHostileServerOffersAnOlderPatch(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Server, "rollback to an older patch, validly signed")
	v := newVictim(t, s)
	two := lab.NewModule(2)
	v.repo.Add(two)
	v.repo.List(v.one, two)
	v.serve(v.repo)
	v.OK("refresh")
	v.WantInForce(two)
	v.repo.List(v.one) // the index offers the older one only
	v.serve(v.repo)
	r := v.CLI("refresh")
	a.StoppedBy("agent: keeps the newer one, exit %d", r.Code)
	a.Sees(r.Stdout + r.Stderr)
	_, err := lab.Apply(t, v.Client(), v.repo.Opening(v.one), v.one.Content)
	if err == nil {
		t.Error("the loader took the older patch")
	}
	a.StoppedBy("%s", checkOf(err))
	v.WantInForce(two)
}

// Versions of the largest number are believed, for whoever has the online keys says
// so; new keys in a new root end it.
func TestHostileServerFastForward(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Key, "fast-forward: online versions of the largest number")
	v := newVictim(t, s)
	forged := lab.Repository{Repo: v.repo.Clone()}
	for _, role := range []string{"timestamp", "snapshot"} {
		forged.Roles[role].Signed["version"] = math.MaxInt32
	}
	v.serve(forged)
	v.CLI("refresh")
	_, err := lab.Apply(t, v.Client(), forged.Opening(v.one), v.one.Content)
	lab.Must(t, err)
	v.unharmed(t)

	// Its owners notice, and publish a root with other online keys.
	root := v.repo.AddRoot()
	for _, role := range []string{"timestamp", "snapshot"} {
		key := tuftest.NewKey("new " + role)
		tuftest.Grant(root, role, 1, key)
		v.repo.Roles[role].Signers = []tuftest.Key{key}
	}
	v.repo.Add(honest)
	v.repo.List(v.one, honest)
	v.serve(v.repo)
	v.OK("refresh")
	v.WantInForce(honest)
	a.Bounded("TUF 5.3.11: after the new root with new keys version %d is taken by agent and loader, and the next patch arrives",
		v.repo.Roles["timestamp"].Version())
}

// checkOf names what refused a call whose error was translated already.
func checkOf(err error) string {
	reason, _ := reasonIn(err.Error())
	return "loader: " + reason
}
