package fanout_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/internal/fanout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEverySinkGetsAllBytesInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sinks := make([]bytes.Buffer, rapid.IntRange(1, 4).Draw(t, "sinks"))
		var writers []io.Writer
		for i := range sinks {
			writers = append(writers, &sinks[i])
		}
		w := fanout.New(writers...)
		var want []byte
		for i, size := range rapid.SliceOfN(rapid.IntRange(0, 300<<10), 0, 8).Draw(t, "sizes") {
			b := bytes.Repeat([]byte{byte(i), byte(i * 7), byte(size)}, size/3)
			if n, err := w.Write(b); n != len(b) || err != nil {
				t.Fatalf("wrote %d of %d: %v", n, len(b), err)
			}
			want = append(want, b...)
			clear(b) // a writer may use its buffer again
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for i := range sinks {
			if !bytes.Equal(sinks[i].Bytes(), want) {
				t.Fatalf("sink %d got %d bytes; want %d, the same", i, sinks[i].Len(), len(want))
			}
		}
	})
}

func TestTheErrorOfASinkIsReturned(t *testing.T) {
	broken := errors.New("broken")
	var whole bytes.Buffer
	w := fanout.New(failing{broken}, &whole)
	b := make([]byte, 64<<10)
	total := 0
	for range 1000 {
		n, err := w.Write(b)
		total += n
		if err != nil {
			break
		}
	}
	if err := w.Close(); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if whole.Len() != total {
		t.Errorf("the other sink got %d of %d bytes", whole.Len(), total)
	}
	if _, err := w.Write(b); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a write after Close: %v", err)
	}
	if err := w.Close(); !errors.Is(err, broken) {
		t.Errorf("a second Close: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
