package mem

import (
	"context"
	"strings"

	"github.com/starpatch/starpatch/internal/store"
)

// Watch is part of [store.Store].
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch {
	out := make(chan store.Batch, 1)
	if err := s.enter(ctx); err != nil {
		out <- store.Batch{Err: err}
		close(out)
		return out
	}
	defer s.mu.Unlock()
	s.started.Go(func() {
		defer close(out)
		err := s.follow(ctx, prefix, after, out)
		select {
		case <-out: // the reader is behind: what it has not taken yet makes room for the reason
		default:
		}
		out <- store.Batch{Err: err}
	})
	return out
}

// follow sends batches until it cannot go on, and returns why.
func (s *Store) follow(ctx context.Context, prefix string, after int64, out chan<- store.Batch) error {
	for {
		batch, changed, err := s.since(ctx, prefix, after)
		if err != nil {
			return err
		}
		if len(batch.Events) > 0 {
			select {
			case out <- batch:
			case <-s.closed:
				return store.ErrClosed
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		after = max(after, batch.Rev)
		select {
		case <-changed:
		case <-s.closed:
			return store.ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// since collects what happened under prefix after a revision, and returns the channel that the next commit closes.
func (s *Store) since(ctx context.Context, prefix string, after int64) (store.Batch, <-chan struct{}, error) {
	if err := s.enter(ctx); err != nil {
		return store.Batch{}, nil, err
	}
	defer s.mu.Unlock()
	if after < s.compacted {
		return store.Batch{}, nil, store.ErrCompacted
	}
	batch := store.Batch{Rev: s.rev}
	for _, ev := range s.history[s.after(after):] {
		if strings.HasPrefix(ev.Key, prefix) {
			batch.Events = append(batch.Events, ev)
		}
	}
	return batch, s.changed, nil
}
