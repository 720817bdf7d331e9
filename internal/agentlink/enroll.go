package agentlink

import (
	"context"
	"time"

	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

// enrollment is the only service that callers without a certificate reach.
type enrollment struct {
	pb.UnimplementedEnrollmentServer
	*service
}

// Join hands out an agent's first certificate in exchange for a token.
func (e enrollment) Join(ctx context.Context, in *pb.JoinRequest) (*pb.JoinReply, error) {
	reply, err := e.join(ctx, in)
	return reply, toStatus(err, e.Log)
}

func (e enrollment) join(ctx context.Context, in *pb.JoinRequest) (*pb.JoinReply, error) {
	token, err := ParseToken(in.GetToken())
	if err != nil {
		return nil, err
	}
	if token.CAHash != e.CA.Hash() {
		return nil, pki.ErrOtherCA
	}
	name, err := pki.RequestName(in.GetCsr())
	if err != nil {
		return nil, err
	}
	key, err := pki.RequestKey(in.GetCsr(), name)
	if err != nil {
		return nil, err
	}
	cert, err := e.CA.SignAgent(in.GetCsr(), name, time.Now())
	if err != nil {
		return nil, err
	}
	// The certificate leaves only after the token's use is durable: one token, one key.
	claim := Claim{Token: token.ID, Secret: token.Secret, Host: name, Key: key, Serial: pki.Serial(cert), Expires: cert.NotAfter}
	if err := e.Registrar.Redeem(ctx, claim); err != nil {
		if problem.KindOf(err) != problem.Internal {
			e.Log.Warn("join refused", "host", name, "token", token.ID, "err", err)
		}
		return nil, err
	}
	e.Log.Info("agent joined", "host", name, "token", token.ID, "serial", claim.Serial)
	return &pb.JoinReply{Certificate: cert.Raw, Ca: e.CA.Certificate().Raw}, nil
}

// Renew replaces a certificate before it expires, for the same name and a new key.
func (l link) Renew(ctx context.Context, in *pb.RenewRequest) (*pb.JoinReply, error) {
	reply, err := l.renew(ctx, in)
	return reply, toStatus(err, l.Log)
}

func (l link) renew(ctx context.Context, in *pb.RenewRequest) (*pb.JoinReply, error) {
	p, err := l.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := l.CA.SignAgent(in.GetCsr(), p.Host, time.Now())
	if err != nil {
		return nil, err
	}
	if err := l.Registrar.Renewed(ctx, p.Host, pki.Serial(cert), cert.NotAfter); err != nil {
		return nil, err
	}
	l.Log.Info("agent certificate renewed", "host", p.Host, "serial", pki.Serial(cert))
	return &pb.JoinReply{Certificate: cert.Raw, Ca: l.CA.Certificate().Raw}, nil
}
