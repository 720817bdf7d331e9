package mem_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/mem"
	"github.com/starpatch/starpatch/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Compacter { return mem.New() })
}

func BenchmarkStore(b *testing.B) {
	storetest.Bench(b, func(*testing.B) storetest.Compacter { return mem.New() })
}

func TestLeasesExpireOnVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		holder, dies := context.WithCancel(t.Context())
		lease, _, err := s.Grant(holder, 3600)
		if err != nil {
			t.Fatal(err)
		}
		rev, err := s.Commit(t.Context(), store.Txn{Then: []store.Change{{Key: "a", Value: []byte("1"), Lease: lease}}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		dies()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if b := <-s.Watch(ctx, "a", rev); len(b.Events) != 1 || b.Events[0].Value != nil {
			t.Errorf("got %v, want the deletion", b)
		}
		if got := time.Since(start); got != time.Hour {
			t.Errorf("the lease expired after %v, want an hour", got)
		}
	})
}
