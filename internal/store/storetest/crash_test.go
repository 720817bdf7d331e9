package storetest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/mem"
	"github.com/starpatch/starpatch/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestACrashKeepsExactlyWhatWasSaved(t *testing.T) {
	txn := func(key string) store.Txn {
		return store.Txn{Then: []store.Change{{Key: key, Value: []byte("1")}}}
	}
	for _, c := range []struct {
		name string
		when storetest.Moment
		kept int
	}{
		{"before the second save", storetest.BeforeSave, 1},
		{"after the second save", storetest.AfterSave, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mem.New()
			p := storetest.NewCrash(s, 2, c.when)
			watch := p.Watch(t.Context(), "nothing", 0)
			_, lost, err := p.Grant(t.Context(), 60)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Commit(t.Context(), txn("a")); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Commit(t.Context(), txn("b")); err != storetest.ErrCrashed {
				t.Errorf("second save: %v, want %v", err, storetest.ErrCrashed)
			}
			if _, err := p.Commit(t.Context(), txn("c")); err != storetest.ErrCrashed {
				t.Errorf("save of a dead process: %v, want %v", err, storetest.ErrCrashed)
			}
			if b := <-watch; b.Err != storetest.ErrCrashed {
				t.Errorf("watch of a dead process: %v, want %v", b.Err, storetest.ErrCrashed)
			}
			<-lost
			<-p.Crashed()
			items, _, err := s.List(t.Context(), "")
			if err != nil || len(items) != c.kept {
				t.Errorf("%d keys kept, %v; want %d", len(items), err, c.kept)
			}
			if got := p.Saves(); got != 2 {
				t.Errorf("%d saves counted, want 2", got)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
