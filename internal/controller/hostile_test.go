package controller

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/problem"
)

func TestAnAddressThatSeveralHostsHadNamesNone(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	for _, name := range []string{"compute-1", "compute-0"} {
		r.attach(name).report(current(1))
	}
	const want = "127.0.0.2 is the address of several hosts: compute-0, compute-1"
	if _, err := r.InstallHost(ctx, "uid 0", "127.0.0.2", false); problem.KindOf(err) != problem.Conflict || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("install: got %v, want %q", err, want)
	}
	if _, err := r.DropHost(ctx, "uid 0", "127.0.0.2"); problem.KindOf(err) != problem.Conflict || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("drop: got %v, want %q", err, want)
	}
	if _, err := r.DropHost(ctx, "uid 0", "compute-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.InstallHost(ctx, "uid 0", "127.0.0.2", false); err != nil {
		t.Errorf("the only one left: %v", err)
	}
}

func TestAReportOfAGenerationThatIsLostSaysNothing(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	a := r.attach("compute-0")
	// The controller was restored from before the host saw generation 7. The next one made here could be the host's 7th,
	// with other packages.
	a.report(current(7))
	if h := r.host("compute-0"); h.PatchCurrent || !h.InterimState {
		t.Errorf("got %+v", h)
	}
	r.have(r.signed(simple("P1", false)))
	r.mustApply("P1")
	if got, want := r.patchState("P1"), "Partial-Apply"; got != want {
		t.Errorf("got %s, want %s: the host has not reported about the generation with the patch", got, want)
	}
	a.report(current(2))
	if got, want := r.patchState("P1"), "Applied"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAHostThatLeavesItsReleaseEndsItsOperation(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	a := r.attach("compute-0")
	a.report(current(1))
	op, err := r.InstallHost(ctx, "uid 0", "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	moved := facts()
	moved.Release = "20.06"
	if err := a.Hello(ctx, agentlink.Hello{Facts: moved}); err != nil {
		t.Fatal(err)
	}
	o, err := r.Operation(ctx, op.ID)
	if err != nil || o.State != api.OperationFailed || !strings.Contains(o.Detail, "runs release 20.06 now") {
		t.Errorf("got %+v, %v", o, err)
	}
	if h := r.host("compute-0"); h.State != "idle" {
		t.Errorf("got %+v", h)
	}
	r.trustEverything()
	r.have(r.signed(simple("P1", false)))
	r.mustApply("P1") // is not held up by it
}

func TestAGenerationThatCannotBeRestoredIsMendedByTheNext(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	r.have(r.signed(simple("P1", false)))
	r.mustApply("P1")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.repo.fail = errors.New("damaged")
	r.start()
	if got, want := r.patchState("P1"), "n/a"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.repo.fail = nil
	if m, err := r.Remove(context.Background(), "uid 0", []string{"P1"}, api.RemoveOptions{}); err != nil || m.Error != "" {
		t.Errorf("remove: %+v, %v", m, err)
	}
}

func TestTheEndOfAnOperationWithoutARecordFreesTheHost(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	a := r.attach("compute-0")
	a.report(current(1))
	op, err := r.InstallHost(ctx, "uid 0", "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	err = r.commit(ctx, func(s *snapshot) (*change, error) {
		ch := &change{}
		o, _ := s.ops.get(op.ID)
		ch.remove(operationPrefix+op.ID, o.rev, func(s *snapshot) { s.dropOperation(op.ID) })
		return ch, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	a.progress(op.ID, api.OperationDone, "")
	if h := r.host("compute-0"); h.State != "idle" {
		t.Errorf("got %+v", h)
	}
}
