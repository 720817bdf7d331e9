package agentlink

import (
	"context"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/starpatch/starpatch/host"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

const (
	// clientPingAfter and clientPingTimeout: how an agent notices a controller that is gone without a word. gRPC does
	// not let clients ask more often than every 10 seconds.
	clientPingAfter   = 10 * time.Second
	clientPingTimeout = 3 * time.Second
	// connectTimeout is for TCP, TLS and HTTP/2 together; it includes the wait for a turn at a busy controller.
	connectTimeout = 10 * time.Second
	// callTimeout is for Join and Renew.
	callTimeout = 20 * time.Second
)

// Dialer opens the connection to a controller. Tests replace it; nil in a configuration means TCP.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// DialFrom is the Dialer for TCP from the given local address; the zero address leaves the choice to the kernel.
func DialFrom(local netip.Addr) Dialer {
	return func(ctx context.Context, address string) (net.Conn, error) {
		var d net.Dialer
		if local.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
		}
		return d.DialContext(ctx, "tcp", address)
	}
}

// JoinConfig says how a host joins a system.
type JoinConfig struct {
	Controllers []string // host:port of each; tried in turn
	Token       string   // as the operator got it
	Host        string   // this host's name; must be the token's
	Dir         string   // where key and certificates are kept
	Dial        Dialer   // nil: TCP from any address
}

// Join makes this host an agent's host: it checks that a controller has the CA that the token names, before anything is
// sent, asks for a certificate and makes it durable. It may be repeated after any failure; the same token lets the same
// key in again as long as it is valid. A host that has joined before gets a new identity. An error of kind unavailable is worth a retry, others need an operator.
func Join(ctx context.Context, cfg JoinConfig) (*pki.Identity, error) {
	if err := host.CheckName(cfg.Host); err != nil {
		return nil, err
	}
	token, err := ParseToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	if len(cfg.Controllers) == 0 {
		return nil, problem.Errorf(problem.Invalid, "cannot join: no controller is configured")
	}
	var last error
	for _, c := range cfg.Controllers {
		id, err := joinAt(ctx, cfg, c, token)
		if err == nil {
			return id, nil
		}
		if problem.KindOf(err) != problem.Unavailable {
			return nil, err
		}
		last = err
	}
	return nil, last
}

// NeedsJoin says whether the token asks for a join: the host has no identity yet, or one that was got with another token,
// which an operator replaced because the certificate had been revoked or had expired.
func NeedsJoin(dir, token string) (bool, error) {
	t, err := ParseToken(token)
	if err != nil {
		return false, err
	}
	joined, err := pki.JoinedWith(dir, t.ID)
	return !joined, err
}

func joinAt(ctx context.Context, cfg JoinConfig, controller string, token Token) (*pki.Identity, error) {
	name, _, err := net.SplitHostPort(controller)
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "%q is not the address of a controller; expected host:port", controller)
	}
	key, err := pki.JoiningKey(cfg.Dir)
	if err != nil {
		return nil, err
	}
	csr, err := pki.Request(key, cfg.Host)
	if err != nil {
		return nil, err
	}
	conn, err := connection(controller, credentials.NewTLS(pki.Pinned(token.CAHash, name)), cfg.Dial)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := pb.NewEnrollmentClient(conn).Join(ctx, &pb.JoinRequest{Token: token.String(), Csr: csr})
	if err != nil {
		return nil, fromStatus(err, controller)
	}
	return pki.SaveIdentity(cfg.Dir, cfg.Host, token.ID, token.CAHash, key, reply.GetCertificate(), reply.GetCa(), time.Now())
}

// connection is one attempt: calls fail as soon as it cannot be made, and the caller decides when to make the next.
func connection(controller string, creds credentials.TransportCredentials, dial Dialer) (*grpc.ClientConn, error) {
	if dial == nil {
		dial = DialFrom(netip.Addr{})
	}
	return grpc.NewClient("passthrough:///"+controller,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dial), grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Minute, Multiplier: 1, MaxDelay: time.Minute}, MinConnectTimeout: connectTimeout}),
		grpc.WithReadBufferSize(bufferSize), grpc.WithWriteBufferSize(bufferSize),
		grpc.WithStaticStreamWindowSize(MaxMessage), grpc.WithStaticConnWindowSize(2*MaxMessage),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientPingAfter, Timeout: clientPingTimeout}),
	)
}
