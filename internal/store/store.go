// Package store is the contract of the state store: a small ordered key space with revisions, atomic commits that
// compare before they write, watches that miss nothing, and leases for elections. Two implementations pass the same
// suite (storetest): store/etcd for real and store/mem for tests and the simulator. No other package knows etcd.
//
// Keys are slash-separated paths without a leading slash. Values are at most 1 MiB. Every commit has a revision; revisions
// grow by at least one per commit and are shared by all keys.
package store

import (
	"context"
	"errors"
)

// The errors that callers test for. Anything else is the environment failing.
var (
	ErrNotFound  = errors.New("key not found")
	ErrConflict  = errors.New("the state changed since it was read")
	ErrCompacted = errors.New("the revision asked for has been compacted")
	ErrClosed    = errors.New("the store is closed")
	ErrNoSpace   = errors.New("the store is out of space")
	ErrLeaseLost = errors.New("the lease has expired")
)

// MaxValue is the largest value, in bytes, that a Commit takes; MaxOps the most operations (compares and changes each).
const (
	MaxValue = 1 << 20
	MaxOps   = 120
)

// Item is one key as of the revision it was read at.
type Item struct {
	Key     string
	Value   []byte
	Created int64 // revision that created the key
	Rev     int64 // revision of its last change
}

// Compare is a condition of a Commit: the key was last changed at Rev. Rev 0 means that the key does not exist.
// With Created set, the key's creation revision is compared instead (fencing on an election key).
type Compare struct {
	Key     string
	Rev     int64
	Created bool
}

// Change is one write of a Commit. A nil Value deletes the key; an empty, non-nil Value stores an empty value.
type Change struct {
	Key   string
	Value []byte
	Lease Lease // the key vanishes with this lease; 0: it stays
}

// Txn is committed whole or not at all.
type Txn struct {
	If   []Compare
	Then []Change
}

// Event is one change that a watch saw, in order of revisions. Value nil means deleted.
type Event struct {
	Key   string
	Value []byte
	Rev   int64
}

// Batch is every event of one or more whole revisions, or the error that ended the watch. A revision is never split.
type Batch struct {
	Events []Event
	Rev    int64 // all changes up to and including Rev have been delivered
	Err    error // ErrCompacted, ErrClosed or the context's cause; the channel is closed after it
}

// Lease is a lease's identity; 0 is none.
type Lease int64

// Store is safe for concurrent use. Every method returns promptly after ctx ends.
type Store interface {
	// Get returns the item at a linearizable revision, or ErrNotFound.
	Get(ctx context.Context, key string) (Item, error)
	// List returns every item whose key starts with prefix, sorted by key, and the revision of the snapshot.
	List(ctx context.Context, prefix string) ([]Item, int64, error)
	// Commit checks all compares and applies all changes atomically and durably; it returns the new revision, or
	// ErrConflict with nothing changed. After an error of the environment the outcome is unknown: read again.
	Commit(ctx context.Context, txn Txn) (int64, error)
	// Watch delivers every change under prefix with a revision greater than after. Read the channel until it is closed
	// or cancel ctx; a slow reader is delayed, never skipped.
	Watch(ctx context.Context, prefix string, after int64) <-chan Batch
	// Grant makes a lease that is kept alive until ctx ends or Close, and expires at most ttlSeconds after the holder died.
	// The channel is closed when the lease is lost.
	Grant(ctx context.Context, ttlSeconds int) (Lease, <-chan struct{}, error)
	// Revoke ends the lease and deletes its keys.
	Revoke(ctx context.Context, lease Lease) error
	// Campaign blocks until this candidate is elected under the name, and returns the election key to fence writes with.
	Campaign(ctx context.Context, election, candidate string, lease Lease) (Election, error)
	// Close releases everything; commits in flight end with ErrClosed.
	Close() error
}

// Election is an office that is held.
type Election interface {
	// Fence is the compare that makes a Commit fail with ErrConflict once the office is lost.
	Fence() Compare
	// Resign gives the office up.
	Resign(ctx context.Context) error
}
