package kernel_test

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"livepatch/internal/kernel"
)

func TestParseMode(t *testing.T) {
	for _, m := range []kernel.Mode{kernel.Normal, kernel.NoApply, kernel.NoRefresh, kernel.Stop} {
		if got, err := kernel.ParseMode(m.String()); got != m || err != nil {
			t.Errorf("ParseMode(%q) = %v, %v", m, got, err)
		}
	}
	for _, word := range []string{"off", "Stop", "stop ", "no-apply,no-refresh", "3"} {
		if got, err := kernel.ParseMode(word); got != kernel.NoApply || err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("ParseMode(%q) = %v, %v; want %v and an error that quotes it", word, got, err, kernel.NoApply)
		}
	}
	if got, err := kernel.ParseMode(""); got != kernel.Normal || err != nil {
		t.Errorf("no word: %v, %v", got, err)
	}
}

// noPermission is a file that cannot be read.
type noPermission struct{ fs.FS }

func (noPermission) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}

func TestReadMode(t *testing.T) {
	root := func(line string) fs.FS { return fstest.MapFS{"proc/cmdline": {Data: []byte(line)}} }
	state := func(word string) fs.FS { return fstest.MapFS{"mode": {Data: []byte(word)}} }
	tests := map[string]struct {
		root, state fs.FS
		want        kernel.Mode
		wrong       bool
	}{
		"neither is there":               {fstest.MapFS{}, fstest.MapFS{}, kernel.Normal, false},
		"no folder is asked":             {root("canonical_livepatch_mode=stop\n"), nil, kernel.Stop, false},
		"the file":                       {root("quiet\n"), state("no-refresh\n"), kernel.NoRefresh, false},
		"both, which add up":             {root("canonical_livepatch_mode=no-apply"), state("no-refresh"), kernel.Stop, false},
		"normal does not undo the other": {root("canonical_livepatch_mode=normal"), state("no-apply"), kernel.NoApply, false},
		"in quotes":                      {root(`canonical_livepatch_mode="stop"`), nil, kernel.Stop, false},
		"an empty word":                  {root("canonical_livepatch_mode= quiet"), state("\n"), kernel.Normal, false},
		"a word that nobody knows":       {root("canonical_livepatch_mode=halt"), state("no-refresh"), kernel.Stop, true},
		"a file that cannot be read":     {root("quiet"), noPermission{}, kernel.NoApply, true},
		"a line that cannot be read":     {noPermission{}, state("normal"), kernel.NoApply, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := kernel.ReadMode(tc.root, tc.state)
			if got != tc.want || (err != nil) != tc.wrong {
				t.Errorf("ReadMode = %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

// FuzzCommandLineMode holds that no line switches on what another word in it switches
// off, as long as the word is the last.
func FuzzCommandLineMode(f *testing.F) {
	for _, line := range []string{"", "quiet ro", `canonical_livepatch_mode="stop"`, "canonical_livepatch_mode=normal canonical_livepatch_mode=", "a=\x00 \xff"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if m, err := kernel.CommandLineMode(line); m&^kernel.Stop != 0 || err != nil && m != kernel.NoApply {
			t.Errorf("mode = %d, %v", m, err)
		}
		if m, err := kernel.CommandLineMode(line + " canonical_livepatch_mode=stop"); m != kernel.Stop || err != nil {
			t.Errorf("with stop behind it: %v, %v", m, err)
		}
	})
}
