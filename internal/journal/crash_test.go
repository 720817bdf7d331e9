package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/mem"
	"github.com/starpatch/starpatch/internal/store/storetest"
)

// work counts from what is saved up to end, one commit each, and returns when it is done or its process has died.
func work(ctx context.Context, st store.Store, cfg Config, end int) (err error) {
	j, err := Open(ctx, st, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	n, rev := 0, int64(0)
	if it, err := st.Get(ctx, "count"); err == nil {
		if n, err = strconv.Atoi(string(it.Value)); err != nil {
			return err
		}
		rev = it.Rev
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for n++; n <= end; n++ {
		txn := set("count", fmt.Sprint(n))
		txn.If = []store.Compare{{Key: "count", Rev: rev}}
		rec := upload
		rec.Subject = fmt.Sprintf("P%d", n)
		if rev, err = j.Commit(ctx, txn, rec); err != nil {
			return err
		}
	}
	return j.moveComplete(ctx)
}

func TestACrashAtAnySaveResumesToTheSameEnd(t *testing.T) {
	const end = 25
	for _, when := range []storetest.Moment{storetest.BeforeSave, storetest.AfterSave} {
		for save, crashed := 1, true; crashed; save++ {
			st := newStore(t)
			cfg := Config{Controller: "controller-0", Dir: t.TempDir(), segment: 10}
			p := storetest.NewCrash(st, save, when)
			err := work(t.Context(), p, cfg, end)
			select {
			case <-p.Crashed():
			default:
				crashed = false
			}
			if crashed != errors.Is(err, storetest.ErrCrashed) && err != nil {
				t.Fatalf("save %d: %v", save, err)
			}
			if err := work(t.Context(), st, cfg, end); err != nil {
				t.Fatalf("after a crash at save %d: %v", save, err)
			}
			j := open(t, st, cfg)
			verify(t, j, end)
			records, err := j.Read(t.Context(), 1, end+1)
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range records {
				if want := fmt.Sprintf("P%d", i+1); r.Subject != want {
					t.Errorf("after a crash at save %d record %d is about %s, want %s", save, r.Number, r.Subject, want)
				}
			}
			closeIt(t, j)
			if items, _, err := st.List(t.Context(), "journal/controller-0/0"); err != nil || len(items) != end%10 {
				t.Errorf("after a crash at save %d the store keeps %d records, %v; want %d", save, len(items), err, end%10)
			}
		}
	}
}

// vague is a store that often cannot say whether a commit happened: it did, it did not, or it will a little later.
type vague struct {
	store.Store
	mu    sync.Mutex
	rand  *rand.Rand
	later []store.Txn
}

func (v *vague) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.rand.IntN(2) == 0 {
		v.arrive(ctx)
	}
	defer func() {
		if v.rand.IntN(2) == 0 {
			v.arrive(ctx)
		}
	}()
	switch v.rand.IntN(6) {
	case 0:
		return 0, fmt.Errorf("lost on the way: %w", store.ErrUnknown)
	case 1:
		if _, err := v.Store.Commit(ctx, txn); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("the answer was lost: %w", store.ErrUnknown)
	case 2:
		v.later = append(v.later, txn)
		return 0, fmt.Errorf("still on the way: %w", store.ErrUnknown)
	}
	return v.Store.Commit(ctx, txn)
}

func (v *vague) arrive(ctx context.Context) {
	for _, txn := range v.later {
		if _, err := v.Store.Commit(ctx, txn); err != nil && !errors.Is(err, store.ErrConflict) {
			panic(err)
		}
	}
	v.later = nil
}

func TestAnUnknownOutcomeIsFoundOut(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			st := mem.New()
			v := &vague{Store: st, rand: rand.New(rand.NewPCG(seed, 0))}
			j, err := Open(t.Context(), v, Config{Controller: "controller-0", Dir: t.TempDir(), segment: 10})
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			acknowledged := map[string]bool{}
			var wg sync.WaitGroup
			for c := range 4 {
				wg.Go(func() {
					for n := range 10 {
						key := fmt.Sprintf("k/%d/%d", c, n)
						rec := upload
						rec.Subject = key
						_, err := j.Commit(context.Background(), set(key, "1"), rec)
						if errors.Is(err, store.ErrUnknown) {
							t.Errorf("seed %d: %s: the outcome was not found out", seed, key)
						}
						mu.Lock()
						acknowledged[key] = err == nil
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if err := j.Close(); err != nil {
				t.Error(err)
			}
			v.arrive(t.Context()) // whatever is still on the way must not count any more
			happened := map[string]bool{}
			for key := range acknowledged {
				_, err := st.Get(t.Context(), key)
				happened[key] = err == nil
			}
			if diff := cmp.Diff(acknowledged, happened); diff != "" {
				t.Errorf("seed %d: what was acknowledged (-) and what happened (+):\n%s", seed, diff)
			}
			j, err = Open(t.Context(), st, Config{Controller: "controller-0", Dir: j.cfg.Dir, segment: 10})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := j.Export(t.Context(), &out); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			if _, err := j.Verify(t.Context()); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			for key, ok := range acknowledged {
				if got := bytes.Count(out.Bytes(), []byte(`"`+key+`"`)); ok && got != 1 || !ok && got != 0 {
					t.Errorf("seed %d: %s has %d records, acknowledged: %v", seed, key, got, ok)
				}
			}
			if err := errors.Join(j.Close(), st.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAStoreThatDoesNotComeBackLeavesTheOutcomeUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := mem.New()
		gone := &silent{Store: st}
		j, err := Open(t.Context(), gone, Config{Controller: "controller-0", Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		gone.set(true)
		if _, err := j.Commit(t.Context(), set("a", "1"), upload); !errors.Is(err, store.ErrUnknown) {
			t.Errorf("got %v, want %v", err, store.ErrUnknown)
		}
		gone.set(false)
		if _, err := j.Commit(t.Context(), set("b", "1"), upload); err != nil {
			t.Errorf("after it came back: %v", err)
		}
		if _, err := j.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		if err := errors.Join(j.Close(), st.Close()); err != nil {
			t.Error(err)
		}
	})
}

// silent is a store that, while it is gone, does what it is asked and does not answer.
type silent struct {
	store.Store
	mu   sync.Mutex
	gone bool
}

var errSilent = errors.New("no answer")

func (s *silent) set(gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = gone
}

func (s *silent) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	rev, err := s.Store.Commit(ctx, txn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return 0, errors.Join(store.ErrUnknown, errSilent)
	}
	return rev, err
}

func (s *silent) Get(ctx context.Context, key string) (store.Item, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return store.Item{}, errSilent
	}
	return s.Store.Get(ctx, key)
}
