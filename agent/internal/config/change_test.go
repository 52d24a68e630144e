package config_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"livepatch/agent/internal/config"
)

func TestParseChange(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    config.Change
		wantErr string // "" means none
	}{
		"nothing":         {`{}`, config.Change{}, ""},
		"everything":      {`{"config":{"a":"b","c":""},"auth_token":"t"}`, config.Change{Config: map[string]string{"a": "b", "c": ""}, AuthToken: "t"}, ""},
		"an end":          {`{"disable":true}`, config.Change{Disable: true}, ""},
		"both ways":       {`{"auth_token":"t","disable":true}`, config.Change{}, "both enable and disable"},
		"unknown":         {`{"token":"t"}`, config.Change{}, "unknown field"},
		"two":             {`{} {}`, config.Change{}, "behind it"},
		"no text":         {`{"config":{"a":1}}`, config.Change{}, "cannot read change"},
		"too long":        {`{"auth_token":"` + strings.Repeat("x", 3<<20) + `"}`, config.Change{}, "longer than"},
		"half":            {`{"config":`, config.Change{}, "cannot read change"},
		"nothing at all":  {``, config.Change{}, "cannot read change"},
		"something else":  {`[]`, config.Change{}, "cannot read change"},
		"nothing of note": {`null`, config.Change{}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := config.ParseChange([]byte(tc.text))
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Fatalf("err = %v, want %q", err, tc.wantErr)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLaterChangesCount(t *testing.T) {
	first := config.Change{Config: map[string]string{"a": "1", "b": "1"}, AuthToken: "t"}
	tests := map[string]struct {
		later, want config.Change
	}{
		"nothing":       {config.Change{}, first},
		"a key":         {config.Change{Config: map[string]string{"a": "2", "c": ""}}, config.Change{Config: map[string]string{"a": "2", "b": "1", "c": ""}, AuthToken: "t"}},
		"another token": {config.Change{AuthToken: "u"}, config.Change{Config: first.Config, AuthToken: "u"}},
		"the end":       {config.Change{Disable: true}, config.Change{Config: first.Config, Disable: true}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, first.Then(tc.later)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := (config.Change{Disable: true}).Then(config.Change{AuthToken: "t"}); got.Disable || got.AuthToken != "t" {
		t.Errorf("a token after the end: %+v", got)
	}
}

func TestParseToken(t *testing.T) {
	tests := map[string]struct{ text, want, wantErr string }{
		"plain":                {"abc", "abc", ""},
		"with a line break":    {" abc\n", "abc", ""},
		"empty":                {" \n", "", "it is empty"},
		"of two words":         {"a b", "", "strange character"},
		"that is not ASCII":    {"ä", "", "strange character"},
		"with a control":       {"a\x1bb", "", "strange character"},
		"longer than can be":   {strings.Repeat("a", config.MaxToken+1), "", "longer than"},
		"as long as it can be": {strings.Repeat("a", config.MaxToken), strings.Repeat("a", config.MaxToken), ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := config.ParseToken([]byte(tc.text))
			if got != tc.want || tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("ParseToken = %q, %v; want %q", got, err, tc.wantErr)
			}
			if err != nil && tc.text != "" && strings.Contains(err.Error(), tc.text) {
				t.Errorf("the error shows it: %v", err)
			}
		})
	}
}

func FuzzParseChange(f *testing.F) {
	for _, seed := range []string{`{}`, `{"config":{"log-level":"info"},"auth_token":"t"}`, `{"disable":true}`, `{"config":null}`, `{"x":1}`, `{} {}`, `"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := config.ParseChange(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := config.ParseChange(again)
		if err != nil || got.AuthToken != c.AuthToken || got.Disable != c.Disable || len(got.Config) != len(c.Config) {
			t.Errorf("%q becomes %q: %+v, %v", b, again, got, err)
		}
		_ = c.Then(c)
	})
}
