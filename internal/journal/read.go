package journal

import (
	"context"
	"io"
	"slices"
)

// run returns records from number on, without a gap, as many as are cheap to get at once. None: there is no such record,
// or it has been retired. The store comes first: a record that is moved in this moment is in the file before it leaves
// the store.
func (j *Journal) run(ctx context.Context, number int64) ([]stored, error) {
	out, err := j.inStore(ctx, number)
	if err != nil || len(out) > 0 {
		return out, err
	}
	return j.inFile(number)
}

// oldest is the first record that has not been retired.
func (j *Journal) oldest() (int64, error) {
	firsts, err := j.segments()
	if err != nil || len(firsts) == 0 {
		return 1, err
	}
	return firsts[0], nil
}

// each calls f with every record from number on up to the head as of the call, in order.
func (j *Journal) each(ctx context.Context, number int64, f func(stored) (more bool, err error)) error {
	end := j.Head().Number
	oldest, err := j.oldest()
	if err != nil {
		return err
	}
	for n := max(number, oldest); n <= end; {
		records, err := j.run(ctx, n)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return j.broken("record %d is missing", n)
		}
		for _, r := range records {
			if r.Number > end {
				return nil
			}
			if more, err := f(r); err != nil || !more {
				return err
			}
			n = r.Number + 1
		}
	}
	return nil
}

// Read returns at most n records from the given number on; fewer only at the end. Retired ones are skipped. Each one's
// own hash has been checked, not its place in the chain.
func (j *Journal) Read(ctx context.Context, from int64, n int) ([]Record, error) {
	var out []Record
	if n <= 0 {
		return nil, nil
	}
	err := j.each(ctx, from, func(r stored) (bool, error) {
		out = append(out, r.Record)
		return len(out) < n, nil
	})
	return out, err
}

// Check is what [Journal.Verify] found to be whole.
type Check struct {
	First   int64 // oldest record that is kept; 0: there is none
	Records int64
	Head    Head
}

// Verify reads all records and checks that none was changed, lost, added or moved: numbers without a gap, each hash over
// its record and the hash before, and the last one equal to the head. Its error names the first record that is wrong.
func (j *Journal) Verify(ctx context.Context) (Check, error) {
	check := Check{Head: j.Head()}
	prev := genesis
	err := j.each(ctx, 1, func(r stored) (bool, error) {
		if check.First == 0 {
			check.First = r.Number
			if r.Number > 1 {
				prev = r.Prev // the one before is retired
			}
		}
		if r.Prev != prev {
			return false, j.broken("record %d does not follow the one before it", r.Number)
		}
		prev = r.Hash
		check.Records++
		return r.Number < check.Head.Number, nil
	})
	if err != nil {
		return Check{}, err
	}
	if prev != check.Head.Hash {
		return Check{}, j.broken("its last record, number %d, is not the one that the head names", check.Head.Number)
	}
	return check, nil
}

// Export writes all records as they are stored, one line each.
func (j *Journal) Export(ctx context.Context, w io.Writer) error {
	return j.each(ctx, 1, func(r stored) (bool, error) {
		_, err := w.Write(slices.Concat(r.line, []byte{'\n'}))
		return true, err
	})
}
