package agent_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agent"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/installer/dnf"
	"github.com/starpatch/starpatch/internal/installer/installertest"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

func mkfifo(t testing.TB, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

var (
	soak = flag.Bool("soak", false, "run the long proofs")
	seed = flag.Int64("seed", 0, "seed of random tests; 0 takes a new one")
)

// childVar holds the settings of an agent that runs in a process of its own: this test binary, started again.
const childVar = "STARPATCH_TEST_AGENT"

func TestMain(m *testing.M) {
	if s := os.Getenv(childVar); s != "" {
		if err := runChild(s); err != nil {
			slog.Error("the agent ended", "err", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

type settings struct{ Root, State, Boot, URL, CA string }

// message goes to the child; events come back.
type message struct {
	Desired *agentlink.Desired
	Acked   *agentlink.Progress
}

// runChild is an agent between standard input and standard output.
func runChild(text string) error {
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		return err
	}
	w := &world{ca: s.CA, trust: x509.NewCertPool()}
	w.trust.AppendCertsFromPEM(pem)
	tools, err := dnf.New(dnf.Config{Root: s.Root, Dir: filepath.Join(s.State, "cache/packages")})
	if err != nil {
		return err
	}
	l := &link{make(chan event, 1000)}
	a, err := agent.New(agent.Config{
		Root: s.Root, StateDir: filepath.Join(s.State, "state"), CacheDir: filepath.Join(s.State, "cache"), BootIDFile: s.Boot,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), ScriptLimit: time.Minute,
	}, tools, l, identity{w})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- a.Run(context.Background()) }()
	go func() {
		out := json.NewEncoder(os.Stdout)
		for e := range l.events {
			if err := out.Encode(e); err != nil {
				ended <- err
			}
		}
	}()
	go func() {
		a.Welcome(agentlink.Welcome{Protocol: 1, Repository: s.URL})
		for in := json.NewDecoder(os.Stdin); ; {
			var m message
			err := in.Decode(&m)
			if err == nil && m.Desired != nil {
				err = a.Desired(context.Background(), *m.Desired)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	return <-ended
}

// child is an agent in a process of its own.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// startChild is [world.start] for an agent that can be killed.
func (w *world) startChild() {
	w.t.Helper()
	text, err := json.Marshal(settings{w.root, w.state, w.boot, w.url, w.ca})
	w.must(err)
	self, err := os.Executable()
	w.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVar+"="+string(text))
	cmd.Stderr = w.log
	in, err := cmd.StdinPipe()
	w.must(err)
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(cmd.Start())
	events := make(chan event, 1000)
	w.link, w.child = &link{events}, &child{cmd, in}
	go func() {
		defer close(events)
		for d := json.NewDecoder(bufio.NewReader(out)); ; {
			var e event
			if d.Decode(&e) != nil {
				return
			}
			events <- e
		}
	}()
}

func (c *child) send(t testing.TB, m message) {
	t.Helper()
	if err := json.NewEncoder(c.in).Encode(m); err != nil {
		t.Fatal(err)
	}
}

func (c *child) kill(t testing.TB) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	c.cmd.Wait() // the error is that it was killed
}

// tool returns the number of the package tool or script that the journal names, 0 if there is none.
func (w *world) tool() int {
	b, err := os.ReadFile(filepath.Join(w.state, "state/journal.json"))
	if err != nil {
		return 0
	}
	var j struct{ Tool *struct{ PID int } }
	if json.Unmarshal(b, &j) != nil || j.Tool == nil {
		return 0
	}
	return j.Tool.PID
}

// random is the source of a test that can be repeated by its seed.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	n := *seed
	if n == 0 {
		n = rand.Int64()
	}
	t.Logf("repeat with -args -seed %d", n)
	return rand.New(rand.NewPCG(uint64(n), 1))
}

// scripted are scriptlets that take a moment and leave a trace, and hand an in-service script over.
func scripted(s *rpmmake.Spec) {
	script("echo " + s.Name + " >> /opt/restarted")(s)
	s.Scripts.Pre = "for i in 1 2 3; do cat /usr/bin/busybox > /dev/null; done"
	s.Scripts.Post += "for i in 1 2 3; do cat /usr/bin/busybox > /dev/null; done; echo " + s.EVR.String() + " > /opt/" + s.Name + ".post"
}

// bulky gives a package files that take a moment to unpack.
func bulky(s *rpmmake.Spec) {
	body := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(body)
	for i := range 8 {
		s.Files = append(s.Files, rpmmake.File{Path: "/opt/bulk/" + s.Name + strconv.Itoa(i), Body: append(body, s.EVR.String()...)})
	}
}

// kills runs an install and a removal in turn, each with one kill -9 at a random moment, and demands each time what the
// undisturbed run has.
func kills(t *testing.T, rounds int) {
	r := random(t)
	var base, patch []rpmmake.Spec
	for _, n := range []string{"a", "b", "c"} {
		base = append(base, pkg(n, "1-1", scripted, bulky))
		patch = append(patch, pkg(n, "2-1", scripted, bulky))
	}
	base, patch = append(base, pkg("d", "2-1", scripted)), append(patch, pkg("d", "1-1", scripted), pkg("new", "1-1", scripted))
	w := newWorld(t, base...)
	w.startChild()
	with, without := w.publish([]string{"new"}, patch...), w.publish(nil)
	want := []string{"a-2-1 b-2-1 c-2-1 d-1-1 new-1-1", "a-1-1 b-1-1 c-1-1 d-2-1"}

	// The clean run tells how long things take and what rpm says of a host that nothing happened to.
	clean := [2]string{}
	var took [2]time.Duration
	desired := []agentlink.Desired{with, without}
	n := 0
	operation := func() *agentlink.Operation {
		n++
		return &agentlink.Operation{ID: "op" + strconv.Itoa(n), Kind: "install", InServiceOnly: true}
	}
	for i := range desired {
		began := time.Now()
		op := operation()
		w.desire(desired[i], op)
		if p, _ := w.end(op.ID); p.State != api.OperationDone {
			t.Fatalf("clean run %d: %+v", i, p)
		}
		took[i] = time.Since(began)
		clean[i] = installertest.RPM(t, w.root, "-Va")
	}
	for k := range rounds {
		i := k % 2
		victim := []string{"agent", "tool", "both"}[r.IntN(3)]
		moment := time.Duration(r.Int64N(int64(took[i])))
		t.Logf("round %d: kill %s after %v", k, victim, moment.Round(time.Millisecond))
		op := operation()
		w.desire(desired[i], op)
		<-time.After(moment)
		tool := w.tool()
		if victim != "tool" {
			w.child.kill(t)
		}
		if victim != "agent" && tool != 0 {
			if err := syscall.Kill(tool, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
		if victim != "tool" {
			w.startChild()
			d := desired[i]
			d.Epoch, d.Operation = w.epoch, op
			w.give(d) // the controller says it again at every connect
		}
		p, report := w.end(op.ID)
		w.check(p, report, victim, want[i], clean[i])
		if t.Failed() {
			t.Fatalf("after round %d", k)
		}
	}
}

// check demands of a host that went through a kill what one has that did not. Only an in-service script that was killed
// itself may fail the operation, and that has to be said.
func (w *world) check(p agentlink.Progress, r host.Report, victim, packages, verified string) {
	w.t.Helper()
	if got := w.packages(); got != packages {
		w.t.Errorf("installed %q, want %q", got, packages)
	}
	if got := installertest.RPM(w.t, w.root, "-Va"); got != verified {
		w.t.Errorf("rpm -Va says %q, in the clean run %q", got, verified)
	}
	if !r.Current() {
		w.t.Errorf("the host says that it is not current: %+v", r)
	}
	switch {
	case p.State == api.OperationDone && !r.PatchFailed && !r.RequiresReboot && r.State == host.Idle:
	case victim == "tool" && p.State == api.OperationFailed && r.PatchFailed && r.RequiresReboot && strings.Contains(p.Detail, "in-service script failed"):
	default:
		w.t.Errorf("ended as %s (%s) with %+v\n%s", p.State, p.Detail, r, p.Output)
	}
	w.must(filepath.WalkDir(w.root, func(path string, _ fs.DirEntry, err error) error {
		if i := strings.LastIndexByte(path, ';'); i >= 0 && len(path)-i == 9 {
			w.t.Errorf("left behind: %s", path)
		}
		return err
	}))
	for _, f := range []string{"run/patch_installing", "run/patching/patch-scripts"} {
		if w.exists(f) {
			w.t.Errorf("left behind: %s", f)
		}
	}
	if files, err := filepath.Glob(filepath.Join(w.state, "state/journal.json")); err != nil || len(files) > 0 {
		w.t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestKilledAtRandomMomentsTheHostRepairsItself(t *testing.T) {
	t.Parallel()
	kills(t, 5)
}

func TestSoakKills(t *testing.T) {
	if !*soak {
		t.Skip("takes minutes; make soak runs it")
	}
	kills(t, 50)
}

// atGate makes a package wait in its %post.
func atGate(s *rpmmake.Spec) { s.Scripts.Post = installertest.GateScript + "echo ran >> /opt/posts\n" }

// TestAReplacedAgentWaitsForThePackageTool kills the agent while a %post waits, and lets the %post go on only when the
// next agent is there.
func TestAReplacedAgentWaitsForThePackageTool(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"), pkg("b", "1-1"))
	gate := installertest.NewGate(t, w.root)
	w.startChild()
	d := w.publish(nil, pkg("a", "2-1", atGate), pkg("b", "2-1"))
	op := agentlink.Operation{ID: "op1", Kind: "install", InServiceOnly: true}
	w.desire(d, &op)
	gate.Reached()
	w.child.kill(t)
	if tool := w.tool(); tool == 0 || syscall.Kill(tool, 0) != nil {
		t.Fatalf("the package tool %d is not running any more", tool)
	}
	w.startChild()
	d.Epoch, d.Operation = w.epoch, &op
	w.give(d)
	for e := w.next(); e.Progress == nil || e.Progress.State != api.OperationRunning; e = w.next() {
	}
	gate.Open()
	p, r := w.end("op1")
	if p.State != api.OperationDone || !r.Current() {
		t.Errorf("got %+v, %+v", p, r)
	}
	if got := w.packages(); got != "a-2-1 b-2-1" {
		t.Errorf("installed %q", got)
	}
}

// TestATransactionThatIsKilledIsRepeated is the same for the package tool, with the agent alive.
func TestATransactionThatIsKilledIsRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"), pkg("b", "1-1"))
	gate := installertest.NewGate(t, w.root)
	w.start()
	op := agentlink.Operation{ID: "op1", Kind: "install", InServiceOnly: true}
	w.desire(w.publish(nil, pkg("a", "2-1", atGate), pkg("b", "2-1", atGate)), &op)
	gate.Reached()
	w.must(syscall.Kill(w.tool(), syscall.SIGKILL))
	gate.Open()
	p, r := w.end("op1")
	if p.State != api.OperationDone || !r.Current() {
		t.Errorf("got %+v, %+v", p, r)
	}
	if got := w.read("opt/posts"); got != "ran\nran\nran\n" {
		t.Errorf("%%post ran: %q; want the one that was cut off and then those of both packages", got)
	}
	if got := w.packages(); got != "a-2-1 b-2-1" {
		t.Errorf("installed %q", got)
	}
	if out := installertest.RPM(t, w.root, "-Va"); out != "" {
		t.Errorf("rpm -Va: %s", out)
	}
}

// TestStoppingInTheMiddle asks the agent to end while a %post waits: the transaction is finished first, and the next agent
// ends the operation.
func TestStoppingInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pkg("a", "1-1"), pkg("b", "1-1"))
	gate := installertest.NewGate(t, w.root)
	w.start()
	op := agentlink.Operation{ID: "op1", Kind: "install", InServiceOnly: true}
	w.desire(w.publish(nil, pkg("a", "2-1", atGate), pkg("b", "2-1", script("touch /opt/ran"))), &op)
	gate.Reached()
	w.cancel()
	gate.Open()
	w.stop()
	if got := w.packages(); got != "a-2-1 b-2-1" {
		t.Errorf("after the stop %q is installed; the transaction was not finished", got)
	}
	if w.exists("opt/ran") {
		t.Error("the stopped agent ran a script")
	}
	w.start()
	if p, r := w.end("op1"); p.State != api.OperationDone || !r.Current() || r.RequiresReboot || !w.exists("opt/ran") {
		t.Errorf("got %+v, %+v", p, r)
	}
}

var _ installer.Tools = (*dnf.Driver)(nil)
