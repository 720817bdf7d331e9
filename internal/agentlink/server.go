package agentlink

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

const (
	// bufferSize of each connection's reads and writes: messages are small and connections many.
	bufferSize = 4 << 10
	// pingAfter and pingTimeout: a silent agent is asked after the one and given up after the other, so that a host
	// that lost its power is noticed within 5 seconds.
	pingAfter   = 3 * time.Second
	pingTimeout = 2 * time.Second
	// handshakeTimeout is what a new connection has for TLS and the HTTP/2 preface.
	handshakeTimeout = 10 * time.Second
	// helloTimeout is what a new stream has for its first message.
	helloTimeout = 10 * time.Second
	// maxHandshakes is how many TLS handshakes run at once; when thousands of agents come back together the others
	// wait for their turn instead of timing out all at once.
	maxHandshakes = 64
)

// Server is the controller's side of the agent link. Set the exported fields before Serve.
type Server struct {
	CA          *pki.CA
	Certificate *pki.Server
	Controller  Controller
	Registrar   Registrar
	// Repository is the base URL of the package repository that agents are told, without trailing slash. Without a host
	// (https://:8443), or with the unspecified address, each agent is told the address by which it reached this controller.
	Repository string
	Log        *slog.Logger
}

// Serve answers agents on l, which it closes, until ctx ends; then it ends all streams and returns nil after every
// session has been detached. It returns earlier only with the listener's error. A Server serves once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	svc := &service{Server: s, ctx: ctx, streams: map[string]*attached{}}
	// Revoked certificates are refused by each call and not in the handshake, so that the agent can log why.
	tc := credentials.NewTLS(s.Certificate.ServerTLS(tls.VerifyClientCertIfGiven, nil))
	g := grpc.NewServer(
		grpc.Creds(&turnstile{TransportCredentials: tc, slots: make(chan struct{}, maxHandshakes)}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize),
		grpc.StaticStreamWindowSize(MaxMessage), grpc.StaticConnWindowSize(2*MaxMessage),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxHeaderListSize(8<<10), grpc.MaxConcurrentStreams(4),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: clientPingAfter / 2, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	pb.RegisterEnrollmentServer(g, enrollment{service: svc})
	pb.RegisterLinkServer(g, link{service: svc})

	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	var err error
	select {
	case <-ctx.Done():
		g.Stop()
		<-served // nil after Stop
	case err = <-served:
		cancel(err)
		g.Stop()
	}
	svc.receivers.Wait()
	return err
}

// turnstile lets a limited number of TLS handshakes run at once.
type turnstile struct {
	credentials.TransportCredentials
	slots chan struct{}
}

func (t *turnstile) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// Waiting for a turn counts as part of handshakeTimeout, which gRPC has set as the connection's deadline; whoever
	// times out while waiting fails at once below.
	t.slots <- struct{}{}
	defer func() { <-t.slots }()
	return t.TransportCredentials.ServerHandshake(c)
}

func (t *turnstile) Clone() credentials.TransportCredentials {
	return &turnstile{TransportCredentials: t.TransportCredentials.Clone(), slots: t.slots}
}

// service is one run of a Server.
type service struct {
	*Server
	ctx       context.Context // of Serve: ends all streams
	receivers sync.WaitGroup

	mu      sync.Mutex
	streams map[string]*attached // by host
}

// authenticate returns the agent that a call comes from.
func (s *service) authenticate(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, errors.New("internal error: call without peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{}, errors.New("internal error: call without TLS")
	}
	name, err := pki.Agent(info.State)
	if err != nil {
		return Peer{}, err
	}
	cert := info.State.PeerCertificates[0]
	out := Peer{Host: name, IP: addrOf(p.Addr), Serial: pki.Serial(cert), Expires: cert.NotAfter}
	if s.Registrar.Revoked(out.Serial) {
		return Peer{}, problem.Errorf(problem.Forbidden, "the certificate of %s has been revoked; to bring the host back, create a join token for it and give it to the agent", name)
	}
	// The handshake checked this too, but a connection may be older than its certificate.
	if !time.Now().Before(out.Expires) {
		return Peer{}, errExpired(out)
	}
	return out, nil
}

func errExpired(p Peer) error {
	return problem.Errorf(problem.Unauthorized, "the certificate of %s expired at %s", p.Host, p.Expires.UTC().Format(time.RFC3339))
}

// addrOf is the IP address of a, or the zero Addr.
func addrOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return t.AddrPort().Addr().Unmap()
}

// repositoryFor fills in the address by which the agent reached us, when the URL has none.
func (s *service) repositoryFor(ctx context.Context) (string, error) {
	u, err := url.Parse(s.Repository)
	if err != nil {
		return "", err
	}
	if a, err := netip.ParseAddr(u.Hostname()); u.Hostname() != "" && (err != nil || !a.IsUnspecified()) {
		return s.Repository, nil
	}
	p, _ := peer.FromContext(ctx)
	if p == nil || !addrOf(p.LocalAddr).IsValid() {
		return "", errors.New("internal error: the agent's connection has no IP address to complete the repository URL with")
	}
	u.Host = net.JoinHostPort(addrOf(p.LocalAddr).String(), u.Port())
	return u.String(), nil
}
