// Command ask-loader calls the loader inside a test machine, as the agent or as
// somebody who has taken over the agent: it sends whatever it is given.
//
//	ask-loader [-socket PATH] status
//	ask-loader [-socket PATH] [-zeroes N] [-clock FILE] apply < OFFER
//	ask-loader [-socket PATH] update < REQUEST
//	ask-loader [-socket PATH] remove NAME
//	ask-loader [-socket PATH] accept NAME
//
// An offer is the length of an encoded loader.v1.Opening as four bytes, big
// endian, the Opening, and the module; a request is an encoded
// loader.v1.UpdateRequest. The answer is JSON on standard output: the
// response, or an [Failure] with exit status 1.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"livepatch/internal/rpcerr"
	loaderv1 "livepatch/proto/loader/v1"
)

// A Failure is how the loader refused.
type Failure struct {
	Code   string `json:"code"`   // of gRPC
	Reason string `json:"reason"` // of package rpcerr; empty if the loader gave none
	Text   string `json:"text"`
}

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ask-loader: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("ask-loader", flag.ContinueOnError)
	socket := flags.String("socket", "/run/livepatch/loader.sock", "`path` of the loader's socket")
	timeout := flags.Duration("timeout", 2*time.Minute, "give up after `this long`")
	clock := flags.String("clock", "", "write the monotonic clock, before the call and after it, in nanoseconds to this `file`")
	zeroes := flags.Int64("zeroes", 0, "let the module of an offer go on with `this many` zeroes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix:"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	stdin = io.MultiReader(stdin, io.LimitReader(zeroReader{}, *zeroes))
	began := monotonic()
	resp, err := call(ctx, loaderv1.NewLoaderServiceClient(conn), flags.Arg(0), flags.Arg(1), stdin)
	if *clock != "" {
		err = errors.Join(err, os.WriteFile(*clock, fmt.Appendln(nil, began, monotonic()), 0o666))
	}
	if _, ok := status.FromError(err); err != nil && ok {
		return errors.Join(errors.New("the loader refused"), json.NewEncoder(stdout).Encode(failure(err)))
	}
	if err != nil {
		return err
	}
	b, err := protojson.Marshal(resp)
	if err != nil {
		return err
	}
	_, err = stdout.Write(append(b, '\n'))
	return err
}

// monotonic returns CLOCK_MONOTONIC in nanoseconds, which the kernel's tracing
// can tell the time by too.
func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // every kernel has this clock
	}
	return now.Nano()
}

// A zeroReader never ends.
type zeroReader struct{}

// Read fills p with zeroes.
func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func failure(err error) Failure {
	f := Failure{Code: status.Code(err).String(), Text: status.Convert(err).Message()}
	var known *rpcerr.Error
	if errors.As(rpcerr.FromStatus(err), &known) {
		f.Reason = known.Reason
	}
	return f
}

func call(ctx context.Context, loader loaderv1.LoaderServiceClient, verb, name string, stdin io.Reader) (proto.Message, error) {
	switch verb {
	case "status":
		return loader.Status(ctx, &loaderv1.StatusRequest{})
	case "remove":
		return loader.Remove(ctx, &loaderv1.RemoveRequest{Name: name})
	case "accept":
		return loader.Accept(ctx, &loaderv1.AcceptRequest{Name: name})
	case "apply":
		return apply(ctx, loader, stdin)
	case "update":
		return update(ctx, loader, stdin)
	default:
		return nil, fmt.Errorf("cannot %q: want status, apply, update, remove or accept", verb)
	}
}

// update sends metadata without a patch.
func update(ctx context.Context, loader loaderv1.LoaderServiceClient, request io.Reader) (proto.Message, error) {
	encoded, err := io.ReadAll(request)
	if err != nil {
		return nil, fmt.Errorf("cannot read request: %w", err)
	}
	var req loaderv1.UpdateRequest
	if err := proto.Unmarshal(encoded, &req); err != nil {
		return nil, fmt.Errorf("cannot read request: %w", err)
	}
	return loader.Update(ctx, &req)
}

// apply sends an offer. When the loader refuses half way, its answer counts and
// not the broken stream.
func apply(ctx context.Context, loader loaderv1.LoaderServiceClient, offer io.Reader) (proto.Message, error) {
	var size uint32
	if err := binary.Read(offer, binary.BigEndian, &size); err != nil {
		return nil, fmt.Errorf("cannot read offer: %w", err)
	}
	encoded := make([]byte, size)
	if _, err := io.ReadFull(offer, encoded); err != nil {
		return nil, fmt.Errorf("cannot read offer: %w", err)
	}
	var opening loaderv1.Opening
	if err := proto.Unmarshal(encoded, &opening); err != nil {
		return nil, fmt.Errorf("cannot read offer: %w", err)
	}
	stream, err := loader.Apply(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Opening{Opening: &opening}})
	for err == nil {
		piece := make([]byte, 64<<10)
		var n int
		n, err = io.ReadFull(offer, piece)
		if n > 0 {
			if sendErr := stream.Send(&loaderv1.ApplyRequest{Part: &loaderv1.ApplyRequest_Module{Module: piece[:n]}}); sendErr != nil {
				err = sendErr
			}
		}
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return stream.CloseAndRecv()
}
