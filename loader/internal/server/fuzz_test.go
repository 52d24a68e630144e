package server_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	loaderv1 "livepatch/proto/loader/v1"
)

// A stream is what a client sends in one Apply: the messages in b, each behind
// its length. Where b is none, the connection breaks.
type stream struct {
	grpc.ServerStream

	t      *testing.T
	in     *bufio.Reader
	broken bool
	sent   []*loaderv1.ApplyResponse
}

func (s *stream) Context() context.Context { return s.t.Context() }

func (s *stream) Recv() (*loaderv1.ApplyRequest, error) {
	var req loaderv1.ApplyRequest
	switch err := protodelim.UnmarshalFrom(s.in, &req); {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case err != nil:
		s.broken = true
		return nil, status.Error(codes.Canceled, err.Error())
	}
	return &req, nil
}

func (s *stream) SendAndClose(r *loaderv1.ApplyResponse) error {
	s.sent = append(s.sent, r)
	return nil
}

// delimited is how a client's messages stand in the input of FuzzApply.
func delimited(tb testing.TB, messages ...proto.Message) []byte {
	tb.Helper()
	var b bytes.Buffer
	for _, m := range messages {
		if _, err := protodelim.MarshalTo(&b, m); err != nil {
			tb.Fatal(err)
		}
	}
	return b.Bytes()
}

// told fails the test unless err is an answer that the contract knows: a failure
// of our own code is Internal, and one that nobody thought of is Unknown.
func told(t *testing.T, err error) {
	t.Helper()
	if code := status.Code(err); code == codes.Internal || code == codes.Unknown {
		t.Errorf("answered %v", err)
	}
}

// FuzzApply sends any stream of messages. Nothing enters the kernel but the
// module that was signed, and every refusal is one of the contract.
func FuzzApply(f *testing.F) {
	honest := newMachine(f)
	honest.publish(1)
	opening := &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: honest.opening(1)}}
	module := func(b []byte) *loaderv1.ApplyRequest {
		return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: b}}
	}
	content := honest.repo.Content[targetOf(1)]
	f.Add(delimited(f, opening, module(content)))
	f.Add(delimited(f, opening, module(content[:7]), module(content[7:])))
	f.Add(delimited(f, opening, module(content), module([]byte{0})))
	f.Add(delimited(f, opening))
	f.Add(delimited(f, opening, opening))
	f.Add(delimited(f, opening, module(nil)))
	f.Add(delimited(f, module(content), opening))
	f.Add(delimited(f, &loaderv1.ApplyRequest{}))
	f.Add(delimited(f, opening, module(content))[:4000])
	f.Add([]byte{})
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMachine(t)
		s := &stream{t: t, in: bufio.NewReader(bytes.NewReader(b))}
		err := m.server.Apply(s)
		if !s.broken { // nobody hears what a broken stream is answered
			told(t, err)
		}
		if (err == nil) != (len(s.sent) == 1) || (err == nil) != slices.Equal(m.kernel.inserted, []string{nameOf(1)}) {
			t.Errorf("answered %v and %d responses, inserted %q", err, len(s.sent), m.kernel.inserted)
		}
	})
}

// FuzzRequests sends any message as each of the other calls, to a loader that
// has nothing: none of them changes the kernel.
func FuzzRequests(f *testing.F) {
	honest := newMachine(f)
	honest.publish(1)
	for _, m := range []proto.Message{
		&loaderv1.UpdateRequest{Metadata: honest.opening(1).GetMetadata()},
		&loaderv1.UpdateRequest{Metadata: &loaderv1.Metadata{Roots: [][]byte{{}, []byte("{}")}, Timestamp: []byte("null")}},
		&loaderv1.UpdateRequest{},
		&loaderv1.RemoveRequest{Name: nameOf(1)},
		&loaderv1.AcceptRequest{Name: "../../etc"},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMachine(t)
		var (
			update loaderv1.UpdateRequest
			remove loaderv1.RemoveRequest
			accept loaderv1.AcceptRequest
		)
		if proto.Unmarshal(b, &update) == nil {
			_, err := m.server.Update(t.Context(), &update)
			told(t, err)
		}
		if proto.Unmarshal(b, &remove) == nil {
			_, err := m.server.Remove(t.Context(), &remove)
			told(t, err)
			if err == nil {
				t.Errorf("removed %q, which nobody inserted", remove.GetName())
			}
		}
		if proto.Unmarshal(b, &accept) == nil {
			_, err := m.server.Accept(t.Context(), &accept)
			told(t, err)
			if err == nil {
				t.Errorf("accepted %q, which nobody inserted", accept.GetName())
			}
		}
		if len(m.kernel.inserted) > 0 || len(m.kernel.deleted) > 0 {
			t.Errorf("inserted %q, deleted %q", m.kernel.inserted, m.kernel.deleted)
		}
	})
}
