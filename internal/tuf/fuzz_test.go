package tuf_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"livepatch/internal/tuf"
	"livepatch/internal/tuftest"
)

// FuzzUpdate feeds a client, which trusts a root, with whatever there is. Since
// nobody can sign but us, a target that is found is the one that we signed.
func FuzzUpdate(f *testing.F) {
	r := newRepo()
	trusted := r.Files().Roots[0]
	bin := r.Bin(module)
	genuine, _, err := find(f, tuf.Stored{Root: trusted}, r.Files(), start, module)
	if err != nil {
		f.Fatal(err)
	}
	seed := func(r *tuftest.Repo) {
		files := r.Files()
		f.Add(files.Roots[len(files.Roots)-1], files.Roles["timestamp"], files.Roles["snapshot"], files.Roles["targets"],
			files.Roles["debian"], files.Roles[bin], files.Roles["rollout"])
	}
	seed(r)
	next := newRepo()
	next.AddRoot()
	next.Publish(bin)
	seed(next)
	hashed := newRepo()
	hashed.HashBins = true
	seed(hashed)
	broken := newRepo()
	broken.Roles[bin].Signers = nil
	broken.Roles["rollout"].Rewrite = func([]byte) []byte { return []byte(`{"signed":{},"signatures":[null]}`) }
	seed(broken)
	f.Add([]byte(nil), []byte("{}"), []byte("[]"), []byte(`{"signed":null}`), []byte("\xff"), []byte(`""`), []byte("{"))

	f.Fuzz(func(t *testing.T, root, timestamp, snapshot, targets, vendor, binFile, rollouts []byte) {
		files := tuftest.Files{
			Roots: [][]byte{trusted, root},
			Roles: map[string][]byte{
				"timestamp": timestamp, "snapshot": snapshot, "targets": targets, "debian": vendor, bin: binFile, "rollout": rollouts,
			},
		}
		if len(root) == 0 {
			files.Roots = files.Roots[:1]
		}
		// Nobody else can have signed what is trusted, even as the trusted root.
		if _, err := tuf.New(tuf.Stored{Root: root}, start); err == nil && !bytes.Contains(root, []byte(`"root"`)) {
			t.Errorf("New took %q", root)
		}
		stored := tuf.Stored{Root: trusted, Timestamp: timestamp, Snapshot: snapshot}
		for _, stored := range []tuf.Stored{{Root: trusted}, stored} {
			found, _, err := find(t, stored, files, start, module)
			if err == nil && (found.Length != genuine.Length || found.Check([]byte("ELF")) != nil || !bytes.Equal(found.Custom, genuine.Custom)) {
				t.Errorf("found %+v, which nobody signed", found)
			}
		}
	})
}

// A tape is a source of randomness that the fuzzer writes.
type tape struct {
	data []byte
	rest *rand.PCG
}

// Uint64 implements [rand.Source].
func (s *tape) Uint64() uint64 {
	if len(s.data) == 0 {
		return s.rest.Uint64()
	}
	var b [8]byte
	// The first bytes are the ones that rand looks at.
	n := copy(b[:2], s.data)
	s.data = s.data[n:]
	v := binary.BigEndian.Uint64(b[:])
	return v | v>>16 | v>>32 | v>>48
}

// FuzzDifferential is TestWhatWeAcceptGoTufAccepts with repositories and
// mutations of the fuzzer's choice. Its seeds in testdata/fuzz were chosen by
// TestSeedsShowEveryVerdict.
func FuzzDifferential(f *testing.F) {
	f.Add([]byte{})
	o := newOracle(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 512 {
			return
		}
		if m, outs := play(t, o, b); len(outs) > 0 && outs[len(outs)-1].complaint != "" {
			t.Fatalf("%s\nafter:\n  %s", outs[len(outs)-1].complaint, m.story())
		}
	})
}

// play tries the repository and the mutations that b stands for: two bytes for
// the shape, and the rest for what is done. It ends at a complaint.
func play(t *testing.T, o oracle, b []byte) (*mutator, []outcome) {
	t.Helper()
	var shape uint64
	if len(b) >= 2 {
		shape, b = uint64(binary.BigEndian.Uint16(b)), b[2:]
	}
	m := newMutator(shape, &tape{b, rand.NewPCG(0, 0)})
	var outs []outcome
	for range 2 {
		m.step()
		outs = append(outs, m.compare(t, o))
		if outs[len(outs)-1].complaint != "" {
			break
		}
	}
	return m, outs
}
