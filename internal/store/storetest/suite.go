// Package storetest is the suite that every state store passes, and [Crash], which makes any store die at a chosen save.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/internal/store"
)

// Compacter is what the suite needs besides the contract: history up to and including rev may be forgotten.
type Compacter interface {
	store.Store
	Compact(ctx context.Context, rev int64) error
}

// Run is the suite. open makes an empty store; the suite closes it.
func Run(t *testing.T, open func(t *testing.T) Compacter) {
	shared := open(t)
	for _, c := range []struct {
		name string
		run  func(t *testing.T, s Compacter, p string) // everything happens under the prefix p
	}{
		{"a missing key is not found", missingKey},
		{"a commit is read back with its revisions", readBack},
		{"deleting a missing key changes nothing", deleteMissing},
		{"an empty value is not a deletion", emptyValue},
		{"a list is sorted and stays within its prefix", list},
		{"a commit whose compare fails changes nothing", conflict},
		{"a compare of the creation revision survives changes of the value", created},
		{"a commit without changes only checks", checkOnly},
		{"the caller may reuse what it gave to commit", reuse},
		{"a commit beyond the limits is refused whole", limits},
		{"the largest values and the fullest commits fit", largest},
		{"a watch delivers past and future commits in order and whole", watch},
		{"a watch may begin in the future", watchFuture},
		{"a cancelled watch says why and ends", watchCancelled},
		{"a slow watcher misses nothing", slowWatcher},
		{"a compacted revision cannot be watched", compaction},
		{"a revoked lease takes its keys along in one revision", revoke},
		{"a lease that is no longer kept alive expires", expiry},
		{"a lost lease takes no keys", lostLease},
		{"the oldest candidate is elected and the next one follows", election},
		{"a candidate that gives up leaves the queue", giveUp},
		{"a candidate whose lease is lost is told", loseWhileWaiting},
		{"who has lost the office cannot write any more", fencing},
		{"an ended context ends every call", endedContext},
		{"any sequence of calls answers as the model does", model},
		{"concurrent commits lose no update and every snapshot is whole", concurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(t, shared, fmt.Sprintf("t%x/", len(t.Name()))+strings.ReplaceAll(c.name, " ", "-")+"/")
		})
	}
	if err := shared.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := shared.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	t.Run("closing ends what is waiting", func(t *testing.T) { closing(t, open(t)) })
}

func put(key, value string) store.Change { return store.Change{Key: key, Value: []byte(value)} }

func commit(t testing.TB, s store.Store, changes ...store.Change) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Txn{Then: changes})
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func get(t testing.TB, s store.Store, key string) store.Item {
	t.Helper()
	it, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return it
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantMissing(t testing.TB, s store.Store, key string) {
	t.Helper()
	_, err := s.Get(t.Context(), key)
	wantErr(t, "get "+key, err, store.ErrNotFound)
}

func missingKey(t *testing.T, s Compacter, p string) {
	wantMissing(t, s, p+"nothing")
	items, rev, err := s.List(t.Context(), p)
	if err != nil || len(items) != 0 || rev < 1 {
		t.Errorf("list of nothing: %v at %d, %v", items, rev, err)
	}
}

func readBack(t *testing.T, s Compacter, p string) {
	first := commit(t, s, put(p+"a", "1"), put(p+"b", "1"))
	second := commit(t, s, put(p+"a", "2"))
	if first < 2 || second <= first {
		t.Errorf("revisions %d, %d: want them above 1 and growing", first, second)
	}
	want := store.Item{Key: p + "a", Value: []byte("2"), Created: first, Rev: second}
	if diff := cmp.Diff(want, get(t, s, p+"a")); diff != "" {
		t.Errorf("changed key (-want +got):\n%s", diff)
	}
	want = store.Item{Key: p + "b", Value: []byte("1"), Created: first, Rev: first}
	if diff := cmp.Diff(want, get(t, s, p+"b")); diff != "" {
		t.Errorf("unchanged key (-want +got):\n%s", diff)
	}
	commit(t, s, store.Change{Key: p + "a"})
	wantMissing(t, s, p+"a")
	again := commit(t, s, put(p+"a", "3"))
	if got := get(t, s, p+"a").Created; got != again {
		t.Errorf("a key that came back was created at %d, want %d", got, again)
	}
}

func deleteMissing(t *testing.T, s Compacter, p string) {
	before := commit(t, s, put(p+"a", "1"))
	if got := commit(t, s, store.Change{Key: p + "nothing"}); got != before {
		t.Errorf("revision %d, want still %d", got, before)
	}
}

func emptyValue(t *testing.T, s Compacter, p string) {
	before := commit(t, s, put(p+"before", "1"))
	rev := commit(t, s, store.Change{Key: p + "a", Value: []byte{}})
	if v := get(t, s, p+"a").Value; v == nil || len(v) != 0 {
		t.Errorf("read back as %#v, want empty and not nil", v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := <-s.Watch(ctx, p, before)
	want := store.Batch{Events: []store.Event{{Key: p + "a", Value: []byte{}, Rev: rev}}, Rev: rev}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("watched (-want +got):\n%s", diff)
	}
}

func list(t *testing.T, s Compacter, p string) {
	commit(t, s, put(p+"m/b", "1"), put(p+"m/a", "2"), put(p+"m", "3"), put(p+"ma", "4"), put(p+"m/a/x", "5"), put(p+"l", "6"), put(p+"m/é", "7"))
	rev := commit(t, s, put(p+"zz", "8"))
	items, at, err := s.List(t.Context(), p+"m/")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, it := range items {
		got = append(got, strings.TrimPrefix(it.Key, p)+"="+string(it.Value))
	}
	if diff := cmp.Diff([]string{"m/a=2", "m/a/x=5", "m/b=1", "m/é=7"}, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	if at < rev {
		t.Errorf("snapshot revision %d, want at least %d", at, rev)
	}
	all, _, err := s.List(t.Context(), "")
	if err != nil || len(all) < 8 {
		t.Errorf("the empty prefix lists %d keys, %v; want all", len(all), err)
	}
}

func conflict(t *testing.T, s Compacter, p string) {
	rev := commit(t, s, put(p+"a", "1"))
	for _, c := range []struct {
		name string
		cmp  store.Compare
	}{
		{"the key has changed since", store.Compare{Key: p + "a", Rev: rev - 1}},
		{"the key should not exist", store.Compare{Key: p + "a"}},
		{"the key should exist", store.Compare{Key: p + "b", Rev: rev}},
		{"the key should not have been created", store.Compare{Key: p + "a", Created: true}},
	} {
		_, err := s.Commit(t.Context(), store.Txn{
			If:   []store.Compare{{Key: p + "a", Rev: rev}, c.cmp},
			Then: []store.Change{put(p+"a", "2"), put(p+"c", "2")},
		})
		wantErr(t, c.name, err, store.ErrConflict)
	}
	if got := string(get(t, s, p+"a").Value); got != "1" {
		t.Errorf("value %q after refused commits, want the old one", got)
	}
	wantMissing(t, s, p+"c")
	if _, err := s.Commit(t.Context(), store.Txn{If: []store.Compare{{Key: p + "a", Rev: rev}, {Key: p + "b"}}, Then: []store.Change{put(p+"a", "2")}}); err != nil {
		t.Errorf("commit with true compares: %v", err)
	}
}

func created(t *testing.T, s Compacter, p string) {
	rev := commit(t, s, put(p+"a", "1"))
	commit(t, s, put(p+"a", "2"))
	txn := store.Txn{If: []store.Compare{{Key: p + "a", Rev: rev, Created: true}}, Then: []store.Change{put(p+"b", "1")}}
	if _, err := s.Commit(t.Context(), txn); err != nil {
		t.Errorf("after a change of the value: %v", err)
	}
	commit(t, s, store.Change{Key: p + "a"})
	commit(t, s, put(p+"a", "3"))
	_, err := s.Commit(t.Context(), txn)
	wantErr(t, "after the key was made anew", err, store.ErrConflict)
}

func checkOnly(t *testing.T, s Compacter, p string) {
	rev := commit(t, s, put(p+"a", "1"))
	got, err := s.Commit(t.Context(), store.Txn{If: []store.Compare{{Key: p + "a", Rev: rev}}})
	if err != nil || got < rev {
		t.Errorf("true compare: %d, %v; want at least revision %d", got, err, rev)
	}
	_, err = s.Commit(t.Context(), store.Txn{If: []store.Compare{{Key: p + "a"}}})
	wantErr(t, "false compare", err, store.ErrConflict)
}

func reuse(t *testing.T, s Compacter, p string) {
	before := commit(t, s, put(p+"before", "1"))
	value := []byte("mine")
	commit(t, s, store.Change{Key: p + "a", Value: value})
	copy(value, "gone")
	if got := string(get(t, s, p+"a").Value); got != "mine" {
		t.Errorf("read %q, want what was committed", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if got := string((<-s.Watch(ctx, p, before)).Events[0].Value); got != "mine" {
		t.Errorf("watched %q, want what was committed", got)
	}
}

func limits(t *testing.T, s Compacter, p string) {
	many := func(n int) (out []store.Change) {
		for i := range n {
			out = append(out, put(fmt.Sprintf("%sk%03d", p, i), "x"))
		}
		return out
	}
	compares := make([]store.Compare, store.MaxOps+1)
	for i := range compares {
		compares[i].Key = fmt.Sprintf("%sk%03d", p, i)
	}
	half := bytes.Repeat([]byte("x"), store.MaxTxnBytes/2)
	for _, c := range []struct {
		name     string
		txn      store.Txn
		tooLarge bool
	}{
		{"too many changes", store.Txn{Then: many(store.MaxOps + 1)}, true},
		{"too many compares", store.Txn{If: compares}, true},
		{"too large a value", store.Txn{Then: []store.Change{{Key: p + "a", Value: make([]byte, store.MaxValue+1)}}}, true},
		{"too many bytes in all", store.Txn{Then: []store.Change{{Key: p + "a", Value: half}, {Key: p + "b", Value: half}}}, true},
		{"too long a key", store.Txn{Then: []store.Change{put(p+strings.Repeat("k", store.MaxKey), "x")}}, true},
		{"one key twice", store.Txn{Then: []store.Change{put(p+"a", "1"), {Key: p + "a"}}}, false},
		{"an empty key", store.Txn{Then: []store.Change{put("", "1")}}, false},
		{"a leading slash", store.Txn{Then: []store.Change{put("/"+p, "1")}}, false},
		{"an empty part", store.Txn{Then: []store.Change{put(p+"/a", "1")}}, false},
		{"a line break", store.Txn{Then: []store.Change{put(p+"a\nb", "1")}}, false},
		{"not text", store.Txn{Then: []store.Change{put(p+"\xff", "1")}}, false},
	} {
		_, err := s.Commit(t.Context(), c.txn)
		if err == nil || errors.Is(err, store.ErrTooLarge) != c.tooLarge || errors.Is(err, store.ErrUnknown) {
			t.Errorf("%s: got %v, want a refusal, too large: %v", c.name, err, c.tooLarge)
		}
	}
	if items, _, err := s.List(t.Context(), p); err != nil || len(items) != 0 {
		t.Errorf("%d keys after refused commits, %v; want none", len(items), err)
	}
}

func largest(t *testing.T, s Compacter, p string) {
	value := bytes.Repeat([]byte("\xff"), store.MaxValue)
	commit(t, s, store.Change{Key: p + "large", Value: value})
	if !bytes.Equal(get(t, s, p+"large").Value, value) {
		t.Errorf("the largest value came back different")
	}
	var txn store.Txn
	left := store.MaxTxnBytes
	for i := range store.MaxOps {
		c := store.Compare{Key: fmt.Sprintf("%s%s%03d", p, strings.Repeat("k", store.MaxKey-3-len(p)), i)}
		txn.If = append(txn.If, c)
		left -= c.Size()
	}
	for i, c := range txn.If {
		w := store.Change{Key: c.Key, Value: []byte{}}
		w.Value = make([]byte, left/(store.MaxOps-i)-w.Size())
		txn.Then = append(txn.Then, w)
		left -= w.Size()
	}
	if txn.Size() != store.MaxTxnBytes {
		t.Fatalf("the test made a transaction of %d bytes, want %d", txn.Size(), store.MaxTxnBytes)
	}
	if _, err := s.Commit(t.Context(), txn); err != nil {
		t.Errorf("the fullest commit: %v", err)
	}
}

func endedContext(t *testing.T, s Compacter, p string) {
	why := errors.New("the test ended it")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := s.Get(ctx, p+"a")
	wantErr(t, "get", err, why)
	_, _, err = s.List(ctx, p)
	wantErr(t, "list", err, why)
	_, err = s.Commit(ctx, store.Txn{Then: []store.Change{put(p+"a", "1")}})
	wantErr(t, "commit", err, why)
	if errors.Is(err, store.ErrUnknown) {
		t.Error("a commit that was never tried has a known outcome")
	}
	_, _, err = s.Grant(ctx, 2)
	wantErr(t, "grant", err, why)
	wantMissing(t, s, p+"a")
}

func closing(t *testing.T, s Compacter) {
	rev := commit(t, s, put("a", "1"))
	lease, lost, err := s.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := store.Campaign(t.Context(), s, "office", "first", lease)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := s.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	events := s.Watch(t.Context(), "elections/", rev)
	if b := <-events; b.Err != nil {
		t.Fatal(b.Err)
	}
	waiting := make(chan error)
	go func() {
		_, err := store.Campaign(t.Context(), s, "office", "second", second)
		waiting <- err
	}()
	if b := <-events; len(b.Events) != 1 { // the second candidate stands
		t.Fatalf("second candidacy: %v", b)
	}
	quiet := s.Watch(t.Context(), "nothing/", rev)
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wantErr(t, "campaign", <-waiting, store.ErrClosed)
	wantErr(t, "watch", (<-quiet).Err, store.ErrClosed)
	if b, open := <-quiet; open {
		t.Errorf("watch went on after its error: %v", b)
	}
	<-lost
	_, err = s.Get(t.Context(), "a")
	wantErr(t, "get", err, store.ErrClosed)
	_, _, err = s.List(t.Context(), "a")
	wantErr(t, "list", err, store.ErrClosed)
	_, err = s.Commit(t.Context(), store.Txn{Then: []store.Change{put("a", "2")}})
	wantErr(t, "commit", err, store.ErrClosed)
	_, _, err = s.Grant(t.Context(), 60)
	wantErr(t, "grant", err, store.ErrClosed)
	wantErr(t, "revoke", s.Revoke(t.Context(), lease), store.ErrClosed)
	wantErr(t, "resign", holder.Resign(t.Context()), store.ErrClosed)
	wantErr(t, "watch anew", (<-s.Watch(t.Context(), "", 0)).Err, store.ErrClosed)
}

// collect reads events until n have come, and checks that revisions grow and none is split over two batches.
func collect(t testing.TB, batches <-chan store.Batch, n int) []store.Event {
	t.Helper()
	var out []store.Event
	last := int64(0)
	for len(out) < n {
		b, open := <-batches
		if !open || b.Err != nil {
			t.Fatalf("watch ended after %d of %d events: %v", len(out), n, b.Err)
		}
		if len(b.Events) == 0 {
			continue
		}
		if first := b.Events[0].Rev; first <= last {
			t.Fatalf("a batch begins with revision %d after one that had promised all up to %d", first, last)
		}
		if !slices.IsSortedFunc(b.Events, func(a, b store.Event) int { return int(a.Rev - b.Rev) }) {
			t.Fatalf("events out of order: %v", b.Events)
		}
		if end := b.Events[len(b.Events)-1].Rev; end > b.Rev {
			t.Fatalf("a batch up to revision %d has an event of %d", b.Rev, end)
		}
		last = b.Rev
		out = append(out, b.Events...)
	}
	return out
}
