package agentlink

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

// statuses maps kinds of problems to gRPC codes and back. Internal errors are not in it: their text stays here.
var statuses = []struct {
	kind problem.Kind
	code codes.Code
}{
	{problem.Invalid, codes.InvalidArgument},
	{problem.Forbidden, codes.PermissionDenied},
	{problem.Unauthorized, codes.Unauthenticated},
	{problem.NotFound, codes.NotFound},
	{problem.Conflict, codes.FailedPrecondition},
	{problem.TooLarge, codes.OutOfRange},
	{problem.Unavailable, codes.Unavailable},
	{problem.NotSupported, codes.Unimplemented},
}

// errReplaced ends a stream when the same host opens another one.
var errReplaced error = &problem.Error{Kind: problem.Conflict, Msg: "another connection of this host has taken over"}

// toStatus is how an error of ours leaves the controller. Errors without a kind are logged and hidden.
func toStatus(err error, log *slog.Logger) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // from gRPC itself
	}
	if errors.Is(err, errReplaced) {
		return status.Error(codes.Aborted, errReplaced.Error())
	}
	if k := problem.KindOf(err); k != problem.Internal {
		for _, s := range statuses {
			if s.kind == k {
				return status.Error(s.code, err.Error())
			}
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	log.Error("agent link: call failed", "err", err)
	return status.Error(codes.Internal, "internal error on the controller; its log has the details")
}

// fromStatus turns what a call to a controller failed with into a problem.
func fromStatus(err error, controller string) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if st.Code() == codes.Aborted {
		return errReplaced
	}
	for _, s := range statuses {
		if s.code == st.Code() && s.kind != problem.Unavailable {
			return &problem.Error{Kind: s.kind, Msg: st.Message(), Err: err}
		}
	}
	msg := st.Message()
	switch {
	case strings.Contains(msg, pki.ErrOtherCA.Error()):
		return problem.Errorf(problem.Forbidden, "cannot join through controller %s: %s", controller, pki.ErrOtherCA.Error())
	case strings.Contains(msg, "tls: ") || strings.Contains(msg, "x509: "):
		return problem.Errorf(problem.Unauthorized, "controller %s and this host do not accept each other's certificates: %s", controller, msg)
	}
	return problem.Errorf(problem.Unavailable, "cannot reach controller %s: %s", controller, msg)
}
