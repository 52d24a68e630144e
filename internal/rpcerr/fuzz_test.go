package rpcerr_test

import (
	"errors"
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
)

// FuzzFromStatus reads any status that a peer may send: an error stays an error,
// with the sentinel that it names or none.
func FuzzFromStatus(f *testing.F) {
	for _, err := range []error{patch.ErrBusy, patch.ErrRevoked, patch.ErrStorage} {
		b, merr := proto.Marshal(status.Convert(rpcerr.ToStatus(f.Context(), nil, err)).Proto())
		if merr != nil {
			f.Fatal(merr)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte("\x08\x07\x12\x01x\x1a\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var sent spb.Status
		if proto.Unmarshal(b, &sent) != nil {
			return
		}
		err := status.FromProto(&sent).Err()
		got := rpcerr.FromStatus(err)
		if (got == nil) != (err == nil) {
			t.Fatalf("%v became %v", err, got)
		}
		var known *rpcerr.Error
		if errors.As(got, &known) && (known.Sentinel == nil || rpcerr.Reason(got) == "" || known.Text != sent.GetMessage()) {
			t.Errorf("%v became %+v", err, known)
		}
	})
}
