package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// Caller is who sent a request.
type Caller struct {
	Name string // for the journal: "uid 0", "loopback", a host name
	Role Role
}

// Access tells the caller of a request; the zero Caller is nobody known.
type Access func(*http.Request) Caller

type callerKey struct{}

func callerOf(r *http.Request) Caller {
	c, ok := r.Context().Value(callerKey{}).(Caller)
	if !ok {
		return Caller{}
	}
	return c
}

// admit refuses a caller who is too small for a route.
func admit(c Caller, need Role) error {
	switch {
	case need == Open, need == Agent && c.Role == Agent, need != Agent && c.Role != Agent && c.Role >= need:
		return nil
	case c.Role == Open:
		return problem.Errorf(problem.Unauthorized, "this request needs to be authenticated")
	case c.Role == Local:
		return problem.Errorf(problem.Forbidden, "%s may only query, query-hosts and what-requires here; run the command as root", c.Name)
	}
	return problem.Errorf(problem.Forbidden, "%s may not do this", c.Name)
}

// Loopback is the access of the token-less compatibility port: whoever reaches it is admin, as with the original. It is
// open only when the configuration says so.
func Loopback(*http.Request) Caller { return Caller{Name: "loopback", Role: Admin} }

// Certificate is the access of the repository: the caller is the host that the client certificate names, as identify
// finds in the connection; nobody if there is none.
func Certificate(identify func(tls.ConnectionState) (string, error)) Access {
	return func(r *http.Request) Caller {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			return Caller{}
		}
		name, err := identify(*r.TLS)
		if err != nil {
			return Caller{}
		}
		return Caller{Name: name, Role: Agent}
	}
}

type peerKey struct{}

// ConnContext is for the http.Server of a unix socket: it notes who opened the connection, as the kernel knows it.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	uid, ok := PeerUID(c)
	if !ok {
		return ctx // nobody known: every route but the open ones is refused
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

// PeerUID is the user at the other end of a unix socket, as the kernel knows it.
func PeerUID(c net.Conn) (uid uint32, ok bool) {
	u, ok := c.(syscall.Conn)
	if !ok || c.LocalAddr().Network() != "unix" {
		return 0, false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || credErr != nil {
		return 0, false
	}
	return cred.Uid, true
}

// Peer is the access of the unix socket: uid 0 is admin, every other user may look at a few things.
func Peer(r *http.Request) Caller {
	uid, ok := r.Context().Value(peerKey{}).(uint32)
	if !ok {
		return Caller{}
	}
	if uid == 0 {
		return Caller{Name: "uid 0", Role: Admin}
	}
	return Caller{Name: fmt.Sprintf("uid %d", uid), Role: Local}
}
