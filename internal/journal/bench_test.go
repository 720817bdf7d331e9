package journal

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/etcd"
)

// BenchmarkCommit is one decision of 512 bytes with its record, durable. The second figure is the time per decision when
// 64 callers have one each.
func BenchmarkCommit(b *testing.B) {
	st, err := etcd.Open(b.Context(), etcd.Config{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			b.Error(err)
		}
	}()
	j := open(b, st, Config{})
	defer closeIt(b, j)
	value := make([]byte, 512)
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("%d callers", callers), func(b *testing.B) {
			var wg sync.WaitGroup
			work := make(chan int)
			for range callers {
				wg.Go(func() {
					for n := range work {
						txn := store.Txn{Then: []store.Change{{Key: fmt.Sprintf("bench/%d", n%10000), Value: value}}}
						if _, err := j.Commit(b.Context(), txn, upload); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for n := 0; b.Loop(); n++ {
				work <- n
			}
			close(work)
			wg.Wait()
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	j := open(b, newStore(b), Config{})
	fill(b, j, 1, 5000)
	for b.Loop() {
		verify(b, j, 5000)
	}
}
