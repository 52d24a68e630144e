package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/tuftest"
)

const day = 24 * time.Hour

// A lab is a repository with a web server, and a client of it.
type lab struct {
	*testing.T
	repo *tuftest.Repo
	url  string
	now  time.Time // on the client
	dir  string    // D and O of the protocol, and initial_root.json

	mu       sync.Mutex
	files    map[string][]byte // by path below the server's root
	requests []string
	handler  http.HandlerFunc // if set, answers in place of the files
}

// newLab returns a lab whose client has a root to start from. The repository has
// a vendor with one module, as ours have.
func newLab(t *testing.T) *lab {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	l := &lab{T: t, repo: tuftest.New(now), now: now, dir: t.TempDir(), files: map[string][]byte{}}
	for _, name := range []string{"metadata", "targets", "bin"} {
		if err := os.Mkdir(filepath.Join(l.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(l.serve))
	t.Cleanup(server.Close)
	l.url = server.URL
	t.Setenv("PATH", filepath.Join(l.dir, "bin")+":"+os.Getenv("PATH"))
	l.setClock(now)
	l.publish()
	return l
}

// newFlatLab returns a lab whose repository delegates to nobody.
func newFlatLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	for name := range l.repo.Roles {
		if !slices.Contains([]string{"timestamp", "snapshot", "targets"}, name) {
			delete(l.repo.Roles, name)
		}
	}
	delete(l.repo.Roles["targets"].Signed, "delegations")
	l.publish()
	return l
}

// setClock has the program date print a time.
func (l *lab) setClock(now time.Time) {
	l.Helper()
	script := fmt.Sprintf("#!/bin/sh\necho %d\n", now.Unix())
	if err := os.WriteFile(filepath.Join(l.dir, "bin", "date"), []byte(script), 0o755); err != nil {
		l.Fatal(err)
	}
}

// publish signs the repository and puts its files on the server. Those of older
// versions stay.
func (l *lab) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	files := l.repo.Files()
	for i, b := range files.Roots {
		l.files[fmt.Sprintf("/metadata/%d.root.json", i+1)] = b
	}
	consistent, _ := l.repo.Root().Signed["consistent_snapshot"].(bool)
	for name, b := range files.Roles {
		if consistent && name != "timestamp" {
			name = fmt.Sprintf("%d.%s", l.repo.Roles[name].Version(), name)
		}
		l.files["/metadata/"+name+".json"] = b
	}
	for path, content := range files.Content {
		folder, name := "", path
		if i := strings.LastIndex(path, "/"); i >= 0 {
			folder, name = path[:i+1], path[i+1:]
		}
		if consistent {
			hashes := tuftest.TargetEntry(content, nil)["hashes"].(tuftest.Object)
			name = hashes["sha256"].(string) + "." + name
		}
		l.files["/targets/"+folder+name] = content
	}
}

// next raises the versions of roles, and of what lists them, and publishes.
func (l *lab) next(roles ...string) {
	l.repo.Publish(roles...)
	l.publish()
}

func (l *lab) serve(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/metadata/"), "/targets/"))
	if l.handler != nil {
		l.handler(w, r)
		return
	}
	b, ok := l.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write(b)
}

// seen returns the requests since it was called last.
func (l *lab) seen() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.requests
	l.requests = nil
	return out
}

// run runs the client and wants it to leave with a code.
func (l *lab) run(want int, args ...string) {
	l.Helper()
	var stderr bytes.Buffer
	if got := run(l.Context(), args, &stderr); got != want {
		l.Errorf("%v: exit code %d, want %d\n%s", args, got, want, &stderr)
	}
}

func (l *lab) metadata() string { return filepath.Join(l.dir, "metadata") }

// initialize has the client trust root 1.
func (l *lab) initialize() {
	l.Helper()
	root := filepath.Join(l.dir, "initial_root.json")
	if err := os.WriteFile(root, l.files["/metadata/1.root.json"], 0o600); err != nil {
		l.Fatal(err)
	}
	l.run(0, "--metadata-dir", l.metadata(), "init", root)
	if got := l.seen(); len(got) != 0 {
		l.Errorf("init asked for %v", got)
	}
}

func (l *lab) refresh(want int) {
	l.Helper()
	l.run(want, "--metadata-url", l.url+"/metadata/", "--metadata-dir", l.metadata(), "refresh")
}

func (l *lab) download(want int, names ...string) {
	l.Helper()
	args := []string{"--metadata-url", l.url + "/metadata/", "--metadata-dir", l.metadata()}
	for _, name := range names {
		args = append(args, "--target-name", name)
	}
	l.run(want, append(args, "--target-dir", filepath.Join(l.dir, "targets"), "--target-base-url", l.url+"/targets/", "download")...)
}

// trusts wants the client to hold these roles, in these versions, and no others:
// "root 1, timestamp 2".
func (l *lab) trusts(want string) {
	l.Helper()
	entries, err := os.ReadDir(l.metadata())
	if err != nil {
		l.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".json")
		b, err := os.ReadFile(filepath.Join(l.metadata(), e.Name()))
		if err != nil {
			l.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d", name, versionOf(l.T, b)))
	}
	wanted := strings.Split(want, ", ")
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		l.Errorf("client trusts %v, want %v", got, wanted)
	}
}

// asked wants the requests since the last time it was called.
func (l *lab) asked(want ...string) {
	l.Helper()
	if got := l.seen(); !slices.Equal(got, want) {
		l.Errorf("client asked for %q, want %q", got, want)
	}
}

// holds wants the client to have downloaded these contents, by name of the
// target, and no others.
func (l *lab) holds(want map[string]string) {
	l.Helper()
	got := map[string]string{}
	err := fs.WalkDir(os.DirFS(filepath.Join(l.dir, "targets")), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(l.dir, "targets", path))
		got[strings.ReplaceAll(path, "%2F", "/")] = string(b)
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	if !maps.Equal(got, want) {
		l.Errorf("client holds %q, want %q", got, want)
	}
}

// rotate gives a role new keys in a new root, which a threshold of the old root
// keys signs, and of the new ones.
func (l *lab) rotate(role string, threshold int, names ...string) {
	var keys []tuftest.Key
	for _, name := range names {
		keys = append(keys, tuftest.NewKey(name))
	}
	root := l.repo.AddRoot()
	tuftest.Grant(root, role, threshold, keys...)
	if role == "root" {
		root.Signers = append(root.Signers, keys...)
		return
	}
	l.repo.Roles[role].Signers = keys
}

// delegate makes a role below another, which signs with a key of its own and
// lists nothing.
func (l *lab) delegate(parent, name string, terminating bool, paths ...string) {
	key := tuftest.NewKey("key of " + name)
	if l.repo.Roles[name] == nil {
		l.repo.AddRole(name, key)
	}
	l.repo.Delegate(parent, tuftest.Delegation(name, tuftest.Threshold(1, key), terminating, paths...), key)
}
