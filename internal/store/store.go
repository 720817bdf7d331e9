// Package store is the contract of the state store: a small ordered key space with revisions, atomic commits that
// compare before they write, watches that miss nothing, and leases for elections. Two implementations pass the same
// suite (storetest): store/etcd for real and store/mem for tests and the simulator. No other package knows etcd.
//
// Keys are slash-separated paths without a leading slash. Values are at most 1 MiB. Every commit has a revision; revisions
// grow by at least one per commit and are shared by all keys. The first commit of a new store has a revision above 1.
//
// Save, then act: read, decide, and put what was read into the If of the commit that saves the decision. ErrConflict then
// means read and decide again. [ErrUnknown] means that nobody can say yet whether the commit happened: read again, and
// never just repeat it (internal/journal resolves it for its callers).
//
// Byte slices that a store returns are shared: do not change them. Those given to Commit may be reused after it returned.
package store

import (
	"context"
	"errors"
)

// The errors that callers test for with errors.Is. Anything else is the environment failing before the commit was tried:
// it has no effect.
var (
	ErrNotFound  = errors.New("key not found")
	ErrConflict  = errors.New("the state changed since it was read")
	ErrCompacted = errors.New("the revision asked for has been compacted")
	ErrClosed    = errors.New("the store is closed")
	ErrNoSpace   = errors.New("the store is out of space")
	ErrLeaseLost = errors.New("the lease has expired")
	ErrTooLarge  = errors.New("more than the store takes at once")
	ErrUnknown   = errors.New("it is not known whether the commit happened")
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

// Txn is committed whole or not at all. Without changes it only checks its compares. [Txn.Check] says what is accepted.
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
	Rev    int64 // all changes up to and including Rev have been delivered; 0 with Err
	Err    error // ErrCompacted, ErrClosed or the context's cause; always the last batch before the channel is closed
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
	// ErrConflict, ErrNoSpace, ErrTooLarge, ErrLeaseLost with nothing changed. ErrUnknown: it may have happened, or may
	// still happen.
	Commit(ctx context.Context, txn Txn) (int64, error)
	// Watch delivers every change under prefix with a revision greater than after (which may lie in the future). Read
	// the channel until it is closed, or cancel ctx; a slow reader is delayed, never skipped. To resume, watch again
	// after the Rev of the last batch.
	Watch(ctx context.Context, prefix string, after int64) <-chan Batch
	// Grant makes a lease that is kept alive until ctx ends or Close, and then expires within about ttlSeconds (2 at
	// least). The channel is closed when the lease is lost or no longer kept alive.
	Grant(ctx context.Context, ttlSeconds int) (Lease, <-chan struct{}, error)
	// Revoke ends the lease and deletes its keys, in one commit. Revoking a lease that is gone is no error.
	Revoke(ctx context.Context, lease Lease) error
	// Close releases everything and waits for what it started; calls in flight end with ErrClosed, commits perhaps with
	// ErrUnknown. Closing twice is no error.
	Close() error
}
