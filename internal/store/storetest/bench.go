package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/starpatch/starpatch/internal/store"
)

// Bench measures what the system does all day.
func Bench(b *testing.B, open func(b *testing.B) Compacter) {
	s := open(b)
	value := make([]byte, 512)
	b.Run("commit 512 B", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			commit(b, s, store.Change{Key: fmt.Sprintf("bench/serial/%d", i%1000), Value: value})
		}
	})
	b.Run("commit 512 B, 64 at once", func(b *testing.B) {
		var n atomic.Int64
		var wg sync.WaitGroup
		work := make(chan struct{})
		for range 64 {
			wg.Go(func() {
				for range work {
					commit(b, s, store.Change{Key: fmt.Sprintf("bench/parallel/%d", n.Add(1)%1000), Value: value})
				}
			})
		}
		for b.Loop() {
			work <- struct{}{}
		}
		close(work)
		wg.Wait()
	})
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			get(b, s, "bench/serial/0")
		}
	})
	b.Run("list 10,000 keys", func(b *testing.B) {
		for i := 0; i < 10000; i += 100 {
			var changes []store.Change
			for j := i; j < i+100; j++ {
				changes = append(changes, store.Change{Key: fmt.Sprintf("bench/list/%05d", j), Value: value})
			}
			commit(b, s, changes...)
		}
		for b.Loop() {
			if items, _, err := s.List(b.Context(), "bench/list/"); err != nil || len(items) != 10000 {
				b.Fatal(len(items), err)
			}
		}
	})
	b.Run("commit to 100 watchers", func(b *testing.B) {
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		rev := commit(b, s, put("bench/fanout", ""))
		var watches []<-chan store.Batch
		for range 100 {
			watches = append(watches, s.Watch(ctx, "bench/fanout", rev))
		}
		for b.Loop() {
			commit(b, s, put("bench/fanout", "x"))
			for _, w := range watches {
				<-w
			}
		}
	})
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
