package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/starpatch/starpatch/internal/store"
)

// rewatch is how long a watch waits before it begins again after etcd ended it for no reason of ours.
const rewatch = 100 * time.Millisecond

// Watch is part of [store.Store]. A slow reader costs memory: the client keeps what it has not taken.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch {
	out := make(chan store.Batch, 1)
	ctx, done := s.join(ctx)
	if ctx.Err() != nil {
		out <- store.Batch{Err: context.Cause(ctx)}
		close(out)
		done()
		return out
	}
	s.started.Go(func() {
		defer close(out)
		defer done()
		err := s.follow(ctx, prefix, after, out)
		select {
		case <-out: // the reader is behind: what it has not taken yet makes room for the reason
		default:
		}
		out <- store.Batch{Err: err}
	})
	return out
}

// follow sends batches until it cannot go on, and returns why. When etcd ends a watch (a lost connection, a member that
// stops), it begins again after the last revision that was sent.
func (s *Store) follow(ctx context.Context, prefix string, after int64, out chan<- store.Batch) error {
	for {
		var err error
		if after, err = s.followOnce(ctx, prefix, after, out); err != nil {
			return err
		}
		pause := time.NewTimer(rewatch)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
	}
}

// followOnce returns the revision to go on after, or the error that ends the watch for good.
func (s *Store) followOnce(ctx context.Context, prefix string, after int64, out chan<- store.Batch) (int64, error) {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	// Without fragments the server never splits a revision over two responses: it cuts a long history between revisions
	// only (mvcc eventBatch). The first response would not show a revision that does not exist yet, hence after+1.
	for resp := range s.client.Watch(watch, s.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
		if err := resp.Err(); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				return after, store.ErrCompacted
			}
			if ctx.Err() != nil {
				return after, context.Cause(ctx)
			}
			s.log.Warn("the state store ended a watch; beginning again", "prefix", prefix, "after", after, "err", err)
			return after, nil
		}
		if len(resp.Events) == 0 {
			continue
		}
		batch := store.Batch{Events: make([]store.Event, 0, len(resp.Events))}
		for _, ev := range resp.Events {
			e := store.Event{Key: string(ev.Kv.Key)[len(s.prefix):], Rev: ev.Kv.ModRevision}
			if ev.Type == clientv3.EventTypePut {
				e.Value = nonNil(ev.Kv.Value)
			}
			batch.Events = append(batch.Events, e)
			batch.Rev = e.Rev
		}
		select {
		case out <- batch:
			after = batch.Rev
		case <-ctx.Done():
			return after, context.Cause(ctx)
		}
	}
	if ctx.Err() != nil {
		return after, context.Cause(ctx)
	}
	return after, nil
}
