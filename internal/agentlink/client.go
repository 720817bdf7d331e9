package agentlink

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/starpatch/starpatch/host"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

const (
	// A lost connection is tried again every 100 to 200 ms for the first quickTries, so that the restart of a controller
	// is hardly felt; then the pause doubles up to slowest. The jitter keeps a thousand agents from coming in step.
	quickPause = 100 * time.Millisecond
	quickTries = 100
	slowest    = 5 * time.Second
	// refusedPause is for refusals that time alone does not mend: another protocol, a revoked certificate.
	refusedPause = 30 * time.Second
	// welcomeTimeout is what a controller has to answer a hello.
	welcomeTimeout = 20 * time.Second
)

// Handler is the agent behind a [Client]. Its methods must return promptly: while one runs, nothing else is heard.
type Handler interface {
	// Hello returns the present facts and the durable epoch and operation. It is called at every connect and after
	// [Client.FactsChanged], from any goroutine.
	Hello() Hello
	// Welcome tells that a controller has accepted the stream.
	Welcome(w Welcome)
	// Desired returns when d is durable on this host; it is then acknowledged. It may get the same one again, never one
	// with an epoch below that of Hello or of an earlier call. An error ends the stream, and d comes again later.
	Desired(ctx context.Context, d Desired) error
	// ProgressAcked tells that this state of the operation is durable in the controller's store.
	ProgressAcked(operation, state string)
}

// ClientConfig says how an agent reaches its controllers.
type ClientConfig struct {
	Dir         string   // where Join left key and certificates
	Controllers []string // host:port of each, in order of preference
	Dial        Dialer   // nil: TCP from any address
	Log         *slog.Logger
	Rand        *rand.Rand // for jitter; nil: seeded by the runtime
	// ReportAcked is called whenever a report is durable in the controller's store, promptly and from the goroutine of
	// Run; nil: nobody wants to know.
	ReportAcked func()
}

// Client is the agent's side of the link. Its methods are safe for concurrent use; Run is called once.
type Client struct {
	cfg      ClientConfig
	identity atomic.Pointer[pki.Identity]
	out      outbox
	said     string // last failure that was logged; owned by Run
	epoch    uint64 // greatest that the handler took; owned by the receiving goroutine of Run
}

// NewClient makes a client for a host that has joined; before that the error has kind not-found.
func NewClient(cfg ClientConfig) (*Client, error) {
	id, err := pki.LoadIdentity(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if len(cfg.Controllers) == 0 {
		return nil, problem.Errorf(problem.Invalid, "no controller is configured; give at least one host:port")
	}
	for _, c := range cfg.Controllers {
		if _, _, err := net.SplitHostPort(c); err != nil {
			return nil, problem.Errorf(problem.Invalid, "%q is not the address of a controller; expected host:port", c)
		}
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	c := &Client{cfg: cfg, out: newOutbox()}
	c.identity.Store(id)
	return c, nil
}

// Host is this host's name, from its certificate.
func (c *Client) Host() string { return c.identity.Load().Host() }

// TLSConfig is for HTTPS requests to controllers, with the certificate of the moment: it follows renewals.
func (c *Client) TLSConfig() *tls.Config {
	t := c.identity.Load().ClientTLS("")
	t.Certificates = nil
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return c.identity.Load().Pair(), nil
	}
	return t
}

// Files are the PEM files of certificate, key and CA for programs such as dnf. Renewals replace them whole.
func (c *Client) Files() (cert, key, ca string) { return c.identity.Load().Files() }

// Run keeps a stream to one of the controllers until ctx ends, and returns its cause after everything that it started
// has ended.
func (c *Client) Run(ctx context.Context, h Handler) error {
	c.epoch = h.Hello().Epoch
	var tries int
	for {
		refused := true // by every controller
		for _, controller := range c.cfg.Controllers {
			began := time.Now()
			err := c.session(ctx, h, controller)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if time.Since(began) > slowest {
				tries = 0
			}
			if errors.Is(err, errRenewed) {
				refused = false
				break
			}
			c.complain(controller, err)
			if k := problem.KindOf(err); k == problem.Unavailable || k == problem.Internal {
				refused = false
			}
		}
		timer := time.NewTimer(pause(tries, refused, c.cfg.Rand))
		tries++
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// pause is how long to wait after so many tries in vain.
func pause(tries int, refused bool, r *rand.Rand) time.Duration {
	d := quickPause
	switch {
	case refused:
		d = refusedPause
	case tries >= quickTries:
		d = min(quickPause<<min(tries-quickTries, 16), slowest/2)
	}
	return d + time.Duration(r.Int64N(int64(d)))
}

// complain logs a failure once, until another one takes its place.
func (c *Client) complain(controller string, err error) {
	if said := err.Error(); said != c.said {
		c.said = said
		c.cfg.Log.Warn("not connected to a controller", "controller", controller, "err", err)
	}
}

// errRenewed ends a stream so that the next one uses the new certificate.
var errRenewed = errors.New("the certificate was renewed")

// session is the life of one stream to one controller.
func (c *Client) session(ctx context.Context, h Handler, controller string) error {
	id := c.identity.Load()
	if end := id.Certificate().NotAfter; time.Now().After(end) {
		return problem.Errorf(problem.Unauthorized, "the certificate of %s expired at %s while no controller was reachable; create a join token for it and give it to the agent", id.Host(), end.UTC().Format(time.RFC3339))
	}
	name, _, err := net.SplitHostPort(controller)
	if err != nil {
		return err
	}
	conn, err := connection(controller, credentials.NewTLS(id.ClientTLS(name)), c.cfg.Dial)
	if err != nil {
		return err
	}
	defer conn.Close()
	group, ctx := errgroup.WithContext(ctx)
	stream, err := pb.NewLinkClient(conn).Connect(ctx)
	if err != nil {
		return fromStatus(err, controller)
	}
	c.out.restart()
	welcomed := make(chan struct{})
	group.Go(func() error { return c.receive(ctx, h, stream, controller, welcomed) })
	group.Go(func() error { return c.send(ctx, h, stream, welcomed) })
	group.Go(func() error { return c.renew(ctx, pb.NewLinkClient(conn), id) })
	return fromStatus(group.Wait(), controller)
}

type clientStream = grpc.BidiStreamingClient[pb.AgentMessage, pb.ControllerMessage]

func (c *Client) send(ctx context.Context, h Handler, stream clientStream, welcomed <-chan struct{}) error {
	hello := func() error {
		return stream.Send(&pb.AgentMessage{Kind: &pb.AgentMessage_Hello{Hello: h.Hello().wire()}})
	}
	if err := hello(); err != nil {
		return ended(err)
	}
	timer := time.NewTimer(welcomeTimeout)
	defer timer.Stop()
	select {
	case <-welcomed:
	case <-timer.C:
		return problem.Errorf(problem.Unavailable, "the controller did not answer within %v", welcomeTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		facts, messages := c.out.take()
		if facts {
			if err := hello(); err != nil {
				return ended(err)
			}
		}
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return ended(err)
			}
		}
		if facts || len(messages) > 0 {
			continue
		}
		select {
		case <-c.out.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ended hides the io.EOF with which Send tells that the stream is over: Recv knows why, and its error is the one to show.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (c *Client) receive(ctx context.Context, h Handler, stream clientStream, controller string, welcomed chan<- struct{}) error {
	for first := true; ; first = false {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return problem.Errorf(problem.Unavailable, "controller %s ended the stream", controller)
		}
		if err != nil {
			return err
		}
		if _, ok := m.GetKind().(*pb.ControllerMessage_Welcome); ok != first {
			return problem.Errorf(problem.Invalid, "controller %s did not answer with one welcome, first of all", controller)
		}
		switch k := m.GetKind().(type) {
		case *pb.ControllerMessage_Welcome:
			w, err := parseWelcome(k.Welcome, controller)
			if err != nil {
				return err
			}
			c.said = ""
			c.cfg.Log.Info("connected to a controller", "controller", controller)
			h.Welcome(w)
			close(welcomed)
		case *pb.ControllerMessage_Desired:
			if err := c.desired(ctx, h, k.Desired); err != nil {
				return err
			}
		case *pb.ControllerMessage_ReportAck:
			c.out.reportAcked(k.ReportAck.GetNumber())
			if c.cfg.ReportAcked != nil {
				c.cfg.ReportAcked()
			}
		case *pb.ControllerMessage_ProgressAck:
			op, state := k.ProgressAck.GetOperation(), k.ProgressAck.GetState()
			if c.out.progressAcked(op, state) {
				h.ProgressAcked(op, state)
			}
		}
	}
}

func (c *Client) desired(ctx context.Context, h Handler, m *pb.Desired) error {
	d, err := parseDesired(m)
	if err != nil {
		return err
	}
	if d.Epoch < c.epoch {
		c.cfg.Log.Warn("refused an outdated desired state", "epoch", d.Epoch, "have", c.epoch)
		return nil
	}
	if err := h.Desired(ctx, d); err != nil {
		return err
	}
	c.epoch = d.Epoch
	c.out.ack(d.Epoch)
	return nil
}

// FactsChanged makes the client ask the handler for Hello and send it.
func (c *Client) FactsChanged() { c.out.factsChanged() }

// SendReport leaves a report to be sent as soon as there is a stream, and again on every new one until the controller has
// it durably. A newer report takes the place of an older one. A report over the cap is cut ([CutReport]). An error means
// that the report itself is not valid; it is then not sent.
func (c *Client) SendReport(r host.Report) error {
	r.Failure, r.RejectReason = printable(r.Failure, maxReason), printable(r.RejectReason, maxReason)
	if err := checkReport(r); err != nil {
		return err
	}
	_, text, err := CutReport(r)
	if err != nil {
		return err
	}
	c.out.putReport(text)
	return nil
}

// SendProgress leaves the state of an operation to be sent as SendReport does. States are sent in the order of the calls,
// and after every report that was left before. A long detail or output is cut. An error means that p is not valid.
func (c *Client) SendProgress(p Progress) error {
	p.Detail = printable(p.Detail, MaxDetail)
	p.Output = p.Output[max(0, len(p.Output)-MaxOutput):]
	if err := p.check(); err != nil {
		return err
	}
	c.out.putProgress(p)
	return nil
}
