package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Window is a part of the day in which patches may be inserted, on one day of the
// week or on several, in the machine's local time. The zero Window is never open.
type Window struct {
	Days     []time.Weekday // on which it opens
	From, To time.Duration  // since midnight; one that ends before it begins does so on the next day
}

// Windows are the windows that an operator has set. None means at any time.
type Windows []Window

// days are the words for days.
var days = map[string][]time.Weekday{
	"daily": {0, 1, 2, 3, 4, 5, 6}, "sun": {0}, "mon": {1}, "tue": {2}, "wed": {3}, "thu": {4}, "fri": {5}, "sat": {6},
}

// ParseWindows reads windows separated by commas: "Sun 02:00-04:00, daily 22:00-06:00,
// Mon-Fri 01:00-02:30". Days are those on which a window opens.
func ParseWindows(text string) (Windows, error) {
	var all Windows
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		w, err := parseWindow(part)
		if err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	if len(all) == 0 || len(all) > 50 {
		return nil, fmt.Errorf("%.100q has %d windows, need 1 to 50, such as Sun 02:00-04:00, daily 22:00-06:00", text, len(all))
	}
	return all, nil
}

func parseWindow(text string) (Window, error) {
	bad := fmt.Errorf("%.40q is not a window, need a day and two times, such as Sun 02:00-04:00 or daily 22:00-06:00", text)
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return Window{}, bad
	}
	on, ok := parseDays(strings.ToLower(fields[0]))
	from, to, both := strings.Cut(fields[1], "-")
	w := Window{Days: on}
	var okFrom, okTo bool
	w.From, okFrom = parseClock(from)
	w.To, okTo = parseClock(to)
	if !ok || !both || !okFrom || !okTo || w.From == 24*time.Hour || w.From == w.To {
		return Window{}, bad
	}
	return w, nil
}

// parseDays reads "daily", "sun", or "mon-fri", which may go over the weekend.
func parseDays(text string) ([]time.Weekday, bool) {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		on, ok := days[text]
		return on, ok
	}
	a, b := days[first], days[last]
	if len(a) != 1 || len(b) != 1 {
		return nil, false
	}
	on := a
	for d := a[0]; d != b[0]; {
		d = (d + 1) % 7
		on = append(slices.Clip(on), d)
	}
	return on, true
}

// parseClock reads a time of day, "02:00"; the end of the day is "24:00".
func parseClock(text string) (time.Duration, bool) {
	if text == "24:00" {
		return 24 * time.Hour, true
	}
	t, err := time.Parse("15:04", text)
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err == nil && len(text) == 5
}

// String writes the windows so that ParseWindows reads them.
func (ws Windows) String() string {
	var parts []string
	for _, w := range ws {
		parts = append(parts, w.String())
	}
	return strings.Join(parts, ", ")
}

// String writes the window so that ParseWindows reads it.
func (w Window) String() string {
	day := func(d time.Weekday) string { return d.String()[:3] }
	on := "daily"
	if n := len(w.Days); n == 1 {
		on = day(w.Days[0])
	} else if n > 0 && n < 7 {
		on = day(w.Days[0]) + "-" + day(w.Days[n-1])
	}
	clock := func(d time.Duration) string { return fmt.Sprintf("%02d:%02d", d/time.Hour, d%time.Hour/time.Minute) }
	return on + " " + clock(w.From) + "-" + clock(w.To)
}

// Open tells whether a window is open at t, whose zone counts; else when one opens
// and how long that stays so.
func (ws Windows) Open(t time.Time) (open bool, next time.Time, length time.Duration) {
	if len(ws) == 0 {
		return true, time.Time{}, 0
	}
	for _, w := range ws {
		for day := -1; day <= 7; day++ { // that of yesterday may still be open
			from, to := w.on(t, day)
			switch {
			case from.IsZero() || !t.Before(to):
			case !t.Before(from):
				return true, time.Time{}, 0
			case next.IsZero() || from.Before(next):
				next, length = from, to.Sub(from)
			}
		}
	}
	return false, next, length
}

// on returns from when to when the window is open that opens some days after the day
// of t; zero if it does not on that day, or not at all because clocks are put forward.
func (w Window) on(t time.Time, days int) (from, to time.Time) {
	at := func(days int, since time.Duration) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day()+days, int(since/time.Hour), int(since%time.Hour/time.Minute), 0, 0, t.Location())
	}
	if !slices.Contains(w.Days, at(days, 12*time.Hour).Weekday()) {
		return time.Time{}, time.Time{}
	}
	from, to = at(days, w.From), at(days, w.To)
	if w.To <= w.From {
		to = at(days+1, w.To)
	}
	if !from.Before(to) {
		return time.Time{}, time.Time{}
	}
	return from, to
}
