package klp_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"livepatch/internal/patch"
	"livepatch/loader/internal/klp"
	loaderv1 "livepatch/proto/loader/v1"
)

// tree makes files below a new folder; a name that ends in "/" is a folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir == path {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const lp = "sys/kernel/livepatch/lp/"

func TestState(t *testing.T) {
	tests := map[string]struct {
		files   map[string]string
		want    klp.State
		wantErr string
	}{
		"settled on":                   {files: map[string]string{lp + "enabled": "1\n", lp + "transition": "0\n"}, want: klp.Enabled},
		"settled off, before 5.1":      {files: map[string]string{lp + "enabled": "0\n", lp + "transition": "0\n"}, want: klp.Disabled},
		"being applied":                {files: map[string]string{lp + "enabled": "1\n", lp + "transition": "1\n"}, want: klp.Enabling},
		"being reverted":               {files: map[string]string{lp + "enabled": "0\n", lp + "transition": "1\n"}, want: klp.Disabling},
		"disabled, module still there": {files: map[string]string{"sys/module/lp/refcnt": "0\n"}, want: klp.Disabled},
		"gone between the two reads":   {files: map[string]string{lp + "enabled": "1\n"}, want: klp.Absent},
		"never there":                  {want: klp.Absent},
		"kernel speaks new":            {files: map[string]string{lp + "enabled": "2\n", lp + "transition": "0\n"}, wantErr: `enabled is "2"`},
		"empty attribute":              {files: map[string]string{lp + "enabled": "1\n", lp + "transition": "\n"}, wantErr: `transition is ""`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := klp.New(tree(t, tc.files)).State("lp")
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("error = %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("state = %v, %v, want %v", got, err, tc.want)
			}
		})
	}
}

// TestStatesAreThoseOfTheContract allows the server to convert by number.
func TestStatesAreThoseOfTheContract(t *testing.T) {
	for s, want := range map[klp.State]loaderv1.State{
		klp.Absent:    loaderv1.State_STATE_ABSENT,
		klp.Enabled:   loaderv1.State_STATE_ENABLED,
		klp.Enabling:  loaderv1.State_STATE_ENABLING,
		klp.Disabling: loaderv1.State_STATE_DISABLING,
		klp.Disabled:  loaderv1.State_STATE_DISABLED,
	} {
		if loaderv1.State(s) != want {
			t.Errorf("state %d is %v in the contract, want %v", s, loaderv1.State(s), want)
		}
	}
}

func TestList(t *testing.T) {
	k := klp.New(tree(t, map[string]string{lp + "enabled": "1\n", "sys/kernel/livepatch/kpatch/enabled": "1\n"}))
	got, err := k.List()
	if diff := cmp.Diff([]string{"kpatch", "lp"}, got); diff != "" || err != nil {
		t.Errorf("livepatches (-want +got): %v\n%s", err, diff)
	}
	if got, err := klp.New(t.TempDir()).List(); len(got) != 0 || err != nil {
		t.Errorf("kernel without livepatch support: %v, %v", got, err)
	}
}

// What cannot be listed is not "none": out of file descriptors, for example.
func TestListSaysSoIfItCannotKnow(t *testing.T) {
	k := klp.New(tree(t, map[string]string{"sys/kernel/livepatch": "not a folder"}))
	if got, err := k.List(); err == nil {
		t.Errorf("listed %v", got)
	}
	if err := k.Settled(""); err == nil {
		t.Error("no transition is running, it says")
	}
}

func TestSettled(t *testing.T) {
	k := klp.New(tree(t, map[string]string{
		lp + "enabled": "1\n", lp + "transition": "0\n",
		"sys/kernel/livepatch/other/enabled": "0\n", "sys/kernel/livepatch/other/transition": "1\n",
	}))
	if err := k.Settled(""); !errors.Is(err, patch.ErrBusy) || !strings.Contains(err.Error(), "other") {
		t.Errorf("in transition: %v, want %v of other", err, patch.ErrBusy)
	}
	if err := k.Settled("other"); err != nil {
		t.Errorf("but for other: %v", err)
	}
	if err := klp.New(t.TempDir()).Settled(""); err != nil {
		t.Errorf("nothing there: %v", err)
	}
}

func TestDisableWritesZero(t *testing.T) {
	root := tree(t, map[string]string{lp + "enabled": "1\n"})
	if err := klp.New(root).Disable("lp"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, lp, "enabled")); !strings.HasPrefix(string(b), "0") {
		t.Errorf("enabled = %q, want 0", b)
	}
	if err := klp.New(root).Disable("absent"); err == nil {
		t.Error("a livepatch that is not there was disabled")
	}
}

func TestBlockers(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/1/task/1/patch_state": "1\n", "proc/1/task/1/comm": "init\n",
		"proc/20/task/20/patch_state": "0\n", "proc/20/task/20/comm": "vhost-7\n", "proc/20/task/20/status": "Name:\tvhost-7\nState:\tR (running)\nTgid:\t20\n",
		"proc/3/task/3/patch_state": "0\n", "proc/3/task/3/comm": "sl\xffeep\n", "proc/3/task/3/status": "no state",
		"proc/4/task/4/patch_state": "-1\n", "proc/4/task/4/comm": "outside\n",
		"proc/5/task/5/comm":           "went away\n",
		"proc/self/task/6/patch_state": "0\n",
	})
	k := klp.New(root)
	got, count := k.Blockers(klp.Enabling, 8)
	want := []*loaderv1.Blocker{{Tid: 3, Comm: "sl?eep"}, {Tid: 20, Comm: "vhost-7", State: "R (running)"}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || count != 2 {
		t.Errorf("blockers, %d in all:\n%s", count, diff)
	}
	if got, count := k.Blockers(klp.Enabling, 1); len(got) != 1 || count != 2 {
		t.Errorf("limited to one: %v, %d in all", got, count)
	}
	if got, _ := k.Blockers(klp.Disabling, 8); len(got) != 1 || got[0].GetComm() != "init" {
		t.Errorf("blockers of a revert: %v, want init", got)
	}
	if got, count := k.Blockers(klp.Enabled, 8); len(got) != 0 || count != 0 {
		t.Errorf("blockers outside a transition: %v, %d", got, count)
	}
}

// sealed is a file system whose patch_state files nobody may read.
type sealed struct{ fs.FS }

func (s sealed) Open(name string) (fs.File, error) {
	if strings.HasSuffix(name, "patch_state") {
		if name != "proc/self/patch_state" {
			return nil, errors.New("tried again")
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return s.FS.Open(name)
}

func TestBlockersAreNotSoughtWhereTheyAreOutOfReach(t *testing.T) {
	k := klp.Over(sealed{fstest.MapFS{"proc/20/task/20/patch_state": {Data: []byte("0\n")}}})
	if got, count := k.Blockers(klp.Enabling, 8); len(got) != 0 || count != 0 {
		t.Errorf("%v, %d in all", got, count)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte("1\n"), []byte("0\n"))
	f.Add([]byte(""), []byte("1"))
	f.Fuzz(func(t *testing.T, enabled, transition []byte) {
		root := tree(t, map[string]string{lp + "enabled": string(enabled), lp + "transition": string(transition)})
		if s, err := klp.New(root).State("lp"); err == nil && s == 0 {
			t.Error("no error and no state")
		}
	})
}
