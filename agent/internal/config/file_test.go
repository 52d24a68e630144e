package config_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"livepatch/agent/internal/config"
)

func TestFileRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	ca := certificate(t, "ca")
	c := config.Default()
	for key, value := range map[string]string{"ca-certs": ca, "check-interval": "0", "cutoff-date": "2024-02-01T00:00:00Z", "tls-patch-download": "true"} {
		if err := c.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode = %v, want only the owner to read it", info.Mode())
	}
	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got, cmp.AllowUnexported(config.Config{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("read back (-saved +loaded):\n%s", diff)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v, %v, want the file only", entries, err)
	}
}

func TestFileHoldsOnlyWhatWasSet(t *testing.T) {
	c := config.Default()
	if err := c.Set("log-level", "info"); err != nil {
		t.Fatal(err)
	}
	if err := c.Set("check-interval", "120"); err != nil {
		t.Fatal(err)
	}
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), "check-interval: \"120\"\nlog-level: info\n"; got != want {
		t.Errorf("file = %q, want %q", got, want)
	}
}

func TestMissingFileIsTheDefault(t *testing.T) {
	c, err := config.Load(filepath.Join(t.TempDir(), "config"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Default().List(), c.List()); diff != "" {
		t.Error(diff)
	}
}

func TestSaveIntoAMissingFolderFails(t *testing.T) {
	err := config.Default().Save(filepath.Join(t.TempDir(), "gone", "config"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "cannot save configuration: ") {
		t.Errorf("error = %v", err)
	}
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		file    string
		want    map[string]string // what differs from the default
		unknown []string
		wantErr string
	}{
		"empty":                       {file: ""},
		"comments only":               {file: "# nothing\n"},
		"empty document":              {file: "---\n"},
		"values that YAML has a type": {file: "check-interval: 90\ntls-patch-download: true\ncutoff-date: 2024-02-01T00:00:00Z\npatch-delay: 0\n", want: map[string]string{"check-interval": "90", "tls-patch-download": "true", "cutoff-date": "2024-02-01T00:00:00Z"}},
		"an empty value is none":      {file: "http-proxy: \"\"\nno-proxy:\nlog-level: ~\n"},
		"slash at the end":            {file: "remote-server: https://x.example.com/\n", want: map[string]string{"remote-server": "https://x.example.com"}},
		"keys of a later version":     {file: "log-level: info\nblink: [1, {a: b}]\n", want: map[string]string{"log-level": "info"}, unknown: []string{"blink"}},
		// A machine may start with a clock of 1970, and must start.
		"cutoff in the future": {file: "cutoff-date: 9999-01-01T00:00:00Z\n", want: map[string]string{"cutoff-date": "9999-01-01T00:00:00Z"}},

		"cut off in the middle":   {file: "remote-server: \"https://x.exam", wantErr: "configuration file is damaged: found unexpected end of stream"},
		"zeroes after power cut":  {file: "\x00\x00\x00\x00", wantErr: "configuration file is damaged: control characters are not allowed"},
		"not keys and values":     {file: "- a\n- b\n", wantErr: "configuration file is damaged: line 1: need lines of the form key: value"},
		"a sentence":              {file: "hello\n", wantErr: "configuration file is damaged: line 1: need lines of the form key: value"},
		"a value it cannot have":  {file: "# x\nlog-level: loud\n", wantErr: `configuration file is damaged: line 2: cannot set log-level: "loud" is not a level, need debug, info, notice, warning or error`},
		"a list for a value":      {file: "no-proxy: [a, b]\n", wantErr: "configuration file is damaged: line 1: no-proxy has no single value"},
		"a key twice":             {file: "log-level: info\nlog-level: debug\n", wantErr: `configuration file is damaged: line 2: "log-level" is there twice`},
		"an unknown key twice":    {file: "x: 1\nx: 2\n", wantErr: `configuration file is damaged: line 2: "x" is there twice`},
		"an alias":                {file: "x: &a 1\nlog-level: *a\n", wantErr: "configuration file is damaged: there is a YAML alias in it"},
		"two documents":           {file: "a: 1\n---\nb: 2\n", wantErr: "configuration file is damaged: there is more than one document in it"},
		"a key that is a mapping": {file: "? {a: b}\n: c\n", wantErr: "configuration file is damaged: line 1: a key is not a word"},
		"far too long":            {file: strings.Repeat("#", 2<<20+1), wantErr: "more than 2097152 bytes: configuration file is damaged"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse([]byte(tc.file))
			if text := errText(err); text != tc.wantErr {
				t.Fatalf("error = %q,\n         want %q", text, tc.wantErr)
			}
			if err != nil {
				if !errors.Is(err, config.ErrCorrupt) {
					t.Errorf("%v does not match ErrCorrupt", err)
				}
				return
			}
			want := config.Default().List()
			for i, e := range want {
				if v, ok := tc.want[e.Key]; ok {
					want[i].Value = v
				}
			}
			if diff := cmp.Diff(want, c.List()); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			if !slices.Equal(c.Unknown(), tc.unknown) {
				t.Errorf("unknown = %q, want %q", c.Unknown(), tc.unknown)
			}
		})
	}
}

func TestUnknownKeysSurviveAChange(t *testing.T) {
	c, err := config.Parse([]byte("blink: [1, {a: b}] # since version 12\nlog-level: info\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set("patch-delay", "1d"); err != nil {
		t.Fatal(err)
	}
	if err := c.Unset("log-level"); err != nil {
		t.Fatal(err)
	}
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), "patch-delay: 1d\nblink: [1, {a: b}] # since version 12\n"; got != want {
		t.Errorf("file = %q, want %q", got, want)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("log-level: loud\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(path)
	if !errors.Is(err, config.ErrCorrupt) || errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), path) {
		t.Errorf("error = %v", err)
	}
}

// FuzzParse holds that whatever is accepted is written so that it reads back
// as the same.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "log-level: info\n", "check-interval: 90\nx: {y: [1]}\n", "cutoff-date: 2024-02-01T00:00:00Z\n",
		"no-proxy: |\n  a,b\n", "? a\n: b\n", "x: !!binary aGk=\n", "{a: b, c: d}", "\xef\xbb\xbflog-level: info", "a: &b c\n", "%YAML 1.1\n---\na: b\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := config.Parse(b)
		if err != nil {
			if !errors.Is(err, config.ErrCorrupt) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error = %q", err)
			}
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := config.Parse(out)
		if err != nil {
			t.Fatalf("%v in:\n%s\nfrom:\n%s", err, out, b)
		}
		if diff := cmp.Diff(c.List(), again.List()); diff != "" {
			t.Errorf("values differ:\n%s", diff)
		}
		if !slices.Equal(c.Unknown(), again.Unknown()) {
			t.Errorf("unknown = %q, then %q", c.Unknown(), again.Unknown())
		}
	})
}
