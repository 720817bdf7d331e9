package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/internal/store"
)

// model compares a store with a map: any sequence of commits, reads and watches gives the same answers.
func model(t *testing.T, s Compacter, p string) {
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		p := fmt.Sprintf("%s%d/", p, round)
		want := map[string]store.Item{}
		keys := rapid.SampledFrom([]string{p + "a", p + "b", p + "b/c", p + "bc", p + "d"})
		history := []map[string]string{} // values after each commit that changed something
		revs := []int64{}
		_, start, err := s.List(t.Context(), p)
		if err != nil {
			rt.Fatal(err)
		}
		last := start
		rt.Repeat(map[string]func(*rapid.T){
			"get": func(rt *rapid.T) {
				key := keys.Draw(rt, "key")
				got, err := s.Get(t.Context(), key)
				w, ok := want[key]
				if ok != (err == nil) || !ok && !errors.Is(err, store.ErrNotFound) || !same(got, w) {
					rt.Fatalf("get %s: %v, %v; want %v", key, got, err, w)
				}
			},
			"list": func(rt *rapid.T) {
				got, rev, err := s.List(t.Context(), p)
				if err != nil || rev != last {
					rt.Fatalf("list at %d, %v; want %d", rev, err, last)
				}
				if !slices.EqualFunc(got, slices.SortedFunc(maps.Values(want), func(a, b store.Item) int { return slices.Compare([]byte(a.Key), []byte(b.Key)) }), same) {
					rt.Fatalf("list %v, want %v", got, want)
				}
			},
			"commit": func(rt *rapid.T) {
				var txn store.Txn
				holds := true
				for _, key := range rapid.SliceOfNDistinct(keys, 0, 2, rapid.ID).Draw(rt, "compared") {
					c := store.Compare{Key: key, Created: rapid.Bool().Draw(rt, "created")}
					now := want[key].Rev
					if c.Created {
						now = want[key].Created
					}
					c.Rev = rapid.SampledFrom([]int64{now, now, now, 0, last}).Draw(rt, "rev")
					holds = holds && c.Rev == now
					txn.If = append(txn.If, c)
				}
				for _, key := range rapid.SliceOfNDistinct(keys, 0, 4, rapid.ID).Draw(rt, "changed") {
					c := store.Change{Key: key}
					if !rapid.Bool().Draw(rt, "delete") {
						c.Value = []byte(rapid.StringN(0, 3, 9).Draw(rt, "value"))
					}
					txn.Then = append(txn.Then, c)
				}
				rev, err := s.Commit(t.Context(), txn)
				if !holds {
					if !errors.Is(err, store.ErrConflict) {
						rt.Fatalf("commit %v: %v, want a conflict", txn, err)
					}
					return
				}
				if err != nil {
					rt.Fatalf("commit %v: %v", txn, err)
				}
				changed := false
				for _, c := range txn.Then {
					it, existed := want[c.Key]
					switch {
					case c.Value == nil:
						delete(want, c.Key)
						changed = changed || existed
					default:
						changed = true
						if !existed {
							it = store.Item{Key: c.Key, Created: rev}
						}
						it.Value, it.Rev = c.Value, rev
						want[c.Key] = it
					}
				}
				if changed != (rev > last) {
					rt.Fatalf("revision %d after %d, changed: %v", rev, last, changed)
				}
				if changed {
					history, revs = append(history, values(want)), append(revs, rev)
				}
				last = rev
			},
		})
		if round%10 != 0 || len(history) == 0 { // a watch that begins in the past takes an etcd 0.1 s
			return
		}
		from := rapid.IntRange(0, len(history)-1).Draw(rt, "from")
		state, after := map[string]string{}, start
		if from > 0 {
			state, after = maps.Clone(history[from-1]), revs[from-1]
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events := s.Watch(ctx, p, after)
		for i := from; i < len(history); {
			b := <-events
			if b.Err != nil {
				rt.Fatalf("watch: %v", b.Err)
			}
			for n, ev := range b.Events {
				if ev.Value == nil {
					delete(state, ev.Key)
				} else {
					state[ev.Key] = string(ev.Value)
				}
				if n+1 < len(b.Events) && b.Events[n+1].Rev == ev.Rev {
					continue
				}
				if ev.Rev != revs[i] || !maps.Equal(state, history[i]) {
					rt.Fatalf("after revision %d the watch gives %v, want %v after %d", ev.Rev, state, history[i], revs[i])
				}
				i++
			}
		}
	})
}

func same(a, b store.Item) bool {
	return a.Key == b.Key && string(a.Value) == string(b.Value) && a.Rev == b.Rev && a.Created == b.Created
}

func values(items map[string]store.Item) map[string]string {
	out := map[string]string{}
	for k, it := range items {
		out[k] = string(it.Value)
	}
	return out
}

// concurrent moves amounts between accounts from several goroutines at once: whatever happens in between, every list and
// every revision that a watch shows has the same sum, and the number of moves equals the number of acknowledged commits.
func concurrent(t *testing.T, s Compacter, p string) {
	const accounts, movers, moves, initial = 4, 8, 25, 100
	var open []store.Change
	for i := range accounts {
		open = append(open, put(fmt.Sprintf("%saccount%d", p, i), fmt.Sprint(initial)))
	}
	start := commit(t, s, open...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, p, start)

	var wg sync.WaitGroup
	for m := range movers {
		wg.Go(func() {
			for n := range moves {
				if err := move(ctx, s, p, m, n, accounts); err != nil {
					t.Errorf("mover %d: %v", m, err)
					return
				}
			}
		})
	}
	state := map[string]int{}
	for i := range accounts {
		state[fmt.Sprintf("%saccount%d", p, i)] = initial
	}
	perRev := map[int64]int{}
	for _, ev := range collect(t, events, 2*movers*moves) {
		perRev[ev.Rev]++
		v, err := strconv.Atoi(string(ev.Value))
		if err != nil {
			t.Fatal(err)
		}
		state[ev.Key] = v
		if perRev[ev.Rev] == 2 && sum(state) != accounts*initial {
			t.Errorf("after revision %d the sum is %d, want %d", ev.Rev, sum(state), accounts*initial)
		}
	}
	wg.Wait()
	if len(perRev) != movers*moves {
		t.Errorf("%d revisions, want one for each of %d moves", len(perRev), movers*moves)
	}
	for i := range accounts {
		key := fmt.Sprintf("%saccount%d", p, i)
		if got := string(get(t, s, key).Value); got != fmt.Sprint(state[key]) {
			t.Errorf("%s holds %s, the watch says %d", key, got, state[key])
		}
	}
}

func sum(state map[string]int) int {
	n := 0
	for _, v := range state {
		n += v
	}
	return n
}

// move takes 1 from one account and adds it to another, again and again until no other mover came between.
func move(ctx context.Context, s store.Store, p string, m, n, accounts int) error {
	for {
		items, _, err := s.List(ctx, p+"account")
		if err != nil {
			return err
		}
		total := 0
		amounts := make([]int, len(items))
		for i, it := range items {
			if amounts[i], err = strconv.Atoi(string(it.Value)); err != nil {
				return err
			}
			total += amounts[i]
		}
		if total != accounts*100 {
			return fmt.Errorf("a list has the sum %d", total)
		}
		from, to := items[(m+n)%accounts], items[(m+n+1+n%(accounts-1))%accounts]
		_, err = s.Commit(ctx, store.Txn{
			If: []store.Compare{{Key: from.Key, Rev: from.Rev}, {Key: to.Key, Rev: to.Rev}},
			Then: []store.Change{
				put(from.Key, fmt.Sprint(amounts[(m+n)%accounts]-1)),
				put(to.Key, fmt.Sprint(amounts[(m+n+1+n%(accounts-1))%accounts]+1)),
			},
		})
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}
