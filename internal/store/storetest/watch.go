package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/internal/store"
)

func watch(t *testing.T, s Compacter, p string) {
	before := commit(t, s, put(p+"a", "0"))
	r1 := commit(t, s, put(p+"b", "1"), put(p+"a", "1"), put(p[:len(p)-1]+"-outside", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, p, before)
	r2 := commit(t, s, store.Change{Key: p + "a"}, put(p+"c", "2"))
	commit(t, s, put(p[:len(p)-1]+"-outside", "2"))
	r3 := commit(t, s, put(p+"a", "3"))
	got := map[int64]map[string]string{}
	for _, ev := range collect(t, events, 5) {
		if got[ev.Rev] == nil {
			got[ev.Rev] = map[string]string{}
		}
		value := "deleted"
		if ev.Value != nil {
			value = string(ev.Value)
		}
		got[ev.Rev][ev.Key[len(p):]] = value
	}
	want := map[int64]map[string]string{
		r1: {"a": "1", "b": "1"},
		r2: {"a": "deleted", "c": "2"},
		r3: {"a": "3"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events by revision (-want +got):\n%s", diff)
	}
}

func watchFuture(t *testing.T, s Compacter, p string) {
	now := commit(t, s, put(p+"a", "0"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, p, now+2)
	commit(t, s, put(p+"a", "1"))
	commit(t, s, put(p+"a", "2"))
	third := commit(t, s, put(p+"a", "3"))
	if got := collect(t, events, 1)[0]; got.Rev != third || string(got.Value) != "3" {
		t.Errorf("first event %v, want that of revision %d", got, third)
	}
}

func watchCancelled(t *testing.T, s Compacter, p string) {
	why := errors.New("the test ended it")
	ctx, cancel := context.WithCancelCause(t.Context())
	rev := commit(t, s, put(p+"a", "0"))
	unread := s.Watch(ctx, p, rev-1)
	waiting := s.Watch(ctx, p, rev)
	cancel(why)
	for name, events := range map[string]<-chan store.Batch{"unread": unread, "waiting": waiting} {
		var last store.Batch
		for b := range events {
			last = b
		}
		wantErr(t, name+" watch", last.Err, why)
	}
	wantErr(t, "watch with an ended context", (<-s.Watch(ctx, p, rev)).Err, why)
}

func slowWatcher(t *testing.T, s Compacter, p string) {
	const n = 3000 // more than an etcd server puts into one message
	before := commit(t, s, put(p+"start", ""))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, p, before)
	for i := 0; i < n; i += 100 {
		var changes []store.Change
		for j := i; j < i+100; j++ {
			changes = append(changes, put(fmt.Sprintf("%sk%04d", p, j), fmt.Sprint(j)))
		}
		commit(t, s, changes...)
	}
	perRev := map[int64]int{}
	for _, ev := range collect(t, events, n) {
		perRev[ev.Rev]++
	}
	if len(perRev) != n/100 {
		t.Errorf("events of %d revisions, want %d", len(perRev), n/100)
	}
	for rev, got := range perRev {
		if got != 100 {
			t.Errorf("revision %d has %d events, want 100", rev, got)
		}
	}
}

func compaction(t *testing.T, s Compacter, p string) {
	first := commit(t, s, put(p+"a", "1"))
	commit(t, s, put(p+"a", "2"))
	commit(t, s, put(p+"a", "3"))
	last := commit(t, s, put(p+"b", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	live := s.Watch(ctx, p, last)
	if err := s.Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	gone := s.Watch(ctx, p, first-1)
	wantErr(t, "watch from before", (<-gone).Err, store.ErrCompacted)
	if _, open := <-gone; open {
		t.Error("the watch went on after its error")
	}
	if got := string(get(t, s, p+"a").Value); got != "3" {
		t.Errorf("value %q after compaction, want the newest", got)
	}
	next := commit(t, s, put(p+"a", "4"))
	if got := collect(t, live, 1)[0].Rev; got != next {
		t.Errorf("a watch that needs nothing compacted sees revision %d, want %d", got, next)
	}
}
