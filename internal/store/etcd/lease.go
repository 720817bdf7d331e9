package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/starpatch/starpatch/internal/store"
)

// Grant is part of [store.Store].
func (s *Store) Grant(ctx context.Context, ttlSeconds int) (store.Lease, <-chan struct{}, error) {
	ctx, done := s.join(ctx)
	if ctx.Err() != nil {
		done()
		return 0, nil, context.Cause(ctx)
	}
	resp, err := s.client.Grant(ctx, int64(max(ttlSeconds, 2)))
	if err != nil {
		defer done()
		return 0, nil, why(ctx, err)
	}
	alive, err := s.client.KeepAlive(ctx, resp.ID)
	if err != nil {
		defer done()
		return 0, nil, why(ctx, err)
	}
	lost := make(chan struct{})
	s.started.Go(func() {
		defer done()
		defer close(lost)
		for range alive {
		}
	})
	return store.Lease(resp.ID), lost, nil
}

// Revoke is part of [store.Store].
func (s *Store) Revoke(ctx context.Context, lease store.Lease) error {
	ctx, done := s.join(ctx)
	defer done()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := s.client.Revoke(ctx, clientv3.LeaseID(lease)); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return why(ctx, err)
	}
	return nil
}
