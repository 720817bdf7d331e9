package agentlink

import (
	"context"
	"time"

	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
)

// renewRetry is the pause after a renewal that failed: a certificate has a month left when the first one is due.
const renewRetry = time.Hour

// renew waits until the certificate is two thirds through, replaces it, and ends the stream with errRenewed.
func (c *Client) renew(ctx context.Context, link pb.LinkClient, id *pki.Identity) error {
	wait := time.Until(pki.RenewAt(id.Certificate()))
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		next, err := renewOnce(ctx, link, id)
		if err == nil {
			c.identity.Store(next)
			c.cfg.Log.Info("certificate renewed", "until", next.Certificate().NotAfter)
			return errRenewed
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.cfg.Log.Warn("cannot renew the certificate", "until", id.Certificate().NotAfter, "err", err)
		wait = renewRetry
	}
}

func renewOnce(ctx context.Context, link pb.LinkClient, id *pki.Identity) (*pki.Identity, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := pki.Request(key, id.Host())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := link.Renew(ctx, &pb.RenewRequest{Csr: csr})
	if err != nil {
		return nil, err
	}
	return id.Renew(key, reply.GetCertificate(), time.Now())
}
