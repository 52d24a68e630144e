package lab

import (
	"testing"
	"time"
)

func TestTraceOfAnInsertionIsRead(t *testing.T) {
	text := `1000000000 1500000000
 livepatch-loade-99      [000] .....     1.100000: sys_finit_module(fd: 8, uargs: c000, flags: 0)
 livepatch-loade-99      [001] .....     1.300000: sys_finit_module -> 0x0
`
	in := &Insertion{Steps: map[string][]time.Duration{}}
	if err := in.add(text); err != nil {
		t.Fatal(err)
	}
	if in.Loader[0] != 300*time.Millisecond || in.Steps["check"][0] != 100*time.Millisecond ||
		in.Steps["insert"][0] != 200*time.Millisecond || in.Steps["settle"][0] != 200*time.Millisecond {
		t.Errorf("insertion = %+v", in)
	}
	for name, text := range map[string]string{
		"nothing":          "",
		"no trace":         "1 2\n",
		"an error":         "1 9000000000\nx 1.100000: sys_finit_module(fd: 8)\nx 1.300000: sys_finit_module -> 0xffffffffffffffff\n",
		"another order":    "1 9000000000\nx 1.300000: sys_finit_module(fd: 8)\nx 1.100000: sys_finit_module -> 0x0\n",
		"two insertions":   text2,
		"a trace too late": "1 9\nx 1.100000: sys_finit_module(fd: 8)\nx 1.300000: sys_finit_module -> 0x0\n",
	} {
		if err := in.add(text); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

const text2 = "1 9000000000\nx 1.1: sys_finit_module(fd: 8)\nx 1.2: sys_finit_module -> 0x0\nx 1.3: sys_finit_module(fd: 8)\nx 1.4: sys_finit_module -> 0x0\n"
