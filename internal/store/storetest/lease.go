package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/starpatch/starpatch/internal/store"
)

func grant(t testing.TB, ctx context.Context, s store.Store) (store.Lease, <-chan struct{}) {
	t.Helper()
	lease, lost, err := s.Grant(ctx, 2)
	if err != nil {
		t.Fatalf("grant: %v", err)
	}
	t.Cleanup(func() { // so that no expiry makes a revision in the middle of another test
		if err := s.Revoke(context.WithoutCancel(ctx), lease); err != nil {
			t.Errorf("revoke: %v", err)
		}
	})
	return lease, lost
}

func revoke(t *testing.T, s Compacter, p string) {
	lease, lost := grant(t, t.Context(), s)
	rev := commit(t, s, store.Change{Key: p + "a", Value: []byte("1"), Lease: lease}, store.Change{Key: p + "b", Value: []byte("1"), Lease: lease}, put(p+"c", "1"))
	commit(t, s, put(p+"b", "2")) // no longer bound to the lease
	commit(t, s, store.Change{Key: p + "c", Value: []byte("2"), Lease: lease})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, p, rev+2)
	if err := s.Revoke(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	got := collect(t, events, 2)
	if got[0].Rev != got[1].Rev || got[0].Value != nil || got[1].Value != nil {
		t.Errorf("events %v, want two deletions in one revision", got)
	}
	wantMissing(t, s, p+"a")
	wantMissing(t, s, p+"c")
	if got := string(get(t, s, p+"b").Value); got != "2" {
		t.Errorf("a key that was saved again without the lease holds %q, want 2", got)
	}
	<-lost
	if err := s.Revoke(t.Context(), lease); err != nil {
		t.Errorf("revoking a lease that is gone: %v", err)
	}
}

func expiry(t *testing.T, s Compacter, p string) {
	holder, dies := context.WithCancel(t.Context())
	lease, lost := grant(t, holder, s)
	kept, _ := grant(t, t.Context(), s)
	rev := commit(t, s, store.Change{Key: p + "a", Value: []byte("1"), Lease: lease}, store.Change{Key: p + "b", Value: []byte("1"), Lease: kept})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := s.Watch(ctx, p, rev)
	dies()
	<-lost
	if got := collect(t, events, 1)[0]; got.Key != p+"a" || got.Value != nil {
		t.Errorf("first event %v, want the deletion of a", got)
	}
	if err := s.Revoke(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
}

func lostLease(t *testing.T, s Compacter, p string) {
	lease, _ := grant(t, t.Context(), s)
	if err := s.Revoke(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	_, err := s.Commit(t.Context(), store.Txn{Then: []store.Change{put(p+"a", "1"), {Key: p + "b", Value: []byte("1"), Lease: lease}}})
	wantErr(t, "commit with a lease that is gone", err, store.ErrLeaseLost)
	wantMissing(t, s, p+"a")
}

func office(p string) string { return "office-of-" + p[:len(p)-1] }

func election(t *testing.T, s Compacter, p string) {
	l1, _ := grant(t, t.Context(), s)
	l2, _ := grant(t, t.Context(), s)
	_, err := store.Holder(t.Context(), s, office(p))
	wantErr(t, "holder of a vacant office", err, store.ErrNotFound)
	first, err := store.Campaign(t.Context(), s, office(p), "one", l1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := store.Campaign(t.Context(), s, office(p), "one", l1)
	if err != nil || again.Fence() != first.Fence() {
		t.Fatalf("campaigning again: %v, fence %v; want the same office %v", err, again.Fence(), first.Fence())
	}
	won := make(chan *store.Election)
	go func() {
		e, err := store.Campaign(t.Context(), s, office(p), "two", l2)
		if err != nil {
			t.Errorf("second candidate: %v", err)
		}
		won <- e
	}()
	if got, err := store.Holder(t.Context(), s, office(p)); err != nil || got != "one" {
		t.Errorf("holder %q, %v; want one", got, err)
	}
	if err := first.Resign(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := <-won
	if got, err := store.Holder(t.Context(), s, office(p)); err != nil || got != "two" {
		t.Errorf("holder %q, %v; want two", got, err)
	}
	if err := first.Resign(t.Context()); err != nil {
		t.Errorf("resigning twice: %v", err)
	}
	if _, err := s.Commit(t.Context(), store.Txn{If: []store.Compare{second.Fence()}, Then: []store.Change{put(p+"a", "1")}}); err != nil {
		t.Errorf("commit in office: %v", err)
	}
	if err := second.Resign(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// stands waits until n candidates stand.
func stands(t *testing.T, s store.Store, office string, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	items, rev, err := s.List(ctx, "elections/"+office+"/")
	if err != nil {
		t.Fatal(err)
	}
	if len(items) < n {
		collect(t, s.Watch(ctx, "elections/"+office+"/", rev), n-len(items))
	}
}

func giveUp(t *testing.T, s Compacter, p string) {
	l1, _ := grant(t, t.Context(), s)
	l2, _ := grant(t, t.Context(), s)
	if _, err := store.Campaign(t.Context(), s, office(p), "one", l1); err != nil {
		t.Fatal(err)
	}
	why := errors.New("no longer interested")
	ctx, cancel := context.WithCancelCause(t.Context())
	waiting := make(chan error)
	go func() {
		_, err := store.Campaign(ctx, s, office(p), "two", l2)
		waiting <- err
	}()
	stands(t, s, office(p), 2)
	cancel(why)
	wantErr(t, "campaign", <-waiting, why)
	items, _, err := s.List(t.Context(), "elections/"+office(p)+"/")
	if err != nil || len(items) != 1 {
		t.Errorf("%d candidates, %v; want only the holder", len(items), err)
	}
}

func loseWhileWaiting(t *testing.T, s Compacter, p string) {
	l1, _ := grant(t, t.Context(), s)
	l2, _ := grant(t, t.Context(), s)
	if _, err := store.Campaign(t.Context(), s, office(p), "one", l1); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		_, err := store.Campaign(t.Context(), s, office(p), "two", l2)
		waiting <- err
	}()
	stands(t, s, office(p), 2)
	if err := s.Revoke(t.Context(), l2); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "campaign", <-waiting, store.ErrLeaseLost)
}

func fencing(t *testing.T, s Compacter, p string) {
	l1, lost := grant(t, t.Context(), s)
	held, err := store.Campaign(t.Context(), s, office(p), "one", l1)
	if err != nil {
		t.Fatal(err)
	}
	write := store.Txn{If: []store.Compare{held.Fence()}, Then: []store.Change{put(p+"a", "1")}}
	if _, err := s.Commit(t.Context(), write); err != nil {
		t.Errorf("write in office: %v", err)
	}
	if err := s.Revoke(t.Context(), l1); err != nil { // as if the holder had been paused for too long
		t.Fatal(err)
	}
	<-lost
	_, err = s.Commit(t.Context(), write)
	wantErr(t, "write after the office was lost", err, store.ErrConflict)
	l2, _ := grant(t, t.Context(), s)
	if _, err := store.Campaign(t.Context(), s, office(p), "two", l2); err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(t.Context(), write)
	wantErr(t, "write while another holds the office", err, store.ErrConflict)
}
