package notify_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livepatch/server/internal/notify"
)

func written(n int) string {
	return "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, n))
}

func TestParseSecrets(t *testing.T) {
	tests := map[string]struct {
		file string
		want int
	}{
		"one":                          {written(32) + "\n", 1},
		"one without an end of line":   {written(24), 1},
		"the new one and the old one":  {written(64) + "\r\n" + written(32) + "\n", 2},
		"none":                         {"", 0},
		"an empty line":                {"\n", 0},
		"one that is short":            {written(23), 0},
		"one that is long":             {written(65), 0},
		"without its prefix":           {strings.TrimPrefix(written(32), "whsec_"), 0},
		"not base64":                   {"whsec_" + strings.Repeat("!", 44), 0},
		"five":                         {strings.Repeat(written(32)+"\n", 5), 0},
		"a file that is something big": {strings.Repeat(written(32)+"\n", 100), 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := notify.ParseSecrets([]byte(tc.file))
			if len(got) != tc.want || (err == nil) != (tc.want > 0) || err != nil && !errors.Is(err, notify.ErrSecret) {
				t.Errorf("%d secrets, %v", len(got), err)
			}
			if err != nil && strings.Contains(err.Error(), "Bwc") {
				t.Errorf("the error quotes a secret: %v", err)
			}
		})
	}
}

func FuzzParseSecrets(f *testing.F) {
	for _, s := range []string{written(32) + "\n", written(24) + "\n" + written(64), "whsec_", "\n\n", "whsec_!", strings.Repeat("a", 2000)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		secrets, err := notify.ParseSecrets(b)
		if err == nil && len(secrets) == 0 {
			t.Error("no error and no secret")
		}
		for _, s := range secrets {
			if len(s) < 24 || len(s) > 64 {
				t.Errorf("secret of %d bytes", len(s))
			}
		}
	})
}

func TestLoadSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if _, err := notify.LoadSecrets(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(written(32)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := notify.LoadSecrets(path); !errors.Is(err, notify.ErrOpenSecret) {
		t.Errorf("a file for everybody: %v", err)
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if got, err := notify.LoadSecrets(path); err != nil || len(got) != 1 {
		t.Errorf("%d secrets, %v", len(got), err)
	}
}
