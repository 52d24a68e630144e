package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"livepatch/server/internal/rollout"
)

func TestConstantsOfTheRuleFromAFile(t *testing.T) {
	for name, tt := range map[string]struct {
		file   string
		change func(*rollout.Params)
		err    string
	}{
		"nothing":                {file: `{}`},
		"a number":               {file: `{"pace": {"dead": 10}}`, change: func(p *rollout.Params) { p.Pace.Dead = 10 }},
		"a duration as text":     {file: `{"pace": {"dwell": "1h30m"}}`, change: func(p *rollout.Params) { p.Pace.Dwell = 90 * time.Minute }},
		"one in nanoseconds":     {file: `{"time": {"soak": 7200000000000}}`, change: func(p *rollout.Params) { p.Time.Soak = 2 * time.Hour }},
		"a list of durations":    {file: `{"time": {"heartbeats": ["30s", "1h"]}}`, change: func(p *rollout.Params) { p.Time.Heartbeats = []time.Duration{30 * time.Second, time.Hour} }},
		"no JSON":                {file: `pace: 1`, err: "invalid character"},
		"two values":             {file: `{} {}`, err: "more follows"},
		"an unknown name":        {file: `{"pace": {"ded": 10}}`, err: `unknown field "ded"`},
		"text for a number":      {file: `{"pace": {"dead": "many"}}`, err: `dead: time: invalid duration "many"`},
		"a number out of bounds": {file: `{"pace": {"dead": 0}}`, err: "pace.dead is out of range"},
		"half a second":          {file: `{"time": {"grace": "500ms"}}`, err: "whole seconds"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rule.json")
			if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := params(file)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error = %v, want one with %q", err, tt.err)
				}
				return
			}
			want := rollout.Defaults()
			if tt.change != nil {
				tt.change(&want)
			}
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("params = %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func TestARuleThatIsNotThereIsAnError(t *testing.T) {
	if _, err := params(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "-rule:") {
		t.Errorf("error = %v", err)
	}
}
