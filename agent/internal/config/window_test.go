package config_test

import (
	"strings"
	"testing"
	"time"

	"livepatch/agent/internal/config"
)

func TestParseWindows(t *testing.T) {
	tests := map[string]struct {
		in, want string // want in canonical form; "" means refused
	}{
		"one day":                   {"Sun 02:00-04:00", "Sun 02:00-04:00"},
		"every day, over midnight":  {"daily 22:00-06:00", "daily 22:00-06:00"},
		"several":                   {" sun 02:00-04:00 ,MON-fri 01:00-01:30,", "Sun 02:00-04:00, Mon-Fri 01:00-01:30"},
		"over the weekend":          {"Fri-Mon 00:00-24:00", "Fri-Mon 00:00-24:00"},
		"all days by name":          {"mon-sun 00:00-05:00", "daily 00:00-05:00"},
		"nothing":                   {" , ", ""},
		"no day":                    {"02:00-04:00", ""},
		"no times":                  {"Sun", ""},
		"no such day":               {"Caturday 02:00-04:00", ""},
		"no such hour":              {"Sun 02:00-25:00", ""},
		"no such minute":            {"Sun 02:60-04:00", ""},
		"hour of one digit":         {"Sun 2:00-04:00", ""},
		"begins at the end":         {"Sun 24:00-04:00", ""},
		"no length":                 {"Sun 04:00-04:00", ""},
		"half a range":              {"Sun- 02:00-04:00", ""},
		"a range of ranges":         {"daily-Sun 02:00-04:00", ""},
		"something behind":          {"Sun 02:00-04:00 UTC", ""},
		"more than anybody can say": {strings.Repeat("Sun 02:00-04:00,", 51), ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w, err := config.ParseWindows(tc.in)
			if (err != nil) != (tc.want == "") || w.String() != tc.want {
				t.Errorf("ParseWindows = %q, %v; want %q", w, err, tc.want)
			}
		})
	}
}

func TestWindowsOpen(t *testing.T) {
	vienna, err := time.LoadLocation("Europe/Vienna")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		windows, at string
		open        bool
		next        string // when one opens
		length      time.Duration
	}{
		"none is set":                           {"", "2026-11-22 13:00", true, "", 0},
		"inside":                                {"Sun 02:00-04:00", "2026-11-22 02:00", true, "", 0},
		"at its end":                            {"Sun 02:00-04:00", "2026-11-22 04:00", false, "2026-11-29 02:00", 2 * time.Hour},
		"before it":                             {"Sun 02:00-04:00", "2026-11-22 01:59", false, "2026-11-22 02:00", 2 * time.Hour},
		"on another day":                        {"Sun 02:00-04:00", "2026-11-23 03:00", false, "2026-11-29 02:00", 2 * time.Hour},
		"since yesterday":                       {"Sat 22:00-06:00", "2026-11-22 05:59", true, "", 0},
		"over, since yesterday":                 {"Sat 22:00-06:00", "2026-11-22 06:00", false, "2026-11-28 22:00", 8 * time.Hour},
		"the nearer of two":                     {"Sun 02:00-04:00, daily 22:00-23:00", "2026-11-22 13:00", false, "2026-11-22 22:00", time.Hour},
		"one of two is open":                    {"Sun 02:00-04:00, daily 12:00-14:00", "2026-11-22 13:00", true, "", 0},
		"in a range over the weekend":           {"Fri-Mon 12:00-14:00", "2026-11-22 13:00", true, "", 0},
		"outside of the range":                  {"Mon-Fri 12:00-14:00", "2026-11-22 13:00", false, "2026-11-23 12:00", 2 * time.Hour},
		"until midnight":                        {"Sun 23:00-24:00", "2026-11-22 23:59", true, "", 0},
		"clocks are put forward over it":        {"Sun 02:10-02:50", "2026-03-29 00:00", false, "2026-03-29 03:10", 40 * time.Minute},
		"clocks are put back inside":            {"Sun 02:00-04:00", "2026-10-25 03:30", true, "", 0},
		"an hour longer as clocks are put back": {"Sun 01:00-04:00", "2026-10-25 00:00", false, "2026-10-25 01:00", 4 * time.Hour},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var windows config.Windows
			if tc.windows != "" {
				if windows, err = config.ParseWindows(tc.windows); err != nil {
					t.Fatal(err)
				}
			}
			at, err := time.ParseInLocation("2006-01-02 15:04", tc.at, vienna)
			if err != nil {
				t.Fatal(err)
			}
			open, next, length := windows.Open(at)
			got := ""
			if !next.IsZero() {
				got = next.Format("2006-01-02 15:04")
			}
			if open != tc.open || got != tc.next || length != tc.length {
				t.Errorf("open = %v, next %s for %v; want %v, %s, %v", open, got, length, tc.open, tc.next, tc.length)
			}
		})
	}
}

// FuzzParseWindows holds that what is accepted reads back as itself, and opens within
// eight days.
func FuzzParseWindows(f *testing.F) {
	for _, seed := range []string{"Sun 02:00-04:00", "daily 22:00-06:00, Mon-Fri 01:00-01:30", "Fri-Mon 00:00-24:00", "Sun 24:00-01:00", ",,", "sun-sat 9:00-10:00"} {
		f.Add(seed, int64(1_795_352_400))
	}
	f.Fuzz(func(t *testing.T, text string, at int64) {
		w, err := config.ParseWindows(text)
		if err != nil {
			return
		}
		again, err := config.ParseWindows(w.String())
		if err != nil || again.String() != w.String() {
			t.Fatalf("%q reads back as %q, %v", w, again, err)
		}
		now := time.Unix(at%(1<<40), 0).UTC()
		open, next, _ := w.Open(now)
		if !open && (next.IsZero() || next.Before(now) || next.Sub(now) > 8*24*time.Hour) {
			t.Fatalf("%q at %v opens at %v", w, now, next)
		}
	})
}
