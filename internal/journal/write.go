package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/starpatch/starpatch/internal/store"
)

// group is what is saved in one transaction: requests of which none touches a key that an earlier one changes, so that
// saving them at once is the same as saving them one after the other.
type group struct {
	requests []*request
	compares int
	changes  int
	bytes    int
	changed  map[string]bool
}

// reserve is what the head takes of a transaction.
var reserve = store.Compare{}.Size() + store.Change{}.Size() + 2*store.MaxKey + 200

// fits tells whether the request can join. An empty group refuses only what the store would refuse.
func (g *group) fits(r *request) bool {
	if g.compares+len(r.txn.If) > store.MaxOps-1 || g.changes+r.changes > store.MaxOps-1 || g.bytes+r.bytes > store.MaxTxnBytes-reserve {
		return false
	}
	for _, c := range r.txn.If {
		if g.changed[c.Key] {
			return false
		}
	}
	for _, c := range r.txn.Then {
		if g.changed[c.Key] {
			return false
		}
	}
	return true
}

func (g *group) add(r *request) {
	g.requests = append(g.requests, r)
	g.compares += len(r.txn.If)
	g.changes += r.changes
	g.bytes += r.bytes
	if g.changed == nil {
		g.changed = map[string]bool{}
	}
	for _, c := range r.txn.Then {
		g.changed[c.Key] = true
	}
}

// groupOf is a group of requests that have stood in one already.
func groupOf(requests []*request) *group {
	g := &group{}
	for _, r := range requests {
		g.add(r)
	}
	return g
}

// write is the goroutine that owns the head: it saves groups, one after the other, until the journal closes.
func (j *Journal) write() {
	var next *request // did not fit into the last group
	for {
		g := &group{}
		if next == nil {
			select {
			case next = <-j.requests:
			case <-j.quit:
				j.turnAway()
				return
			}
		}
		for next != nil && g.fits(next) {
			if next.taken.CompareAndSwap(false, true) { // else its caller has gone
				g.add(next)
			}
			select {
			case next = <-j.requests:
			default:
				next = nil
			}
		}
		if len(g.requests) > 0 {
			j.save(g)
			j.wishMove()
		}
	}
}

// turnAway answers what was queued when the journal closed.
func (j *Journal) turnAway() {
	for {
		select {
		case r := <-j.requests:
			r.done <- answer{err: store.ErrClosed}
		default:
			return
		}
	}
}

// save saves a group, and answers every request of it. When the store refuses the whole because of one, halves are tried,
// so that each request gets its own answer.
func (j *Journal) save(g *group) {
	rev, err := j.commit(g)
	if len(g.requests) > 1 && (errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrLeaseLost) || errors.Is(err, store.ErrTooLarge)) {
		half := len(g.requests) / 2
		j.save(groupOf(g.requests[:half]))
		j.save(groupOf(g.requests[half:]))
		return
	}
	for _, r := range g.requests {
		r.done <- answer{rev, err}
	}
}

// commit saves a group whole or not at all.
func (j *Journal) commit(g *group) (int64, error) {
	for {
		txn, head, err := j.build(g)
		if err != nil {
			return 0, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), commitTime)
		rev, err := j.store.Commit(ctx, txn)
		switch {
		case err == nil:
			j.setHead(head, rev)
		case errors.Is(err, store.ErrUnknown):
			rev, err = j.settle(ctx, head, err)
		case errors.Is(err, store.ErrConflict):
			// Perhaps only the head has moved: by a commit whose outcome could not be settled, or by another process.
			before := j.headRev
			if headErr := j.readHead(ctx); headErr != nil {
				err = headErr
			} else if j.headRev != before {
				cancel()
				continue
			}
		}
		cancel()
		return rev, err
	}
}

// build makes the transaction of a group, and the head that it leads to.
func (j *Journal) build(g *group) (store.Txn, Head, error) {
	head := j.Head()
	txn := store.Txn{If: []store.Compare{{Key: j.headKey(), Rev: j.headRev}}}
	for _, r := range g.requests {
		txn.If = append(txn.If, r.txn.If...)
		txn.Then = append(txn.Then, r.txn.Then...)
		for _, rec := range r.records {
			if rec.Time.IsZero() {
				rec.Time = time.Now()
			}
			rec.Number, rec.Prev = head.Number+1, head.Hash
			line, err := seal(&rec)
			if err != nil {
				return store.Txn{}, Head{}, err
			}
			head = Head{rec.Number, rec.Hash}
			txn.Then = append(txn.Then, store.Change{Key: j.key(rec.Number), Value: line})
		}
	}
	value, err := headValue(head)
	if err != nil {
		return store.Txn{}, Head{}, err
	}
	txn.Then = append(txn.Then, store.Change{Key: j.headKey(), Value: value})
	return txn, head, nil
}

func headValue(h Head) ([]byte, error) {
	return json.Marshal(headRecord{Format: format, Number: h.Number, Hash: h.Hash})
}

// pause is how long settle waits before it asks a store again that did not answer.
const pause = 50 * time.Millisecond

// settle finds out whether a commit of unknown outcome happened. The head was saved with it: when the head names the last
// record of the commit, it did. When the head is as before, the commit may still be on its way; saving the same head once
// more makes it fail should it arrive, and then it certainly did not happen.
func (j *Journal) settle(ctx context.Context, want Head, unknown error) (int64, error) {
	for {
		rev, settled, err := j.trySettle(ctx, want, unknown)
		if settled {
			return rev, err
		}
		if errors.Is(err, store.ErrClosed) {
			return 0, unknown
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return 0, unknown
		case <-j.quit:
			wait.Stop()
			return 0, unknown
		}
	}
}

func (j *Journal) trySettle(ctx context.Context, want Head, unknown error) (rev int64, settled bool, err error) {
	before, beforeRev := j.Head(), j.headRev
	if err := j.readHead(ctx); err != nil {
		j.setHead(before, beforeRev)
		return 0, false, err
	}
	if j.headRev != beforeRev {
		// Somebody's commit happened. If it was not ours alone, the record with our number tells whose.
		happened := j.Head() == want
		at := j.headRev
		if !happened {
			records, err := j.run(ctx, want.Number)
			if err != nil {
				return 0, false, err
			}
			happened = len(records) > 0 && records[0].Hash == want.Hash
		}
		if happened {
			return at, true, nil
		}
		return 0, true, notSaved(unknown)
	}
	value, err := headValue(before)
	if err != nil {
		return 0, false, err
	}
	if beforeRev == 0 {
		// There is no head yet whose saving could stand in the way; an empty one does.
		value, err = headValue(Head{0, genesis})
		if err != nil {
			return 0, false, err
		}
	}
	rev, err = j.store.Commit(ctx, store.Txn{
		If:   []store.Compare{{Key: j.headKey(), Rev: beforeRev}},
		Then: []store.Change{{Key: j.headKey(), Value: value}},
	})
	if err != nil {
		return 0, false, err // a conflict: the next look at the head tells
	}
	j.setHead(before, rev)
	return 0, true, notSaved(unknown)
}

// notSaved is the error of a commit that is known not to have happened, without the promise that it is unknown.
func notSaved(unknown error) error {
	return fmt.Errorf("the commit did not happen: %v", unknown)
}
