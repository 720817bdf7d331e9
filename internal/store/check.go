package store

import (
	"strings"
	"unicode/utf8"

	"github.com/starpatch/starpatch/problem"
)

// The limits of one commit. They keep within the defaults of an etcd that the site already runs: 128 operations and
// 1.5 MiB a request.
const (
	MaxKey      = 512         // bytes
	MaxValue    = 1 << 20     // bytes
	MaxOps      = 120         // compares, and as many changes
	MaxTxnBytes = 5 << 20 / 4 // 1.25 MiB: sum of [Change.Size] and [Compare.Size]
	opOverhead  = 48          // bytes that the encoding of one operation adds to its key and value, at most
)

// Size is what the compare counts against [MaxTxnBytes].
func (c Compare) Size() int { return len(c.Key) + opOverhead }

// Size is what the change counts against [MaxTxnBytes].
func (c Change) Size() int { return len(c.Key) + len(c.Value) + opOverhead }

// Size is what the transaction counts against [MaxTxnBytes].
func (t Txn) Size() int {
	n := 0
	for _, c := range t.If {
		n += c.Size()
	}
	for _, c := range t.Then {
		n += c.Size()
	}
	return n
}

// Check refuses a transaction that no store takes: a malformed key, a key changed twice, or more than the limits above
// ([ErrTooLarge]). Every implementation calls it first, so that all refuse the same.
func (t Txn) Check() error {
	if len(t.If) > MaxOps || len(t.Then) > MaxOps {
		return problem.Errorf(problem.TooLarge, "cannot commit %d compares and %d changes at once; at most %d of each fit: %w", len(t.If), len(t.Then), MaxOps, ErrTooLarge)
	}
	for _, c := range t.If {
		if err := checkKey(c.Key); err != nil {
			return err
		}
	}
	seen := make(map[string]bool, len(t.Then))
	for _, c := range t.Then {
		if err := checkKey(c.Key); err != nil {
			return err
		}
		if seen[c.Key] {
			return problem.Errorf(problem.Internal, "cannot change key %q twice in one commit", c.Key)
		}
		seen[c.Key] = true
		if len(c.Value) > MaxValue {
			return problem.Errorf(problem.TooLarge, "cannot save %d bytes under %s; at most %d fit: %w", len(c.Value), c.Key, MaxValue, ErrTooLarge)
		}
	}
	if n := t.Size(); n > MaxTxnBytes {
		return problem.Errorf(problem.TooLarge, "cannot commit %d bytes at once; at most %d fit: %w", n, MaxTxnBytes, ErrTooLarge)
	}
	return nil
}

// checkKey holds the grammar of keys: a path of non-empty parts in printable text.
func checkKey(key string) error {
	switch {
	case len(key) > MaxKey:
		return problem.Errorf(problem.TooLarge, "cannot use a key of %d bytes; at most %d are allowed: %w", len(key), MaxKey, ErrTooLarge)
	case key == "" || !utf8.ValidString(key) || strings.HasPrefix(key, "/") || strings.HasSuffix(key, "/") || strings.Contains(key, "//"):
		return problem.Errorf(problem.Internal, "cannot use key %q: want parts separated by single slashes", key)
	}
	for _, r := range key {
		if r < ' ' || r == 0x7f {
			return problem.Errorf(problem.Internal, "cannot use key %q: control characters are not allowed", key)
		}
	}
	return nil
}
