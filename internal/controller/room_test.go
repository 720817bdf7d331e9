package controller

import (
	"context"
	"testing"

	"github.com/starpatch/starpatch/internal/store"
)

// full is a store that has no space until it is given back.
type full struct {
	store.Store
	room *memRoom
}

func (f full) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if used, err := f.room.Used(ctx); err != nil || used >= 1 {
		return 0, store.ErrNoSpace
	}
	return f.Store.Commit(ctx, txn)
}

func TestAReportIsSavedThoughTheStoreRanFull(t *testing.T) {
	r := newRig(t)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.wrap = func(s store.Store) store.Store { return full{s, r.room} }
	r.start()
	a := r.attach("compute-0")
	r.room.set(1)
	a.report(current(1))
	if h := r.host("compute-0"); !h.PatchCurrent {
		t.Errorf("the report was lost: %+v", h)
	}
	if r.room.reclaimed != 1 {
		t.Errorf("space was given back %d times, want once", r.room.reclaimed)
	}
}
