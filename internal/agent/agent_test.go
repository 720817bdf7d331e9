package agent_test

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/installer/installertest"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

const scriptLimit = 2 * time.Second

var inService = agentlink.Operation{ID: "op1", InServiceOnly: true}

// script makes a package carry an in-service script that its scriptlets hand over.
func script(body string) func(*rpmmake.Spec) {
	return func(s *rpmmake.Spec) {
		path := "/etc/patching/patch-scripts/" + s.Name
		s.Files = append(s.Files, rpmmake.File{Path: path, Body: []byte("#!/bin/bash\n. /etc/patching/patch-functions\n" + body + "\n"), Mode: 0o755})
		hand := "cp " + path + " /run/patching/patch-scripts/\n"
		s.Scripts = rpmmake.Scripts{Post: hand, PreUn: hand}
	}
}

func reboot(s *rpmmake.Spec) {
	touch := "touch /var/run/node_is_patched_rr\n"
	s.Scripts = rpmmake.Scripts{Post: touch, PreUn: touch}
}

func TestAPatchGoesInAndOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"), pkg("b", "2-1"))
	installertest.RPM(t, w.root, append([]string{"-i"}, installertest.Files(t, pkg("own", "1-1"))...)...)
	w.start()
	w.desire(w.publish(nil), nil)
	if r := w.reported(func(r host.Report) bool { return r.Revision == 1 }); !r.Current() || r.State != host.Idle || r.Release != "19.09" {
		t.Errorf("before the patch: %+v", r)
	}
	d := w.publish([]string{"new"}, pkg("a", "2-1"), pkg("b", "1-1"), pkg("new", "1-1"))
	w.desire(d, nil)
	r := w.reported(func(r host.Report) bool { return r.Revision == 2 })
	if r.Current() || len(r.Installed) != 2 || len(r.Missing) != 1 || len(r.ToRemove) != 0 {
		t.Errorf("with the patch pending: %+v", r)
	}
	p, r := w.install(d, inService)
	if p.State != api.OperationDone || !r.Current() || r.State != host.Idle || r.RequiresReboot {
		t.Errorf("install: %+v, %+v", p, r)
	}
	if got, want := w.packages(), "a-2-1 b-1-1 new-1-1 own-1-1"; got != want {
		t.Errorf("installed %q, want %q", got, want)
	}
	d = w.publish(nil)
	w.desire(d, nil)
	r = w.reported(func(r host.Report) bool { return r.Revision == 3 })
	if len(r.ToRemove) != 1 || r.ToRemove[0].Name != "new" || len(r.Installed) != 2 {
		t.Errorf("with the removal pending: %+v", r)
	}
	p, r = w.install(d, agentlink.Operation{ID: "op2", InServiceOnly: true})
	if p.State != api.OperationDone || !r.Current() {
		t.Errorf("removal: %+v, %+v", p, r)
	}
	if got, want := w.packages(), "a-1-1 b-2-1 own-1-1"; got != want {
		t.Errorf("installed %q, want %q", got, want)
	}
	p, r = w.install(d, agentlink.Operation{ID: "op3", InServiceOnly: true})
	if p.State != api.OperationDone || !r.Current() || !strings.Contains(string(p.Output), "nothing to do") {
		t.Errorf("nothing to do is a success: %+v, %+v", p, r)
	}
}

func TestInServiceScriptsRunAfterInstallAndAfterRemoval(t *testing.T) {
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	note := script(`is_controller && is_cpe && ! is_locked && loginfo "note"
echo "$nodetype $PATCH_FLAGDIR $(ls -ld $PATCH_SCRIPTDIR | cut -c1-10) $SECRET" >> /opt/ran; exit $PATCH_STATUS_OK`)
	t.Setenv("SECRET", "leaks")
	d := w.publish(nil, pkg("a", "2-1", note))
	p, r := w.install(d, inService)
	if p.State != api.OperationDone || r.RequiresReboot || !r.Current() {
		t.Errorf("install: %+v, %+v", p, r)
	}
	line := "controller /run/patching/patch-flags drwx------ \n"
	if got := w.read("opt/ran"); got != line {
		t.Errorf("the script wrote %q, want %q", got, line)
	}
	if !strings.Contains(w.read("var/log/patching-insvc.log"), "+ loginfo note") || !strings.Contains(w.read("var/log/patching.log"), "note") {
		t.Errorf("log %q, patching log %q", w.read("var/log/patching-insvc.log"), w.read("var/log/patching.log"))
	}
	for _, f := range []string{"run/patching/patch-scripts", "run/node_is_patched", "run/patch_installing", "run/patch_install_failed"} {
		if w.exists(f) {
			t.Errorf("%s is left behind", f)
		}
	}
	if p, r := w.install(w.publish(nil), agentlink.Operation{ID: "op2", InServiceOnly: true}); p.State != api.OperationDone || !r.Current() {
		t.Errorf("removal: %+v, %+v", p, r)
	}
	if got := w.read("opt/ran"); got != line+line {
		t.Errorf("after the removal %q, want the line twice", got)
	}
}

func TestAScriptThatFailsOrHangsFailsTheOperationAndRunsAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, body, says string }{
		{"fails", "[ -e /opt/mend ] || exit 3; touch /opt/mended", "exit code 3"},
		{"hangs", "[ -e /opt/mend ] || { trap '' TERM; read x < /opt/pipe; }; touch /opt/mended", "time limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pkg("a", "1-1"), pkg("z", "1-1"))
			w.start()
			mkfifo(t, w.root+"/opt/pipe")
			d := w.publish(nil, pkg("a", "2-1", script(c.body)), pkg("z", "2-1", script("touch /opt/others")))
			p, r := w.install(d, inService)
			if p.State != api.OperationFailed || !strings.Contains(p.Detail, "in-service script failed: a: ") || !strings.Contains(p.Detail, c.says) {
				t.Errorf("got %+v", p)
			}
			if r.State != host.InstallFailed || !r.PatchFailed || !r.RequiresReboot || r.Failure == "" {
				t.Errorf("report %+v", r)
			}
			if !w.exists("opt/others") {
				t.Error("a failure kept the other script from running")
			}
			if !w.exists("run/node_is_patched") || !w.exists("run/patch_install_failed") {
				t.Error("the flag files do not say so")
			}
			w.write("opt/mend", "")
			p, r = w.install(d, agentlink.Operation{ID: "op2", InServiceOnly: true})
			if p.State != api.OperationDone || r.PatchFailed || r.RequiresReboot || r.State != host.Idle || !w.exists("opt/mended") {
				t.Errorf("second try: %+v, %+v", p, r)
			}
			if w.exists("run/node_is_patched") || w.exists("run/patch_install_failed") {
				t.Error("the flag files are left behind")
			}
		})
	}
}

func TestRebootRequiredUntilANewBoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"), pkg("s", "1-1"))
	w.write("run/.node_locked", "")
	w.start()
	if !w.agent.Hello().Facts.Locked {
		t.Error("the host is not locked")
	}
	d := w.publish(nil, pkg("a", "2-1", reboot), pkg("s", "2-1", script("touch /opt/ran")))
	p, r := w.install(d, agentlink.Operation{ID: "op1"})
	if p.State != api.OperationDone || !r.RequiresReboot || !r.Current() || r.State != host.Idle {
		t.Errorf("install: %+v, %+v", p, r)
	}
	if w.exists("opt/ran") || !w.exists("run/node_is_patched") {
		t.Error("a script ran although a reboot is needed, or the flag is missing")
	}
	w.stop()
	w.remove("run/node_is_patched")
	w.remove("run/node_is_patched_rr")
	w.start() // same boot: flags that somebody removed do not make the old software go away
	if r := w.reported(func(host.Report) bool { return true }); !r.RequiresReboot {
		t.Errorf("after a restart of the agent: %+v", r)
	}
	w.stop()
	w.write("run/boot-id", "boot-2\n")
	w.start()
	if r := w.reported(func(r host.Report) bool { return !r.RequiresReboot }); !r.Current() || r.State != host.Idle {
		t.Errorf("after the reboot: %+v", r)
	}
}

func TestAnUnlockedHostRejectsUntilItIsLocked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	d := w.publish(nil, pkg("a", "2-1", reboot))
	w.desire(d, nil)
	w.reported(func(r host.Report) bool { return !r.Current() })
	p, r := w.install(d, agentlink.Operation{ID: "op1"})
	if p.State != api.OperationRejected || p.Detail != "Node must be locked." || r.State != host.InstallRejected || r.RejectReason != p.Detail {
		t.Errorf("got %+v, %+v", p, r)
	}
	if got := w.packages(); got != "a-1-1" {
		t.Errorf("installed %q", got)
	}
	w.write("run/.node_locked", "")
	w.reported(func(r host.Report) bool { return r.State == host.Idle && r.RejectReason == "" })
	if !w.agent.Hello().Facts.Locked {
		t.Error("the host is not locked")
	}
	w.remove("run/.node_locked")
	for e := w.next(); !e.Facts; e = w.next() {
	}
	if p, r := w.install(d, agentlink.Operation{ID: "op2", Force: true}); p.State != api.OperationDone || !r.RequiresReboot {
		t.Errorf("with force: %+v, %+v", p, r)
	}
	if p, _ := w.install(d, agentlink.Operation{ID: "op3", Force: true}); p.State != api.OperationDone {
		t.Errorf("again: %+v", p)
	}
}

func TestUnknownOperationsAreRejected(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	op := agentlink.Operation{ID: "op1", Kind: "dance", Force: true}
	w.desire(w.publish(nil), &op)
	if p, _ := w.end("op1"); p.State != api.OperationRejected || !strings.Contains(p.Detail, `"dance"`) {
		t.Errorf("got %+v", p)
	}
}

func TestFailuresLeaveTheTruth(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		change    func(*rpmmake.Spec)
		installed string
		says      []string
		differ    int
		patched   bool
	}{
		{"a failed %post, behind exit code 0", func(s *rpmmake.Spec) { s.Scripts.Post = "exit 3" }, "a-2-1 b-2-1", []string{"%post(a-2-1.noarch) scriptlet failed"}, 0, true},
		{"a failed %pre, a partial transaction", func(s *rpmmake.Spec) { s.Scripts.Pre = "exit 3" }, "a-1-1 b-2-1", []string{"%prein(a-2-1.noarch) scriptlet failed", "done in part", "b-2-1.noarch, not done a-2-1.noarch"}, 1, true},
		{"a missing dependency", func(s *rpmmake.Spec) { s.Requires = []string{"nowhere"} }, "a-1-1 b-1-1", []string{"nothing provides nowhere"}, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pkg("a", "1-1"), pkg("b", "1-1"))
			w.start()
			p, r := w.install(w.publish(nil, pkg("a", "2-1", c.change), pkg("b", "2-1")), inService)
			if p.State != api.OperationFailed || r.State != host.InstallFailed || !r.PatchFailed || len(r.Installed) != c.differ {
				t.Errorf("got %+v, %+v", p, r)
			}
			for _, s := range c.says {
				if !strings.Contains(p.Detail, s) {
					t.Errorf("detail %q does not say %q", p.Detail, s)
				}
			}
			if got := w.packages(); got != c.installed {
				t.Errorf("installed %q, want %q", got, c.installed)
			}
			if w.exists("run/node_is_patched") != c.patched || r.RequiresReboot != c.patched {
				t.Errorf("node_is_patched is %v, want %v", !c.patched, c.patched)
			}
			// Removing the patch mends the host.
			if p, r := w.install(w.publish(nil), agentlink.Operation{ID: "op2", InServiceOnly: true}); p.State != api.OperationDone || !r.Current() || r.PatchFailed || r.Failure != "" {
				t.Errorf("removal: %+v, %+v", p, r)
			}
			if got := w.packages(); got != "a-1-1 b-1-1" {
				t.Errorf("after the removal %q", got)
			}
		})
	}
}

func TestAScriptletThatFailedIsRunAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	d := w.publish(nil, pkg("a", "2-1", func(s *rpmmake.Spec) { s.Scripts.Post = "[ -e /opt/mend ] || exit 3; touch /opt/mended" }))
	for _, id := range []string{"op1", "op2"} {
		if p, r := w.install(d, agentlink.Operation{ID: id, InServiceOnly: true}); p.State != api.OperationFailed || !strings.Contains(p.Detail, "%post(a-2-1.noarch) scriptlet failed") || !r.PatchFailed {
			t.Errorf("%s, with nothing mended: %+v, %+v", id, p, r)
		}
	}
	w.stop()
	w.start()
	w.write("opt/mend", "")
	if p, r := w.install(d, agentlink.Operation{ID: "op3", InServiceOnly: true}); p.State != api.OperationDone || r.PatchFailed || !w.exists("opt/mended") {
		t.Errorf("mended: %+v, %+v", p, r)
	}
	w.remove("opt/mended")
	if p, _ := w.install(d, agentlink.Operation{ID: "op4", InServiceOnly: true}); p.State != api.OperationDone || w.exists("opt/mended") {
		t.Errorf("there was nothing left to do: %+v", p)
	}
}

func TestARepositoryThatIsNotTheOneThatIsWantedIsAFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	w.desire(w.publish(nil), nil)
	w.reported(func(r host.Report) bool { return r.Revision == 1 && r.Current() })
	d := w.publish(nil, pkg("a", "2-1"))
	d.RepomdSHA256 = strings.Repeat("0", 64)
	p, r := w.install(d, inService)
	if p.State != api.OperationFailed || !strings.Contains(p.Detail, "SHA-256") {
		t.Errorf("got %+v", p)
	}
	if r.Revision != 1 || !r.PatchFailed {
		t.Errorf("a failed query must not look like a result: %+v", r)
	}
}

func TestARepositoryThatIsAwayForAWhileFailsNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		dnf  bool // the repository goes away after the agent and before dnf has read it
	}{{"for the agent", false}, {"for dnf", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pkg("a", "1-1"))
			asked := make(chan struct{}, 1000)
			refuse := func(r *http.Request) bool {
				if c.dnf == strings.Contains(r.UserAgent(), "dnf") {
					asked <- struct{}{}
					return true
				}
				return false
			}
			w.refuse.Store(&refuse)
			w.start()
			op := inService
			op.Kind = "install"
			w.desire(w.publish(nil, pkg("a", "2-1")), &op)
			<-asked
			w.refuse.Store(nil)
			w.agent.Welcome(agentlink.Welcome{Protocol: 1, Repository: w.url})
			if p, r := w.end(op.ID); p.State != api.OperationDone || !r.Current() {
				t.Errorf("got %+v, %+v", p, r)
			}
			if got := w.packages(); got != "a-2-1" {
				t.Errorf("installed %q", got)
			}
		})
	}
}

func TestARepositoryThatStaysAwayFailsTheOperation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.patient = time.Nanosecond
	w.start()
	w.desire(w.publish(nil), nil)
	w.reported(func(r host.Report) bool { return r.Revision == 1 && r.Current() })
	refuse := func(*http.Request) bool { return true }
	w.refuse.Store(&refuse)
	p, r := w.install(w.publish(nil, pkg("a", "2-1")), inService)
	if p.State != api.OperationFailed || !strings.Contains(p.Detail, "repository") || !r.PatchFailed || r.Revision != 1 {
		t.Errorf("got %+v, %+v", p, r)
	}
}

func TestWhatAnAdministratorChangesIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	w.desire(w.publish(nil), nil)
	w.reported(func(r host.Report) bool { return r.Current() })
	installertest.RPM(t, w.root, append([]string{"-U"}, installertest.Files(t, pkg("a", "3-1"))...)...)
	r := w.reported(func(r host.Report) bool { return !r.Current() })
	if len(r.Installed) != 1 || r.Installed[0].Have.EVR.String() != "3-1" || r.Installed[0].Wanted.String() != "1-1" {
		t.Errorf("got %+v", r)
	}
	w.write("run/node_is_patched_rr", "")
	w.reported(func(r host.Report) bool { return r.RequiresReboot })
}

func TestARebuiltPackageDatabaseIsWatchedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	w.desire(w.publish(nil), nil)
	w.reported(func(r host.Report) bool { return r.Current() })
	for _, version := range []string{"3-1", "4-1"} {
		if out, err := exec.Command("rpm", "--root", w.root, "--dbpath", "/var/lib/rpm", "--rebuilddb").CombinedOutput(); err != nil {
			t.Fatalf("rpm --rebuilddb: %v\n%s", err, out)
		}
		installertest.RPM(t, w.root, append([]string{"-U"}, installertest.Files(t, pkg("a", version))...)...)
		w.reported(func(r host.Report) bool { return len(r.Installed) == 1 && r.Installed[0].Have.EVR.String() == version })
	}
}

func TestAControllerThatForgotTheHostIsToldAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	w.desire(w.publish(nil), nil)
	w.reported(func(r host.Report) bool { return r.Current() })
	w.agent.Welcome(agentlink.Welcome{Protocol: 1, Repository: w.url})
	w.reported(func(r host.Report) bool { return r.Current() })
}

func TestARestoredControllerIsFollowedThoughItsEpochsRepeat(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	w.desire(w.publish(nil), nil)
	w.reported(func(r host.Report) bool { return r.Revision == 1 && r.Current() })
	d := w.publish(nil, pkg("a", "2-1"))
	w.epoch--
	d.Epoch = w.epoch
	w.give(d)
	w.reported(func(r host.Report) bool { return r.Revision == 2 && !r.Current() })
}

func TestDesiredStateSurvivesAndOldEpochsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"))
	w.start()
	d := w.publish(nil, pkg("a", "2-1"))
	p, _ := w.install(d, inService)
	w.stop()
	w.start()
	if h := w.agent.Hello(); h.Epoch != w.epoch || h.LastOperation != "op1" {
		t.Errorf("hello %+v, want epoch %d and op1", h, w.epoch)
	}
	if q, _ := w.end("op1"); q.State != p.State {
		t.Errorf("an end that was not acknowledged is told again: got %+v, want %+v", q, p)
	}
	w.agent.ProgressAcked("op1", p.State)
	if err := w.agent.Desired(t.Context(), d); err == nil || !strings.Contains(err.Error(), "epoch") {
		t.Errorf("an older epoch: got %v, want a refusal", err)
	}
	w.stop()
	w.start()
	w.desire(agentlink.Desired{Epoch: w.epoch, Release: d.Release, Revision: d.Revision, RepomdSHA256: d.RepomdSHA256, Operation: &agentlink.Operation{ID: "op1", Kind: "install"}}, nil)
	w.stop()
	close(w.link.events)
	for e := range w.link.events {
		if e.Progress != nil {
			t.Errorf("an acknowledged operation was told or done again: %+v", e.Progress)
		}
	}
}
