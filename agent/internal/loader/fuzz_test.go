package loader

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"livepatch/internal/patch"
	loaderv1 "livepatch/proto/loader/v1"
)

// FuzzStatus converts any message that the loader's socket may answer with.
func FuzzStatus(f *testing.F) {
	for _, m := range []proto.Message{
		&loaderv1.StatusResponse{
			Kernel: &loaderv1.Kernel{Arch: "x86_64", Release: "6.1.0-53-amd64", BuildId: "0011", Taints: []*loaderv1.Taint{{Bit: 15, Letter: "K"}}},
			Livepatches: []*loaderv1.Livepatch{{
				Name: "lkp_1", State: loaderv1.State_STATE_ENABLED, Standing: loaderv1.Standing_STANDING_TRIAL,
				Digest: make([]byte, 32), Inserted: timestamppb.Now(), BlockerCount: 2, Blockers: []*loaderv1.Blocker{{Tid: 1}},
			}},
		},
		&loaderv1.StatusResponse{Livepatches: []*loaderv1.Livepatch{{State: 99, Standing: -1, Digest: []byte{1}, BlockerCount: -5, Inserted: &timestamppb.Timestamp{Nanos: -1}}}},
		&loaderv1.StatusResponse{},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r loaderv1.StatusResponse
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		s := fromStatus(&r)
		if len(s.Livepatches) != len(r.GetLivepatches()) {
			t.Errorf("%d livepatches of %d", len(s.Livepatches), len(r.GetLivepatches()))
		}
		for i, l := range s.Livepatches {
			if l.BlockerCount < len(l.Blockers) || l.State == "unspecified" || strings.ToLower(string(l.Standing)) != string(l.Standing) {
				t.Errorf("livepatch became %+v", l)
			}
			if d := r.GetLivepatches()[i].GetDigest(); len(d) != 32 && l.Digest != (patch.Digest{}) {
				t.Errorf("%d bytes became the digest %v", len(d), l.Digest)
			}
		}
	})
}
