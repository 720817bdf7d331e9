package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/storetest"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trustEverything makes the rig's patches pass the check of their signer.
func (r *rig) trustEverything() {
	r.t.Helper()
	keys := testKeys(r.t)
	r.trust.set(keys)
	r.signer = patch.Signer{Class: patchfile.Formal, Key: keys.Formal[0].ID()}
}

func TestAPatchGoesThroughItsLife(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	ctx := context.Background()
	r.have(r.signed(simple("P1", false)))
	if got, want := r.patchState("P1"), "n/a"; got != want {
		t.Errorf("with no hosts: got %s, want %s", got, want)
	}
	a := r.attach("compute-0")
	d := a.desired()
	if d.Revision != 1 || d.Release != "19.09" || d.Operation != nil {
		t.Fatalf("first desired state: %+v", d)
	}
	if h := r.host("compute-0"); h.PatchCurrent || !h.InterimState || !h.StaleDetails {
		t.Errorf("before its first report a host is pending and stale: %+v", h)
	}
	a.report(current(1))
	if h := r.host("compute-0"); !h.PatchCurrent || h.InterimState || h.StaleDetails || h.IP != "127.0.0.2" || h.State != "idle" {
		t.Errorf("after its report: %+v", h)
	}
	if got, want := r.patchState("P1"), "Available"; got != want {
		t.Errorf("uploaded: got %s, want %s", got, want)
	}

	r.mustApply("P1")
	next := a.desired()
	if next.Revision != 2 || next.Epoch <= d.Epoch {
		t.Errorf("after apply: got revision %d epoch %d, want revision 2 and an epoch above %d", next.Revision, next.Epoch, d.Epoch)
	}
	if got, want := r.patchState("P1"), "Partial-Apply"; got != want {
		t.Errorf("applied: got %s, want %s", got, want)
	}
	if h := r.host("compute-0"); !h.InterimState {
		t.Errorf("a host that has not reported since is interim: %+v", h)
	}
	pkg := simple("P1", false).Packages[0].NEVRA
	behind := current(2)
	behind.Installed = []host.Difference{{Have: rpm.NEVRA{Name: pkg.Name, EVR: rpm.EVR{Version: "1.0", Release: "1"}, Arch: "noarch"}, Wanted: pkg.EVR}}
	a.report(behind)
	if h := r.host("compute-0"); h.PatchCurrent || h.InterimState || h.Installed[pkg.Name] != "1.0-1@noarch" || !h.AllowInsvcPatching {
		t.Errorf("a host that lags behind: %+v", h)
	}

	op, err := r.InstallHost(ctx, "uid 0", "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	if d := a.desired(); d.Operation == nil || d.Operation.ID != op.ID || !d.Operation.InServiceOnly {
		t.Errorf("the operation is not in what was sent: %+v", d)
	}
	if h := r.host("compute-0"); h.State != "installing" {
		t.Errorf("state from the moment that the install was asked for: got %s", h.State)
	}
	if _, err := r.InstallHost(ctx, "uid 0", "compute-0", false); problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), op.ID) {
		t.Errorf("a second install at once: got %v, want a conflict that names %s", err, op.ID)
	}
	if _, err := r.Remove(ctx, "uid 0", []string{"P1"}, api.RemoveOptions{}); !errors.Is(err, patch.ErrInstalling) {
		t.Errorf("remove while a host is installing: got %v", err)
	}
	a.progress(op.ID, api.OperationAccepted, "")
	a.progress(op.ID, api.OperationRunning, "")
	a.report(current(2)) // the link sends it before any state that is due
	if o, _ := r.Operation(ctx, op.ID); o.State != api.OperationRunning {
		t.Errorf("a report alone ends an operation: %s", o.State)
	}
	a.progress(op.ID, api.OperationDone, "")
	if o, _ := r.Operation(ctx, op.ID); o.State != api.OperationDone {
		t.Errorf("after the end: got %s, want done", o.State)
	}
	if h := r.host("compute-0"); !h.PatchCurrent || h.State != "idle" {
		t.Errorf("after the install: %+v", h)
	}
	if got, want := r.patchState("P1"), "Applied"; got != want {
		t.Errorf("installed: got %s, want %s", got, want)
	}
	if d := a.desired(); d.Operation != nil {
		t.Errorf("a finished operation is still sent: %+v", d)
	}

	if m, err := r.Remove(ctx, "uid 0", []string{"P1"}, api.RemoveOptions{}); err != nil || m.Info != "P1 has been removed from the repo\n" {
		t.Fatalf("remove: %+v %v", m, err)
	}
	if m, err := r.Delete(ctx, "uid 0", []string{"P1"}); err != nil || m.Error != "Patch P1 not in Available state\n" {
		t.Errorf("delete while hosts have it: %+v %v", m, err)
	}
	a.desired()
	a.report(current(3))
	if m, err := r.Delete(ctx, "uid 0", []string{"P1"}); err != nil || m.Info != "P1 has been deleted\n" {
		t.Errorf("delete: %+v %v", m, err)
	}
	if got := r.snap.Load().releases["19.09"].Gone; !cmp.Equal(got, []string{pkg.FileName()}) {
		t.Errorf("what deleted patches brought: got %v, want %s", got, pkg.FileName())
	}
	want := []string{
		"controller generation 19.09 done", "compute-0 join compute-0 done", "compute-0 report compute-0 idle", "uid 0 apply P1 done", "compute-0 report compute-0 idle",
		"uid 0 host-install compute-0 requested", "uid 0 host-install compute-0 refused", "uid 0 remove P1 refused",
		"compute-0 host-install compute-0 accepted", "compute-0 host-install compute-0 running", "compute-0 report compute-0 idle", "compute-0 host-install compute-0 done",
		"uid 0 remove P1 done", "uid 0 delete P1 refused", "compute-0 report compute-0 idle", "uid 0 delete P1 done",
	}
	if diff := cmp.Diff(want, r.journal.told()); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
}

func TestTheEndOfAnOperationIsHeardAfterARestart(t *testing.T) {
	r := newRig(t)
	a := r.attach("compute-0")
	a.report(current(1))
	op, err := r.InstallHost(context.Background(), "uid 0", "127.0.0.2", true)
	if err != nil {
		t.Fatal(err)
	}
	a.progress(op.ID, api.OperationAccepted, "")
	a.progress(op.ID, api.OperationRunning, "")
	a.report(current(1))
	r.restart()
	a = r.attach("compute-0")
	a.progress(op.ID, api.OperationFailed, "rpm says no")
	o, err := r.Operation(context.Background(), op.ID)
	if err != nil || o.State != api.OperationFailed || o.Detail != "rpm says no" {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestARejectionEndsTheOperation(t *testing.T) {
	r := newRig(t)
	a := r.attach("compute-0")
	a.report(current(1))
	op, err := r.InstallHost(context.Background(), "uid 0", "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	rejected := current(1)
	rejected.State, rejected.RejectReason = host.InstallRejected, "Node must be locked."
	a.report(rejected)
	a.progress(op.ID, api.OperationRejected, "Node must be locked.")
	if o, _ := r.Operation(context.Background(), op.ID); o.State != api.OperationRejected {
		t.Errorf("got %s", o.State)
	}

	// The second rejection changes nothing that a report would tell, so there is no second report.
	op, err = r.InstallHost(context.Background(), "uid 0", "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	a.progress(op.ID, api.OperationRejected, "Node must be locked.")
	if o, _ := r.Operation(context.Background(), op.ID); o.State != api.OperationRejected {
		t.Errorf("without another report: got %s", o.State)
	}
	if h := r.host("compute-0"); h.State != "install-rejected" {
		t.Errorf("got %s", h.State)
	}
}

func TestInstallIsRefusedAtOnce(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	a := r.attach("compute-0")
	a.report(current(1))
	a.Detach(errors.New("gone"))
	for _, tt := range []struct {
		name, host, want string
		kind             problem.Kind
	}{
		{"unknown host", "nope", "Unknown host specified: nope", problem.NotFound},
		{"offline host, with when it was last seen", "compute-0", "host compute-0 is offline: its agent was last seen at ", problem.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.InstallHost(ctx, "uid 0", tt.host, false)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || problem.KindOf(err) != tt.kind {
				t.Errorf("got %v, want %s %q", err, tt.kind, tt.want)
			}
		})
	}
}

func TestARestartKeepsEverything(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	ctx := context.Background()
	r.have(r.signed(simple("P1", true)), r.signed(simple("P2", false, "P1")))
	a := r.attach("compute-0")
	a.report(current(1))
	r.mustApply("P1", "P2")
	op, err := r.InstallHost(ctx, "uid 0", "compute-0", true)
	if err != nil {
		t.Fatal(err)
	}
	a.progress(op.ID, api.OperationAccepted, "")
	before, err := r.Query(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	r.restart()
	after, err := r.Query(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("query changed (-before +after):\n%s", diff)
	}
	if h := r.host("compute-0"); !h.StaleDetails || h.State != "installing" {
		t.Errorf("after a restart what a host last said is stale, and its operation goes on: %+v", h)
	}
	a = r.attach("compute-0")
	d := a.desired()
	if d.Operation == nil || d.Operation.ID != op.ID || !d.Operation.Force || d.Operation.InServiceOnly {
		t.Errorf("the operation is sent again: %+v", d)
	}
	o, err := r.Operation(ctx, op.ID)
	if err != nil || o.State != api.OperationAccepted {
		t.Errorf("operation: %+v %v", o, err)
	}
}

func TestAnAgentThatKnowsALaterEpochIsHeard(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	ses, err := r.Attach(ctx, peer("compute-0"), helloAt(1_000_000))
	if err != nil {
		t.Fatal(err)
	}
	d := (&agent{t, ses, "compute-0"}).desired()
	if d.Epoch <= 1_000_000 {
		t.Errorf("got epoch %d, want one above what the agent knows", d.Epoch)
	}
}

func TestApplyIsDecidedAgainWhenAHostBeginsToInstallMeanwhile(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	ctx := context.Background()
	r.have(r.signed(simple("P1", false)))
	a := r.attach("compute-0")
	a.report(current(1))
	r.repo.during = func() {
		if _, err := r.InstallHost(ctx, "uid 0", "compute-0", false); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Apply(ctx, "uid 0", []string{"P1"}, api.ApplyOptions{}); !errors.Is(err, patch.ErrInstalling) {
		t.Errorf("got %v, want the rejection", err)
	}
	if got, want := r.Revision("19.09"), int64(1); got != want {
		t.Errorf("generation: got %d, want %d", got, want)
	}
}

func TestAWithdrawnKeyStopsApply(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	r.have(r.signed(simple("P1", false)))
	r.trust.set(patchfile.Trust{})
	m, err := r.Apply(context.Background(), "uid 0", []string{"P1"}, api.ApplyOptions{})
	if err != nil || !strings.HasPrefix(m.Error, "cannot apply P1: its signer") {
		t.Errorf("got %+v %v", m, err)
	}
}

func TestHundredsOfPatchesAreAppliedAndDeletedTogether(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	ctx := context.Background()
	var ids []string
	for i := range 200 {
		id := fmt.Sprintf("P%03d", i)
		ids = append(ids, id)
		r.have(r.signed(simple(id, false)))
	}
	m, err := r.Apply(ctx, "uid 0", []string{"--all"}, api.ApplyOptions{})
	if err != nil || strings.Count(m.Info, "is now in the repo") != 200 {
		t.Fatalf("apply: %v %s", err, m.Error)
	}
	if got, want := r.Revision("19.09"), int64(2); got != want {
		t.Errorf("generation: got %d, want %d", got, want)
	}
	if _, err := r.Remove(ctx, "uid 0", ids, api.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if m, err := r.Delete(ctx, "uid 0", ids); err != nil || m.Error != "" {
		t.Fatalf("delete: %v %s", err, m.Error)
	}
	if n := len(r.snap.Load().patches); n != 0 {
		t.Errorf("%d patches are left", n)
	}
	if got := len(r.snap.Load().releases["19.09"].Gone); got != 200 {
		t.Errorf("packages of deleted patches: got %d, want 200", got)
	}
}

func TestDroppedHostsComeBackWithTheirNextHello(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	a := r.attach("compute-0")
	a.desired()
	a.report(current(1))
	if m, err := r.DropHost(ctx, "uid 0", "compute-0"); err != nil || m != (api.Messages{}) {
		t.Fatalf("drop: %+v %v", m, err)
	}
	if _, open := <-a.Desired(); open {
		t.Error("the stream of a dropped host goes on")
	}
	if err := a.Report(ctx, current(1)); err == nil {
		t.Error("a report of a dropped host was taken")
	}
	a.Detach(nil)
	q, err := r.QueryHosts(ctx)
	if err != nil || len(q.Hosts) != 0 {
		t.Errorf("hosts after drop: %+v %v", q, err)
	}
	if _, err := r.DropHost(ctx, "uid 0", "compute-0"); problem.KindOf(err) != problem.NotFound {
		t.Errorf("dropping it twice: %v", err)
	}
	a = r.attach("compute-0")
	a.report(current(1))
	if h := r.host("compute-0"); !h.PatchCurrent {
		t.Errorf("back again: %+v", h)
	}
}

func TestAReportThatSaysNothingNewIsNotSaved(t *testing.T) {
	r := newRig(t)
	a := r.attach("compute-0")
	a.report(current(1))
	rev := r.snap.Load().rev
	a.report(current(1))
	if got := r.snap.Load().rev; got != rev {
		t.Errorf("the revision moved from %d to %d", rev, got)
	}
}

func TestReportsOfManyHostsAreSavedTogether(t *testing.T) {
	r := newRig(t)
	const n = 300
	agents := make([]*agent, n)
	for i := range agents {
		agents[i] = r.attach(fmt.Sprintf("host-%03d", i))
	}
	before := r.snap.Load().rev
	var wg sync.WaitGroup
	for _, a := range agents {
		wg.Go(func() { a.report(current(1)) })
	}
	wg.Wait()
	q, err := r.QueryHosts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range q.Hosts {
		if !h.PatchCurrent {
			t.Fatalf("%s is not current: an acknowledged report was lost", h.Hostname)
		}
	}
	t.Logf("%d reports in %d commits", n, r.snap.Load().rev-before)
}

func TestOldGenerationsStayUntilNoHostNeedsThem(t *testing.T) {
	r := newRig(t)
	r.trustEverything()
	r.have(r.signed(simple("P1", false)), r.signed(simple("P2", false)))
	a := r.attach("compute-0")
	a.report(current(1))
	r.mustApply("P1")
	r.mustApply("P2")
	r.sweepNow()
	if got, want := r.repo.names(), []string{"19.09/1", "19.09/2", "19.09/3"}; !cmp.Equal(got, want) {
		t.Errorf("while a host is on its way: got %v, want %v", got, want)
	}
	a.report(current(3))
	r.sweepNow()
	if got, want := r.repo.names(), []string{"19.09/3"}; !cmp.Equal(got, want) {
		t.Errorf("when it has arrived: got %v, want %v", got, want)
	}
}

func TestFollowersSeeEveryEndAndNoVersionTwice(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	a := r.attach("compute-0")
	a.report(current(1))
	op, err := r.InstallHost(ctx, "uid 0", "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	first := make(chan struct{}, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- r.FollowOperation(ctx, op.ID, func(o api.Operation) error {
			got = append(got, o.State)
			first <- struct{}{}
			return nil
		})
	}()
	<-first
	a.progress(op.ID, api.OperationAccepted, "")
	<-first
	a.progress(op.ID, api.OperationRunning, "")
	<-first
	a.report(current(1))
	a.progress(op.ID, api.OperationDone, "")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if want := []string{"requested", "accepted", "running", "done"}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := r.FollowOperation(ctx, "nope", nil); problem.KindOf(err) != problem.NotFound {
		t.Errorf("an unknown operation: %v", err)
	}
}

// TestACrashAnywhereComesToTheSameEnd runs the life of a patch with a crash around every save. Whatever was acknowledged
// must be there afterwards, and asking again for what was not must come to the same end.
func TestACrashAnywhereComesToTheSameEnd(t *testing.T) {
	play := func(t *testing.T, n int, when storetest.Moment) (saves int, end string) {
		r := newRig(t)
		r.trustEverything()
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		var crash *storetest.Crash
		r.wrap = func(s store.Store) store.Store {
			crash = storetest.NewCrash(s, n, when)
			return crash
		}
		r.start()
		ctx := context.Background()
		// again repeats a step on a new controller until it is acknowledged.
		again := func(step func() error) {
			t.Helper()
			for try := 0; ; try++ {
				err := step()
				if err == nil {
					return
				}
				if try > 2 {
					t.Fatalf("crash %d/%d: %v", n, when, err)
				}
				if err := r.stop(); err != nil && !errors.Is(err, storetest.ErrCrashed) {
					t.Fatal(err)
				}
				saves = 0
				r.wrap = nil
				r.start()
			}
		}
		again(func() error {
			ch := patchRecord{Format: recordFormat, Patch: r.signed(simple("P1", false))}
			return r.commit(ctx, func(s *snapshot) (*change, error) {
				if _, ok := s.patches["P1"]; ok {
					return nil, nil
				}
				c := &change{}
				return c, c.put(patchPrefix+"P1", 0, ch, func(s *snapshot, rev int64) { s.setPatch(ch, rev) })
			})
		})
		again(func() error {
			_, err := r.Apply(ctx, "uid 0", []string{"P1"}, api.ApplyOptions{})
			return err
		})
		again(func() error {
			s, err := r.Attach(ctx, peer("compute-0"), helloAt(0))
			if err != nil {
				return err
			}
			if err := s.Report(ctx, current(2)); err != nil {
				return err
			}
			s.Detach(nil)
			return nil
		})
		var op api.Operation
		again(func() error {
			s, err := r.Attach(ctx, peer("compute-0"), helloAt(0))
			if err != nil {
				return err
			}
			o, err := r.InstallHost(ctx, "uid 0", "compute-0", false)
			if problem.KindOf(err) == problem.Conflict { // acknowledged to nobody, but saved
				e, _ := r.snap.Load().hosts.get("compute-0")
				o.ID, err = e.desired.Operation.ID, nil
			}
			if err != nil {
				return err
			}
			op.ID = o.ID
			s.Detach(nil)
			return nil
		})
		again(func() error {
			s, err := r.Attach(ctx, peer("compute-0"), helloAt(0))
			if err != nil {
				return err
			}
			defer s.Detach(nil)
			for _, p := range []string{api.OperationAccepted, api.OperationRunning, api.OperationDone} {
				if err := s.Progress(ctx, progressOf(op.ID, p)); err != nil {
					return err
				}
			}
			return s.Report(ctx, current(2))
		})
		again(func() error {
			_, err := r.Remove(ctx, "uid 0", []string{"P1"}, api.RemoveOptions{})
			return err
		})
		o, err := r.Operation(ctx, op.ID)
		if err != nil {
			t.Fatal(err)
		}
		q, err := r.Query(ctx, "", "")
		if err != nil {
			t.Fatal(err)
		}
		if r.wrap != nil {
			saves = crash.Saves()
		}
		h := r.host("compute-0")
		return saves, fmt.Sprintln(o.State, q.Patches["P1"].RepoState, q.Patches["P1"].PatchState, r.Revision("19.09"), h.State, h.InterimState, h.PatchCurrent)
	}
	saves, want := play(t, 0, storetest.BeforeSave)
	if saves < 8 {
		t.Fatalf("only %d saves were counted", saves)
	}
	for n := 1; n <= saves; n++ {
		for _, when := range []storetest.Moment{storetest.BeforeSave, storetest.AfterSave} {
			if _, got := play(t, n, when); got != want {
				t.Errorf("crash at save %d, moment %d: got %swant %s", n, when, got, want)
			}
		}
	}
}
