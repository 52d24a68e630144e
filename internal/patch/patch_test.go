package patch_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"livepatch/internal/patch"
)

const (
	digest  = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	buildID = "3c9d5a0f8e7b6a59483726150493827160594837"
)

func TestParseDigest(t *testing.T) {
	tests := map[string]struct {
		in string
		ok bool
	}{
		"as written":         {digest, true},
		"in capitals":        {strings.ToUpper(digest), true},
		"empty":              {"", false},
		"a digit short":      {digest[:63], false},
		"a byte short":       {digest[:62], false},
		"a byte long":        {digest + "00", false},
		"not hexadecimal":    {strings.Repeat("g", 64), false},
		"with a prefix":      {"0x" + digest[2:], false},
		"with white space":   {digest + "\n", false},
		"full-width figures": {strings.Repeat("１", 64), false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := patch.ParseDigest(tc.in)
			if (err == nil) != tc.ok {
				t.Fatalf("ParseDigest = %v, want ok %v", err, tc.ok)
			}
			if tc.ok && d.String() != digest {
				t.Errorf("String = %s, want %s", d, digest)
			}
			if !tc.ok && d != (patch.Digest{}) {
				t.Errorf("digest = %s beside an error", d)
			}
		})
	}
}

func TestDigestInJSON(t *testing.T) {
	want, err := patch.ParseDigest(digest)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]patch.Digest{"d": want})
	if err != nil || string(b) != `{"d":"`+digest+`"}` {
		t.Errorf("Marshal = %s, %v", b, err)
	}
	var got map[string]patch.Digest
	if err := json.Unmarshal(b, &got); err != nil || got["d"] != want {
		t.Errorf("Unmarshal = %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{`{"d":""}`, `{"d":"00"}`, `{"d":1}`, `{"d":["00"]}`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("Unmarshal took %s", bad)
		}
	}
}

func TestParseBuildID(t *testing.T) {
	tests := map[string]struct {
		in   string
		want patch.BuildID
		ok   bool
	}{
		"of a SHA-1":          {buildID, buildID, true},
		"in capitals":         {strings.ToUpper(buildID), buildID, true},
		"of eight bytes":      {strings.Repeat("ab", 8), patch.BuildID(strings.Repeat("ab", 8)), true},
		"of seven bytes":      {strings.Repeat("ab", 7), "", false},
		"of thirty-two bytes": {strings.Repeat("ab", 32), patch.BuildID(strings.Repeat("ab", 32)), true},
		"of one more":         {strings.Repeat("ab", 33), "", false},
		"empty":               {"", "", false},
		"of odd length":       {buildID[:39], "", false},
		"not hexadecimal":     {strings.Repeat("xy", 20), "", false},
		"with white space":    {buildID + "\n", "", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := patch.ParseBuildID(tc.in)
			if got != tc.want || (err == nil) != tc.ok {
				t.Errorf("ParseBuildID = %q, %v, want %q, ok %v", got, err, tc.want, tc.ok)
			}
		})
	}
}

var running = patch.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildID: buildID}

func TestKernelCheck(t *testing.T) {
	tests := map[string]struct {
		want  patch.Kernel
		names string // what the message has to name; "" if it fits
	}{
		"the same":               {running, ""},
		"another architecture":   {patch.Kernel{Arch: "aarch64", Release: running.Release, BuildID: buildID}, "architecture aarch64"},
		"another release":        {patch.Kernel{Arch: running.Arch, Release: "6.1.0-52-amd64", BuildID: buildID}, "kernel 6.1.0-52-amd64"},
		"another build":          {patch.Kernel{Arch: running.Arch, Release: running.Release, BuildID: "ffff"}, "another build"},
		"a build-id in capitals": {patch.Kernel{Arch: running.Arch, Release: running.Release, BuildID: patch.BuildID(strings.ToUpper(buildID))}, "another build"},
		"no build-id":            {patch.Kernel{Arch: running.Arch, Release: running.Release}, "another build"},
		"nothing":                {patch.Kernel{}, "architecture"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := tc.want.Check(running)
			if (err == nil) != (tc.names == "") {
				t.Fatalf("Check = %v", err)
			}
			if err == nil {
				return
			}
			var mismatch *patch.KernelMismatchError
			if !errors.Is(err, patch.ErrWrongKernel) || !errors.As(err, &mismatch) || mismatch.Want != tc.want || mismatch.Running != running {
				t.Errorf("Check = %#v", err)
			}
			if !strings.Contains(err.Error(), tc.names) {
				t.Errorf("%q does not name %q", err, tc.names)
			}
		})
	}
	if err := (patch.Kernel{}).Check(patch.Kernel{}); !errors.Is(err, patch.ErrWrongKernel) {
		t.Errorf("two kernels that nothing is known of: %v, want %v", err, patch.ErrWrongKernel)
	}
}

// good is a module in whose description nothing is wrong.
func good() patch.Module {
	return patch.Module{
		Kernel: running, Flavour: "amd64", Name: "lkp_Debian_6_1_0_53_amd64_1", Version: "113.1", Sequence: 7,
		Notice: "LSN-0113-1", Fixes: []string{"CVE-2025-68263"},
	}
}

func TestModuleValidate(t *testing.T) {
	tests := map[string]struct {
		edit func(*patch.Module)
		ok   bool
	}{
		"as it is":                  {func(*patch.Module) {}, true},
		"without notice and fixes":  {func(m *patch.Module) { m.Notice, m.Fixes = "", nil }, true},
		"no architecture":           {func(m *patch.Module) { m.Arch = "" }, false},
		"no release":                {func(m *patch.Module) { m.Release = "" }, false},
		"no flavour":                {func(m *patch.Module) { m.Flavour = "" }, false},
		"no build-id":               {func(m *patch.Module) { m.BuildID = "" }, false},
		"a short build-id":          {func(m *patch.Module) { m.BuildID = "ab" }, false},
		"no name":                   {func(m *patch.Module) { m.Name = "" }, false},
		"no version":                {func(m *patch.Module) { m.Version = "" }, false},
		"no sequence number":        {func(m *patch.Module) { m.Sequence = 0 }, false},
		"the largest sequence":      {func(m *patch.Module) { m.Sequence = 1<<64 - 1 }, true},
		"an architecture elsewhere": {func(m *patch.Module) { m.Arch = "../x" }, false},
		"a release elsewhere":       {func(m *patch.Module) { m.Release = "../../etc" }, false},
		"a flavour with a slash":    {func(m *patch.Module) { m.Flavour = "a/b" }, false},
		"a name with a slash":       {func(m *patch.Module) { m.Name = "a/b" }, false},
		"a name with a dot":         {func(m *patch.Module) { m.Name = "a.b" }, false},
		"a name with a dash":        {func(m *patch.Module) { m.Name = "a-b" }, false},
		"a name with a digit first": {func(m *patch.Module) { m.Name = "1a" }, false},
		"a name as long as can be":  {func(m *patch.Module) { m.Name = strings.Repeat("a", patch.MaxModuleName) }, true},
		"a name that is longer":     {func(m *patch.Module) { m.Name = strings.Repeat("a", patch.MaxModuleName+1) }, false},
		"a name of two lines":       {func(m *patch.Module) { m.Name = "a\nb" }, false},
		"a line after the name":     {func(m *patch.Module) { m.Name = "a\n" }, false},
		"a version of one number":   {func(m *patch.Module) { m.Version = "1" }, true},
		"a version of four":         {func(m *patch.Module) { m.Version = "1.2.3.4" }, true},
		"a version of five":         {func(m *patch.Module) { m.Version = "1.2.3.4.5" }, false},
		"a version with a letter":   {func(m *patch.Module) { m.Version = "1.2a" }, false},
		"a version with a dot last": {func(m *patch.Module) { m.Version = "1." }, false},
		"a version with a slash":    {func(m *patch.Module) { m.Version = "1/2" }, false},
		"a version with a line":     {func(m *patch.Module) { m.Version = "1.2\n" }, false},
		"a version of ten digits":   {func(m *patch.Module) { m.Version = "1234567890" }, false},
		"a version in other digits": {func(m *patch.Module) { m.Version = "１" }, false},
		"a version below zero":      {func(m *patch.Module) { m.Version = "-1" }, false},
		"a signing key":             {func(m *patch.Module) { m.SigningKey = buildID }, true},
		"a signing key, as long":    {func(m *patch.Module) { m.SigningKey = strings.Repeat("ab", 64) }, true},
		"a signing key, longer":     {func(m *patch.Module) { m.SigningKey = strings.Repeat("ab", 65) }, false},
		"a signing key of capitals": {func(m *patch.Module) { m.SigningKey = strings.ToUpper(buildID) }, false},
		"half a byte of one":        {func(m *patch.Module) { m.SigningKey = "abc" }, false},
		"a signing key with a line": {func(m *patch.Module) { m.SigningKey = buildID + "\n" }, false},
		"a signing key of words":    {func(m *patch.Module) { m.SigningKey = "our key" }, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			m := good()
			tc.edit(&m)
			err := m.Validate()
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, patch.ErrInvalid) {
				t.Errorf("Validate = %v, want ok %v", err, tc.ok)
			}
			// What is signed goes through JSON.
			b, merr := json.Marshal(m)
			if merr != nil {
				t.Fatal(merr)
			}
			got, err := patch.ParseModule(b)
			if (err == nil) != tc.ok {
				t.Errorf("ParseModule = %v, want ok %v", err, tc.ok)
			}
			if tc.ok && !reflect.DeepEqual(got, m) {
				t.Errorf("ParseModule = %+v, want %+v", got, m)
			}
			if !tc.ok && !reflect.DeepEqual(got, patch.Module{}) {
				t.Errorf("module = %+v beside an error", got)
			}
		})
	}
}

func TestParseModuleRefusesWhatIsNoModule(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":                   "",
		"a list":                    "[]",
		"a string":                  `"x"`,
		"cut short":                 `{"arch":"x86_64"`,
		"two descriptions":          `{}{}`,
		"a sequence below zero":     `{"sequence":-1}`,
		"a sequence with fraction":  `{"sequence":1.5}`,
		"a sequence in quotes":      `{"sequence":"1"}`,
		"a sequence out of range":   `{"sequence":18446744073709551616}`,
		"fixes that are a string":   `{"fixes":"CVE-2025-68263"}`,
		"an architecture of number": `{"arch":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := patch.ParseModule([]byte(in)); !errors.Is(err, patch.ErrMalformed) {
				t.Errorf("ParseModule = %+v, %v, want %v", m, err, patch.ErrMalformed)
			}
		})
	}
	for name, in := range map[string]string{"null": "null", "an empty object": "{}"} {
		t.Run(name, func(t *testing.T) {
			if m, err := patch.ParseModule([]byte(in)); !errors.Is(err, patch.ErrInvalid) {
				t.Errorf("ParseModule = %+v, %v, want %v", m, err, patch.ErrInvalid)
			}
		})
	}
}

func TestCheckWord(t *testing.T) {
	tests := map[string]bool{
		"debian": true, "6.1.0-53-amd64": true, "x86_64": true, "a": true, "0": true, "6.8.0-45.45~22.04.1+fips": true,
		"": false, ".": false, "..": false, ".hidden": false, "-flag": false, "_x": false, "a/b": false, "/": false, `a\b`: false,
		"a..b": false, "a..": false, "a b": false, "a\n": false, "\na": false, "a\x00": false, "a*": false, "a?": false, "[a]": false,
		"é": false, "a\u0301": false, "a%2e": false, "a:b": false, "~root": false, "a\u202e": false, "ａ": false,
	}
	tests[strings.Repeat("a", 128)] = true
	tests[strings.Repeat("a", 129)] = false
	for in, want := range tests {
		err := patch.CheckWord("a thing", in)
		if (err == nil) != want || err != nil && !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("CheckWord(%q) = %v, want ok %v", in, err, want)
		}
	}
}

func TestParsePriority(t *testing.T) {
	for _, p := range []patch.Priority{patch.Negligible, patch.Low, patch.Medium, patch.High, patch.Critical} {
		if got, err := patch.ParsePriority(string(p)); got != p || err != nil {
			t.Errorf("ParsePriority(%q) = %q, %v", p, got, err)
		}
	}
	for _, s := range []string{"", "High", "high ", "urgent", "untriaged"} {
		if got, err := patch.ParsePriority(s); got != "" || !errors.Is(err, patch.ErrInvalid) {
			t.Errorf("ParsePriority(%q) = %q, %v, want %v", s, got, err, patch.ErrInvalid)
		}
	}
}

func TestParseIndex(t *testing.T) {
	entry := `{"target":"debian/m.x86_64.ko","name":"m","version":"113.1","sequence":7,"build_id":"` + buildID + `","notice":"LSN-0113-1",` +
		`"added":"2026-11-22T12:00:00Z","fixes":[{"name":"CVE-2025-68263","priority":"high"}]}`
	tests := map[string]struct {
		in   string
		want error
	}{
		"one patch":             {`{"arch":"x86_64","release":"6.1.0-53-amd64","patches":[` + entry + `]}`, nil},
		"no patch":              {`{"arch":"x86_64","release":"6.1.0-53-amd64","patches":[]}`, nil},
		"what a newer one says": {`{"patches":[` + entry + `],"news":{"a":1}}`, nil},
		"nothing":               {``, patch.ErrMalformed},
		"a list":                {`[]`, patch.ErrMalformed},
		"cut short":             {`{"patches":[`, patch.ErrMalformed},
		"something behind it":   {`{"patches":[]}{"patches":[]}`, patch.ErrMalformed},
		"patches are an object": {`{"patches":{}}`, patch.ErrMalformed},
		"a sequence below zero": {`{"patches":[{"sequence":-1}]}`, patch.ErrMalformed},
		"no name":               {`{"patches":[{"version":"1"}]}`, patch.ErrInvalid},
		"a name elsewhere":      {strings.Replace(`{"patches":[`+entry+`]}`, `"name":"m"`, `"name":"../m"`, 1), patch.ErrInvalid},
		"no version":            {strings.Replace(`{"patches":[`+entry+`]}`, `"113.1"`, `""`, 1), patch.ErrInvalid},
		"the second is wrong":   {`{"patches":[` + entry + `,{"name":"m","version":"x"}]}`, patch.ErrInvalid},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := patch.ParseIndex([]byte(tc.in))
			if !errors.Is(err, tc.want) {
				t.Errorf("ParseIndex = %v, want %v", err, tc.want)
			}
			if err != nil && !reflect.DeepEqual(got, patch.Index{}) {
				t.Errorf("index = %+v beside an error", got)
			}
		})
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(digest)
	f.Add(strings.ToUpper(digest))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := patch.ParseDigest(s)
		if err == nil && d.String() != strings.ToLower(s) {
			t.Errorf("ParseDigest(%q) = %s", s, d)
		}
	})
}

func FuzzParseBuildID(f *testing.F) {
	f.Add(buildID)
	f.Add("0011223344556677")
	f.Add("00")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := patch.ParseBuildID(s)
		if err != nil {
			return
		}
		if again, err := patch.ParseBuildID(string(id)); again != id || err != nil || len(id) < 16 || len(id) > 64 {
			t.Errorf("ParseBuildID(%q) = %q, of that %q, %v", s, id, again, err)
		}
	})
}

// FuzzParseModule: what is taken is valid, and means the same after a trip
// through JSON.
func FuzzParseModule(f *testing.F) {
	b, err := json.Marshal(good())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"arch":"../x","sequence":-1}`))
	f.Add([]byte(`{"Arch":"x86_64","SEQUENCE":1,"fixes":[null]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := patch.ParseModule(b)
		if err != nil {
			if !errors.Is(err, patch.ErrMalformed) && !errors.Is(err, patch.ErrInvalid) {
				t.Errorf("%v matches neither sentinel", err)
			}
			return
		}
		if err := m.Validate(); err != nil {
			t.Errorf("took %+v: %v", m, err)
		}
		checkPath(t, patch.ModulePath("debian", m), "debian")
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := patch.ParseModule(text); err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"arch":"x86_64","patches":[{"name":"m","version":"1"}],"unpatchable":[{"name":"CVE-1","fixed_in":"x"}]}`))
	f.Add([]byte(`{"patches":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := patch.ParseIndex(b)
		if err != nil {
			return
		}
		for _, e := range ix.Patches {
			if patch.CheckModuleName(e.Name) != nil || patch.CheckVersion(e.Version) != nil {
				t.Errorf("took %+v", e)
			}
		}
	})
}

// What was signed before the field existed is the same bytes as ever.
func TestModuleWithoutASigningKeyDoesNotMentionIt(t *testing.T) {
	b, err := json.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"arch":"x86_64","release":"6.1.0-53-amd64","build_id":"` + buildID + `","flavour":"amd64","name":"lkp_Debian_6_1_0_53_amd64_1","version":"113.1","sequence":7,"notice":"LSN-0113-1","fixes":["CVE-2025-68263"]}`
	if string(b) != want {
		t.Errorf("module is %s, want %s", b, want)
	}
}
