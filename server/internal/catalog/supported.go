package catalog

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"livepatch/internal/patch"
)

// A Support says whether a kernel is covered, in the words of the API.
type Support string

// The answers.
const (
	Supported       Support = "supported"
	UpgradeRequired Support = "kernel-upgrade-required" // a newer kernel of the series is covered
	EndOfLife       Support = "kernel-end-of-life"      // none is any more
	Unsupported     Support = "unsupported"             // never was
	Unknown         Support = "unknown"                 // the question says too little
)

// A Question asks for a kernel.
type Question struct {
	Version string // "6.1" for a series, "6.1.0-53-amd64", or a distribution's full version
	Flavour string // "amd64", "generic"
	Arch    string // as Debian names it, "amd64", or as uname does
}

// machines maps Debian's names of architectures to those of uname.
var machines = map[string]string{
	"amd64": "x86_64", "arm64": "aarch64", "armhf": "armv7l", "i386": "i686", "ppc64el": "ppc64le",
}

// Supported answers a question from the kernel indexes that are published.
func (c *Catalog) Supported(ctx context.Context, q Question, now time.Time) (Support, error) {
	if q.Version == "" || q.Flavour == "" || q.Arch == "" {
		return Unknown, nil
	}
	series := seriesOf(q.Version)
	if series == "" {
		return Unsupported, nil
	}
	arch := q.Arch
	if m, ok := machines[arch]; ok {
		arch = m
	}
	kernels, err := c.db.Kernels(ctx, arch, q.Flavour, series)
	if err != nil {
		return "", err
	}
	return support(q.Version, series, kernels, now.UTC().Format(time.DateOnly)), nil
}

// support answers for a version, given the kernels of its series.
func support(version, series string, kernels []patch.Index, today string) Support {
	var asked []patch.Index // the kernel asked for, or all of the series
	for _, k := range kernels {
		if version == series || names(version, k) {
			asked = append(asked, k)
		}
	}
	if len(asked) == 0 {
		return Unsupported
	}
	answer := Unsupported
	for _, k := range asked {
		switch {
		case today < k.From:
		case today <= k.Until:
			return Supported
		case newerCovered(k, kernels, today):
			answer = UpgradeRequired
		case answer == Unsupported:
			answer = EndOfLife
		}
	}
	return answer
}

// names tells whether version is a way to name k: its release, its release
// without the flavour, or the version of its package.
func names(version string, k patch.Index) bool {
	short := strings.TrimSuffix(k.Release, "-"+k.Flavour)
	return version == k.Release || version == short || k.KernelVersion != "" && version == k.KernelVersion
}

func newerCovered(old patch.Index, kernels []patch.Index, today string) bool {
	for _, k := range kernels {
		if compareReleases(k.Release, old.Release) > 0 && k.From <= today && today <= k.Until {
			return true
		}
	}
	return false
}

// compareReleases compares kernel releases of one flavour: numbers as numbers,
// "5.4.0-9" before "5.4.0-10", the rest as text.
func compareReleases(a, b string) int {
	for a != "" && b != "" {
		var x, y string
		x, a = chunk(a)
		y, b = chunk(b)
		m, errA := strconv.ParseUint(x, 10, 64)
		n, errB := strconv.ParseUint(y, 10, 64)
		c := strings.Compare(x, y)
		if errA == nil && errB == nil {
			c = cmp.Compare(m, n)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// chunk cuts the longest run of digits, or of other characters, off s.
func chunk(s string) (head, tail string) {
	digit := func(c byte) bool { return '0' <= c && c <= '9' }
	i := 1
	for i < len(s) && digit(s[i]) == digit(s[0]) {
		i++
	}
	return s[:i], s[i:]
}
