// Package rpcerr carries the errors of package patch between processes.
//
// A sentinel travels as a gRPC status whose ErrorInfo has the domain
// "livepatch" and the sentinel's reason. One table knows both worlds, and both
// directions are tested against it.
package rpcerr

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"livepatch/internal/patch"
)

// Domain is the ErrorInfo domain of every reason in the table.
const Domain = "livepatch"

// table is ordered: an error that matches two rows travels as the first.
var table = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{patch.ErrInvalid, codes.InvalidArgument, "INVALID"},
	{patch.ErrTooLarge, codes.InvalidArgument, "TOO_LARGE"},
	{patch.ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{patch.ErrNotOurs, codes.FailedPrecondition, "NOT_OURS"},
	{patch.ErrRefused, codes.PermissionDenied, "REFUSED"},
	{patch.ErrUntrusted, codes.PermissionDenied, "UNTRUSTED"},
	{patch.ErrExpired, codes.PermissionDenied, "EXPIRED"},
	{patch.ErrRollback, codes.PermissionDenied, "ROLLBACK"},
	{patch.ErrMalformed, codes.InvalidArgument, "MALFORMED"},
	{patch.ErrTampered, codes.PermissionDenied, "TAMPERED"},
	{patch.ErrHalted, codes.FailedPrecondition, "HALTED"},
	{patch.ErrRevoked, codes.FailedPrecondition, "REVOKED"},
	{patch.ErrWrongKernel, codes.FailedPrecondition, "WRONG_KERNEL"},
	{patch.ErrNotLivepatch, codes.InvalidArgument, "NOT_LIVEPATCH"},
	{patch.ErrNameTaken, codes.AlreadyExists, "NAME_TAKEN"},
	{patch.ErrSuspect, codes.FailedPrecondition, "SUSPECT"},
	{patch.ErrNoLivepatch, codes.FailedPrecondition, "NO_LIVEPATCH"},
	{patch.ErrSwitchedOff, codes.FailedPrecondition, "SWITCHED_OFF"},
	{patch.ErrModulesDisabled, codes.FailedPrecondition, "MODULES_DISABLED"},
	{patch.ErrFtraceDisabled, codes.FailedPrecondition, "FTRACE_DISABLED"},
	{patch.ErrFtraceConflict, codes.Aborted, "FTRACE_CONFLICT"},
	{patch.ErrBusy, codes.Aborted, "BUSY"},
	{patch.ErrIncompatible, codes.FailedPrecondition, "INCOMPATIBLE"},
	{patch.ErrUnknownSymbol, codes.FailedPrecondition, "UNKNOWN_SYMBOL"},
	{patch.ErrBadFormat, codes.FailedPrecondition, "BAD_FORMAT"},
	{patch.ErrModuleSignature, codes.FailedPrecondition, "MODULE_SIGNATURE"},
	{patch.ErrNotPermitted, codes.FailedPrecondition, "NOT_PERMITTED"},
	{patch.ErrNoMemory, codes.ResourceExhausted, "NO_MEMORY"},
	{patch.ErrKernel, codes.FailedPrecondition, "KERNEL"},
	{patch.ErrStalled, codes.Aborted, "STALLED"},
	{patch.ErrTransitionFailed, codes.Aborted, "TRANSITION_FAILED"},
	{patch.ErrStorage, codes.ResourceExhausted, "STORAGE"},
}

// Reason returns the name under which err travels, "WRONG_KERNEL", or "" if
// err matches no row of the table.
func Reason(err error) string {
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.reason
		}
	}
	return ""
}

// ToStatus turns err into what a peer may see. For an error in the table that
// is its sentinel and its text, but not its fields. Any other error is logged
// here and reaches the peer only as "internal error".
func ToStatus(ctx context.Context, log *slog.Logger, err error) error {
	if err == nil {
		return nil
	}
	for _, row := range table {
		if !errors.Is(err, row.err) {
			continue
		}
		st, derr := status.New(row.code, err.Error()).WithDetails(
			&errdetails.ErrorInfo{Domain: Domain, Reason: row.reason})
		if derr != nil {
			return status.Error(row.code, err.Error())
		}
		return st.Err()
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	// What gRPC itself said about a stream, which a client that goes away can
	// bring about as often as it likes.
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	log.ErrorContext(ctx, "Request failed", "err", err)
	return status.Error(codes.Internal, "internal error")
}

// An Error is a failure that a peer reported.
type Error struct {
	Sentinel error  // one of package patch
	Reason   string // its name in the table
	Text     string // what the peer said, for a person
}

// Error returns what the peer said.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Sentinel }

// FromStatus turns what a peer sent back into an [*Error] that matches its
// sentinel. An error that the table does not know is returned as it is.
func FromStatus(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != Domain {
			continue
		}
		for _, row := range table {
			if row.reason == info.GetReason() {
				return &Error{Sentinel: row.err, Reason: row.reason, Text: st.Message()}
			}
		}
	}
	return err
}
