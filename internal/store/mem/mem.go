// Package mem is a state store in memory, for tests and the simulator. It passes the same suite as the real one and keeps
// its promises about order, atomicity and leases; durability it has none. It keeps the history of all changes until
// [Store.Compact], so that a watch can start anywhere.
package mem

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/starpatch/starpatch/internal/store"
)

// Store is a [store.Store]. Make it with [New].
type Store struct {
	closed  chan struct{}
	started sync.WaitGroup // watches and leases

	mu        sync.Mutex
	items     []item // sorted by key
	rev       int64
	compacted int64         // history up to and including this revision is gone
	history   []store.Event // by revision
	changed   chan struct{} // closed and replaced by every commit
	leases    map[store.Lease]chan struct{}
	lastLease store.Lease
}

type item struct {
	store.Item
	lease store.Lease
}

var _ store.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store {
	return &Store{
		rev:     1, // as in etcd, where the first commit is 2
		closed:  make(chan struct{}),
		changed: make(chan struct{}),
		leases:  map[store.Lease]chan struct{}{},
	}
}

// enter locks the store, unless it is closed or ctx has ended.
func (s *Store) enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	select {
	case <-s.closed:
		s.mu.Unlock()
		return store.ErrClosed
	default:
		return nil
	}
}

func (s *Store) find(key string) (int, bool) {
	return slices.BinarySearchFunc(s.items, key, func(it item, key string) int { return strings.Compare(it.Key, key) })
}

// Get is part of [store.Store].
func (s *Store) Get(ctx context.Context, key string) (store.Item, error) {
	if err := s.enter(ctx); err != nil {
		return store.Item{}, err
	}
	defer s.mu.Unlock()
	i, ok := s.find(key)
	if !ok {
		return store.Item{}, store.ErrNotFound
	}
	return s.items[i].Item, nil
}

// List is part of [store.Store].
func (s *Store) List(ctx context.Context, prefix string) ([]store.Item, int64, error) {
	if err := s.enter(ctx); err != nil {
		return nil, 0, err
	}
	defer s.mu.Unlock()
	var out []store.Item
	for i, _ := s.find(prefix); i < len(s.items) && strings.HasPrefix(s.items[i].Key, prefix); i++ {
		out = append(out, s.items[i].Item)
	}
	return out, s.rev, nil
}

// Commit is part of [store.Store].
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Check(); err != nil {
		return 0, err
	}
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	for _, c := range txn.If {
		var now store.Item
		if i, ok := s.find(c.Key); ok {
			now = s.items[i].Item
		}
		if c.Created && now.Created != c.Rev || !c.Created && now.Rev != c.Rev {
			return 0, store.ErrConflict
		}
	}
	for _, c := range txn.Then {
		if _, ok := s.leases[c.Lease]; c.Value != nil && c.Lease != 0 && !ok {
			return 0, store.ErrLeaseLost
		}
	}
	return s.apply(txn.Then), nil
}

// apply makes the changes in one revision. Deleting what is not there is no change, and no change makes no revision.
func (s *Store) apply(changes []store.Change) int64 {
	before, rev := len(s.history), s.rev+1
	for _, c := range changes {
		i, ok := s.find(c.Key)
		if c.Value == nil {
			if ok {
				s.items = slices.Delete(s.items, i, i+1)
				s.history = append(s.history, store.Event{Key: c.Key, Rev: rev})
			}
			continue
		}
		if !ok {
			s.items = slices.Insert(s.items, i, item{Item: store.Item{Key: c.Key, Created: rev}})
		}
		it := &s.items[i]
		it.Value, it.Rev, it.lease = append([]byte{}, c.Value...), rev, c.Lease
		s.history = append(s.history, store.Event{Key: c.Key, Value: it.Value, Rev: rev})
	}
	if len(s.history) > before {
		s.rev = rev
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return s.rev
}

// Compact forgets the history up to and including rev: watches that would need it end with ErrCompacted.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if rev <= s.compacted || rev > s.rev {
		return store.ErrCompacted
	}
	s.compacted = rev
	s.history = slices.Clone(s.history[s.after(rev):])
	return nil
}

// after is the place in the history of the first event after rev.
func (s *Store) after(rev int64) int {
	i, _ := slices.BinarySearchFunc(s.history, rev+1, func(ev store.Event, rev int64) int { return int(ev.Rev - rev) })
	return i
}

// Close is part of [store.Store].
func (s *Store) Close() error {
	s.mu.Lock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	s.mu.Unlock()
	s.started.Wait()
	return nil
}
