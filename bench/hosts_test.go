package bench_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/internal/rpm"
)

// agent is a host without packages on the real link: it reports what the benchmark has it report.
type agent struct {
	*agentlink.Client
	welcome chan struct{}
	acked   chan struct{} // a report is durable
	leave   func()
}

func (a *agent) Hello() agentlink.Hello {
	return agentlink.Hello{Facts: host.Facts{Personality: host.Worker, Release: release, BootID: "1", Agent: "bench"}}
}
func (a *agent) Welcome(agentlink.Welcome)                        { a.welcome <- struct{}{} }
func (a *agent) Desired(context.Context, agentlink.Desired) error { return nil }
func (a *agent) ProgressAcked(string, string)                     {}

// connect makes an agent with a certificate of the controller's CA, and returns when the controller has welcomed it.
func (c *controller) connect(ca *pki.CA, dir, name string) (*agent, error) {
	now := time.Now()
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := pki.Request(key, name)
	if err != nil {
		return nil, err
	}
	cert, err := ca.SignAgent(csr, name, now)
	if err != nil {
		return nil, err
	}
	if _, err := pki.SaveIdentity(dir, name, "0123456789abcdef", ca.Hash(), key, cert.Raw, ca.Certificate().Raw, now); err != nil {
		return nil, err
	}
	a := &agent{welcome: make(chan struct{}, 1), acked: make(chan struct{}, 1)}
	a.Client, err = agentlink.NewClient(agentlink.ClientConfig{Dir: dir, Controllers: []string{net.JoinHostPort(address(), "5489")},
		Log: slog.New(slog.DiscardHandler), ReportAcked: func() { a.acked <- struct{}{} }})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx, a) }()
	a.leave = func() { cancel(); <-ended }
	select {
	case <-a.welcome:
		return a, nil
	case err := <-ended:
		cancel()
		return nil, err
	}
}

// say reports that the host is as it should be, or that it lacks a version, and returns when that is durable.
func (a *agent) say(current bool) error {
	r := host.Report{Release: release, Revision: 1, State: host.Idle}
	if !current {
		r.Installed = []host.Difference{{Have: rpm.NEVRA{Name: "base", EVR: rpm.EVR{Version: "1", Release: "1"}, Arch: "noarch"}, Wanted: rpm.EVR{Version: "1", Release: "2"}}}
	}
	if err := a.SendReport(r); err != nil {
		return err
	}
	<-a.acked
	return nil
}

func (c *controller) ca() *pki.CA {
	c.b.Helper()
	ca, err := pki.LoadCA(c.at("data/pki"))
	if err != nil {
		c.b.Fatal(err)
	}
	return ca
}

// introduce lets n hosts connect, report and leave again.
func (c *controller) introduce(n int) {
	c.b.Helper()
	ca, dir := c.ca(), c.b.TempDir()
	numbers, failures := make(chan int), make(chan error, n)
	var crowd sync.WaitGroup
	for range 32 {
		crowd.Go(func() {
			for i := range numbers {
				name := fmt.Sprintf("compute-%d", i)
				a, err := c.connect(ca, filepath.Join(dir, name), name)
				if err == nil {
					err = a.say(i%10 != 0)
					a.leave()
				}
				if err != nil {
					failures <- fmt.Errorf("%s: %w", name, err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	crowd.Wait()
	close(failures)
	var all []error
	for err := range failures {
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		c.b.Fatal(err)
	}
}

// BenchmarkQueryHosts10000 is a whole request over the socket when 10,000 hosts are known, of which one in ten is not
// current.
func BenchmarkQueryHosts10000(b *testing.B) {
	b.Setenv("TMPDIR", "/dev/shm") // a query does not touch the disk, and 10,000 hosts are there sooner without one
	n := size(10_000, 20)
	c := newController(b)
	c.introduce(n)
	c.queries("/v1/query_hosts", func(ctx context.Context) error {
		q, err := c.client.QueryHosts(ctx)
		if err == nil && len(q.Hosts) != n {
			err = fmt.Errorf("%d hosts", len(q.Hosts))
		}
		return err
	})
	b.ReportMetric(mib(status(b, c.cmd.Process.Pid, "VmRSS")), "controller-MiB")
}

// BenchmarkReportToVisible is the time from a host's report to an answer that shows it: TLS link, decision, commit with
// its record of the journal on the disk, acknowledgement, and the query itself.
func BenchmarkReportToVisible(b *testing.B) {
	c := newController(b)
	c.smallPatches(size(50, 2))
	a, err := c.connect(c.ca(), b.TempDir(), "compute-0")
	if err != nil {
		b.Fatal(err)
	}
	defer a.leave()
	current := false
	var took times
	for b.Loop() {
		began := time.Now()
		if err := a.say(current); err != nil {
			b.Fatal(err)
		}
		q, err := c.client.QueryHosts(b.Context())
		took = append(took, time.Since(began))
		if err != nil || len(q.Hosts) != 1 || shownCurrent(q.Hosts[0]) != current {
			b.Fatalf("current=%v, but %+v %v", current, q, err)
		}
		current = !current
	}
	took.report(b)
}

// shownCurrent tells the two reports apart; whether the host counts as current depends on the generation too.
func shownCurrent(h api.HostInfo) bool { return len(h.Installed) == 0 }
