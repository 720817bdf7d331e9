// Package agentlink connects agents with controllers: joining with a one-time token, certificates, and one bidirectional
// gRPC stream per agent over mutual TLS 1.3, which the agent opens.
//
// The stream carries revisions and facts, never commands. What a host should have and do lies in the controller's store;
// [Desired] says it whole, and the agent makes it durable before it acknowledges. What the agent says ([host.Report],
// [Progress]) is sent again after every reconnect until the controller has acknowledged that it is durable there. So a
// stream, an agent or a controller that dies in between loses nothing, and both sides treat what they hear twice as once.
//
// The host's name is the common name of the certificate and is never taken from a message: an agent can speak for its
// own host only. [Server] is the controller's side, [Client] and [Join] the agent's. A peer of another minor version is
// welcome as long as the ranges of protocol versions overlap; fields that one side does not know are ignored.
package agentlink

import (
	"context"
	"net/netip"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
)

// The protocol versions that this program speaks.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)

// The limits of what crosses the link, in bytes.
const (
	MaxMessage = 64 << 10  // one message
	MaxReport  = 256 << 10 // the JSON of one report, all parts
	MaxOutput  = 32 << 10  // the tail of the tools' output in a final Progress
	MaxDetail  = 2 << 10   // Progress.Detail
)

// Hello is what an agent says of its host and itself at the start of a stream and whenever a fact changes.
type Hello struct {
	Facts         host.Facts // Protocol is filled in by the link: the version that was chosen
	LastOperation string     // id of the last operation that the agent made durable; empty: none
	Epoch         uint64     // greatest epoch that the agent made durable; 0: none
}

// Progress says how far an operation is on its host.
type Progress struct {
	Operation string // id
	State     string // api.OperationAccepted, ...Running or a final one
	Detail    string // one sentence when it failed or was rejected
	Output    []byte // tail of the tools' output, with a final state only
}

// Final says that nothing will follow for this operation.
func (p Progress) Final() bool { return api.Operation{State: p.State}.Final() }

// Desired is everything that a host should have and do. A greater epoch replaces a smaller one; the agent refuses to go
// back. Whoever makes a Desired that differs from an earlier one gives it a greater epoch.
type Desired struct {
	Epoch        uint64
	Release      string
	Revision     int64      // generation of the update repository, 1 or more
	RepomdSHA256 string     // of that generation's repomd.xml, hexadecimal
	Operation    *Operation // nil: nothing to do but compare and report
}

// Operation is a piece of work that was asked for.
type Operation struct {
	ID            string
	Kind          string // "install"; an agent rejects kinds that it does not know
	Force         bool   // an operator's --force
	InServiceOnly bool   // nothing that needs a reboot is pending on this host, so it may stay unlocked
}

// Welcome is the controller's answer to the first Hello.
type Welcome struct {
	Protocol   int    // version chosen
	Repository string // base URL of the package repository, without trailing slash
	Controller string // address that the agent reached
}

// Peer is who stands at the other end of a stream, proven by its certificate.
type Peer struct {
	Host    string
	IP      netip.Addr // address that the connection comes from; zero if it is no IP connection
	Serial  string     // of the certificate, as pki.Serial writes it
	Expires time.Time  // end of the certificate's validity; the stream ends then
}

// Controller is what a [Server] serves. Calls for different hosts come concurrently.
type Controller interface {
	// Attach accepts the stream of a host, or refuses it with a problem that the agent shows. A host has at most one
	// session: a second stream ends the first one, and Attach comes after that one's Detach has returned.
	Attach(ctx context.Context, peer Peer, hello Hello) (Session, error)
}

// Session is the controller's end of one stream. The server calls its methods from one goroutine, one after the other,
// and Detach last. An error ends the stream; the agent reconnects and sends again what was not acknowledged, so each
// method must stand hearing the same twice.
type Session interface {
	// Hello tells that a fact of the host has changed since Attach.
	Hello(ctx context.Context, hello Hello) error
	// Report returns when the report is durable. It may be an older one than the last when the agent restarted.
	Report(ctx context.Context, report host.Report) error
	// Progress returns when the state of the operation is durable. Reports that the agent made before a final state
	// have been given to Report before.
	Progress(ctx context.Context, progress Progress) error
	// Ack tells that the agent made the Desired with this epoch durable.
	Ack(ctx context.Context, epoch uint64) error
	// Desired delivers what is to be sent; it is asked for once. To let the newest win, the sender drops what has not
	// been taken yet ([Latest] does so). Closing the channel ends the stream.
	Desired() <-chan Desired
	// Detach tells that the stream has ended, and why.
	Detach(cause error)
}

// Registrar admits agents. The controller implements it over its store; calls come concurrently.
type Registrar interface {
	// Redeem uses a token by [TokenRecord.Redeem] and commits the result, with a compare on what was read; an unknown
	// token is [ErrToken]. The certificate is handed out after it returned nil.
	Redeem(ctx context.Context, claim Claim) error
	// Renewed records the certificate that is about to replace the host's present one.
	Renewed(ctx context.Context, host, serial string, expires time.Time) error
	// Revoked says whether the certificate with this serial, as pki.Serial writes it, is on the deny list.
	Revoked(serial string) bool
}

// Latest is a channel with room for one in which the newest value wins. One goroutine puts.
type Latest[T any] chan T

// NewLatest makes an empty Latest.
func NewLatest[T any]() Latest[T] { return make(Latest[T], 1) }

// Put leaves v for the reader and drops what was not taken yet. It never blocks.
func (l Latest[T]) Put(v T) {
	select {
	case <-l:
	default:
	}
	l <- v
}
