package server_test

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"livepatch/internal/elftest"
	"livepatch/internal/kernel"
	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	"livepatch/internal/tuftest"
	"livepatch/loader/internal/gate"
	"livepatch/loader/internal/journal"
	"livepatch/loader/internal/klp"
	"livepatch/loader/internal/server"
	loaderv1 "livepatch/proto/loader/v1"
)

var (
	start   = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	running = patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: "00112233445566778899aabbccddeeff00112233"}
)

// A fakeKernel is a kernel made of files, with the two system calls that change
// which modules it has.
type fakeKernel struct {
	root string

	mu       sync.Mutex
	inserted []string
	deleted  []string
	errno    unix.Errno // what Insert answers
	hold     bool       // transitions do not end by themselves
	log      string     // what it has said
}

func (k *fakeKernel) Insert(c *gate.Cleared) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := c.Module().Name
	if k.errno != 0 {
		return fmt.Errorf("cannot insert module %q: %w: %w", name, kernel.Meaning(k.errno), k.errno)
	}
	k.inserted = append(k.inserted, name)
	transition := "0\n"
	if k.hold {
		transition = "1\n"
	} else {
		k.replace()
	}
	k.write("sys/module/"+name+"/refcnt", "1\n")
	k.write("sys/kernel/livepatch/"+name+"/enabled", "1\n")
	k.write("sys/kernel/livepatch/"+name+"/transition", transition)
	return nil
}

// replace lets the patches in force vanish from sysfs, as a cumulative patch
// does at the end of its transition; their modules stay.
func (k *fakeKernel) replace() {
	all, _ := filepath.Glob(filepath.Join(k.root, "sys/kernel/livepatch/*"))
	for _, dir := range all {
		_ = os.RemoveAll(dir)
	}
}

func (k *fakeKernel) Log() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.log
}

func (k *fakeKernel) Delete(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deleted = append(k.deleted, name)
	// A patch that was disabled leaves sysfs at the end of its transition.
	_ = os.RemoveAll(filepath.Join(k.root, "sys/kernel/livepatch", name))
	return os.RemoveAll(filepath.Join(k.root, "sys/module", name))
}

func (k *fakeKernel) write(name, content string) {
	path := filepath.Join(k.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		panic(err) // the test's own folder
	}
}

// settle ends the transition of a livepatch.
func (k *fakeKernel) settle(name string) {
	k.write("sys/kernel/livepatch/"+name+"/transition", "0\n")
}

// reboot is what a reboot leaves of the kernel's state.
func (k *fakeKernel) reboot(bootID string) {
	for _, dir := range []string{"sys/module", "sys/kernel/livepatch"} {
		_ = os.RemoveAll(filepath.Join(k.root, dir))
	}
	k.mu.Lock()
	k.inserted, k.deleted, k.hold = nil, nil, false
	k.mu.Unlock()
	k.write("sys/kernel/livepatch/.keep", "")
	k.write("proc/sys/kernel/random/boot_id", bootID+"\n")
}

// A machine is a loader with its kernel, its state and a client.
type machine struct {
	t      testing.TB
	kernel *fakeKernel
	state  string
	repo   *tuftest.Repo
	server *server.Server
	client loaderv1.LoaderServiceClient
	stop   func()
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{t: t, kernel: &fakeKernel{root: t.TempDir()}, state: filepath.Join(t.TempDir(), "state"), repo: tuftest.New(start), stop: func() {}}
	id, _ := hex.DecodeString(string(running.BuildID))
	note := binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 4), uint32(len(id))), 3)
	m.kernel.write("sys/kernel/notes", string(note)+"GNU\x00"+string(id))
	m.kernel.write("proc/sys/kernel/osrelease", running.Release+"\n")
	m.kernel.write("proc/sys/kernel/tainted", "0\n")
	m.kernel.reboot("boot1")
	m.restart()
	t.Cleanup(func() { m.stop() })
	return m
}

// restart starts the loader anew, as the next connection to its socket does.
func (m *machine) restart() {
	m.t.Helper()
	m.stop()
	j, err := journal.Open(m.state)
	if err != nil {
		m.t.Fatal(err)
	}
	facts := kernel.Reader(os.DirFS(m.kernel.root), os.DirFS(m.state))
	now := func() time.Time { return start.Add(time.Minute) }
	m.server = &server.Server{
		Log:     slog.New(slog.DiscardHandler),
		Gate:    &gate.Gate{Kernel: running, Memory: j, PinnedRoot: m.repo.Files().Roots[0], Now: now},
		Modules: m.kernel, Klp: klp.New(m.kernel.root), Root: os.DirFS(m.kernel.root), Journal: j, Facts: facts, Now: now, Busy: make(chan struct{}, 1),
	}
	if err := m.server.Resume(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	lis, err := net.Listen("unix", filepath.Join(m.t.TempDir(), "s"))
	if err != nil {
		m.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(8 << 20))
	loaderv1.RegisterLoaderServiceServer(g, m.server)
	go func() { _ = g.Serve(lis) }()
	conn, err := grpc.NewClient("unix:"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	m.client = loaderv1.NewLoaderServiceClient(conn)
	m.stop = func() {
		_ = conn.Close()
		g.Stop()
		_ = j.Close()
		m.stop = func() {}
	}
}

func nameOf(seq uint64) string    { return fmt.Sprintf("lkp_Debian_6_1_0_53_amd64_%d", seq) }
func versionOf(seq uint64) string { return fmt.Sprint(seq, ".1") }
func targetOf(seq uint64) string  { return "debian/" + nameOf(seq) + ".x86_64.ko" }

// publish puts patch number seq into the repository.
func (m *machine) publish(seq uint64) {
	content := elftest.Livepatch(nameOf(seq), running.Release)
	version := versionOf(seq)
	m.repo.AddTarget(targetOf(seq), content, patch.Module{
		Kernel: running, Flavour: "amd64", Name: nameOf(seq), Version: version, Sequence: seq, Fixes: []string{},
	})
	m.repo.AddTarget(patch.RolloutPath("debian", version), nil, patch.Rollout{State: patch.Running})
	m.repo.Publish("rollout", m.repo.Bin(targetOf(seq)))
}

// opening returns what an honest agent sends first.
func (m *machine) opening(seq uint64) *loaderv1.Opening {
	f := m.repo.Files()
	return &loaderv1.Opening{
		Target: targetOf(seq), Wait: durationpb.New(200 * time.Millisecond), Metadata: m.metadata(),
		Vendor: f.Roles["debian"], Bin: f.Roles[m.repo.Bin(targetOf(seq))],
	}
}

// metadata returns the signed metadata as it is now.
func (m *machine) metadata() *loaderv1.Metadata {
	f := m.repo.Files()
	return &loaderv1.Metadata{
		Roots: f.Roots[1:], Timestamp: f.Roles["timestamp"], Snapshot: f.Roles["snapshot"],
		Targets: f.Roles["targets"], Rollout: f.Roles["rollout"],
	}
}

// send streams messages and returns the answer.
func (m *machine) send(messages ...*loaderv1.ApplyRequest) (*loaderv1.ApplyResponse, error) {
	stream, err := m.client.Apply(m.t.Context())
	if err != nil {
		return nil, err
	}
	for _, msg := range messages {
		if err := stream.Send(msg); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	resp, err := stream.CloseAndRecv()
	return resp, rpcerr.FromStatus(err)
}

func opening(o *loaderv1.Opening) *loaderv1.ApplyRequest {
	return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: o}}
}

func piece(b []byte) *loaderv1.ApplyRequest {
	return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: b}}
}

// apply applies patch number seq as an honest agent does.
func (m *machine) apply(seq uint64) (*loaderv1.ApplyResponse, error) {
	content := m.repo.Files().Content[targetOf(seq)]
	return m.send(opening(m.opening(seq)), piece(content[:100]), piece(content[100:]))
}

func (m *machine) mustApply(seq uint64, want loaderv1.Outcome) *loaderv1.ApplyResponse {
	m.t.Helper()
	resp, err := m.apply(seq)
	if err != nil {
		m.t.Fatal(err)
	}
	if resp.GetOutcome() != want {
		m.t.Fatalf("outcome = %v, want %v", resp.GetOutcome(), want)
	}
	return resp
}

// check compares what Status says of patch number seq.
func (m *machine) check(seq uint64, state loaderv1.State, standing loaderv1.Standing) {
	m.t.Helper()
	resp, err := m.client.Status(m.t.Context(), &loaderv1.StatusRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, lp := range resp.GetLivepatches() {
		if lp.GetName() == nameOf(seq) {
			if lp.GetState() != state || lp.GetStanding() != standing {
				m.t.Errorf("patch %d is %v and %v, want %v and %v", seq, lp.GetState(), lp.GetStanding(), state, standing)
			}
			return
		}
	}
	m.t.Errorf("Status does not know patch %d", seq)
}

const (
	applied  = loaderv1.Outcome_OUTCOME_APPLIED
	already  = loaderv1.Outcome_OUTCOME_ALREADY_APPLIED
	pending  = loaderv1.Outcome_OUTCOME_TRANSITION_PENDING
	enabled  = loaderv1.State_STATE_ENABLED
	enabling = loaderv1.State_STATE_ENABLING
	absent   = loaderv1.State_STATE_ABSENT

	trial       = loaderv1.Standing_STANDING_TRIAL
	accepted    = loaderv1.Standing_STANDING_ACCEPTED
	suspect     = loaderv1.Standing_STANDING_SUSPECT
	quarantined = loaderv1.Standing_STANDING_QUARANTINED
	inserting   = loaderv1.Standing_STANDING_INSERTING
)

func TestApply(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.check(1, enabled, trial)
}

func TestSamePatchTwiceIsSuccessAndNoSecondInsertion(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.mustApply(1, already)
	m.restart()
	m.mustApply(1, already)
	if len(m.kernel.inserted) != 1 {
		t.Errorf("inserted %v, want one insertion", m.kernel.inserted)
	}
	m.check(1, enabled, trial)
}

func TestSameNameWithOtherContentIsRefused(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	// Signed and newer, but under the name of what is loaded.
	content := append(elftest.Livepatch(nameOf(1), running.Release), 0)
	m.repo.AddTarget(targetOf(1), content, patch.Module{Kernel: running, Flavour: "amd64", Name: nameOf(1), Version: "1.1", Sequence: 2})
	m.repo.Publish(m.repo.Bin(targetOf(1)))
	if _, err := m.apply(1); !errors.Is(err, patch.ErrNameTaken) {
		t.Errorf("error = %v, want %v", err, patch.ErrNameTaken)
	}
	m.check(1, enabled, trial)
}

func TestNameTakenBySomebodyElse(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.kernel.write("sys/module/"+nameOf(1)+"/refcnt", "1\n")
	if _, err := m.apply(1); !errors.Is(err, patch.ErrNameTaken) {
		t.Errorf("error = %v, want %v", err, patch.ErrNameTaken)
	}
	if len(m.kernel.inserted)+len(m.kernel.deleted) != 0 {
		t.Errorf("inserted %v, deleted %v", m.kernel.inserted, m.kernel.deleted)
	}
}

func TestNewerPatchReplacesOlder(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.publish(2)
	resp := m.mustApply(2, applied)
	if !slices.Equal(resp.GetUnloaded(), []string{nameOf(1)}) || !slices.Equal(m.kernel.deleted, []string{nameOf(1)}) {
		t.Errorf("unloaded %v, deleted %v, want %s", resp.GetUnloaded(), m.kernel.deleted, nameOf(1))
	}
	m.check(1, absent, quarantined)
	m.check(2, enabled, trial)
	if _, err := m.apply(1); !errors.Is(err, patch.ErrRollback) {
		t.Errorf("the older one again: %v, want %v", err, patch.ErrRollback)
	}
}

func TestOnlyAcceptedPatchesReturnAtBoot(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if _, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)}); err != nil {
		t.Fatal(err)
	}
	m.check(1, enabled, accepted)
	m.publish(2)
	m.mustApply(2, applied) // and not accepted

	if err := m.server.Journal.MarkCleanShutdown("boot1"); err != nil {
		t.Fatal(err)
	}
	m.kernel.reboot("boot2")
	m.restart()
	if err := m.server.Reapply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.kernel.inserted, []string{nameOf(1)}) {
		t.Errorf("inserted at boot: %v, want %s, the last known good", m.kernel.inserted, nameOf(1))
	}
	m.check(1, enabled, accepted)
	m.mustApply(2, applied) // the agent brings the newer one again
}

func TestAcceptedPatchReturnsAtEveryBoot(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if _, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)}); err != nil {
		t.Fatal(err)
	}
	for boot := range 3 {
		m.kernel.reboot(fmt.Sprint("crash", boot)) // an accepted patch does not need a clean shutdown
		m.restart()
		if err := m.server.Reapply(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.check(1, enabled, accepted)
	}
}

func TestNothingAcceptedIsNoFailureAtBoot(t *testing.T) {
	m := newMachine(t)
	if err := m.server.Reapply(t.Context()); err != nil || len(m.kernel.inserted) != 0 {
		t.Errorf("Reapply = %v, inserted %v", err, m.kernel.inserted)
	}
}

func TestDamagedStoreKeepsThePatchOutAtBoot(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if _, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)}); err != nil {
		t.Fatal(err)
	}
	e, _ := m.server.Journal.Find(nameOf(1))
	if err := os.WriteFile(filepath.Join(m.state, "store", e.Digest.String()), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.kernel.reboot("boot2")
	m.restart()
	if err := m.server.Reapply(t.Context()); !errors.Is(err, patch.ErrTampered) {
		t.Errorf("Reapply = %v, want %v", err, patch.ErrTampered)
	}
	m.mustApply(1, applied) // the agent has the real one
}

func TestCrashDuringTrialMakesSuspect(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.kernel.reboot("boot2") // without a clean shutdown
	m.restart()
	m.check(1, absent, suspect)
	if _, err := m.apply(1); !errors.Is(err, patch.ErrSuspect) {
		t.Errorf("the suspect again: %v, want %v", err, patch.ErrSuspect)
	}
	m.publish(2)
	m.mustApply(2, applied)
}

// The agent may ask for a removal, but not for another trial of what has crashed the machine.
func TestASuspectThatWasRemovedIsStillOne(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.kernel.reboot("boot2")
	m.restart()
	if _, err := m.client.Remove(t.Context(), &loaderv1.RemoveRequest{Name: nameOf(1)}); err != nil {
		t.Logf("Remove: %v", err)
	}
	m.check(1, absent, suspect)
	if _, err := m.apply(1); !errors.Is(err, patch.ErrSuspect) {
		t.Errorf("the suspect again: %v, want %v", err, patch.ErrSuspect)
	}
}

// A refresh of the snap stops and starts the unit that brings patches back at boot.
func TestTheBootUnitKeepsANewerPatchOnTrial(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	m.accept(1)
	m.publish(2)
	m.mustApply(2, applied)
	if err := m.server.Journal.MarkCleanShutdown("boot1"); err != nil {
		t.Fatal(err)
	}
	m.restart()
	if err := m.server.Reapply(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.check(2, enabled, trial)
}

func TestPendingTransitionIsSettledLater(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.kernel.hold = true
	m.kernel.write("proc/77/task/77/patch_state", "0\n")
	m.kernel.write("proc/77/task/77/comm", "vhost-77\n")
	resp := m.mustApply(1, pending)
	if b := resp.GetLivepatch().GetBlockers(); len(b) != 1 || b[0].GetComm() != "vhost-77" {
		t.Errorf("blockers = %v, want vhost-77", b)
	}
	m.check(1, enabling, inserting)
	m.publish(2)
	if _, err := m.apply(2); !errors.Is(err, patch.ErrBusy) {
		t.Errorf("a second patch meanwhile: %v, want %v", err, patch.ErrBusy)
	}
	m.restart() // it left when idle
	m.check(1, enabling, inserting)
	m.kernel.settle(nameOf(1))
	m.check(1, enabled, trial)
}

func TestTransitionThatWasReversedIsAFailure(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.kernel.hold = true
	m.mustApply(1, pending)
	_ = os.RemoveAll(filepath.Join(m.kernel.root, "sys/kernel/livepatch", nameOf(1)))
	m.check(1, loaderv1.State_STATE_DISABLED, quarantined)
}

func TestRemove(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if _, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing left to do
		if _, err := m.client.Remove(t.Context(), &loaderv1.RemoveRequest{Name: nameOf(1)}); err != nil {
			t.Fatal(err)
		}
	}
	m.check(1, absent, quarantined)
	m.kernel.reboot("boot2")
	m.restart()
	if err := m.server.Reapply(t.Context()); err != nil || len(m.kernel.inserted) != 0 {
		t.Errorf("at boot: %v, inserted %v", err, m.kernel.inserted)
	}
	m.mustApply(1, applied) // it may come again if the signed metadata says so
}

func TestOnlyOurOwnLivepatchesAreChanged(t *testing.T) {
	m := newMachine(t)
	m.kernel.write("sys/kernel/livepatch/kpatch_1/enabled", "1\n")
	m.kernel.write("sys/kernel/livepatch/kpatch_1/transition", "0\n")
	for name, want := range map[string]error{"kpatch_1": patch.ErrNotOurs, "nothing": patch.ErrNotOurs, "../../x": patch.ErrNotOurs, "": patch.ErrNotOurs} {
		_, err := m.client.Remove(t.Context(), &loaderv1.RemoveRequest{Name: name})
		if err := rpcerr.FromStatus(err); !errors.Is(err, want) {
			t.Errorf("Remove(%q) = %v, want %v", name, err, want)
		}
		_, err = m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: name})
		if err := rpcerr.FromStatus(err); !errors.Is(err, want) {
			t.Errorf("Accept(%q) = %v, want %v", name, err, want)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(m.kernel.root, "sys/kernel/livepatch/kpatch_1/enabled")); string(b) != "1\n" {
		t.Errorf("enabled = %q", b)
	}
}

func TestWhatIsNotInForceIsNotAccepted(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.kernel.hold = true
	m.mustApply(1, pending)
	_, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)})
	if err := rpcerr.FromStatus(err); !errors.Is(err, patch.ErrStalled) {
		t.Errorf("Accept = %v, want %v", err, patch.ErrStalled)
	}
}

func TestErrnosReachTheAgentTyped(t *testing.T) {
	tests := map[string]struct {
		errno unix.Errno
		files map[string]string // that the kernel has then
		want  error
	}{
		"wrong format":                    {errno: unix.ENOEXEC, want: patch.ErrBadFormat},
		"incompatible":                    {errno: unix.EINVAL, want: patch.ErrIncompatible},
		"unknown symbol":                  {errno: unix.ENOENT, want: patch.ErrUnknownSymbol},
		"name taken meanwhile":            {errno: unix.EEXIST, want: patch.ErrNameTaken},
		"function traced by others":       {errno: unix.EBUSY, want: patch.ErrFtraceConflict},
		"key not known":                   {errno: unix.ENOKEY, want: patch.ErrModuleSignature},
		"key rejected":                    {errno: unix.EKEYREJECTED, want: patch.ErrModuleSignature},
		"lockdown":                        {errno: unix.EPERM, want: patch.ErrNotPermitted},
		"no livepatch core":               {errno: unix.ENODEV, want: patch.ErrNoLivepatch},
		"no memory":                       {errno: unix.ENOMEM, want: patch.ErrNoMemory},
		"an errno nobody expects":         {errno: unix.EXDEV, want: patch.ErrKernel},
		"modules disabled":                {files: map[string]string{"proc/sys/kernel/modules_disabled": "1\n"}, want: patch.ErrModulesDisabled},
		"ftrace disabled":                 {files: map[string]string{"proc/sys/kernel/ftrace_enabled": "0\n"}, want: patch.ErrFtraceDisabled},
		"a transition of somebody else's": {files: map[string]string{"sys/kernel/livepatch/kp/enabled": "1\n", "sys/kernel/livepatch/kp/transition": "1\n"}, want: patch.ErrBusy},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.publish(1)
			m.kernel.errno = tc.errno
			for file, content := range tc.files {
				m.kernel.write(file, content)
			}
			_, err := m.apply(1)
			if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error = %v, want %v on one line", err, tc.want)
			}
			if len(m.kernel.inserted) != 0 {
				t.Errorf("inserted %v", m.kernel.inserted)
			}
			// A refusal of the kernel does not stop a later try.
			m.kernel.errno = 0
			for file := range tc.files {
				_ = os.RemoveAll(filepath.Join(m.kernel.root, file))
			}
			m.mustApply(1, applied)
		})
	}
}

func TestRefusedReinsertionKeepsTheAcceptedPatch(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	if _, err := m.client.Accept(t.Context(), &loaderv1.AcceptRequest{Name: nameOf(1)}); err != nil {
		t.Fatal(err)
	}
	m.kernel.reboot("boot2")
	m.restart()
	m.kernel.errno = unix.EBUSY
	if err := m.server.Reapply(t.Context()); !errors.Is(err, patch.ErrFtraceConflict) {
		t.Fatalf("Reapply = %v, want %v", err, patch.ErrFtraceConflict)
	}
	m.check(1, absent, accepted)
	m.kernel.errno = 0
	m.kernel.reboot("boot3")
	m.restart()
	if err := m.server.Reapply(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.check(1, enabled, accepted)
}

func TestMalformedStreamsAreRefused(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	with := func(change func(*loaderv1.Opening)) *loaderv1.ApplyRequest {
		o := m.opening(1)
		change(o)
		return opening(o)
	}
	good := opening(m.opening(1))
	module := piece(m.repo.Files().Content[targetOf(1)])
	tests := map[string]struct {
		messages []*loaderv1.ApplyRequest
		want     error
	}{
		"nothing":                 {nil, io.EOF},
		"no module":               {[]*loaderv1.ApplyRequest{good}, patch.ErrTampered},
		"module first":            {[]*loaderv1.ApplyRequest{module, good}, patch.ErrInvalid},
		"two openings":            {[]*loaderv1.ApplyRequest{good, good, module}, patch.ErrInvalid},
		"an empty piece":          {[]*loaderv1.ApplyRequest{good, piece(nil), module}, patch.ErrInvalid},
		"an empty message":        {[]*loaderv1.ApplyRequest{{}}, patch.ErrInvalid},
		"65 roots":                {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Metadata.Roots = slices.Repeat(m.repo.Files().Roots[:1], 65) }), module}, patch.ErrRollback},
		"a root of nothing":       {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Metadata.Roots = make([][]byte, 1) }), module}, patch.ErrMalformed},
		"waiting for an hour":     {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Wait = durationpb.New(time.Hour) }), module}, patch.ErrInvalid},
		"waiting backwards":       {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Wait = durationpb.New(-1) }), module}, patch.ErrInvalid},
		"a path for a target":     {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Target = "/lib/modules/x.ko" }), module}, patch.ErrInvalid},
		"no metadata":             {[]*loaderv1.ApplyRequest{opening(&loaderv1.Opening{Target: targetOf(1)}), module}, patch.ErrMalformed},
		"a timestamp of 17 KiB":   {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Metadata.Timestamp = make([]byte, 17<<10) }), module}, patch.ErrTooLarge},
		"a bin of 5 MiB and more": {[]*loaderv1.ApplyRequest{with(func(o *loaderv1.Opening) { o.Bin = make([]byte, patch.MaxRole+1) }), module}, patch.ErrTooLarge},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := m.send(tc.messages...)
			if tc.want == io.EOF {
				if err == nil {
					t.Error("an empty stream was success")
				}
			} else if !errors.Is(err, tc.want) {
				t.Errorf("error = %v, want %v", err, tc.want)
			}
			if len(m.kernel.inserted) != 0 {
				t.Errorf("inserted %v", m.kernel.inserted)
			}
		})
	}
	m.mustApply(1, applied)
}

func TestOneChangeAtATime(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	stream, err := m.client.Apply(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(opening(m.opening(1))); err != nil {
		t.Fatal(err)
	}
	for len(m.server.Busy) == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := m.apply(1); !errors.Is(err, patch.ErrBusy) {
		t.Errorf("second Apply = %v, want %v", err, patch.ErrBusy)
	}
	_, err = m.client.Remove(t.Context(), &loaderv1.RemoveRequest{Name: nameOf(1)})
	if err := rpcerr.FromStatus(err); !errors.Is(err, patch.ErrBusy) {
		t.Errorf("Remove = %v, want %v", err, patch.ErrBusy)
	}
	if _, err := m.client.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
		t.Errorf("Status meanwhile: %v", err)
	}
	if err := stream.Send(piece(m.repo.Files().Content[targetOf(1)])); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		t.Errorf("first Apply: %v", err)
	}
}

func TestClientThatStopsFreesThePlace(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := m.client.Apply(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(opening(m.opening(1))); err != nil {
		t.Fatal(err)
	}
	for len(m.server.Busy) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	for len(m.server.Busy) != 0 {
		time.Sleep(time.Millisecond)
	}
	m.mustApply(1, applied)
}

func TestFullDiskChangesNothing(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	// A file in the place of the store's folder fails every write there.
	store := filepath.Join(m.state, "store")
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(store, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.apply(1); !errors.Is(err, patch.ErrStorage) {
		t.Errorf("error = %v, want %v", err, patch.ErrStorage)
	}
	if len(m.kernel.inserted) != 0 || len(m.server.Journal.All()) != 0 {
		t.Errorf("inserted %v, journal %v", m.kernel.inserted, m.server.Journal.All())
	}
}

func TestDisabledBehindOurBackIsInsertedAgain(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	m.mustApply(1, applied)
	_ = os.RemoveAll(filepath.Join(m.kernel.root, "sys/kernel/livepatch", nameOf(1)))
	m.mustApply(1, applied)
	if len(m.kernel.inserted) != 2 || len(m.kernel.deleted) != 1 {
		t.Errorf("inserted %v, deleted %v", m.kernel.inserted, m.kernel.deleted)
	}
}

func TestStatusTellsWhichRootsToSend(t *testing.T) {
	m := newMachine(t)
	m.publish(1)
	version := func() int64 {
		resp, err := m.client.Status(t.Context(), &loaderv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetRootVersion()
	}
	if v := version(); v != 1 {
		t.Errorf("root version = %d at first, want 1", v)
	}
	m.repo.AddRoot()
	m.mustApply(1, applied)
	if v := version(); v != 2 {
		t.Errorf("root version = %d after an update, want 2", v)
	}
}

func TestStatusTellsWhatTheKernelDemandsOfModules(t *testing.T) {
	m := newMachine(t)
	for name, content := range map[string]string{
		"proc/keys": "30b1a2c3 I------     1 perm 1f010000     0     0 asymmetri Livepatch: 0bf1a2c3: X509.rsa 0bf1a2c3 []\n" +
			"31b1a2c3 I------     1 perm 09090000     0     0 blacklist tbs:3a91f7fd\n",
		"sys/module/module/parameters/sig_enforce":                                 "Y\n",
		"sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\x00\x00\x00\x01",
	} {
		path := filepath.Join(m.kernel.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := m.client.Status(t.Context(), &loaderv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	k := resp.GetKernel()
	if !k.GetSecureBoot() || !k.GetSignatureEnforced() || !slices.Equal(k.GetModuleKeys(), []string{"0bf1a2c3"}) || !slices.Equal(k.GetRevokedKeys(), []string{"tbs:3a91f7fd"}) {
		t.Errorf("kernel = %v", k)
	}
}
