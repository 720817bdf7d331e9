package agentlink_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	address = "192.0.2.1:5489"
	release = "19.09"
	sha     = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// system is a controller with its CA, reached over in-process pipes that carry real TLS and HTTP/2.
type system struct {
	t          *testing.T
	ca         *pki.CA
	cert       *pki.Server
	reg        *registrar
	ctl        *controller
	log        *slog.Logger
	stop       func()
	repository string // as the Server's

	mu    sync.Mutex
	l     *pipes
	wires []*wire // every connection that agents made
}

func newSystem(t *testing.T) *system {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.CreateCA(dir, time.Now().AddDate(-1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Server([]string{"controller-0"}, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("LINK_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return &system{
		t: t, ca: ca, cert: cert, log: log, repository: "https://:8443",
		reg: &registrar{tokens: map[string]agentlink.TokenRecord{}, revoked: map[string]bool{}},
		ctl: &controller{attached: make(chan *session, 16)},
	}
}

// start runs the controller; it ends with the test at the latest.
func (s *system) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := newPipes()
	done := make(chan error, 1)
	srv := &agentlink.Server{CA: s.ca, Certificate: s.cert, Controller: s.ctl, Registrar: s.reg, Repository: s.repository, Log: s.log}
	go func() { done <- srv.Serve(ctx, l) }()
	s.mu.Lock()
	s.l = l
	s.mu.Unlock()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Serve: %v", err)
		}
	})
	s.t.Cleanup(s.stop)
}

func (s *system) dial(ctx context.Context, _ string) (net.Conn, error) {
	s.mu.Lock()
	l := s.l
	s.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	c, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	w := newWire(c)
	s.mu.Lock()
	s.wires = append(s.wires, w)
	s.mu.Unlock()
	return w, nil
}

// last is the connection that was made last.
func (s *system) last() *wire {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wires[len(s.wires)-1]
}

// token makes a token for the host and returns its text.
func (s *system) token(name string) string {
	s.t.Helper()
	tok, rec, err := agentlink.NewToken(name, time.Hour, s.ca.Hash(), time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	s.reg.put(rec)
	return tok.String()
}

func (s *system) joinConfig(name, dir string) agentlink.JoinConfig {
	return agentlink.JoinConfig{Controllers: []string{address}, Token: s.token(name), Host: name, Dir: dir, Dial: s.dial}
}

// join makes an agent's folder with a certificate for the host.
func (s *system) join(name string) string {
	s.t.Helper()
	dir := s.t.TempDir()
	if _, err := agentlink.Join(s.t.Context(), s.joinConfig(name, dir)); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// joinedAt makes an agent's folder as if the host had joined at that time.
func (s *system) joinedAt(name string, at time.Time) string {
	s.t.Helper()
	key, err := pki.NewKey()
	must(s.t, err)
	csr, err := pki.Request(key, name)
	must(s.t, err)
	cert, err := s.ca.SignAgent(csr, name, at)
	must(s.t, err)
	dir := s.t.TempDir()
	_, err = pki.SaveIdentity(dir, name, "0123456789abcdef", s.ca.Hash(), key, cert.Raw, s.ca.Certificate().Raw, at)
	must(s.t, err)
	return dir
}

// run starts the agent's client; it ends with the test at the latest.
func (s *system) run(dir string, h *handler) (*agentlink.Client, func()) {
	s.t.Helper()
	c, err := agentlink.NewClient(agentlink.ClientConfig{Dir: dir, Controllers: []string{address}, Dial: s.dial, Log: s.log, Rand: rand.New(rand.NewPCG(1, 2)), ReportAcked: func() { h.reportAcked <- struct{}{} }})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, h) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			s.t.Errorf("Run: %v", err)
		}
	})
	s.t.Cleanup(stop)
	return c, stop
}

// registrar keeps tokens in memory.
type registrar struct {
	asked   atomic.Int64
	mu      sync.Mutex
	tokens  map[string]agentlink.TokenRecord
	revoked map[string]bool
	renewed []string
	failing error
}

func (r *registrar) put(rec agentlink.TokenRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[rec.ID] = rec
}

func (r *registrar) Redeem(_ context.Context, c agentlink.Claim) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked.Add(1)
	rec, err := r.tokens[c.Token].Redeem(c, time.Now())
	if err == nil {
		r.tokens[c.Token] = rec
	}
	return err
}

func (r *registrar) Renewed(_ context.Context, name, serial string, _ time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failing; err != nil {
		r.failing = nil
		return err
	}
	r.renewed = append(r.renewed, name+" "+serial)
	return nil
}

// fail makes the next renewal fail.
func (r *registrar) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = err
}

func (r *registrar) revoke(serial string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked[serial] = true
}

func (r *registrar) Revoked(serial string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revoked[serial]
}

// controller hands each session that attaches to the test.
type controller struct {
	attached chan *session
	refuse   error
	hold     chan struct{} // sessions hear nothing until it is closed; nil: they do
}

func (c *controller) Attach(_ context.Context, p agentlink.Peer, h agentlink.Hello) (agentlink.Session, error) {
	if c.refuse != nil {
		return nil, c.refuse
	}
	s := &session{
		peer: p, hello: h, desired: agentlink.NewLatest[agentlink.Desired](),
		heard: make(chan any, 1024), detached: make(chan error, 1), fail: make(chan error, 1), hold: c.hold,
	}
	if s.hold == nil {
		s.hold = make(chan struct{})
		close(s.hold)
	}
	c.attached <- s
	return s, nil
}

// session passes on all that it hears.
type session struct {
	peer     agentlink.Peer
	hello    agentlink.Hello
	desired  agentlink.Latest[agentlink.Desired]
	heard    chan any
	detached chan error
	fail     chan error    // an error in it is what the next call returns
	hold     chan struct{} // calls wait until it is closed
}

func (s *session) hear(ctx context.Context, v any) error {
	select {
	case <-s.hold:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-s.fail:
		return err
	default:
		s.heard <- v
		return nil
	}
}

func (s *session) Hello(ctx context.Context, h agentlink.Hello) error       { return s.hear(ctx, h) }
func (s *session) Report(ctx context.Context, r host.Report) error          { return s.hear(ctx, r) }
func (s *session) Progress(ctx context.Context, p agentlink.Progress) error { return s.hear(ctx, p) }
func (s *session) Ack(ctx context.Context, epoch uint64) error              { return s.hear(ctx, epoch) }
func (s *session) Desired() <-chan agentlink.Desired                        { return s.desired }
func (s *session) Detach(cause error)                                       { s.detached <- cause }

// handler is an agent that passes on all that it hears.
type handler struct {
	hello       chan agentlink.Hello // holds the present one
	welcome     chan agentlink.Welcome
	desired     chan agentlink.Desired
	acked       chan string
	reportAcked chan struct{}
	desiring    func(agentlink.Desired) error
}

func newHandler() *handler {
	h := &handler{
		hello: make(chan agentlink.Hello, 1), welcome: make(chan agentlink.Welcome, 1024),
		desired: make(chan agentlink.Desired, 1024), acked: make(chan string, 1024), reportAcked: make(chan struct{}, 1024),
		desiring: func(agentlink.Desired) error { return nil },
	}
	h.hello <- agentlink.Hello{Facts: host.Facts{Personality: host.Worker, Release: release, BootID: "boot-1", Agent: "test"}}
	return h
}

func (h *handler) Hello() agentlink.Hello {
	v := <-h.hello
	h.hello <- v
	return v
}

// set changes what Hello returns.
func (h *handler) set(f func(*agentlink.Hello)) {
	v := <-h.hello
	f(&v)
	h.hello <- v
}

func (h *handler) Welcome(w agentlink.Welcome) { h.welcome <- w }

func (h *handler) Desired(_ context.Context, d agentlink.Desired) error {
	if err := h.desiring(d); err != nil {
		return err
	}
	h.desired <- d
	return nil
}

func (h *handler) ProgressAcked(operation, state string) { h.acked <- operation + " " + state }

// pipes is a listener whose connections never leave the process, with buffers, so that a writer need not wait for the
// reader as with net.Pipe.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- accepted{b}:
		return a, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// accepted is the controller's end of a pipe, with addresses as of TCP.
type accepted struct{ net.Conn }

func (accepted) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5489} }
func (accepted) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 40000} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5489} }

// wire is a connection that can go silent, as when the other machine loses its power.
type wire struct {
	net.Conn
	silent chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newWire(c net.Conn) *wire {
	return &wire{Conn: c, silent: make(chan struct{}), closed: make(chan struct{})}
}

func (w *wire) Read(b []byte) (int, error) {
	for {
		n, err := w.Conn.Read(b)
		select {
		case <-w.silent:
			if err != nil { // the other side gave up; nobody here hears of it
				<-w.closed
				return 0, net.ErrClosed
			}
		default:
			return n, err
		}
	}
}

func (w *wire) Write(b []byte) (int, error) {
	select {
	case <-w.silent:
		return len(b), nil
	default:
		return w.Conn.Write(b)
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	select {
	case <-w.silent:
		return nil // the other side must not notice
	default:
		return w.Conn.Close()
	}
}

// dialled is how many connections agents made.
func (s *system) dialled() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.wires)
}

// raw is a connection with any TLS configuration, to say what no Client of ours would.
func (s *system) raw(cfg *tls.Config) *grpc.ClientConn {
	s.t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithContextDialer(s.dial), grpc.WithNoProxy())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return cc
}

// anonymous trusts the system's CA and shows no certificate.
func (s *system) anonymous() *tls.Config {
	return &tls.Config{RootCAs: s.ca.Pool(), ServerName: "192.0.2.1"}
}

// identity loads what join left in dir.
func identity(t *testing.T, dir string) *pki.Identity {
	t.Helper()
	id, err := pki.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
