package storetest

import (
	"context"
	"errors"
	"sync"

	"github.com/starpatch/starpatch/internal/store"
)

// ErrCrashed is what every call answers after a [Crash] has happened.
var ErrCrashed = errors.New("the process crashed here")

// Crash is a store seen by one process that dies at a chosen save: the wrapped store lives on, as the real one does, and
// the next process opens it again. It is safe for concurrent use.
//
// To prove that a crash anywhere resumes to the same end, run once with no crash to count the saves, and then once for
// every [Moment] of every save.
type Crash struct {
	store.Store
	// Before and After are called around save n (from 1); nil does nothing. Where another process is to be killed instead
	// of this view, they do it, and never return to let the commit go on.
	Before, After func(n int)

	ctx  context.Context // ended by the crash
	die  context.CancelCauseFunc
	at   int
	when Moment

	mu    sync.Mutex
	saves int
}

// Moment is where in a save the process dies.
type Moment int

// The moments. In both the caller gets no answer.
const (
	BeforeSave Moment = iota // the save did not happen
	AfterSave                // the save happened
)

// NewCrash makes a view of s that dies at the given moment of save n, counting from 1; with n = 0 it never does. The
// caller closes s itself; closing the view ends the view only.
func NewCrash(s store.Store, n int, when Moment) *Crash {
	ctx, die := context.WithCancelCause(context.Background())
	return &Crash{Store: s, ctx: ctx, die: die, at: n, when: when}
}

// Saves is the number of commits begun so far.
func (c *Crash) Saves() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.saves
}

// Crashed is closed when the process dies.
func (c *Crash) Crashed() <-chan struct{} { return c.ctx.Done() }

// Kill makes the process die now: watches end, leases are no longer kept alive.
func (c *Crash) Kill() { c.die(ErrCrashed) }

// Close ends the view, not the store.
func (c *Crash) Close() error {
	c.die(store.ErrClosed)
	return nil
}

// alive joins the life of the process to ctx.
func (c *Crash) alive(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// Get is part of [store.Store].
func (c *Crash) Get(ctx context.Context, key string) (store.Item, error) {
	if c.ctx.Err() != nil {
		return store.Item{}, context.Cause(c.ctx)
	}
	ctx, done := c.alive(ctx)
	defer done()
	return c.Store.Get(ctx, key)
}

// List is part of [store.Store].
func (c *Crash) List(ctx context.Context, prefix string) ([]store.Item, int64, error) {
	if c.ctx.Err() != nil {
		return nil, 0, context.Cause(c.ctx)
	}
	ctx, done := c.alive(ctx)
	defer done()
	return c.Store.List(ctx, prefix)
}

// Commit is part of [store.Store]. It is the only call that can be chosen to die in.
func (c *Crash) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	c.mu.Lock()
	c.saves++
	n := c.saves
	c.mu.Unlock()
	if c.Before != nil {
		c.Before(n)
	}
	if n == c.at && c.when == BeforeSave {
		c.Kill()
		return 0, ErrCrashed
	}
	// Not joined to the life of the process: a save that is under way when it dies may happen or not, as in reality.
	rev, err := c.Store.Commit(ctx, txn)
	if n == c.at && c.when == AfterSave {
		c.Kill()
	}
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	if c.After != nil {
		c.After(n)
	}
	return rev, err
}

// Watch is part of [store.Store].
func (c *Crash) Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch {
	ctx, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	return c.Store.Watch(ctx, prefix, after)
}

// Grant is part of [store.Store].
func (c *Crash) Grant(ctx context.Context, ttlSeconds int) (store.Lease, <-chan struct{}, error) {
	if c.ctx.Err() != nil {
		return 0, nil, context.Cause(c.ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	return c.Store.Grant(ctx, ttlSeconds)
}
