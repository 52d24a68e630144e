package rpcerr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"livepatch/internal/patch"
)

var discard = slog.New(slog.DiscardHandler)

func TestRoundTripKeepsSentinelAndText(t *testing.T) {
	reasons := map[string]bool{}
	for _, row := range table {
		sent := fmt.Errorf("cannot apply %q: %w", "lkp_1", row.err)
		got := FromStatus(ToStatus(t.Context(), discard, sent))
		if !errors.Is(got, row.err) {
			t.Errorf("%v: sentinel lost, got %v", row.err, got)
		}
		if got.Error() != sent.Error() {
			t.Errorf("%v: message = %q, want %q", row.err, got, sent)
		}
		if reasons[row.reason] {
			t.Errorf("reason %s stands twice in the table", row.reason)
		}
		reasons[row.reason] = true
		if Reason(sent) != row.reason {
			t.Errorf("Reason(%v) = %q, want %q", sent, Reason(sent), row.reason)
		}
	}
}

// TestEverySentinelTravels holds the table against the declarations, so that a
// new sentinel cannot reach a peer as "internal error".
func TestEverySentinelTravels(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../patch/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := 0
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Err") {
			declared++
		}
		return true
	})
	if declared != len(table) {
		t.Errorf("package patch declares %d sentinels, the table has %d", declared, len(table))
	}
}

func TestUnknownErrorKeepsItsTextAtHome(t *testing.T) {
	got := ToStatus(t.Context(), discard, errors.New("open /var/lib/secret: no such file"))
	if status.Code(got) != codes.Internal || status.Convert(got).Message() != "internal error" {
		t.Errorf("got %v, want a bare internal error", got)
	}
}

func TestCancelledRequestIsNotAnInternalError(t *testing.T) {
	got := ToStatus(t.Context(), discard, fmt.Errorf("cannot read: %w", context.Canceled))
	if status.Code(got) != codes.Canceled {
		t.Errorf("code = %v, want Canceled", status.Code(got))
	}
}

func TestForeignStatusPassesUnchanged(t *testing.T) {
	for _, err := range []error{nil, errors.New("plain"), status.Error(codes.Unavailable, "no socket")} {
		if got := FromStatus(err); got != err {
			t.Errorf("FromStatus(%v) = %v", err, got)
		}
	}
	var e *Error
	if errors.As(FromStatus(status.Error(codes.NotFound, patch.ErrNotFound.Error())), &e) {
		t.Error("a status without ErrorInfo became a sentinel")
	}
}

// A client that goes away in the midst of a stream is no failure of ours.
func TestBrokenStreamIsNotLogged(t *testing.T) {
	var log bytes.Buffer
	broken := fmt.Errorf("cannot receive patch: %w", status.Error(codes.Canceled, "context canceled"))
	got := ToStatus(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), broken)
	if status.Code(got) != codes.Canceled || log.Len() != 0 {
		t.Errorf("status %v, logged %q", got, log.String())
	}
}
