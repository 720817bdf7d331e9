package agentlink_test

import (
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
)

func report(revision int64) host.Report {
	return host.Report{Release: release, Revision: revision, State: host.Idle}
}

func TestReportsProgressAndDesiredCross(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		h := newHandler()
		c, _ := s.run(dir, h)
		ss := <-s.ctl.attached
		if ss.peer.Host != "compute-0" || ss.hello.Facts.Personality != host.Worker || ss.hello.Facts.Protocol != 1 {
			t.Fatalf("attached %+v with %+v", ss.peer, ss.hello)
		}
		if w := <-h.welcome; w.Repository != "https://192.0.2.1:8443" {
			t.Errorf("welcome %+v", w)
		}
		if err := c.SendReport(report(3)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff((<-ss.heard).(host.Report), report(3)); diff != "" {
			t.Error(diff)
		}
		d := agentlink.Desired{Epoch: 7, Release: release, Revision: 4, RepomdSHA256: sha, Operation: &agentlink.Operation{ID: "op-1", Kind: "install", Force: true}}
		ss.desired.Put(d)
		if diff := cmp.Diff(<-h.desired, d); diff != "" {
			t.Error(diff)
		}
		if got := <-ss.heard; got != uint64(7) {
			t.Errorf("acknowledged %v", got)
		}
		p := agentlink.Progress{Operation: "op-1", State: api.OperationDone, Output: []byte("ok\n")}
		if err := c.SendProgress(p); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff((<-ss.heard).(agentlink.Progress), p); diff != "" {
			t.Error(diff)
		}
		if got := <-h.acked; got != "op-1 done" {
			t.Errorf("acked %q", got)
		}
	})
}
