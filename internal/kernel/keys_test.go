package kernel_test

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"livepatch/internal/kernel"
)

const (
	debianCA   = "6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1"
	ours       = "0bf1a2c3d4e5f60718293a4b5c6d7e8f90a1b2c3"
	tbs        = "tbs:3a91f7fdd2d2d8ad0e2ae8ae0f8fbd0d9ed8bc6d0b2e7b4f1f6d7a3bd4d2a6c1"
	secureBoot = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
)

// keysFile is /proc/keys of a machine with Secure Boot, in part.
const keysFile = `0d2db762 I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 2
1634a556 I--Q---     1 perm 1f3f0000     0 65534 keyring   _uid_ses.0: 1
2a1b3c4d I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: ` + debianCA + `: X509.rsa bb419ea1 []
2d37ceb9 I------     1 perm 0f0b0000     0     0 keyring   .blacklist: 2
30b1a2c3 I------     1 perm 1f010000     0     0 asymmetri Livepatch: modules of 2026: ` + ours + `: X509.rsa 90a1b2c3 []
31b1a2c3 I------     1 perm 09090000     0     0 blacklist ` + tbs + `
32b1a2c3 I------     1 perm 09090000     0     0 blacklist bin:80b4d96931bf0d02fd91a61e19d14f1da452e66db2408ca8604d411f92659f0a
3c84af75 I------     1 perm 1f030000     0     0 .dns_resolver: empty
`

func machineWithKeys(keys string) fstest.MapFS {
	fsys := machine()
	fsys["proc/keys"] = &fstest.MapFile{Data: []byte(keys)}
	return fsys
}

func read(t *testing.T, fsys fs.FS) kernel.Facts {
	t.Helper()
	f, err := kernel.Read(fsys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestKeysOfAMachineWithSecureBoot(t *testing.T) {
	f := read(t, machineWithKeys(keysFile))
	if want := []string{ours, debianCA}; !slices.Equal(f.ModuleKeys, want) {
		t.Errorf("module keys = %q, want %q", f.ModuleKeys, want)
	}
	if want := []string{tbs}; !slices.Equal(f.RevokedKeys, want) {
		t.Errorf("revoked = %q, want %q", f.RevokedKeys, want)
	}
}

func TestKeyLines(t *testing.T) {
	const key = "30b1a2c3 I------     1 perm 1f010000     0     0 asymmetri Livepatch: " + ours + ": X509.rsa 90a1b2c3 []"
	const id = ours
	tests := map[string]struct {
		line             string
		trusted, revoked []string
	}{
		"a key of the system":                     {line: key, trusted: []string{id}},
		"without a newline, with a wider count":   {line: strings.Replace(key, "    1 perm", "12345 perm", 1), trusted: []string{id}},
		"an elliptic curve":                       {line: strings.Replace(key, "X509.rsa", "X509.ecdsa-nist-p384", 1), trusted: []string{id}},
		"a subject that looks like one":           {line: strings.Replace(key, "Livepatch", "x: 00: X509.rsa", 1), trusted: []string{id}},
		"in .blacklist":                           {line: strings.Replace(key, "1f010000", "0b010000", 1), revoked: []string{"key:" + id}},
		"of an ordinary user":                     {line: strings.Replace(key, "    0     0 asym", " 1000  1000 asym", 1)},
		"of a user's session of root":             {line: strings.Replace(key, "    0 asym", "65534 asym", 1)},
		"revoked by keyctl":                       {line: strings.Replace(key, "I------", "IR-----", 1)},
		"invalidated":                             {line: strings.Replace(key, "I------", "I-----i", 1)},
		"not there yet":                           {line: strings.Replace(key, "I------", "-----U-", 1)},
		"of another form":                         {line: strings.Replace(key, "X509.rsa", "PKCS8.rsa", 1)},
		"with an identifier that is none":         {line: strings.Replace(key, ours, "not hex", 1)},
		"with an identifier of upper case":        {line: strings.Replace(key, ours, strings.ToUpper(ours), 1)},
		"with an identifier without end":          {line: strings.Replace(key, ours, strings.Repeat("ab", 65), 1)},
		"with rights that are none":               {line: strings.Replace(key, "1f010000", "everyone", 1)},
		"cut off":                                 {line: key[:50]},
		"a hash of a program":                     {line: "31b1a2c3 I------     1 perm 09090000     0     0 blacklist bin:80b4"},
		"a hash that is none":                     {line: "31b1a2c3 I------     1 perm 09090000     0     0 blacklist tbs:xyz"},
		"a keyring":                               {line: "0d2db762 I------     1 perm 1f0b0000     0     0 keyring   .machine: 1"},
		"twice, in two keyrings":                  {line: key + "\n" + key, trusted: []string{id}},
		"enrolled and revoked: both are told of":  {line: key + "\n" + strings.Replace(key, "1f010000", "0b010000", 1), trusted: []string{id}, revoked: []string{"key:" + id}},
		"nothing":                                 {},
		"a byte that no line of the kernel's has": {line: key + "\n\x00"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := read(t, machineWithKeys(tc.line))
			if !slices.Equal(f.ModuleKeys, tc.trusted) || !slices.Equal(f.RevokedKeys, tc.revoked) {
				t.Errorf("keys = %q, revoked %q, want %q and %q", f.ModuleKeys, f.RevokedKeys, tc.trusted, tc.revoked)
			}
		})
	}
}

// A list that was cut short would say of a key that it is missing.
func TestTooManyKeysAreNone(t *testing.T) {
	var b strings.Builder
	for n := range 600 {
		fmt.Fprintf(&b, "%08x I------     1 perm 1f010000     0     0 asymmetri k: %040x: X509.rsa 90a1b2c3 []\n", n, n)
	}
	if f := read(t, machineWithKeys(b.String())); f.ModuleKeys != nil {
		t.Errorf("%d keys, want none", len(f.ModuleKeys))
	}
}

func TestSecureBoot(t *testing.T) {
	yes, no := true, false
	tests := map[string]struct {
		file, content string
		want          *bool
	}{
		"on":                                 {secureBoot, "\x06\x00\x00\x00\x01", &yes},
		"off":                                {secureBoot, "\x06\x00\x00\x00\x00", &no},
		"no UEFI":                            {"sys/firmware/acpi/x", "", &no},
		"variables that cannot be read":      {"sys/firmware/efi/runtime", "", nil},
		"a variable of another length":       {secureBoot, "\x01", nil},
		"a value that nobody has written up": {secureBoot, "\x06\x00\x00\x00\x02", nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			fsys := machine()
			fsys[tc.file] = &fstest.MapFile{Data: []byte(tc.content)}
			got := read(t, fsys).SecureBoot
			if (got == nil) != (tc.want == nil) || got != nil && *got != *tc.want {
				t.Errorf("SecureBoot = %v, want %v", got, tc.want)
			}
		})
	}
}

// FuzzKeys reads a /proc/keys that holds anything. What comes of it is bounded,
// in order, and of the form that the contract says.
func FuzzKeys(f *testing.F) {
	f.Add(keysFile)
	f.Add("30b1a2c3 I------     1 perm 0b010000     0     0 asymmetri a: 00: X509.rsa []\n")
	f.Add("1 I 1 p 0 0 0 asymmetri : X509.")
	f.Add("1 I 1 p 0 0 0 blacklist tbs:")
	f.Fuzz(func(t *testing.T, content string) {
		facts, err := kernel.Read(machineWithKeys(content), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, keys := range [][]string{facts.ModuleKeys, facts.RevokedKeys} {
			if len(keys) > 512 || !slices.IsSorted(keys) {
				t.Errorf("%d keys, in order: %v", len(keys), slices.IsSorted(keys))
			}
			for _, k := range keys {
				if len(k) > 132 || strings.Trim(k, "0123456789abcdefkyts:") != "" {
					t.Errorf("key %q", k)
				}
			}
		}
	})
}
