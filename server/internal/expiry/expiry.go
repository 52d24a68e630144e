// Package expiry says how much of a signed role's life is left, and from when on
// somebody has to do something about it.
//
// Metadata carries no date of issue. A life is counted from the moment at which
// the service published the version: that is right for every lifetime that a
// publisher may have chosen, and late by at most half of the time that a signed
// file lay about before it was pushed.
package expiry

import (
	"fmt"
	"time"
)

// A Level is how urgent it is to sign a role anew. Levels are ordered.
type Level int

// The levels. The zero Level asks for nothing.
const (
	Fine    Level = iota
	Notice        // half of the life or less is left
	Warning       // a quarter or less
	Expired       // machines refuse the role
)

// String returns the level as logs and tables show it.
func (l Level) String() string {
	switch l {
	case Fine:
		return "ok"
	case Notice:
		return "notice"
	case Warning:
		return "warning"
	case Expired:
		return "expired"
	default:
		return fmt.Sprintf("level %d", int(l))
	}
}

// A Role is a role that is in use, or all bins of a vendor as one.
type Role struct {
	Name      string // "debian"; "debian-*" for the bins of debian
	Bins      int    // how many bins it stands for; 0 for a role by itself
	Version   int64  // of bins: of the one that expires first
	Online    bool   // signed by the server itself
	Published time.Time
	Expires   time.Time
}

// Left returns how long the role can still be used; it is negative afterwards.
func (r Role) Left(now time.Time) time.Duration { return r.Expires.Sub(now) }

// Share returns how much of the life is left, from 1 to 0.
func (r Role) Share(now time.Time) float64 {
	life := r.Expires.Sub(r.Published)
	if life <= 0 {
		return 0
	}
	return min(1, max(0, float64(r.Left(now))/float64(life)))
}

// Level returns how urgent it is at a time to sign the role anew.
func (r Role) Level(now time.Time) Level {
	life, left := r.Expires.Sub(r.Published), r.Left(now)
	switch {
	case left <= 0:
		return Expired
	case left <= life/4:
		return Warning
	case left <= life/2:
		return Notice
	default:
		return Fine
	}
}

// Advice says what to do about roles, or "" if no level asks for anything. It
// is one line for those that only a publisher can sign and one for the server's.
func Advice(roles []Role, now time.Time) []string {
	var (
		within          time.Duration
		offline, online bool
	)
	for _, r := range roles {
		if r.Level(now) == Fine {
			continue
		}
		if r.Online {
			online = true
		} else {
			offline = true
			within = max(within, r.Left(now))
		}
	}
	var lines []string
	if offline {
		// What is left is rounded up, for the publisher signs what has less.
		hours := int64(within/time.Hour) + 1
		lines = append(lines, fmt.Sprintf("livepatch-publish --repo R refresh --within %dh, then livepatch-publish --repo R push", hours))
	}
	if online {
		lines = append(lines, "the server signs its own roles at half of their life: see that it runs, and what its log says of signing")
	}
	return lines
}
