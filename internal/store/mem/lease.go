package mem

import (
	"context"
	"time"

	"github.com/starpatch/starpatch/internal/store"
)

// Grant is part of [store.Store].
func (s *Store) Grant(ctx context.Context, ttlSeconds int) (store.Lease, <-chan struct{}, error) {
	if err := s.enter(ctx); err != nil {
		return 0, nil, err
	}
	defer s.mu.Unlock()
	s.lastLease++
	lease, gone, lost := s.lastLease, make(chan struct{}), make(chan struct{})
	s.leases[lease] = gone
	s.started.Go(func() {
		func() {
			defer close(lost)
			select {
			case <-ctx.Done(): // no longer kept alive
			case <-gone:
			case <-s.closed:
			}
		}()
		expiry := time.NewTimer(time.Duration(max(ttlSeconds, 2)) * time.Second)
		defer expiry.Stop()
		select {
		case <-expiry.C:
			s.revoke(lease)
		case <-gone:
		case <-s.closed:
		}
	})
	return lease, lost, nil
}

// Revoke is part of [store.Store].
func (s *Store) Revoke(ctx context.Context, lease store.Lease) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	s.mu.Unlock()
	s.revoke(lease)
	return nil
}

func (s *Store) revoke(lease store.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone, ok := s.leases[lease]
	if !ok {
		return
	}
	delete(s.leases, lease)
	close(gone)
	var changes []store.Change
	for _, it := range s.items {
		if it.lease == lease {
			changes = append(changes, store.Change{Key: it.Key})
		}
	}
	s.apply(changes)
}
