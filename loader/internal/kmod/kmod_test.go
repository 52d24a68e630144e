package kmod_test

import (
	"errors"
	"testing"

	"livepatch/internal/patch"
	"livepatch/loader/internal/gate"
	"livepatch/loader/internal/kmod"
)

func TestWhatNobodyClearedIsNotInserted(t *testing.T) {
	for _, c := range []*gate.Cleared{nil, {}} {
		if err := (kmod.Kernel{}).Insert(c); !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("Insert = %v, want %v", err, patch.ErrInvalid)
		}
	}
}

func TestOnlyModuleNamesReachTheKernel(t *testing.T) {
	for _, name := range []string{"", "../x", "a-b", "a b", "a\x00b", "x/y"} {
		if err := (kmod.Kernel{}).Delete(name); !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("Delete(%q) = %v, want %v", name, err, patch.ErrInvalid)
		}
	}
}
