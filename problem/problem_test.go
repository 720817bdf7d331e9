package problem_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/starpatch/starpatch/problem"
)

func TestKindOf(t *testing.T) {
	refusal := problem.Errorf(problem.Conflict, "cannot remove P1: P2 requires it; remove P2 first")
	for _, tt := range []struct {
		name string
		err  error
		want problem.Kind
	}{
		{"no error is of no kind", nil, problem.Internal},
		{"an error that nobody meant for operators", io.ErrUnexpectedEOF, problem.Internal},
		{"a refusal", refusal, problem.Conflict},
		{"a refusal with more said around it", fmt.Errorf("P1: %w", refusal), problem.Conflict},
		{"the first of several", errors.Join(io.ErrUnexpectedEOF, refusal, problem.Errorf(problem.NotFound, "no P3")), problem.Conflict},
		{"an outer kind hides the inner one", problem.Errorf(problem.Invalid, "not now: %w", refusal), problem.Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := problem.KindOf(tt.err); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTheCauseIsKeptAndItsTextIsPartOfTheSentence(t *testing.T) {
	err := problem.Errorf(problem.Invalid, "cannot read metadata of %s: %w", "P1", io.ErrUnexpectedEOF)
	if got, want := err.Error(), "cannot read metadata of P1: unexpected EOF"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
}
