// Package problem is the error that an operator can act on.
//
// Every refusal that leaves this system carries a [Kind], which alone decides the HTTP status and the exit code, and one
// sentence that says what was refused, why, and what would be accepted. An error without a Kind is our own bug or an
// environment failure: it is logged whole and shown as an internal error.
package problem

import (
	"errors"
	"fmt"
)

// Kind is the class of a refusal. The zero Kind is [Internal].
type Kind string

// The kinds. Their text is what own API routes send in problem documents.
const (
	Internal     Kind = ""             // our bug or the environment: details go to the log only
	Invalid      Kind = "invalid"      // the request itself is wrong; repeating it cannot help
	Forbidden    Kind = "forbidden"    // the caller is known and may not
	Unauthorized Kind = "unauthorized" // the caller is not known
	NotFound     Kind = "not-found"    // the named thing does not exist
	Conflict     Kind = "conflict"     // the present state does not allow it; it may later
	TooLarge     Kind = "too-large"    // a documented limit was exceeded
	Unavailable  Kind = "unavailable"  // a part that is needed is not reachable now; retry
	NotSupported Kind = "not-supported"
)

// Error is a refusal that an operator can act on.
type Error struct {
	Kind Kind
	Msg  string // one sentence for the operator, with the names and the next thing to do
	Err  error  // cause, for the log and errors.Is; never shown by the API; may be nil
}

func (e *Error) Error() string { return e.Msg }

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an [Error] from a format. A %w operand becomes the cause.
func Errorf(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf returns the kind of the first [Error] in err's tree, and Internal when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}
