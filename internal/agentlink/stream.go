package agentlink

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/problem"
)

// link serves agents that have joined.
type link struct {
	pb.UnimplementedLinkServer
	*service
}

type serverStream = grpc.BidiStreamingServer[pb.AgentMessage, pb.ControllerMessage]

// attached is a stream that holds its host.
type attached struct {
	end  context.CancelCauseFunc
	gone chan struct{} // closed after Detach
}

// received is what one Recv returned.
type received struct {
	msg *pb.AgentMessage
	err error
}

// errSilent ends a stream that says nothing.
var errSilent error = &problem.Error{Kind: problem.Invalid, Msg: "the agent opened a stream and sent no hello"}

// Connect is the life of one stream.
func (l link) Connect(stream serverStream) error {
	p, err := l.authenticate(stream.Context())
	if err != nil {
		return toStatus(err, l.Log)
	}
	return toStatus(l.connect(stream, p), l.Log.With("host", p.Host))
}

func (l link) connect(stream serverStream, p Peer) error {
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	defer context.AfterFunc(l.ctx, func() { end(context.Cause(l.ctx)) })()
	expiry := time.AfterFunc(time.Until(p.Expires), func() { end(errExpired(p)) })
	defer expiry.Stop()

	// Recv can be interrupted only by the end of the stream, that is by returning from here. So this goroutine
	// outlives Connect a little, and Serve waits for it.
	in := make(chan received)
	l.receivers.Go(func() {
		for {
			m, err := stream.Recv()
			select {
			case in <- received{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})

	hello, err := awaitHello(ctx, in)
	if err != nil {
		return l.refused(p, err)
	}
	release, err := l.take(ctx, p.Host, end)
	if err != nil {
		return err
	}
	defer release()
	session, err := l.Controller.Attach(ctx, p, hello)
	if err != nil {
		return l.refused(p, err)
	}
	err = l.serve(ctx, stream, session, hello, in)
	session.Detach(err)
	return err
}

// refused logs that an agent with a good certificate was not let in; what happens to a session its owner logs.
func (l link) refused(p Peer, err error) error {
	if problem.KindOf(err) != problem.Internal {
		l.Log.Warn("agent refused", "host", p.Host, "from", p.IP, "err", err)
	}
	return err
}

func awaitHello(ctx context.Context, in <-chan received) (Hello, error) {
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case r := <-in:
		if r.err != nil {
			return Hello{}, r.err
		}
		m := r.msg.GetHello()
		if m == nil {
			return Hello{}, problem.Errorf(problem.Invalid, "the first message of a stream must be a hello")
		}
		return parseHello(m)
	case <-timer.C:
		return Hello{}, errSilent
	case <-ctx.Done():
		return Hello{}, context.Cause(ctx)
	}
}

// take makes this stream the one of its host: it ends the one before and waits until that has been detached.
func (l link) take(ctx context.Context, host string, end context.CancelCauseFunc) (release func(), err error) {
	me := &attached{end: end, gone: make(chan struct{})}
	for {
		l.mu.Lock()
		old := l.streams[host]
		if old == nil {
			l.streams[host] = me
		}
		l.mu.Unlock()
		if old == nil {
			return func() {
				l.mu.Lock()
				delete(l.streams, host)
				l.mu.Unlock()
				close(me.gone)
			}, nil
		}
		old.end(errReplaced)
		select {
		case <-old.gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// serve moves messages until the stream ends. All calls of the session and all sends are made here, one at a time: an
// acknowledgement can therefore never overtake what it acknowledges, and a slow controller slows its agent down.
func (l link) serve(ctx context.Context, stream serverStream, session Session, hello Hello, in <-chan received) error {
	repository, err := l.repositoryFor(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.ControllerMessage{Kind: &pb.ControllerMessage_Welcome{Welcome: &pb.Welcome{
		Protocol: uint32(hello.Facts.Protocol), Repository: repository,
	}}}); err != nil {
		return err
	}
	desired := session.Desired()
	var reports assembler
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case r := <-in:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			reply, err := hear(ctx, session, &reports, r.msg)
			if err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
			if reply != nil {
				if err := stream.Send(reply); err != nil {
					return err
				}
			}
		case d, ok := <-desired:
			if !ok {
				return problem.Errorf(problem.Unavailable, "the controller ended the session")
			}
			if err := d.check(); err != nil {
				return err
			}
			if err := stream.Send(&pb.ControllerMessage{Kind: &pb.ControllerMessage_Desired{Desired: d.wire()}}); err != nil {
				return err
			}
		}
	}
}

// hear gives one message to the session and returns the acknowledgement to send, if any.
func hear(ctx context.Context, session Session, reports *assembler, m *pb.AgentMessage) (*pb.ControllerMessage, error) {
	switch k := m.GetKind().(type) {
	case *pb.AgentMessage_Hello:
		h, err := parseHello(k.Hello)
		if err != nil {
			return nil, err
		}
		return nil, session.Hello(ctx, h)
	case *pb.AgentMessage_Report:
		r, whole, err := reports.add(k.Report)
		if err != nil || !whole {
			return nil, err
		}
		if err := session.Report(ctx, r); err != nil {
			return nil, err
		}
		return &pb.ControllerMessage{Kind: &pb.ControllerMessage_ReportAck{ReportAck: &pb.ReportAck{Number: k.Report.GetNumber()}}}, nil
	case *pb.AgentMessage_Progress:
		p, err := parseProgress(k.Progress)
		if err != nil {
			return nil, err
		}
		if err := session.Progress(ctx, p); err != nil {
			return nil, err
		}
		return &pb.ControllerMessage{Kind: &pb.ControllerMessage_ProgressAck{ProgressAck: &pb.ProgressAck{Operation: p.Operation, State: p.State}}}, nil
	case *pb.AgentMessage_Ack:
		return nil, session.Ack(ctx, k.Ack.GetEpoch())
	}
	return nil, nil // a kind that a newer agent knows and that did not change the protocol version
}
