// Package fanout lets several hashes work side by side on one stream of bytes, so that a large file costs the time of its
// slowest hash and not of all of them together.
package fanout

import (
	"io"
	"sync"
	"sync/atomic"
)

// Size and number of the pieces in which bytes travel: what a writer may be ahead of its slowest sink.
const (
	pieceSize = 128 << 10
	pieces    = 4
)

// New returns a writer that gives all bytes to every sink, in order, each sink in a goroutine of its own. Memory is bounded:
// a write waits for the slowest sink. Close waits until every sink has everything, ends the goroutines and returns the first
// error of a sink; it must be called. A sink that failed gets no more bytes. The writer is not safe for concurrent use.
func New(sinks ...io.Writer) io.WriteCloser {
	f := &fan{free: make(chan *piece, pieces)}
	for range pieces {
		f.free <- &piece{}
	}
	for _, s := range sinks {
		in := make(chan *piece, pieces)
		f.sinks = append(f.sinks, in)
		f.wait.Go(func() { f.drain(s, in) })
	}
	return f
}

type piece struct {
	b     []byte
	users atomic.Int32 // sinks that still read b
}

type fan struct {
	free   chan *piece
	sinks  []chan *piece
	now    *piece // being filled; nil: none
	wait   sync.WaitGroup
	err    atomic.Pointer[error]
	closed bool
}

func (f *fan) drain(w io.Writer, in <-chan *piece) {
	failed := false
	for p := range in {
		if !failed {
			if _, err := w.Write(p.b); err != nil {
				failed = true
				f.err.CompareAndSwap(nil, &err)
			}
		}
		if p.users.Add(-1) == 0 {
			f.free <- p
		}
	}
}

func (f *fan) Write(b []byte) (int, error) {
	if f.closed {
		return 0, io.ErrClosedPipe
	}
	n := 0
	for n < len(b) {
		if err := f.err.Load(); err != nil {
			return n, *err
		}
		if f.now == nil {
			f.now = <-f.free
			if f.now.b == nil {
				f.now.b = make([]byte, 0, pieceSize)
			}
			f.now.b = f.now.b[:0]
		}
		take := min(len(b)-n, pieceSize-len(f.now.b))
		f.now.b = append(f.now.b, b[n:n+take]...)
		n += take
		if len(f.now.b) == pieceSize {
			f.send()
		}
	}
	return n, nil
}

func (f *fan) send() {
	if f.now == nil {
		return
	}
	f.now.users.Store(int32(len(f.sinks)))
	for _, in := range f.sinks {
		in <- f.now
	}
	f.now = nil
}

func (f *fan) Close() error {
	if !f.closed {
		f.closed = true
		f.send()
		for _, in := range f.sinks {
			close(in)
		}
		f.wait.Wait()
	}
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}
