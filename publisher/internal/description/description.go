// Package description reads what the maker of a livepatch says about it: a
// YAML file in which every field is known, so that a typing error is an error.
package description

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"livepatch/internal/patch"
)

// MaxLength bounds a description, in bytes.
const MaxLength = 1 << 20

const (
	maxText     = 500     // bytes of a summary or a bug
	maxFixes    = 1000    // of one patch
	maxSequence = 1 << 53 // exact in every JSON reader
)

// ErrField reports a field that is missing or cannot be what it is for.
var ErrField = errors.New("description is not valid")

// A Description says what a patch is for. Fields that are not needed for what
// is asked may have their zero value; see [Description.ForPatch] and
// [Description.ForKernel].
type Description struct {
	Kernel Kernel `yaml:"kernel"`
	// Notice is the security notice that the patch belongs to, "LSN-0113-1".
	Notice string `yaml:"notice"`
	// Version is that of the patch, "113.1".
	Version string `yaml:"version"`
	// Sequence orders the patches of a kernel; 0 means one above the last.
	Sequence uint64 `yaml:"sequence"`
	// Fixes are what the patch closes. A patch that takes another back closes
	// nothing; then the list is there and empty.
	Fixes []Fix `yaml:"fixes"`
	// Support is when the kernel gets patches; nil leaves it as it is.
	Support *Support `yaml:"support"`
	// Unpatchable replaces the kernel's list; nil leaves it as it is.
	Unpatchable []Unpatchable `yaml:"unpatchable"`
}

// A Kernel says which kernel a patch is for. Release and Arch are read from the
// module; if they are said as well, they must agree.
type Kernel struct {
	Release string `yaml:"release"` // as printed by uname -r, "6.1.0-53-amd64"
	Arch    string `yaml:"arch"`    // as printed by uname -m, "x86_64"
	Flavour string `yaml:"flavour"` // "amd64"
	Version string `yaml:"version"` // of the distribution, "6.1.187-1"
}

// A Fix is a vulnerability.
type Fix struct {
	Name     string `yaml:"name"`
	Priority string `yaml:"priority"`
	Summary  string `yaml:"summary"`
	Bug      string `yaml:"bug"`
}

// An Unpatchable is a vulnerability that needs another kernel.
type Unpatchable struct {
	Fix     `yaml:",inline"`
	FixedIn string `yaml:"fixed_in"`
}

// A Support is a window of dates such as "2026-11-22", both days included.
type Support struct {
	From  string `yaml:"from"`
	Until string `yaml:"until"`
}

// Parse reads a description and checks each field that it has.
func Parse(b []byte) (Description, error) {
	if len(b) > MaxLength {
		return Description{}, fmt.Errorf("%w: %d bytes, at most %d", patch.ErrTooLarge, len(b), MaxLength)
	}
	var d Description
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&d); err != nil && !errors.Is(err, io.EOF) {
		return Description{}, fmt.Errorf("%w: %s", ErrField, oneLine(err))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Description{}, fmt.Errorf("%w: there is more after the end of the first document", ErrField)
	}
	return d, d.check()
}

var unknownField = regexp.MustCompile(`field (\S+) not found in type \S+`)

// oneLine makes the first of the decoder's complaints readable.
func oneLine(err error) string {
	var te *yaml.TypeError
	s := strings.TrimPrefix(err.Error(), "yaml: ")
	if errors.As(err, &te) && len(te.Errors) > 0 {
		s = te.Errors[0]
	}
	s, _, _ = strings.Cut(s, "\n")
	s = unknownField.ReplaceAllString(s, `unknown field "$1"`)
	return strings.ToValidUTF8(s, "?")
}

// wrong says which field is wrong and what is wanted.
func wrong(field, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrField, field, fmt.Sprintf(format, args...))
}

func (d *Description) check() error {
	if d.Version != "" && patch.CheckVersion(d.Version) != nil {
		return wrong("version", "%q, want one to four numbers joined by dots, as \"113.1\"", d.Version)
	}
	if d.Sequence > maxSequence {
		return wrong("sequence", "%d, want at most %d", d.Sequence, maxSequence)
	}
	words := map[string]string{
		"kernel.release": d.Kernel.Release, "kernel.arch": d.Kernel.Arch, "kernel.flavour": d.Kernel.Flavour,
		"kernel.version": d.Kernel.Version, "notice": d.Notice,
	}
	for _, field := range []string{"kernel.release", "kernel.arch", "kernel.flavour", "kernel.version", "notice"} {
		if s := words[field]; s != "" && patch.CheckWord(field, s) != nil {
			return wrong(field, "%q, want letters, digits and \"._+~-\", the first a letter or digit", s)
		}
	}
	if err := d.Support.check(); err != nil {
		return err
	}
	return d.checkFixes()
}

func (s *Support) check() error {
	if s == nil {
		return nil
	}
	from, err := date("support.from", s.From)
	if err != nil {
		return err
	}
	until, err := date("support.until", s.Until)
	if err != nil {
		return err
	}
	if until.Before(from) {
		return wrong("support.until", "%s, want a day not before support.from, %s", s.Until, s.From)
	}
	return nil
}

func date(field, s string) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}, wrong(field, "%q, want a date as 2026-11-22", s)
	}
	return t, nil
}

func (d *Description) checkFixes() error {
	if len(d.Fixes) > maxFixes || len(d.Unpatchable) > maxFixes {
		return wrong("fixes", "%d entries, want at most %d", max(len(d.Fixes), len(d.Unpatchable)), maxFixes)
	}
	seen := make(map[string]string)
	for i, f := range d.Fixes {
		if err := f.check(fmt.Sprintf("fixes[%d]", i), seen); err != nil {
			return err
		}
	}
	for i, u := range d.Unpatchable {
		field := fmt.Sprintf("unpatchable[%d]", i)
		if err := u.check(field, seen); err != nil {
			return err
		}
		if patch.CheckWord(field, u.FixedIn) != nil {
			return wrong(field+".fixed_in", "%q, want the release of a kernel, as 6.1.0-54-amd64", u.FixedIn)
		}
	}
	return nil
}

// vulnerability matches CVE-2025-68263, GHSA-4f8r-qqr9-fq8j and the like.
var vulnerability = regexp.MustCompile(`^[A-Z][A-Z0-9]{1,15}(-[A-Za-z0-9]{1,32}){1,4}$`)

// check adds the name to seen, which maps names to where they stand.
func (f Fix) check(field string, seen map[string]string) error {
	if !vulnerability.MatchString(f.Name) {
		return wrong(field+".name", "%q, want the name of a vulnerability, as CVE-2025-68263", f.Name)
	}
	if where, ok := seen[f.Name]; ok {
		return wrong(field+".name", "%s stands in %s already", f.Name, where)
	}
	seen[f.Name] = field
	if _, err := patch.ParsePriority(f.Priority); err != nil {
		return wrong(field+".priority", "%q, want negligible, low, medium, high or critical", f.Priority)
	}
	if !isText(f.Summary) {
		return wrong(field+".summary", "want one line of at most %d bytes", maxText)
	}
	if !isText(f.Bug) {
		return wrong(field+".bug", "want one line of at most %d bytes", maxText)
	}
	return nil
}

// isText tells whether s can be shown on a terminal as it is.
func isText(s string) bool {
	return len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// ForPatch returns an error matching [ErrField] unless d has what a patch
// needs.
func (d *Description) ForPatch() error {
	switch {
	case d.Kernel.Flavour == "":
		return wrong("kernel.flavour", "missing, want the flavour of the kernel, as amd64")
	case d.Kernel.Version == "":
		return wrong("kernel.version", "missing, want the full version of the kernel, as 6.1.187-1")
	case d.Version == "":
		return wrong("version", "missing, want the version of the patch, as \"113.1\"")
	case d.Notice == "":
		return wrong("notice", "missing, want the notice of the patch, as LSN-0113-1")
	case d.Fixes == nil:
		return wrong("fixes", "missing, want a list of what the patch fixes; [] if it fixes nothing")
	}
	return nil
}

// ForKernel returns an error matching [ErrField] unless d has what describes a
// kernel, and nothing that describes a patch.
func (d *Description) ForKernel() error {
	switch {
	case d.Kernel.Release == "":
		return wrong("kernel.release", "missing, want what uname -r prints, as 6.1.0-53-amd64")
	case d.Kernel.Arch == "":
		return wrong("kernel.arch", "missing, want what uname -m prints, as x86_64")
	case d.Version != "" || d.Notice != "" || d.Sequence != 0 || d.Fixes != nil:
		return wrong("version, notice, sequence, fixes", "these describe a patch, want kernel, support and unpatchable only")
	}
	return nil
}

// PatchFixes returns the fixes as they are published.
func (d *Description) PatchFixes() []patch.Fix {
	fixes := make([]patch.Fix, 0, len(d.Fixes))
	for _, f := range d.Fixes {
		fixes = append(fixes, f.publish())
	}
	return fixes
}

// PatchUnpatchable returns the unpatchable vulnerabilities as they are
// published, nil if the description does not speak of them.
func (d *Description) PatchUnpatchable() []patch.Unpatchable {
	if d.Unpatchable == nil {
		return nil
	}
	all := make([]patch.Unpatchable, 0, len(d.Unpatchable))
	for _, u := range d.Unpatchable {
		all = append(all, patch.Unpatchable{Fix: u.publish(), FixedIn: u.FixedIn})
	}
	return all
}

func (f Fix) publish() patch.Fix {
	return patch.Fix{Name: f.Name, Priority: patch.Priority(f.Priority), Summary: f.Summary, Bug: f.Bug}
}
