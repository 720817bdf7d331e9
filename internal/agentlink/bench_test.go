package agentlink_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
)

// crowd counts sessions and reports and keeps nothing.
type crowd struct {
	attached chan struct{}
	reported chan struct{}
}

func (c *crowd) Attach(context.Context, agentlink.Peer, agentlink.Hello) (agentlink.Session, error) {
	c.attached <- struct{}{}
	return member{c}, nil
}

type member struct{ *crowd }

func (member) Hello(context.Context, agentlink.Hello) error       { return nil }
func (member) Progress(context.Context, agentlink.Progress) error { return nil }
func (member) Ack(context.Context, uint64) error                  { return nil }
func (member) Desired() <-chan agentlink.Desired                  { return nil }
func (member) Detach(error)                                       {}
func (m member) Report(context.Context, host.Report) error {
	m.reported <- struct{}{}
	return nil
}

// BenchmarkAgentsSayingHello is the return of 1,000 agents after their controller was away: TCP over loopback, full
// mutual TLS 1.3, hello, welcome and a first report each. Agents and controller share the machine.
func BenchmarkAgentsSayingHello(b *testing.B) {
	const agents = 1000
	now := time.Now()
	ca, err := pki.CreateCA(b.TempDir(), now)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := ca.Server([]string{"controller-0"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, now)
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	c := &crowd{attached: make(chan struct{}, agents), reported: make(chan struct{}, agents)}
	srv := &agentlink.Server{CA: ca, Certificate: cert, Controller: c, Registrar: &registrar{}, Repository: "https://:8443", Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(context.Background())
	var controller, hosts sync.WaitGroup
	controller.Go(func() {
		if err := srv.Serve(ctx, l); err != nil {
			b.Error(err)
		}
	})
	defer func() {
		stop()
		controller.Wait()
	}()

	dirs := make([]string, agents)
	for i := range dirs {
		dirs[i] = newMember(b, ca, i, now)
	}
	for b.Loop() {
		run, leave := context.WithCancel(ctx)
		for _, dir := range dirs {
			client, err := agentlink.NewClient(agentlink.ClientConfig{Dir: dir, Controllers: []string{l.Addr().String()}, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			if err := client.SendReport(host.Report{Release: release, Revision: 1, State: host.Idle}); err != nil {
				b.Fatal(err)
			}
			hosts.Go(func() {
				if err := client.Run(run, newHandler()); !errors.Is(err, context.Canceled) {
					b.Error(err)
				}
			})
		}
		for range agents {
			<-c.attached
			<-c.reported
		}
		b.StopTimer()
		leave()
		hosts.Wait()
		b.StartTimer()
	}
	b.ReportMetric(float64(agents*b.N)/b.Elapsed().Seconds(), "agents/s")
}

func newMember(b *testing.B, ca *pki.CA, i int, now time.Time) string {
	b.Helper()
	name := fmt.Sprintf("compute-%d", i)
	key, err := pki.NewKey()
	if err != nil {
		b.Fatal(err)
	}
	csr, err := pki.Request(key, name)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := ca.SignAgent(csr, name, now)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if _, err := pki.SaveIdentity(dir, name, "0123456789abcdef", ca.Hash(), key, cert.Raw, ca.Certificate().Raw, now); err != nil {
		b.Fatal(err)
	}
	return dir
}
