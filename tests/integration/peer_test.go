//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"livepatch/internal/patch"
	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
)

// stranger asks a loader for its status, as a user who may not, and prints what
// became of it. It is a process of its own.
func stranger(socket string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		defer conn.Close()
		_, err = loaderv1.NewLoaderServiceClient(conn).Status(ctx, &loaderv1.StatusRequest{})
	}
	fmt.Println(os.Getuid(), err)
	return 0
}

func TestAnotherUserIsRefusedByTheLoaderAndLogged(t *testing.T) {
	t.Parallel()
	m := newMachine(t, newRepository(time.Now()).pinned())
	who := strangerUID
	if !root {
		who, m.serves = m.uid, m.uid+1
	}
	ask := func() string {
		cmd := program(t.Context(), who, []string{"LIVEPATCH_TEST_STRANGER=" + m.path("loader.sock")}, selfBin)
		return runToEnd(t, cmd).stdout
	}
	if root { // the socket's mode alone keeps others out
		if got := ask(); !strings.Contains(got, "permission denied") {
			t.Errorf("stranger at a socket of mode 0600 got: %s", got)
		}
	}
	must(t, os.Chmod(m.path("loader.sock"), 0o666)) // and if it were open, the loader would
	if got := ask(); !strings.Contains(got, fmt.Sprint(who)) || !strings.Contains(got, "code = Unavailable") {
		t.Errorf("stranger at an open socket got: %s", got)
	}
	want := fmt.Sprintf(`level=WARN msg="Refused connection" peer_uid=%d`, who)
	eventually(t, "loader logs "+want, func() bool { return strings.Contains(m.loader.log.String(), want) })
	if got := m.kernel.calls(); got != 0 {
		t.Errorf("%d calls reached the kernel", got)
	}
}

// A hostile client is the agent's user, that is, an agent which was taken over.
// Whatever it sends, the loader stays up for the next request and nothing gets in.
func TestLoaderWithstands(t *testing.T) {
	t.Parallel()
	one := newModule(1)
	repo := newRepository(time.Now(), one)
	piece := func(b []byte) *loaderv1.ApplyRequest {
		return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: b}}
	}
	first := func(o *loaderv1.Opening) *loaderv1.ApplyRequest {
		return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: o}}
	}
	manyRoots := repo.opening(one)
	manyRoots.Roots = slices.Repeat([][]byte{repo.pinned()}, 65)
	longWait := repo.opening(one)
	longWait.Wait = durationpb.New(11 * time.Minute)
	backwards := repo.opening(one)
	backwards.Wait = durationpb.New(-time.Second)
	endless := func(yield func(*loaderv1.ApplyRequest) bool) {
		b := make([]byte, 64<<10)
		for n := yield(first(repo.opening(one))); n && yield(piece(b)); {
		}
	}
	tests := map[string]struct {
		messages func(yield func(*loaderv1.ApplyRequest) bool)
		want     error // nil: gRPC refuses it
	}{
		"a stream without an opening":       {slices.Values([]*loaderv1.ApplyRequest{piece([]byte("x"))}), patch.ErrInvalid},
		"a stream with nothing in it":       {slices.Values([]*loaderv1.ApplyRequest{}), patch.ErrInvalid},
		"a message with nothing in it":      {slices.Values([]*loaderv1.ApplyRequest{{}}), patch.ErrInvalid},
		"two openings":                      {slices.Values([]*loaderv1.ApplyRequest{first(repo.opening(one)), first(repo.opening(one))}), patch.ErrInvalid},
		"an empty piece of the module":      {slices.Values([]*loaderv1.ApplyRequest{first(repo.opening(one)), piece(nil)}), patch.ErrInvalid},
		"more than 64 roots":                {slices.Values([]*loaderv1.ApplyRequest{first(manyRoots)}), patch.ErrTooLarge},
		"a wait of eleven minutes":          {slices.Values([]*loaderv1.ApplyRequest{first(longWait)}), patch.ErrInvalid},
		"a wait that lies in the past":      {slices.Values([]*loaderv1.ApplyRequest{first(backwards)}), patch.ErrInvalid},
		"a module that never ends":          {endless, patch.ErrTooLarge},
		"an opening of nine megabytes":      {slices.Values([]*loaderv1.ApplyRequest{first(&loaderv1.Opening{Bin: make([]byte, 9<<20)})}), nil},
		"a piece of the module of nine too": {slices.Values([]*loaderv1.ApplyRequest{first(repo.opening(one)), piece(make([]byte, 9<<20))}), nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, repo.pinned())
			c := m.client()
			if _, err := c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
				t.Fatal(err)
			}
			before := m.footprint(true)
			stream, err := c.Apply(t.Context())
			must(t, err)
			for msg := range tc.messages {
				if err := stream.Send(msg); err != nil {
					break // the answer has come
				}
			}
			_, err = stream.CloseAndRecv()
			if err = rpcerr.FromStatus(err); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("answer = %v, want %v", err, tc.want)
			}
			wantSame(t, before, m.footprint(true))
			mustApply(t, c, repo, one, applied)
			if m.loader.count() != 1 {
				t.Errorf("loader was started %d times, want 1", m.loader.count())
			}
		})
	}
}

func TestAClientThatStopsInTheMiddleHoldsUpNobodyForLong(t *testing.T) {
	t.Parallel()
	one := newModule(1)
	repo := newRepository(time.Now(), one)
	m := newMachine(t, repo.pinned())
	c := m.client()
	slow := m.client()
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	stream, err := slow.Apply(ctx)
	must(t, err)
	must(t, send(stream, repo.opening(one), one.content[:100]))
	eventually(t, "the slow client has its turn", func() bool {
		_, err := apply(t, c, repo.opening(one), one.content)
		if err == nil {
			t.Fatal("two clients had their turn at once")
		}
		return errors.Is(err, patch.ErrBusy)
	})
	if _, err := c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
		t.Errorf("status meanwhile = %v", err)
	}
	hangUp()
	eventually(t, "the next client has its turn", func() bool {
		_, err := apply(t, c, repo.opening(one), one.content)
		return err == nil
	})
}

func TestTwoHundredConnectionsDoNotShutTheAgentOut(t *testing.T) {
	t.Parallel()
	repo := newRepository(time.Now(), newModule(1))
	m := newMachine(t, repo.pinned())
	var conns []net.Conn
	for i := range 200 {
		conn, err := net.Dial("unix", m.path("loader.sock"))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer conn.Close()
		if i%2 == 1 { // half of them say nothing, half something that is not gRPC
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: loader\r\n\r\n")
		}
		conns = append(conns, conn)
	}
	mustApply(t, m.client(), repo, newModule(1), applied)
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "loader leaves", func() bool { return !m.loader.running() })
}
