package expiry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"livepatch/server/internal/expiry"
)

const day = 24 * time.Hour

var published = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

// role has been published for a life.
func role(name string, life time.Duration) expiry.Role {
	return expiry.Role{Name: name, Version: 3, Published: published, Expires: published.Add(life)}
}

func TestLevels(t *testing.T) {
	tests := map[string]struct {
		age  time.Duration // of a role that lives 30 days
		want expiry.Level
	}{
		"just published":                          {0, expiry.Fine},
		"a second before half of the life":        {15*day - time.Second, expiry.Fine},
		"half of the life":                        {15 * day, expiry.Notice},
		"a second before three quarters":          {22*day + 12*time.Hour - time.Second, expiry.Notice},
		"a quarter left":                          {22*day + 12*time.Hour, expiry.Warning},
		"a second before the end":                 {30*day - time.Second, expiry.Warning},
		"the end":                                 {30 * day, expiry.Expired},
		"long ago":                                {900 * day, expiry.Expired},
		"clock that was set back to before it is": {-day, expiry.Fine},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := role("debian-*", 30*day).Level(published.Add(tc.age)); got != tc.want {
				t.Errorf("level = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestShare(t *testing.T) {
	tests := map[string]struct {
		life, age time.Duration
		want      float64
	}{
		"all of it":                     {30 * day, 0, 1},
		"half of it":                    {30 * day, 15 * day, 0.5},
		"a quarter":                     {time.Hour, 45 * time.Minute, 0.25},
		"nothing":                       {time.Hour, time.Hour, 0},
		"not less than nothing":         {time.Hour, 3 * time.Hour, 0},
		"not more than all":             {time.Hour, -time.Hour, 1},
		"published when it had expired": {0, 0, 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := role("targets", tc.life).Share(published.Add(tc.age)); got != tc.want {
				t.Errorf("share = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestAdvice(t *testing.T) {
	const publish = "livepatch-publish --repo R refresh --within 361h, then livepatch-publish --repo R push"
	const look = "the server signs its own roles at half of their life: see that it runs, and what its log says of signing"
	now := published.Add(15 * day)
	timestamp := expiry.Role{Name: "timestamp", Online: true, Published: published, Expires: published.Add(day)}
	tests := map[string]struct {
		roles []expiry.Role
		want  []string
	}{
		"nothing to do":           {[]expiry.Role{role("root", 365*day)}, nil},
		"no roles":                {nil, nil},
		"bins at half":            {[]expiry.Role{role("root", 365*day), role("debian-*", 30*day)}, []string{publish}},
		"one line for all":        {[]expiry.Role{role("debian-*", 30*day), role("ubuntu-*", 20*day)}, []string{publish}},
		"a role of the server's":  {[]expiry.Role{timestamp}, []string{look}},
		"one of each":             {[]expiry.Role{timestamp, role("debian-*", 30*day)}, []string{publish, look}},
		"expired: an hour covers": {[]expiry.Role{role("debian", 10*day)}, []string{"livepatch-publish --repo R refresh --within 1h, then livepatch-publish --repo R push"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := expiry.Advice(tc.roles, now); !slices.Equal(got, tc.want) {
				t.Errorf("advice = %q, want %q", got, tc.want)
			}
		})
	}
}

// A line is what matters of a line of the log.
type line struct{ Level, Msg, Role, Urgency string }

// watch looks at what roles returns every minute for a time, like a server.
func watch(w *expiry.Watch, roles func() []expiry.Role, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
		w.Look(context.Background(), roles(), time.Now())
	}
}

func lines(t *testing.T, log *bytes.Buffer) []line {
	t.Helper()
	var all []line
	for dec := json.NewDecoder(log); dec.More(); {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func TestEachThresholdIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewJSONHandler(&log, nil))
		bins := expiry.Role{Name: "debian-*", Version: 7, Published: time.Now(), Expires: time.Now().Add(40 * time.Hour)}
		roles := func() []expiry.Role { return []expiry.Role{bins} }
		w := expiry.NewWatch(logger)
		watch(w, roles, 50*time.Hour)
		want := []line{
			{"WARN", "Signed role runs out", "debian-*", "notice"},
			{"WARN", "Signed role runs out", "debian-*", "warning"},
			{"ERROR", "Signed role has expired", "debian-*", "expired"},
		}
		if diff := cmp.Diff(want, lines(t, &log)); diff != "" {
			t.Errorf("log differs (-want +got):\n%s", diff)
		}

		// A restart says again what is still so, and a new version ends it.
		w = expiry.NewWatch(logger)
		watch(w, roles, time.Hour)
		bins.Version, bins.Published, bins.Expires = 8, time.Now(), time.Now().Add(40*time.Hour)
		watch(w, roles, 21*time.Hour)
		want = []line{
			{"ERROR", "Signed role has expired", "debian-*", "expired"},
			{"INFO", "Signed role is fresh again", "debian-*", ""},
			{"WARN", "Signed role runs out", "debian-*", "notice"},
		}
		if diff := cmp.Diff(want, lines(t, &log)); diff != "" {
			t.Errorf("log after the restart differs (-want +got):\n%s", diff)
		}
	})
}

func TestThresholdsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := expiry.NewWatch(slog.New(slog.NewJSONHandler(&log, nil)))
		roles := []expiry.Role{{Name: "root", Published: time.Now(), Expires: time.Now().Add(365 * day)}}
		for _, step := range []struct {
			sleep time.Duration
			want  int
		}{
			{365*day/2 - time.Second, 0}, {time.Second, 1},
			{365*day/4 - time.Second, 0}, {time.Second, 1},
			{365*day/4 - time.Second, 0}, {time.Second, 1},
		} {
			time.Sleep(step.sleep)
			w.Look(t.Context(), roles, time.Now())
			if got := lines(t, &log); len(got) != step.want {
				t.Errorf("%v before the end: %v, want %d lines", time.Until(roles[0].Expires), got, step.want)
			}
			log.Reset()
		}
	})
}
