package module

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"livepatch/internal/patch"
)

// ErrName reports a module that is not named by the convention.
var ErrName = errors.New("module is not named as its description says")

// A Naming is what the name of a module is made of.
type Naming struct {
	Vendor        string // "debian"; the case of its letters does not matter
	Release       string // "6.1.0-53-amd64"
	KernelVersion string // "6.1.187-1" or, where the name is made of it, "6.8.0-1047.50-aws"
	Flavour       string // "amd64"
	Version       string // "113.1"
	Sequence      uint64
}

// Check returns an error matching [ErrName] unless name is
// lkp_<vendor>_<kernel>_<flavour>_<version>, every other character than
// letters and digits replaced by "_". The kernel is written as in its release
// or as in its full version, without the flavour; the version as a whole, as
// its first number, or as the sequence number.
func (n Naming) Check(name string) error {
	for _, kernel := range n.kernels() {
		for _, version := range n.versions() {
			if strings.EqualFold(name, strings.Join([]string{"lkp", word(n.Vendor), kernel, word(n.Flavour), version}, "_")) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: it is %q, want %q", ErrName, name, n.Suggest())
}

// Suggest returns the name that says most.
func (n Naming) Suggest() string {
	vendor := word(n.Vendor)
	if vendor != "" {
		vendor = strings.ToUpper(vendor[:1]) + vendor[1:]
	}
	return strings.Join([]string{"lkp", vendor, n.kernels()[0], word(n.Flavour), n.versions()[0]}, "_")
}

func (n Naming) kernels() []string {
	return slices.Compact([]string{
		word(strings.TrimSuffix(n.Release, "-"+n.Flavour)),
		word(strings.TrimSuffix(n.KernelVersion, "-"+n.Flavour)),
	})
}

func (n Naming) versions() []string {
	major, _, _ := strings.Cut(n.Version, ".")
	return []string{word(n.Version), major, strconv.FormatUint(n.Sequence, 10)}
}

var notWord = regexp.MustCompile(`[^A-Za-z0-9]+`)

// word replaces what cannot stand in the name of a module.
func word(s string) string { return notWord.ReplaceAllString(s, "_") }

// CheckFileName returns an error matching [ErrName] unless the file is called
// as the module inside it.
func CheckFileName(file, name string) error {
	if file != name+".ko" {
		return fmt.Errorf("%w: file is called %q and the module in it %q, want %q", ErrName, file, name, name+".ko")
	}
	return patch.CheckModuleName(name)
}
