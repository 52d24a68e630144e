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

	"livepatch/tests/lab"

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
	m := lab.NewMachine(t, lab.NewRepository(time.Now()).Pinned())
	who := lab.StrangerUID
	if !lab.AsRoot {
		who, m.Serves = m.UID, m.UID+1
	}
	ask := func() string {
		cmd := lab.Program(t.Context(), who, []string{"LIVEPATCH_TEST_STRANGER=" + m.Path("loader.sock")}, lab.SelfBin)
		return lab.RunToEnd(t, cmd).Stdout
	}
	if lab.AsRoot { // the socket's mode alone keeps others out
		if got := ask(); !strings.Contains(got, "permission denied") {
			t.Errorf("stranger at a socket of mode 0600 got: %s", got)
		}
	}
	lab.Must(t, os.Chmod(m.Path("loader.sock"), 0o666)) // and if it were open, the loader would
	if got := ask(); !strings.Contains(got, fmt.Sprint(who)) || !strings.Contains(got, "code = Unavailable") {
		t.Errorf("stranger at an open socket got: %s", got)
	}
	want := fmt.Sprintf(`level=WARN msg="Refused connection" peer_uid=%d`, who)
	lab.Eventually(t, "loader logs "+want, func() bool { return strings.Contains(m.Loader.Log.String(), want) })
	if got := m.Kernel.Calls(); got != 0 {
		t.Errorf("%d calls reached the kernel", got)
	}
}

// A hostile client is the agent's user, that is, an agent which was taken over.
// Whatever it sends, the loader stays up for the next request and nothing gets in.
func TestLoaderWithstands(t *testing.T) {
	t.Parallel()
	one := lab.NewModule(1)
	repo := lab.NewRepository(time.Now(), one)
	piece := func(b []byte) *loaderv1.ApplyRequest {
		return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: b}}
	}
	first := func(o *loaderv1.Opening) *loaderv1.ApplyRequest {
		return &loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: o}}
	}
	manyRoots := repo.Opening(one)
	manyRoots.Metadata.Roots = slices.Repeat([][]byte{repo.Pinned()}, 65)
	longWait := repo.Opening(one)
	longWait.Wait = durationpb.New(11 * time.Minute)
	backwards := repo.Opening(one)
	backwards.Wait = durationpb.New(-time.Second)
	endless := func(yield func(*loaderv1.ApplyRequest) bool) {
		b := make([]byte, 64<<10)
		for n := yield(first(repo.Opening(one))); n && yield(piece(b)); {
		}
	}
	tests := map[string]struct {
		messages func(yield func(*loaderv1.ApplyRequest) bool)
		want     error // nil: gRPC refuses it
	}{
		"a stream without an opening":       {slices.Values([]*loaderv1.ApplyRequest{piece([]byte("x"))}), patch.ErrInvalid},
		"a stream with nothing in it":       {slices.Values([]*loaderv1.ApplyRequest{}), patch.ErrInvalid},
		"a message with nothing in it":      {slices.Values([]*loaderv1.ApplyRequest{{}}), patch.ErrInvalid},
		"two openings":                      {slices.Values([]*loaderv1.ApplyRequest{first(repo.Opening(one)), first(repo.Opening(one))}), patch.ErrInvalid},
		"an empty piece of the module":      {slices.Values([]*loaderv1.ApplyRequest{first(repo.Opening(one)), piece(nil)}), patch.ErrInvalid},
		"roots that are known already":      {slices.Values([]*loaderv1.ApplyRequest{first(manyRoots)}), patch.ErrRollback},
		"a wait of eleven minutes":          {slices.Values([]*loaderv1.ApplyRequest{first(longWait)}), patch.ErrInvalid},
		"a wait that lies in the past":      {slices.Values([]*loaderv1.ApplyRequest{first(backwards)}), patch.ErrInvalid},
		"a module that never ends":          {endless, patch.ErrTooLarge},
		"an opening of nine megabytes":      {slices.Values([]*loaderv1.ApplyRequest{first(&loaderv1.Opening{Bin: make([]byte, 9<<20)})}), nil},
		"a piece of the module of nine too": {slices.Values([]*loaderv1.ApplyRequest{first(repo.Opening(one)), piece(make([]byte, 9<<20))}), nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := lab.NewMachine(t, repo.Pinned())
			c := m.Client()
			if _, err := c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
				t.Fatal(err)
			}
			before := m.Footprint(true)
			stream, err := c.Apply(t.Context())
			lab.Must(t, err)
			for msg := range tc.messages {
				if err := stream.Send(msg); err != nil {
					break // the answer has come
				}
			}
			_, err = stream.CloseAndRecv()
			if err = rpcerr.FromStatus(err); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("answer = %v, want %v", err, tc.want)
			}
			lab.WantSame(t, before, m.Footprint(true))
			lab.MustApply(t, c, repo, one, applied)
			if m.Loader.Count() != 1 {
				t.Errorf("loader was started %d times, want 1", m.Loader.Count())
			}
		})
	}
}

func TestAClientThatStopsInTheMiddleHoldsUpNobodyForLong(t *testing.T) {
	t.Parallel()
	one := lab.NewModule(1)
	repo := lab.NewRepository(time.Now(), one)
	m := lab.NewMachine(t, repo.Pinned())
	c := m.Client()
	slow := m.Client()
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	stream, err := slow.Apply(ctx)
	lab.Must(t, err)
	lab.Must(t, lab.Send(stream, repo.Opening(one), one.Content[:100]))
	lab.Eventually(t, "the slow client has its turn", func() bool {
		_, err := lab.Apply(t, c, repo.Opening(one), one.Content)
		if err == nil {
			t.Fatal("two clients had their turn at once")
		}
		return errors.Is(err, patch.ErrBusy)
	})
	if _, err := c.Status(t.Context(), &loaderv1.StatusRequest{}); err != nil {
		t.Errorf("status meanwhile = %v", err)
	}
	hangUp()
	lab.Eventually(t, "the next client has its turn", func() bool {
		_, err := lab.Apply(t, c, repo.Opening(one), one.Content)
		return err == nil
	})
}

// Those that do nothing have to give way to one that does.
func TestTwoHundredConnectionsDoNotShutTheAgentOut(t *testing.T) {
	t.Parallel()
	repo := lab.NewRepository(time.Now(), lab.NewModule(1))
	m := lab.NewMachine(t, repo.Pinned())
	var conns []net.Conn
	for i := range 200 {
		conn, err := net.Dial("unix", m.Path("loader.sock"))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer conn.Close()
		if i%2 == 1 { // half of them say nothing, half something that is not gRPC
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: loader\r\n\r\n")
		}
		conns = append(conns, conn)
	}
	one := lab.NewModule(1)
	lab.Eventually(t, "the agent is heard", func() bool {
		_, err := lab.ApplyWith(t.Context(), m.Client(), repo.Opening(one), one.Content)
		return err == nil
	})
	for _, conn := range conns {
		conn.Close()
	}
	lab.Eventually(t, "loader leaves", func() bool { return !m.Loader.Running() })
}
