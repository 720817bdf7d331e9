// Package journal is the record of every decision and every fact that changed the state: numbered, chained by hashes, and
// saved in the same transaction as the change it explains. One chain belongs to one controller. Audit log, history, the
// reasons that operators are told and the resumption after a crash all read it.
//
// [Journal.Commit] takes the place of store.Commit for everything that is to be explained. Commits that arrive together
// are saved together, in one transaction, as long as they do not touch the same keys, so that the chain's head is no
// bottleneck; a caller does not notice. An unknown outcome is resolved here: the head tells whether the record, and with
// it the change, is there.
//
// Complete segments of ten thousand records move from the store to files, one JSON line a record.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/problem"
)

// Config is what [Open] needs besides the store.
type Config struct {
	Controller string       // whose chain it is: the controller's host name
	Dir        string       // the complete segments lie in Dir/<controller>
	Keep       int64        // bytes of complete segments to keep; the oldest go first; 0: all
	Log        *slog.Logger // failures to move segments; nil: none

	segment int64 // records in a segment, for tests; 0: 10,000
}

const (
	segmentRecords = 10_000
	commitTime     = 30 * time.Second // for one transaction; the store answers sooner or is gone
	queue          = 256
)

// Head is the last record of a chain. Number 0 is a chain without records.
type Head struct {
	Number int64
	Hash   string // SHA-256, lower-case hexadecimal
}

// headRecord is the head as it is saved.
type headRecord struct {
	Format int    `json:"format"`
	Number int64  `json:"number"`
	Hash   string `json:"hash"`
}

// Journal is one chain. It is safe for concurrent use.
type Journal struct {
	cfg    Config
	store  store.Store
	prefix string // of its keys
	dir    string // of its files

	requests chan *request
	full     chan struct{} // room for one wish to move segments
	quit     chan struct{}
	closing  sync.Once
	work     sync.WaitGroup

	moving sync.Mutex // segments are moved once at a time, which may take a second

	mu   sync.Mutex
	head Head

	// Of the writing goroutine alone:
	headRev int64 // revision at which the head was saved last
}

// Open opens the chain of a controller, which it starts when there is none. The caller closes the journal before the
// store. Only one process may have a chain open; a second one would not break it, but both would be slow.
func Open(ctx context.Context, st store.Store, cfg Config) (*Journal, error) {
	if cfg.Controller == "" || strings.ContainsAny(cfg.Controller, "/\x00") || strings.HasPrefix(cfg.Controller, ".") {
		return nil, problem.Errorf(problem.Invalid, "cannot open the journal of %q: want a host name", cfg.Controller)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.segment == 0 {
		cfg.segment = segmentRecords
	}
	j := &Journal{
		cfg: cfg, store: st,
		prefix:   "journal/" + cfg.Controller + "/",
		dir:      filepath.Join(cfg.Dir, cfg.Controller),
		requests: make(chan *request, queue),
		full:     make(chan struct{}, 1),
		quit:     make(chan struct{}),
	}
	if err := durable.MkdirAll(j.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open the journal of %s: %w", cfg.Controller, err)
	}
	if err := durable.Sweep(j.dir); err != nil {
		return nil, fmt.Errorf("cannot open the journal of %s: %w", cfg.Controller, err)
	}
	if err := j.readHead(ctx); err != nil {
		return nil, err
	}
	if err := j.checkEnd(ctx); err != nil {
		return nil, err
	}
	j.full <- struct{}{} // a crash may have left a segment half moved
	j.work.Go(j.write)
	j.work.Go(j.move)
	return j, nil
}

// Close stops the journal and waits for what is under way. Commits that come later get store.ErrClosed.
func (j *Journal) Close() error {
	j.closing.Do(func() { close(j.quit) })
	j.work.Wait()
	return nil
}

// Head is the last record that was saved.
func (j *Journal) Head() Head {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head
}

func (j *Journal) headKey() string { return j.prefix + "head" }

func (j *Journal) key(number int64) string { return fmt.Sprintf("%s%020d", j.prefix, number) }

// readHead takes over the head that is saved.
func (j *Journal) readHead(ctx context.Context) error {
	it, err := j.store.Get(ctx, j.headKey())
	if errors.Is(err, store.ErrNotFound) {
		j.setHead(Head{0, genesis}, 0)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the head of the journal of %s: %w", j.cfg.Controller, err)
	}
	var r headRecord
	if err := json.Unmarshal(it.Value, &r); err != nil || r.Number < 0 || !isHash(r.Hash) {
		return fmt.Errorf("cannot read the head of the journal of %s: %q", j.cfg.Controller, it.Value)
	}
	if r.Format > format {
		return problem.Errorf(problem.NotSupported, "cannot open the journal of %s: it has format %d and this version knows formats up to %d; start the version that wrote it", j.cfg.Controller, r.Format, format)
	}
	j.setHead(Head{r.Number, r.Hash}, it.Rev)
	return nil
}

func (j *Journal) setHead(h Head, rev int64) {
	j.mu.Lock()
	j.head = h
	j.mu.Unlock()
	j.headRev = rev
}

// checkEnd refuses a store and files that do not belong together, before anything is added to them.
func (j *Journal) checkEnd(ctx context.Context) error {
	head := j.Head()
	last, err := j.lastMoved()
	if err != nil {
		return err
	}
	if last > head.Number {
		return problem.Errorf(problem.Conflict, "cannot open the journal of %s: its files end with record %d, but the state store knows only %d; the store is an older copy, so move %s away first", j.cfg.Controller, last, head.Number, j.dir)
	}
	if head.Number == 0 {
		return nil
	}
	records, err := j.run(ctx, head.Number)
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return j.broken("its last record, number %d, is missing", head.Number)
	}
	if records[0].Hash != head.Hash {
		return j.broken("its last record, number %d, is not the one that the head names", head.Number)
	}
	return nil
}

// broken is the refusal of a chain that somebody or something has changed.
func (j *Journal) broken(f string, args ...any) error {
	return problem.Errorf(problem.Conflict, "the journal of %s is broken: %w", j.cfg.Controller, fmt.Errorf(f, args...))
}

// request is one commit on its way.
type request struct {
	txn     store.Txn
	records []Record
	changes int // of the transaction with the records
	bytes   int // of the same, at most
	taken   atomic.Bool
	done    chan answer // buffered
}

type answer struct {
	rev int64
	err error
}

// Commit applies txn and appends the records that explain it, in one transaction. It returns what store.Commit returns,
// except that store.ErrUnknown is rare: only when the store does not come back in time to say, or when ctx ends while the
// commit is under way. The transaction may carry two changes and one compare less than the store takes, and as many
// records less.
func (j *Journal) Commit(ctx context.Context, txn store.Txn, records ...Record) (int64, error) {
	r := &request{txn: txn, records: records, changes: len(txn.Then) + len(records), bytes: txn.Size(), done: make(chan answer, 1)}
	if len(records) == 0 {
		return 0, errors.New("internal error: a commit through the journal needs a record")
	}
	for _, c := range txn.Then {
		if strings.HasPrefix(c.Key, "journal/") {
			return 0, fmt.Errorf("internal error: %s belongs to the journal", c.Key)
		}
	}
	for _, rec := range records {
		rec.Number, rec.Prev = 1<<62, genesis // the longest there are
		if rec.Time.IsZero() {
			rec.Time = longestTime
		}
		line, err := seal(&rec)
		if err != nil {
			return 0, err
		}
		r.bytes += store.Change{Key: j.key(rec.Number), Value: line}.Size()
	}
	if err := txn.Check(); err != nil {
		return 0, err
	}
	if !(&group{}).fits(r) {
		return 0, problem.Errorf(problem.TooLarge, "cannot commit %d compares, %d changes and %d journal records of %d bytes at once: %w", len(txn.If), len(txn.Then), len(records), r.bytes, store.ErrTooLarge)
	}
	select {
	case <-j.quit: // select picks at random
		return 0, store.ErrClosed
	default:
	}
	select {
	case j.requests <- r:
	case <-j.quit:
		return 0, store.ErrClosed
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	select {
	case a := <-r.done:
		return a.rev, a.err
	case <-ctx.Done():
		if r.taken.CompareAndSwap(false, true) {
			return 0, context.Cause(ctx) // it will be passed over
		}
		return 0, errors.Join(store.ErrUnknown, context.Cause(ctx))
	}
}

// longestTime has the longest text that a time can have.
var longestTime = time.Date(2006, 1, 2, 15, 4, 5, 123456789, time.UTC)
