package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Election is an office that is held. Holding it is a belief: only a commit that carries the [Election.Fence] proves it.
type Election struct {
	store Store
	key   string
	won   int64 // revision that created our candidacy
}

// electionPrefix is where candidacies lie: one key per candidate, named by its lease, gone with it. The oldest one holds
// the office, so a commit that compares its creation revision fails as soon as the office is lost.
const electionPrefix = "elections/"

// Campaign blocks until the candidate is elected. The candidacy lives as long as the lease: it ends with ErrLeaseLost
// when that is lost, and is withdrawn when ctx ends. Campaigning again with the same lease continues the candidacy.
func Campaign(ctx context.Context, s Store, office, candidate string, lease Lease) (*Election, error) {
	prefix := electionPrefix + office + "/"
	key := fmt.Sprintf("%s%016x", prefix, uint64(lease))
	_, err := s.Commit(ctx, Txn{
		If:   []Compare{{Key: key}},
		Then: []Change{{Key: key, Value: []byte(candidate), Lease: lease}},
	})
	// Conflict: we stand already. Unknown: the list below tells.
	if err != nil && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnknown) {
		return nil, err
	}
	e, err := await(ctx, s, prefix, key)
	if err != nil {
		// Not to block the others until the lease expires.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if _, undoErr := s.Commit(undo, Txn{Then: []Change{{Key: key}}}); undoErr != nil && !errors.Is(undoErr, ErrClosed) {
			err = errors.Join(err, undoErr)
		}
		return nil, err
	}
	return e, nil
}

// await returns when no candidacy is older than the one under key.
func await(ctx context.Context, s Store, prefix, key string) (*Election, error) {
	for {
		items, rev, err := s.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		own, oldest := Item{}, Item{}
		for _, it := range items {
			if it.Key == key {
				own = it
			}
			if oldest.Key == "" || it.Created < oldest.Created {
				oldest = it
			}
		}
		if own.Key == "" {
			return nil, ErrLeaseLost
		}
		if own.Key == oldest.Key {
			return &Election{store: s, key: key, won: own.Created}, nil
		}
		if err := awaitDelete(ctx, s, prefix, rev); err != nil {
			return nil, err
		}
	}
}

func awaitDelete(ctx context.Context, s Store, prefix string, after int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for b := range s.Watch(ctx, prefix, after) {
		if errors.Is(b.Err, ErrCompacted) {
			return nil // the caller lists again
		}
		if b.Err != nil {
			return b.Err
		}
		for _, ev := range b.Events {
			if ev.Value == nil {
				return nil
			}
		}
	}
	return ErrClosed
}

// Holder returns who holds the office, or ErrNotFound. It may have changed when the answer arrives.
func Holder(ctx context.Context, s Store, office string) (string, error) {
	items, _, err := s.List(ctx, electionPrefix+office+"/")
	if err != nil {
		return "", err
	}
	oldest := Item{}
	for _, it := range items {
		if oldest.Key == "" || it.Created < oldest.Created {
			oldest = it
		}
	}
	if oldest.Key == "" {
		return "", ErrNotFound
	}
	return string(oldest.Value), nil
}

// Fence is the compare that makes a Commit fail with ErrConflict once the office is lost.
func (e *Election) Fence() Compare { return Compare{Key: e.key, Rev: e.won, Created: true} }

// Resign gives the office up. Resigning an office that is lost already is no error.
func (e *Election) Resign(ctx context.Context) error {
	_, err := e.store.Commit(ctx, Txn{If: []Compare{e.Fence()}, Then: []Change{{Key: e.key}}})
	if errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}
