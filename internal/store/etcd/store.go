// Package etcd is the state store for real: an etcd member inside this process ([Open]), or the etcd that the site
// already runs ([New]). Both go through the same client, so there is one code path. No other package knows etcd.
package etcd

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"github.com/starpatch/starpatch/internal/store"
)

// Store is a [store.Store].
type Store struct {
	client  *clientv3.Client
	prefix  string // before every key; "" or ending in a slash
	log     *slog.Logger
	embed   *member // nil for a site's own etcd
	started sync.WaitGroup

	life context.Context // ended by Close
	end  context.CancelCauseFunc

	close func() error // releases the engine, once
}

var _ store.Store = (*Store)(nil)

// New makes a store of a running etcd. All keys lie under prefix, which ends in a slash; the client belongs to the store
// from then on. It refuses data that a newer version of this program wrote.
func New(ctx context.Context, client *clientv3.Client, prefix string, log *slog.Logger) (*Store, error) {
	s := newStore(client, prefix, log)
	s.close = sync.OnceValue(client.Close)
	if err := s.claim(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func newStore(client *clientv3.Client, prefix string, log *slog.Logger) *Store {
	life, end := context.WithCancelCause(context.Background())
	return &Store{client: client, prefix: prefix, log: log, life: life, end: end}
}

// join gives a context that ends with ctx and with the store.
func (s *Store) join(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if s.life.Err() != nil {
		cancel(store.ErrClosed)
	}
	stop := context.AfterFunc(s.life, func() { cancel(store.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// why turns the error of a call into one of the contract. The cause of an ended context wins, since whatever etcd says
// then follows from it.
func why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return store.ErrNoSpace
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return store.ErrLeaseLost
	case errors.Is(err, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return store.ErrTooLarge
	}
	return err
}

func (s *Store) item(kv *mvccpb.KeyValue) store.Item {
	return store.Item{Key: string(kv.Key)[len(s.prefix):], Value: nonNil(kv.Value), Created: kv.CreateRevision, Rev: kv.ModRevision}
}

// nonNil restores the empty value, which protobuf does not tell from none.
func nonNil(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}

// Get is part of [store.Store].
func (s *Store) Get(ctx context.Context, key string) (store.Item, error) {
	ctx, done := s.join(ctx)
	defer done()
	if ctx.Err() != nil {
		return store.Item{}, context.Cause(ctx)
	}
	resp, err := s.client.Get(ctx, s.prefix+key)
	if err != nil {
		return store.Item{}, why(ctx, err)
	}
	if len(resp.Kvs) == 0 {
		return store.Item{}, store.ErrNotFound
	}
	return s.item(resp.Kvs[0]), nil
}

// List is part of [store.Store].
func (s *Store) List(ctx context.Context, prefix string) ([]store.Item, int64, error) {
	ctx, done := s.join(ctx)
	defer done()
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	resp, err := s.client.Get(ctx, s.prefix+prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, why(ctx, err)
	}
	items := make([]store.Item, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		items = append(items, s.item(kv))
	}
	return items, resp.Header.Revision, nil
}

// Commit is part of [store.Store].
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Check(); err != nil {
		return 0, err
	}
	ctx, done := s.join(ctx)
	defer done()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	resp, err := s.client.Txn(ctx).If(s.compares(txn.If)...).Then(s.ops(txn)...).Commit()
	if err != nil {
		if refused(err) {
			return 0, why(ctx, err)
		}
		return 0, errors.Join(store.ErrUnknown, why(ctx, err))
	}
	if !resp.Succeeded {
		return 0, store.ErrConflict
	}
	return resp.Header.Revision, nil
}

func (s *Store) compares(compares []store.Compare) []clientv3.Cmp {
	var out []clientv3.Cmp
	for _, c := range compares {
		if c.Created {
			out = append(out, clientv3.Compare(clientv3.CreateRevision(s.prefix+c.Key), "=", c.Rev))
		} else {
			out = append(out, clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", c.Rev))
		}
	}
	return out
}

func (s *Store) ops(txn store.Txn) []clientv3.Op {
	if len(txn.Then) == 0 {
		// etcd answers a transaction without operations from local, possibly old state. A read makes it linearizable.
		return []clientv3.Op{clientv3.OpGet(s.prefix+"none", clientv3.WithKeysOnly())}
	}
	var out []clientv3.Op
	for _, c := range txn.Then {
		if c.Value == nil {
			out = append(out, clientv3.OpDelete(s.prefix+c.Key))
		} else {
			out = append(out, clientv3.OpPut(s.prefix+c.Key, string(c.Value), clientv3.WithLease(clientv3.LeaseID(c.Lease))))
		}
	}
	return out
}

// refused tells that etcd turned the request down, before it was proposed or whole when it was applied. After anything
// else the request may still be on its way through raft, so the outcome is unknown.
func refused(err error) bool {
	var e rpctypes.EtcdError
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.OutOfRange:
		return true
	}
	return false
}

// Compact forgets the history up to rev; watches that would need it end with ErrCompacted. The store does this by itself
// with time.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	ctx, done := s.join(ctx)
	defer done()
	if _, err := s.client.Compact(ctx, rev); err != nil {
		return why(ctx, err)
	}
	return nil
}

// Close is part of [store.Store].
func (s *Store) Close() error {
	s.end(store.ErrClosed)
	s.started.Wait()
	return s.close()
}
