package push_test

import (
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"livepatch/internal/service"
	"livepatch/publisher/internal/push"
)

const (
	envelope      = `{"signatures":[],"signed":{"_type":"%s","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","meta":{%s}}}`
	timestampPath = service.PathMetadata + "timestamp.json"
	snapshotPath  = service.PathMetadata + "7.snapshot.json"
)

// mirror is what a service serves to everybody: two roots, and a bin.
func mirror() map[string]string {
	return map[string]string{
		service.PathMetadata + "1.root.json":      "first root",
		service.PathMetadata + "2.root.json":      "second root",
		timestampPath:                             fmt.Sprintf(envelope, "timestamp", `"snapshot.json":{"version":7}`),
		snapshotPath:                              fmt.Sprintf(envelope, "snapshot", `"targets.json":{"version":3},"debian-00.json":{"version":4}`),
		service.PathMetadata + "3.targets.json":   "targets",
		service.PathMetadata + "4.debian-00.json": "bin",
	}
}

// reader returns a client of a server with these files, which fails the test if
// it is sent a token.
func reader(t *testing.T, files map[string]string) *push.Client {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("a reader has sent a token")
		}
		content, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(content))
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	c, err := push.NewReader(push.Options{Server: server.URL, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFetchCopiesWhatIsServed(t *testing.T) {
	dir := t.TempDir()
	if err := reader(t, mirror()).Fetch(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "metadata"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"1.root.json", "2.root.json", "3.targets.json", "4.debian-00.json", "7.snapshot.json", "timestamp.json"}; !slices.Equal(names, want) {
		t.Errorf("files = %q, want %q", names, want)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "metadata", "4.debian-00.json")); err != nil || string(b) != "bin" {
		t.Errorf("bin = %q, %v", b, err)
	}
}

// Nothing that a hostile mirror says may be written anywhere else.
func TestFetchRefuses(t *testing.T) {
	tests := map[string]struct {
		path, content string // "" takes the file away
		says          string
	}{
		"no root":                      {service.PathMetadata + "1.root.json", "", "cannot fetch 1.root.json"},
		"no timestamp":                 {timestampPath, "", "cannot fetch timestamp.json"},
		"a timestamp that is none":     {timestampPath, "<html>", "cannot read timestamp.json"},
		"a timestamp with null":        {timestampPath, fmt.Sprintf(envelope, "timestamp", `"snapshot.json":null`), "timestamp.json"},
		"a timestamp of nothing":       {timestampPath, fmt.Sprintf(envelope, "timestamp", ""), "names no snapshot"},
		"a snapshot that is missing":   {snapshotPath, "", "cannot fetch 7.snapshot.json"},
		"a snapshot that is none":      {snapshotPath, "{}", "cannot read 7.snapshot.json"},
		"a role that is a path":        {snapshotPath, fmt.Sprintf(envelope, "snapshot", `"../../x.json":{"version":1}`), "cannot use"},
		"a role that is missing":       {service.PathMetadata + "4.debian-00.json", "", "cannot fetch 4.debian-00.json"},
		"a role of which null is said": {snapshotPath, fmt.Sprintf(envelope, "snapshot", `"targets.json":null`), "nothing is said of targets.json"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(mirror())
			if files[tc.path] = tc.content; tc.content == "" {
				delete(files, tc.path)
			}
			err := reader(t, files).Fetch(t.Context(), t.TempDir())
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Fetch = %v, want an error that says %q", err, tc.says)
			}
		})
	}
}
