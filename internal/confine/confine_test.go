package confine

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What a filter does, the tests of the loader's sandbox show; here is that the
// kernel will take it: at most 4 096 instructions, whose jumps lead somewhere
// (linux/bpf_common.h).
func TestFilterIsWellFormed(t *testing.T) {
	t.Parallel()
	many := make([]uintptr, 400)
	f := Filter{Allow: many, Refuse: many, If: []Rule{{Call: 1, Arg: 5, Mask: 1, Want: 1}, {Call: 2}}}
	p := f.program()
	if len(p) > unix.BPF_MAXINSNS {
		t.Errorf("%d instructions, at most %d", len(p), unix.BPF_MAXINSNS)
	}
	for i, in := range p {
		if in.Code&0x07 == unix.BPF_JMP && i+1+int(max(in.Jt, in.Jf)) >= len(p) {
			t.Errorf("instruction %d jumps out", i)
		}
	}
	if last := p[len(p)-1]; last.K != unix.SECCOMP_RET_TRAP {
		t.Errorf("a call that is not named meets action %#x", last.K)
	}
}

func TestArchitectureIsKnown(t *testing.T) {
	t.Parallel()
	if p := (Filter{}).program(); p[1].K == 0 {
		t.Error("the filter would end every process of this architecture")
	}
}
