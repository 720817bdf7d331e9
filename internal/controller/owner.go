package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/problem"
)

// commitTimeout bounds one commit, which goes on when its caller has gone.
const commitTimeout = 30 * time.Second

// batchOps is how many changes one transaction gathers from several requests; a single request may have more.
const batchOps = store.MaxOps / 2

// batchBytes is how large such a transaction may become.
const batchBytes = store.MaxTxnBytes / 2

// change is what one decision asks to be saved: writes with the revisions that they replace, what they do to the
// snapshot, and the journal records that explain them. The empty change saves nothing.
type change struct {
	txn   store.Txn
	apply []func(s *snapshot, rev int64)
	facts []Fact
	wake  []string // hosts whose desired state changes
	all   bool     // every host's may
}

// put writes a record over the one of revision rev (0: there must be none).
func (ch *change) put(key string, rev int64, record any, set func(s *snapshot, rev int64)) error {
	value, err := encodeRecord(key, record)
	if err != nil {
		return err
	}
	ch.txn.If = append(ch.txn.If, store.Compare{Key: key, Rev: rev})
	ch.txn.Then = append(ch.txn.Then, store.Change{Key: key, Value: value})
	ch.apply = append(ch.apply, set)
	return nil
}

// remove deletes the record of revision rev.
func (ch *change) remove(key string, rev int64, set func(s *snapshot)) {
	ch.txn.If = append(ch.txn.If, store.Compare{Key: key, Rev: rev})
	ch.txn.Then = append(ch.txn.Then, store.Change{Key: key})
	ch.apply = append(ch.apply, func(s *snapshot, _ int64) { set(s) })
}

// blind writes or (value nil) deletes a record that the snapshot does not hold, whatever its revision.
func (ch *change) blind(key string, value []byte) {
	ch.txn.Then = append(ch.txn.Then, store.Change{Key: key, Value: value})
}

// unchanged makes the commit fail if the record was changed since revision rev.
func (ch *change) unchanged(key string, rev int64) {
	ch.txn.If = append(ch.txn.If, store.Compare{Key: key, Rev: rev})
}

// tell adds a journal record.
func (ch *change) tell(f Fact) { ch.facts = append(ch.facts, f) }

func (ch *change) empty() bool { return len(ch.txn.Then) == 0 && len(ch.facts) == 0 }

func (ch *change) size() int { return max(len(ch.txn.If), len(ch.txn.Then)) + len(ch.facts) }

// request is one decision on its way to the owner.
type request struct {
	ctx    context.Context
	decide func(*snapshot) (*change, error)
	done   chan error // buffered
}

// commit has the owner decide on the newest snapshot and save what comes out. When it returns nil, the next snapshot
// that anybody reads has the change. decide may be called several times, from the owner's goroutine: it only looks.
func (c *Controller) commit(ctx context.Context, decide func(*snapshot) (*change, error)) error {
	r := request{ctx, decide, make(chan error, 1)}
	select {
	case c.requests <- r:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.stopped:
		return errStopped
	}
	select {
	case err := <-r.done:
		return err
	case <-c.stopped:
		select { // the owner answers everything that it took before it stops
		case err := <-r.done:
			return err
		default:
			return errStopped
		}
	}
}

var errStopped = problem.Errorf(problem.Unavailable, "the controller is stopping; try again")

// own is the owner's loop: it alone decides changes and publishes snapshots.
func (c *Controller) own(ctx context.Context) error {
	defer close(c.stopped)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-c.requests:
			for next := &r; next != nil; {
				next = c.serve(ctx, *next)
			}
		}
	}
}

// member is one request of a batch with what it decided.
type member struct {
	request
	ch *change
}

// serve takes a request and as many waiting ones as fit into one transaction with it: a thousand reports at once cost a
// few dozen commits. It returns the one that it took and that did not fit.
func (c *Controller) serve(ctx context.Context, first request) (left *request) {
	var batch []member
	keys := map[string]bool{}
	ops, bytes := 0, 0
	tentative := c.snap.Load().next()
	take := func(r request) (again bool) {
		if r.ctx.Err() != nil {
			r.done <- context.Cause(r.ctx)
			return false
		}
		ch, err := r.decide(tentative)
		if err != nil || ch == nil || ch.empty() {
			if len(batch) > 0 && err == nil {
				batch = append(batch, member{r, &change{}}) // true only if the changes before it are saved
				return false
			}
			if len(batch) > 0 {
				return true // the refusal may rest on a change that is not saved yet
			}
			r.done <- err
			return false
		}
		if len(batch) > 0 && (ops+ch.size() > batchOps || bytes+ch.txn.Size() > batchBytes) {
			return true
		}
		for _, t := range ch.txn.Then {
			if keys[t.Key] {
				return true
			}
		}
		for _, t := range ch.txn.If {
			if keys[t.Key] {
				return true
			}
		}
		for _, t := range ch.txn.Then {
			keys[t.Key] = true
		}
		for _, f := range ch.apply {
			f(tentative, tentative.rev+1)
		}
		tentative = tentative.next()
		ops += ch.size()
		bytes += ch.txn.Size()
		batch = append(batch, member{r, ch})
		return false
	}
	take(first)
gather:
	for ops < batchOps && bytes < batchBytes {
		select {
		case r := <-c.requests:
			if take(r) {
				left = &r
				break gather
			}
		default:
			break gather
		}
	}
	c.save(ctx, batch)
	return left
}

// save commits a batch and answers its requests. After a conflict or an unknown outcome the state is read again; after a
// conflict each request is decided anew.
func (c *Controller) save(ctx context.Context, batch []member) {
	if len(batch) == 0 {
		return
	}
	answer := func(err error) {
		for _, m := range batch {
			m.done <- err
		}
	}
	var all change
	for _, m := range batch {
		all.txn.If = append(all.txn.If, m.ch.txn.If...)
		all.txn.Then = append(all.txn.Then, m.ch.txn.Then...)
		all.apply = append(all.apply, m.ch.apply...)
		all.facts = append(all.facts, m.ch.facts...)
		all.wake = append(all.wake, m.ch.wake...)
		all.all = all.all || m.ch.all
	}
	err := c.write(ctx, &all)
	if err == nil {
		answer(nil)
		return
	}
	if rerr := c.reload(ctx); rerr != nil {
		answer(errors.Join(err, rerr))
		return
	}
	if !errors.Is(err, store.ErrConflict) {
		answer(err)
		return
	}
	for _, m := range batch {
		m.done <- c.again(ctx, m.request)
	}
}

// conflicts is how often one request is decided anew before it is given up.
const conflicts = 5

// again decides and saves one request alone after a conflict.
func (c *Controller) again(ctx context.Context, r request) error {
	for range conflicts {
		ch, err := r.decide(c.snap.Load())
		if err != nil || ch == nil || ch.empty() {
			return err
		}
		err = c.write(ctx, ch)
		if err == nil {
			return nil
		}
		if rerr := c.reload(ctx); rerr != nil {
			return errors.Join(err, rerr)
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return problem.Errorf(problem.Conflict, "the state is being changed by others all the time; try again")
}

// write commits one change and publishes the snapshot that has it.
func (c *Controller) write(ctx context.Context, ch *change) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	rev, err := c.parts.Journal.Commit(ctx, ch.txn, ch.facts)
	if errors.Is(err, store.ErrNoSpace) && c.parts.Room != nil {
		c.log.Warn("the state store ran out of space; giving back what its history takes")
		if rerr := c.parts.Room.Reclaim(ctx); rerr != nil {
			return noSpace(errors.Join(err, rerr))
		}
		rev, err = c.parts.Journal.Commit(ctx, ch.txn, ch.facts)
	}
	if err != nil {
		return noSpace(err)
	}
	next := c.snap.Load().next()
	next.rev = rev
	for _, f := range ch.apply {
		f(next, rev)
	}
	c.publish(next)
	if ch.all {
		c.sessions.wakeAll(next)
	} else {
		c.sessions.wake(next, ch.wake)
	}
	return nil
}

func noSpace(err error) error {
	if errors.Is(err, store.ErrNoSpace) {
		return problem.Errorf(problem.Unavailable, "the state store is out of space; free space on the controller's disk: %w", err)
	}
	return err
}

// reload reads the whole state again.
func (c *Controller) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	s, err := load(ctx, c.parts.Store)
	if err != nil {
		return err
	}
	c.publish(s)
	c.sessions.wakeAll(s)
	return nil
}

// publish makes a snapshot the one that readers see, and wakes those that wait for a change.
func (c *Controller) publish(s *snapshot) {
	c.snap.Store(s)
	c.news.tell()
}

// load reads the state from the store.
func load(ctx context.Context, st store.Store) (*snapshot, error) {
	s := newSnapshot()
	for _, prefix := range []string{releasePrefix, patchPrefix, hostPrefix, desiredPrefix, operationPrefix, tokenPrefix, certPrefix} {
		items, rev, err := st.List(ctx, prefix)
		if err != nil {
			return nil, fmt.Errorf("cannot read the state: %w", err)
		}
		s.rev = max(s.rev, rev)
		for _, it := range items {
			if err := s.loadRecord(it); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}
