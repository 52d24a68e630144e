package patch_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"livepatch/internal/patch"
)

// note returns an ELF note, padded.
func note(name string, typ uint32, desc []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.NativeEndian.AppendUint32(b, typ)
	pad := func(s string) string { return s + strings.Repeat("\x00", (4-len(s)%4)%4) }
	return append(b, pad(name)+pad(string(desc))...)
}

func TestBuildIDFromNotes(t *testing.T) {
	id, err := hex.DecodeString(buildID)
	if err != nil {
		t.Fatal(err)
	}
	good := note("GNU\x00", 3, id)
	other := note("Linux\x00", 257, []byte{0, 0, 0, 0, 1})
	join := func(notes ...[]byte) (b []byte) {
		for _, n := range notes {
			b = append(b, n...)
		}
		return b
	}
	huge := func(name, desc uint32) []byte {
		b := binary.NativeEndian.AppendUint32(nil, name)
		b = binary.NativeEndian.AppendUint32(b, desc)
		return append(binary.NativeEndian.AppendUint32(b, 3), good...)
	}
	tests := map[string]struct {
		in []byte
		ok bool
	}{
		"alone":                       {good, true},
		"after others":                {join(other, note("Xen\x00", 3, id), other, good), true},
		"before others":               {join(good, other), true},
		"of another owner":            {note("XNU\x00", 3, id), false},
		"of another type":             {note("GNU\x00", 1, id), false},
		"without the owner's NUL":     {note("GNU", 3, id), false},
		"cut short":                   {good[:len(good)-1], false},
		"cut in the head":             {good[:11], false},
		"too short to be one":         {note("GNU\x00", 3, id[:7]), false},
		"too long to be one":          {note("GNU\x00", 3, make([]byte, 33)), false},
		"empty":                       {nil, false},
		"after a name without end":    {huge(1<<32-1, 0), false},
		"after a content without end": {huge(0, 1<<32-1), false},
		"after both":                  {huge(1<<32-1, 1<<32-1), false},
		"of zeroes":                   {make([]byte, 64), false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := patch.BuildIDFromNotes(tc.in)
			if tc.ok && (got != buildID || err != nil) {
				t.Errorf("BuildIDFromNotes = %q, %v, want %q", got, err, buildID)
			}
			if !tc.ok && (got != "" || err == nil) {
				t.Errorf("BuildIDFromNotes = %q, %v", got, err)
			}
		})
	}
	if _, err := patch.BuildIDFromNotes(nil); !errors.Is(err, patch.ErrMalformed) {
		t.Errorf("of nothing: %v, want %v", err, patch.ErrMalformed)
	}
}

func FuzzBuildIDFromNotes(f *testing.F) {
	f.Add(note("GNU\x00", 3, make([]byte, 20)))
	f.Add(append(note("Linux\x00", 257, make([]byte, 5)), note("GNU\x00", 3, make([]byte, 20))...))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00GNU\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := patch.BuildIDFromNotes(b)
		if err != nil {
			return
		}
		if again, err := patch.ParseBuildID(string(id)); again != id || err != nil {
			t.Errorf("%q is no build-id: %v", id, err)
		}
	})
}
