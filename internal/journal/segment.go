package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/problem"
)

// Records are read in blocks of a thousand: those whose keys differ in the last three digits only.
const (
	blockDigits = 3
	blockSize   = 1000
)

// deleteOps is how many records are deleted from the store in one transaction.
const deleteOps = 100

// segmentOf is the first record of the segment that holds a record.
func (j *Journal) segmentOf(number int64) int64 {
	return (number-1)/j.cfg.segment*j.cfg.segment + 1
}

func (j *Journal) segmentFile(first int64) string {
	return filepath.Join(j.dir, fmt.Sprintf("%020d.jsonl", first))
}

// segments lists the first records of the complete segments in files, ascending.
func (j *Journal) segments() ([]int64, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the journal of %s: %w", j.cfg.Controller, err)
	}
	var out []int64
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".jsonl"); ok && len(name) == 20 {
			if n, err := strconv.ParseInt(name, 10, 64); err == nil && n > 0 {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// lastMoved is the last record in a file, 0 without files.
func (j *Journal) lastMoved() (int64, error) {
	firsts, err := j.segments()
	if err != nil || len(firsts) == 0 {
		return 0, err
	}
	return firsts[len(firsts)-1] + j.cfg.segment - 1, nil
}

// wishMove asks for complete segments to be moved, unless that is asked for already.
func (j *Journal) wishMove() {
	if j.Head().Number%j.cfg.segment > store.MaxOps {
		return // no group is larger: it ended no segment
	}
	select {
	case j.full <- struct{}{}:
	default:
	}
}

// move is the goroutine that moves complete segments to files. What fails is tried again when the next one is complete.
func (j *Journal) move() {
	ctx, cancel := context.WithCancel(context.Background())
	j.work.Go(func() {
		<-j.quit
		cancel()
	})
	for {
		select {
		case <-j.quit:
			return
		case <-j.full:
		}
		if err := j.moveComplete(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrClosed) {
			j.cfg.Log.Warn("cannot move journal records to a file; trying again later", "err", err)
		}
	}
}

// moveComplete brings files and store to where a move that was never interrupted would have left them: first the file is
// durable, then its records leave the store.
func (j *Journal) moveComplete(ctx context.Context) error {
	j.moving.Lock()
	defer j.moving.Unlock()
	last, err := j.lastMoved()
	if err != nil {
		return err
	}
	if last > 0 {
		if err := j.forget(ctx, last-j.cfg.segment+1); err != nil {
			return err
		}
	}
	for first := last + 1; j.Head().Number >= first+j.cfg.segment-1; first += j.cfg.segment {
		if err := j.writeSegment(ctx, first); err != nil {
			return err
		}
		if err := j.forget(ctx, first); err != nil {
			return err
		}
	}
	return j.retire()
}

func (j *Journal) writeSegment(ctx context.Context, first int64) error {
	f, err := durable.Create(j.segmentFile(first), 0o600)
	if err != nil {
		return err
	}
	for n := first; n < first+j.cfg.segment; {
		records, err := j.inStore(ctx, n)
		if err == nil && len(records) == 0 {
			err = j.broken("record %d is missing", n)
		}
		if err != nil {
			return errors.Join(err, f.Abort())
		}
		for _, r := range records {
			if r.Number >= first+j.cfg.segment {
				break
			}
			if _, err := f.Write(slices.Concat(r.line, []byte{'\n'})); err != nil {
				return errors.Join(err, f.Abort())
			}
			n = r.Number + 1
		}
	}
	return f.Commit()
}

// forget deletes the records of a segment from the store. The file has them.
func (j *Journal) forget(ctx context.Context, first int64) error {
	end := first + j.cfg.segment
	for n := first; n < end; n = blockEnd(n) {
		items, err := j.block(ctx, n)
		if err != nil {
			return err
		}
		items = slices.DeleteFunc(items, func(it numbered) bool { return it.number < first || it.number >= end })
		for some := range slices.Chunk(items, deleteOps) {
			var txn store.Txn
			for _, it := range some {
				txn.Then = append(txn.Then, store.Change{Key: it.Key})
			}
			if _, err := j.store.Commit(ctx, txn); err != nil {
				return err
			}
		}
	}
	return nil
}

// retire removes the oldest files until no more than Keep bytes are left. The newest always stays.
func (j *Journal) retire() error {
	if j.cfg.Keep == 0 {
		return nil
	}
	firsts, err := j.segments()
	if err != nil {
		return err
	}
	kept := int64(0)
	for i, first := range slices.Backward(firsts) {
		fi, err := os.Stat(j.segmentFile(first))
		if err != nil {
			return err
		}
		if kept += fi.Size(); kept <= j.cfg.Keep || i == len(firsts)-1 {
			continue
		}
		for _, old := range firsts[:i+1] {
			if err := durable.Remove(j.segmentFile(old)); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// stored is a record with its line.
type stored struct {
	Record
	line []byte
}

type numbered struct {
	store.Item
	number int64
}

// blockEnd is the first record after the block that holds number.
func blockEnd(number int64) int64 {
	return (number/blockSize + 1) * blockSize
}

// block lists the records in the store that share all but the last digits with number.
func (j *Journal) block(ctx context.Context, number int64) ([]numbered, error) {
	key := j.key(number)
	items, _, err := j.store.List(ctx, key[:len(key)-blockDigits])
	if err != nil {
		return nil, fmt.Errorf("cannot read the journal of %s: %w", j.cfg.Controller, err)
	}
	out := make([]numbered, 0, len(items))
	for _, it := range items {
		n, err := strconv.ParseInt(strings.TrimPrefix(it.Key, j.prefix), 10, 64)
		if err != nil {
			return nil, j.broken("the key %q names no record", it.Key)
		}
		out = append(out, numbered{it, n})
	}
	return out, nil
}

// inStore returns records from number on without a gap, as far as one look into the store goes. None: it is not there.
func (j *Journal) inStore(ctx context.Context, number int64) ([]stored, error) {
	items, err := j.block(ctx, number)
	if err != nil {
		return nil, err
	}
	var out []stored
	for _, it := range items {
		if it.number < number {
			continue
		}
		if it.number != number+int64(len(out)) {
			break
		}
		r, err := j.parse(it.Value, it.number)
		if err != nil {
			return nil, err
		}
		out = append(out, stored{r, it.Value})
	}
	return out, nil
}

// inFile returns records from number on of the segment that holds it. None: there is no such file.
func (j *Journal) inFile(number int64) ([]stored, error) {
	first := j.segmentOf(number)
	f, err := os.Open(j.segmentFile(first))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := j.readSegment(bufio.NewReaderSize(f, MaxRecord+1), first, number)
	return out, errors.Join(err, f.Close())
}

func (j *Journal) readSegment(in *bufio.Reader, first, number int64) ([]stored, error) {
	var out []stored
	for n := first; n < first+j.cfg.segment; n++ {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, j.broken("record %d is missing in the file of its segment: %v", n, err)
		}
		if n < number {
			continue
		}
		line = bytes.Clone(line[:len(line)-1])
		r, err := j.parse(line, n)
		if err != nil {
			return nil, err
		}
		if out = append(out, stored{r, line}); len(out) == blockSize {
			return out, nil
		}
	}
	if _, err := in.ReadByte(); err == nil {
		return nil, j.broken("the file of the segment from record %d goes on after its end", first)
	}
	return out, nil
}

func (j *Journal) parse(line []byte, number int64) (Record, error) {
	r, err := parse(line)
	if problem.KindOf(err) == problem.NotSupported {
		return Record{}, err
	}
	if err != nil {
		return Record{}, j.broken("record %d: %w", number, err)
	}
	if r.Number != number {
		return Record{}, j.broken("record %d has the number %d", number, r.Number)
	}
	return r, nil
}
