package kernel_test

import (
	"errors"
	"testing"
	"testing/fstest"

	"livepatch/internal/kernel"
	"livepatch/internal/patch"
)

// Banners as kernels print them.
const (
	debians = "Linux version 6.1.0-53-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)\n"
	ubuntus = "Linux version 6.8.0-47-generic (buildd@lcy02-amd64-002) (x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0, GNU ld (GNU Binutils for Ubuntu) 2.42) #47~22.04.1-Ubuntu SMP PREEMPT_DYNAMIC Wed Oct  2 16:16:55 UTC 2\n"
	own     = "Linux version 6.12.1 (me@home) (gcc (Debian 14.2.0-8) 14.2.0, GNU ld (GNU Binutils for Debian) 2.43) #1 SMP PREEMPT_DYNAMIC Sat Nov 23 10:00:00 UTC 2024\n"
)

func TestADistributionSpeaksOfItsOwnKernelsOnly(t *testing.T) {
	for name, tt := range map[string]struct {
		banner, vendor string
		refused        bool
	}{
		"Debian's kernel, Debian's patch":                  {debians, "debian", false},
		"Ubuntu's kernel, Ubuntu's patch":                  {ubuntus, "ubuntu", false},
		"Debian's kernel, Ubuntu's patch":                  {debians, "ubuntu", true},
		"Ubuntu's kernel, Debian's patch":                  {ubuntus, "debian", true},
		"Debian's kernel, a site's patch":                  {debians, "example", false},
		"own kernel, built with Debian's compiler":         {own, "ubuntu", false},
		"kernel whose banner is not there":                 {"", "ubuntu", false},
		"name of a builder looks like a build number":      {"Linux version 6.1.0 (me@#1-Ubuntu) (gcc) #1 SMP Debian 6.1.1-1 (2026-01-01)", "ubuntu", true},
		"banner that ends where the build number would be": {"Linux version 6.1.0 #", "debian", false},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := machine()
			fsys["proc/version"] = &fstest.MapFile{Data: []byte(tt.banner)}
			f, err := kernel.Read(fsys, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.TakesFrom(tt.vendor); errors.Is(err, patch.ErrWrongKernel) != tt.refused || err != nil != tt.refused {
				t.Errorf("TakesFrom(%q) = %v on a kernel of %q, want it refused: %t", tt.vendor, err, f.Maker, tt.refused)
			}
		})
	}
}
