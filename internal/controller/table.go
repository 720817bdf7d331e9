package controller

import (
	"hash/maphash"
	"maps"
)

// shards is how many small maps a table is split into: a change copies one of them and the row of pointers.
const shards = 256

// table is a map whose versions are immutable: with and without return a new version that shares all but one shard with
// the old one, so that readers of the old one are not disturbed. The zero table is empty.
type table[V any] struct {
	rows [shards]map[string]V
	n    int
}

// tableSeed places keys; it only has to be the same within one process.
var tableSeed = maphash.MakeSeed()

func shardOf(key string) int { return int(maphash.String(tableSeed, key) % shards) }

func (t *table[V]) get(key string) (V, bool) {
	v, ok := t.rows[shardOf(key)][key]
	return v, ok
}

func (t *table[V]) with(key string, v V) *table[V] {
	next := *t
	i := shardOf(key)
	row := maps.Clone(t.rows[i])
	if row == nil {
		row = map[string]V{}
	}
	if _, ok := row[key]; !ok {
		next.n++
	}
	row[key] = v
	next.rows[i] = row
	return &next
}

func (t *table[V]) without(key string) *table[V] {
	i := shardOf(key)
	if _, ok := t.rows[i][key]; !ok {
		return t
	}
	next := *t
	next.rows[i] = maps.Clone(t.rows[i])
	delete(next.rows[i], key)
	next.n--
	return &next
}

// all yields every entry, in no order.
func (t *table[V]) all(yield func(string, V) bool) {
	for _, row := range t.rows {
		for k, v := range row {
			if !yield(k, v) {
				return
			}
		}
	}
}
