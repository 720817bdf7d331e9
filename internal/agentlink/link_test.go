package agentlink_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

func report(revision int64) host.Report {
	return host.Report{Release: release, Revision: revision, State: host.Idle}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect[T any](t *testing.T, got any, want T) {
	t.Helper()
	if diff := cmp.Diff(got, any(want)); diff != "" {
		t.Errorf("(-got +want)\n%s", diff)
	}
}

// connected is a running system with one agent.
func connected(t *testing.T) (*system, *handler, *agentlink.Client, *session) {
	t.Helper()
	s := newSystem(t)
	s.start()
	h := newHandler()
	c, _ := s.run(s.join("compute-0"), h)
	ss := <-s.ctl.attached
	<-h.welcome
	return s, h, c, ss
}

func TestReportsProgressAndDesiredCross(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		h := newHandler()
		c, _ := s.run(s.join("compute-0"), h)
		ss := <-s.ctl.attached
		expect(t, ss.peer.Host, "compute-0")
		expect(t, ss.peer.IP.String(), "192.0.2.7")
		expect(t, ss.hello, agentlink.Hello{Facts: host.Facts{Personality: host.Worker, Release: release, BootID: "boot-1", Agent: "test", Protocol: 1}})
		expect(t, <-h.welcome, agentlink.Welcome{Protocol: 1, Repository: "https://192.0.2.1:8443", Controller: address})

		must(t, c.SendReport(report(3)))
		expect(t, <-ss.heard, report(3))
		<-h.reportAcked

		d := agentlink.Desired{Epoch: 7, Release: release, Revision: 4, RepomdSHA256: sha, Operation: &agentlink.Operation{ID: "op-1", Kind: "install", Force: true}}
		ss.desired.Put(d)
		expect(t, <-h.desired, d)
		expect(t, <-ss.heard, uint64(7))

		p := agentlink.Progress{Operation: "op-1", State: api.OperationDone, Output: []byte("ok\n")}
		must(t, c.SendProgress(p))
		expect(t, <-ss.heard, p)
		expect(t, <-h.acked, "op-1 done")

		h.set(func(v *agentlink.Hello) { v.Facts.Locked, v.Epoch, v.LastOperation = true, 7, "op-1" })
		c.FactsChanged()
		expect(t, <-ss.heard, agentlink.Hello{Facts: host.Facts{Personality: host.Worker, Release: release, BootID: "boot-1", Agent: "test", Protocol: 1, Locked: true}, Epoch: 7, LastOperation: "op-1"})
	})
}

func TestWhereTheRepositoryIs(t *testing.T) {
	for _, c := range []struct{ name, set, want string }{
		{"the address that the agent reached", "https://:8443", "https://192.0.2.1:8443"},
		{"also when the controller listens everywhere", "https://0.0.0.0:8443", "https://192.0.2.1:8443"},
		{"also on IPv6", "https://[::]:8443", "https://192.0.2.1:8443"},
		{"an address as it is set", "https://192.0.2.5:8443", "https://192.0.2.5:8443"},
		{"a name as it is set", "https://patches:8443", "https://patches:8443"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSystem(t)
				s.repository = c.set
				s.start()
				h := newHandler()
				s.run(s.join("compute-0"), h)
				expect(t, (<-h.welcome).Repository, c.want)
			})
		})
	}
}

func TestWhoMayConnect(t *testing.T) {
	for _, c := range []struct {
		name string
		tls  func(t *testing.T, s *system, dir string) *tls.Config
		code codes.Code
		want string
	}{
		{"nobody without a certificate", func(_ *testing.T, s *system, _ string) *tls.Config { return s.anonymous() },
			codes.Unauthenticated, "only agents that have joined may connect"},
		{"nobody with a certificate of another CA", func(t *testing.T, s *system, _ string) *tls.Config {
			other := newSystem(t)
			other.start()
			foreign := identity(t, other.join("compute-0")).Pair()
			cfg := s.anonymous()
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return foreign, nil }
			return cfg
		}, codes.Unavailable, ""},
		{"no controller", func(t *testing.T, s *system, _ string) *tls.Config {
			cert, err := s.cert.Certificate(time.Now())
			must(t, err)
			cfg := s.anonymous()
			cfg.Certificates = []tls.Certificate{*cert}
			return cfg
		}, codes.PermissionDenied, `the certificate of "controller-0" is not an agent's`},
		{"nobody revoked", func(t *testing.T, s *system, dir string) *tls.Config {
			id := identity(t, dir)
			s.reg.revoke(pki.Serial(id.Certificate()))
			return id.ClientTLS("192.0.2.1")
		}, codes.PermissionDenied, "the certificate of compute-0 has been revoked"},
		{"nobody expired", func(t *testing.T, _ *system, dir string) *tls.Config {
			time.Sleep(pki.Lifetime + time.Second)
			return identity(t, dir).ClientTLS("192.0.2.1")
		}, codes.Unavailable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSystem(t)
				s.start()
				link := pb.NewLinkClient(s.raw(c.tls(t, s, s.join("compute-0"))))
				stream, err := link.Connect(t.Context())
				if err == nil {
					_, err = stream.Recv()
				}
				if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
					t.Errorf("Connect: %v", err)
				}
				if _, err := link.Renew(t.Context(), &pb.RenewRequest{}); status.Code(err) != c.code {
					t.Errorf("Renew: %v", err)
				}
			})
		})
	}
}

func hello() *pb.AgentMessage {
	return &pb.AgentMessage{Kind: &pb.AgentMessage_Hello{Hello: &pb.Hello{ProtocolMin: 1, ProtocolMax: 1, Personality: "worker", Release: release, BootId: "b"}}}
}

func part(number uint64, part, parts uint32, text string) *pb.AgentMessage {
	return &pb.AgentMessage{Kind: &pb.AgentMessage_Report{Report: &pb.ReportPart{Number: number, Part: part, Parts: parts, Json: []byte(text)}}}
}

// What an agent could say that no agent of ours does.
func TestHostileAgents(t *testing.T) {
	edit := func(f func(*pb.Hello)) *pb.AgentMessage {
		m := hello()
		f(m.GetHello())
		return m
	}
	progress := func(p *pb.Progress) *pb.AgentMessage {
		return &pb.AgentMessage{Kind: &pb.AgentMessage_Progress{Progress: p}}
	}
	quarter := strings.Repeat(" ", 60<<10)
	for _, c := range []struct {
		name string
		say  []*pb.AgentMessage
		code codes.Code
		want string
	}{
		{"a newer protocol only", []*pb.AgentMessage{edit(func(h *pb.Hello) { h.ProtocolMin, h.ProtocolMax = 2, 3 })}, codes.Unimplemented,
			"the agent speaks versions 2 to 3 of the agent link and this controller versions 1 to 1"},
		{"no protocol", []*pb.AgentMessage{edit(func(h *pb.Hello) { h.ProtocolMin, h.ProtocolMax = 0, 0 })}, codes.Unimplemented, "versions 0 to 0"},
		{"no hello", []*pb.AgentMessage{part(1, 0, 1, "{}")}, codes.InvalidArgument, "the first message of a stream must be a hello"},
		{"silence", nil, codes.InvalidArgument, "sent no hello"},
		{"a strange personality", []*pb.AgentMessage{edit(func(h *pb.Hello) { h.Personality = "king" })}, codes.InvalidArgument, `"king" is not a personality`},
		{"a release that is a path", []*pb.AgentMessage{edit(func(h *pb.Hello) { h.Release = "../19.09" })}, codes.InvalidArgument, "not a valid release"},
		{"a boot id for a terminal", []*pb.AgentMessage{edit(func(h *pb.Hello) { h.BootId = "\x1b[2J" })}, codes.InvalidArgument, "not a valid boot id"},
		{"an operation id that is a path", []*pb.AgentMessage{edit(func(h *pb.Hello) { h.LastOperation = "a/b" })}, codes.InvalidArgument, "not a valid operation id"},
		{"a message over the cap", []*pb.AgentMessage{hello(), part(1, 0, 1, strings.Repeat(" ", 70<<10))}, codes.ResourceExhausted, "larger than max"},
		{"a report over the cap", []*pb.AgentMessage{hello(), part(1, 0, 5, quarter), part(1, 1, 5, quarter), part(1, 2, 5, quarter), part(1, 3, 5, quarter), part(1, 4, 5, quarter)}, codes.OutOfRange, "report 1 has more than 262144 bytes"},
		{"a report in too many parts", []*pb.AgentMessage{hello(), part(1, 0, 1000, "{")}, codes.OutOfRange, "came in 1000 parts"},
		{"a part left out", []*pb.AgentMessage{hello(), part(1, 0, 3, "{"), part(1, 2, 3, "}")}, codes.InvalidArgument, "part 2 of 3 of report 1 came where part 1 of 3 of report 1 was expected"},
		{"a report number that goes back", []*pb.AgentMessage{hello(), part(2, 0, 2, "{"), part(1, 0, 1, "{}")}, codes.InvalidArgument, "part 0 of 1 of report 1 came"},
		{"a report that is no JSON", []*pb.AgentMessage{hello(), part(1, 0, 1, "hello")}, codes.InvalidArgument, "the report cannot be read"},
		{"a package name for a terminal", []*pb.AgentMessage{hello(), part(1, 0, 1, `{"release":"19.09","revision":1,"state":"idle","missing":["\u001b[2J"]}`)}, codes.InvalidArgument, "is not a package name"},
		{"a strange state", []*pb.AgentMessage{hello(), part(1, 0, 1, `{"release":"19.09","revision":1,"state":"happy"}`)}, codes.InvalidArgument, "not an agent state"},
		{"a negative revision", []*pb.AgentMessage{hello(), part(1, 0, 1, `{"release":"19.09","revision":-1,"state":"idle"}`)}, codes.InvalidArgument, "generation -1"},
		{"progress of no operation", []*pb.AgentMessage{hello(), progress(&pb.Progress{State: "done"})}, codes.InvalidArgument, "not a valid operation id"},
		{"a state that only the controller gives", []*pb.AgentMessage{hello(), progress(&pb.Progress{Operation: "o", State: "requested"})}, codes.InvalidArgument, "not a state that an agent reports"},
		{"output before the end", []*pb.AgentMessage{hello(), progress(&pb.Progress{Operation: "o", State: "running", Output: []byte("x")})}, codes.InvalidArgument, "output comes with the final state"},
		{"output over the cap", []*pb.AgentMessage{hello(), progress(&pb.Progress{Operation: "o", State: "done", Output: make([]byte, 40<<10)})}, codes.OutOfRange, "at most 32768"},
		{"a sentence for a terminal", []*pb.AgentMessage{hello(), progress(&pb.Progress{Operation: "o", State: "failed", Detail: "\x1b]0;x\a"})}, codes.InvalidArgument, "control characters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSystem(t)
				s.start()
				stream, err := pb.NewLinkClient(s.raw(identity(t, s.join("compute-0")).ClientTLS("192.0.2.1"))).Connect(t.Context())
				must(t, err)
				for _, m := range c.say {
					if err := stream.Send(m); err != nil {
						break // the refusal came already; Recv has it
					}
				}
				for err = nil; err == nil; {
					_, err = stream.Recv()
				}
				if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %v: ...%s...", err, c.code, c.want)
				}
				select {
				case ss := <-s.ctl.attached:
					<-ss.detached
					if len(ss.heard) > 0 {
						t.Errorf("the controller heard %v", <-ss.heard)
					}
				default:
				}
			})
		})
	}
}

func TestUnknownFieldsAndKindsOfNewerAgentsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		stream, err := pb.NewLinkClient(s.raw(identity(t, s.join("compute-0")).ClientTLS("192.0.2.1"))).Connect(t.Context())
		must(t, err)
		h := hello()
		h.GetHello().ProtocolMax = 9
		must(t, stream.Send(h))
		must(t, stream.Send(&pb.AgentMessage{}))
		must(t, stream.Send(part(1, 0, 1, `{"release":"19.09","revision":1,"state":"idle","mood":"good"}`)))
		ss := <-s.ctl.attached
		expect(t, <-ss.heard, report(1))
	})
}

// A final state is never heard before the report that was made before it, and both come again until acknowledged.
func TestWhatIsNotAcknowledgedComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		s.stop()
		h := newHandler()
		c, _ := s.run(dir, h)
		running := agentlink.Progress{Operation: "op-1", State: api.OperationRunning}
		done := agentlink.Progress{Operation: "op-1", State: api.OperationDone, Output: []byte("ok")}
		must(t, c.SendProgress(running))
		must(t, c.SendReport(report(1)))
		must(t, c.SendReport(report(2))) // takes the place of 1
		must(t, c.SendProgress(done))

		began := time.Now()
		s.start()
		ss := <-s.ctl.attached
		if d := time.Since(began); d > 300*time.Millisecond {
			t.Errorf("the agent came after %v", d)
		}
		ss.fail <- errors.New("the disk is full")
		<-ss.detached // nothing was acknowledged

		ss = <-s.ctl.attached
		expect(t, <-ss.heard, report(2))
		expect(t, <-ss.heard, running)
		expect(t, <-h.acked, "op-1 running")
		expect(t, <-ss.heard, done)
		expect(t, <-h.acked, "op-1 done")

		// All is acknowledged: the next stream is quiet.
		s.stop()
		<-ss.detached
		s.start()
		ss = <-s.ctl.attached
		synctest.Wait()
		if n := len(ss.heard); n != 0 {
			t.Errorf("%d things came again: %v", n, <-ss.heard)
		}
	})
}

func TestASlowControllerLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		s.ctl.hold = make(chan struct{})
		h := newHandler()
		c, _ := s.run(dir, h)
		ss := <-s.ctl.attached
		<-h.welcome
		must(t, c.SendReport(report(1)))
		synctest.Wait()
		// While the first is being saved, many more are made, and each is as large as a report can be.
		for i := range 50 {
			r := report(int64(i + 2))
			r.Failure = strings.Repeat("x", 32<<10)
			must(t, c.SendReport(r))
			synctest.Wait()
		}
		must(t, c.SendProgress(agentlink.Progress{Operation: "op-1", State: api.OperationDone}))
		time.Sleep(time.Minute) // the link outlives it
		close(s.ctl.hold)
		last := int64(0)
		for {
			v := <-ss.heard
			if r, ok := v.(host.Report); ok {
				if r.Revision <= last {
					t.Errorf("report %d after %d", r.Revision, last)
				}
				last = r.Revision
				continue
			}
			break
		}
		if last != 51 {
			t.Errorf("the last report before the progress was %d", last)
		}
	})
}

func TestTheSecondStreamOfAHostEndsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		first, err := pb.NewLinkClient(s.raw(identity(t, dir).ClientTLS("192.0.2.1"))).Connect(ctx)
		must(t, err)
		must(t, first.Send(hello()))
		one := <-s.ctl.attached
		second, err := pb.NewLinkClient(s.raw(identity(t, dir).ClientTLS("192.0.2.1"))).Connect(ctx)
		must(t, err)
		must(t, second.Send(hello()))
		<-s.ctl.attached
		select {
		case cause := <-one.detached:
			wantProblem(t, cause, problem.Conflict, "another connection of this host has taken over")
		default:
			t.Error("the second session was attached before the first was detached")
		}
		for err == nil {
			_, err = first.Recv()
		}
		if status.Code(err) != codes.Aborted {
			t.Errorf("the first stream ended with %v", err)
		}
	})
}

// A host that loses its power says no word. Its session ends within 5 seconds all the same.
func TestADeadAgentIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, ss := connected(t)
		time.Sleep(time.Hour) // an idle one is not dead
		select {
		case err := <-ss.detached:
			t.Fatalf("an idle agent was dropped: %v", err)
		default:
		}
		began := time.Now()
		close(s.last().silent)
		<-ss.detached
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("noticed after %v", d)
		}
	})
}

func TestADeadControllerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, _ := connected(t)
		began := time.Now()
		close(s.last().silent)
		<-s.ctl.attached // the agent dials anew
		if d := time.Since(began); d > 15*time.Second {
			t.Errorf("noticed after %v", d)
		}
	})
}

func TestARestartOfTheControllerIsHardlyFelt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, ss := connected(t)
		s.stop()
		<-ss.detached
		time.Sleep(2 * time.Second)
		began := time.Now()
		s.start()
		<-s.ctl.attached
		if d := time.Since(began); d > 300*time.Millisecond {
			t.Errorf("the agent was back after %v", d)
		}
	})
}

func TestDesiredNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		h := newHandler()
		h.set(func(v *agentlink.Hello) { v.Epoch = 5 })
		s.run(dir, h)
		ss := <-s.ctl.attached
		desired := func(epoch uint64) agentlink.Desired {
			return agentlink.Desired{Epoch: epoch, Release: release, Revision: 1, RepomdSHA256: sha}
		}
		for _, e := range []uint64{4, 5, 7, 6, 8} {
			ss.desired.Put(desired(e))
			synctest.Wait()
		}
		for _, e := range []uint64{5, 7, 8} { // the durable one may come again
			expect(t, <-h.desired, desired(e))
			expect(t, <-ss.heard, e)
		}
		if len(h.desired) > 0 || len(ss.heard) > 0 {
			t.Errorf("an outdated one was taken: %v", <-h.desired)
		}
	})
}

// Desired is acknowledged only when the agent has it durably; until then it comes again.
func TestDesiredThatCannotBeSavedComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		h := newHandler()
		full := errors.New("no space left on device")
		fail := make(chan error, 1)
		fail <- full
		h.desiring = func(agentlink.Desired) error {
			select {
			case err := <-fail:
				return err
			default:
				return nil
			}
		}
		s.run(dir, h)
		d := agentlink.Desired{Epoch: 1, Release: release, Revision: 1, RepomdSHA256: sha}
		ss := <-s.ctl.attached
		ss.desired.Put(d)
		<-ss.detached
		ss = <-s.ctl.attached
		ss.desired.Put(d)
		expect(t, <-h.desired, d)
		expect(t, <-ss.heard, uint64(1))
	})
}

func TestTheControllerEndsASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, ss := connected(t)
		close(ss.desired)
		wantProblem(t, <-ss.detached, problem.Unavailable, "ended the session")
		<-s.ctl.attached // it may come back
	})
}

func TestARefusedAgentWaitsBeforeItAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.join("compute-0")
		s.reg.revoke(pki.Serial(identity(t, dir).Certificate()))
		before := s.dialled()
		_, stop := s.run(dir, newHandler())
		time.Sleep(10 * time.Minute)
		stop()
		if n := s.dialled() - before; n < 5 || n > 21 {
			t.Errorf("asked %d times in 10 minutes", n)
		}
	})
}

func TestCertificatesAreRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.joinedAt("compute-0", time.Now().Add(time.Hour-pki.Lifetime*2/3))
		old := identity(t, dir)
		c, _ := s.run(dir, newHandler())
		expect(t, (<-s.ctl.attached).peer.Serial, pki.Serial(old.Certificate()))
		https := c.TLSConfig()
		ss := <-s.ctl.attached
		if left := time.Until(old.Certificate().NotAfter); left > pki.Lifetime/3 || left < pki.Lifetime/3-time.Minute {
			t.Errorf("renewed %v before the end", left)
		}
		next := identity(t, dir)
		expect(t, ss.peer.Serial, pki.Serial(next.Certificate()))
		expect(t, s.reg.renewed, []string{"compute-0 " + ss.peer.Serial})
		pair, err := https.GetClientCertificate(nil)
		must(t, err)
		expect(t, pki.Serial(pair.Leaf), ss.peer.Serial)
		if next.Pair().PrivateKey.(*ecdsa.PrivateKey).Equal(old.Pair().PrivateKey) {
			t.Error("the key was kept")
		}
	})
}

func TestARenewalThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		s.reg.fail(errors.New("no quorum"))
		dir := s.joinedAt("compute-0", time.Now().Add(-pki.Lifetime*2/3))
		began := time.Now()
		s.run(dir, newHandler())
		first, second := <-s.ctl.attached, <-s.ctl.attached
		if first.peer.Serial == second.peer.Serial || time.Since(began) < time.Hour {
			t.Errorf("after %v from %s to %s", time.Since(began), first.peer.Serial, second.peer.Serial)
		}
	})
}

func TestAStreamEndsWithItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		dir := s.joinedAt("compute-0", time.Now().Add(time.Hour-pki.Lifetime))
		link := pb.NewLinkClient(s.raw(identity(t, dir).ClientTLS("192.0.2.1")))
		stream, err := link.Connect(t.Context())
		must(t, err)
		must(t, stream.Send(hello()))
		ss := <-s.ctl.attached
		began := time.Now()
		wantProblem(t, <-ss.detached, problem.Unauthorized, "the certificate of compute-0 expired")
		if d := time.Since(began); d > time.Hour {
			t.Errorf("after %v", d)
		}
		_, err = link.Renew(t.Context(), &pb.RenewRequest{}) // the connection is still there
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("Renew: %v", err)
		}
	})
}

func TestReportsOfEverySizeArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, c, ss := connected(t)
		for _, n := range []int{0, 1, 500, 1000, 2000, 20000} {
			r := report(int64(n + 1))
			for i := range n {
				r.Missing = append(r.Missing, fmt.Sprintf("package-with-a-name-%06d", i))
				r.ToRemove = append(r.ToRemove, rpm.NEVRA{Name: r.Missing[i], EVR: rpm.EVR{Version: "1", Release: "1"}, Arch: "noarch"})
			}
			must(t, c.SendReport(r))
			got := (<-ss.heard).(host.Report)
			want, text, err := agentlink.CutReport(r)
			must(t, err)
			expect(t, got, want)
			if len(text) > agentlink.MaxReport || got.Cut != (n > 2500) {
				t.Errorf("%d entries: %d bytes, cut %v", n, len(text), got.Cut)
			}
			if got.Cut {
				expect(t, got.Counts, host.Counts{ToRemove: n, Missing: n})
				if got.Current() || len(text) < agentlink.MaxReport*9/10 {
					t.Errorf("%d entries: cut to %d bytes, current %v", n, len(text), got.Current())
				}
			}
		}
	})
}

func TestOversizedTextsOfAnAgentAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, c, ss := connected(t)
		output := append(bytes.Repeat([]byte("a"), 100<<10), "the end"...)
		must(t, c.SendProgress(agentlink.Progress{Operation: "op-1", State: api.OperationFailed, Detail: "\x1b[1m" + strings.Repeat("é", 4000), Output: output}))
		p := (<-ss.heard).(agentlink.Progress)
		if !strings.HasPrefix(p.Detail, " [1mé") || !strings.HasSuffix(p.Detail, "é...") || len(p.Detail) > agentlink.MaxDetail {
			t.Errorf("detail of %d bytes: %q", len(p.Detail), p.Detail[:20])
		}
		if len(p.Output) != agentlink.MaxOutput || !bytes.HasSuffix(p.Output, []byte("the end")) {
			t.Errorf("output of %d bytes", len(p.Output))
		}
		wantProblem(t, c.SendProgress(agentlink.Progress{Operation: "op-1", State: "requested"}), problem.Invalid, "not a state")
		wantProblem(t, c.SendReport(host.Report{}), problem.Invalid, "not a valid release")
	})
}

func TestInternalErrorsStayAtHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSystem(t)
		s.start()
		s.ctl.refuse = errors.New("etcd: password is 12345")
		stream, err := pb.NewLinkClient(s.raw(identity(t, s.join("compute-0")).ClientTLS("192.0.2.1"))).Connect(t.Context())
		must(t, err)
		must(t, stream.Send(hello()))
		_, err = stream.Recv()
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "12345") {
			t.Errorf("got %v", err)
		}
	})
}
