package durable

import (
	"os"

	"golang.org/x/sys/unix"
)

// early is how many bytes are written before the disk is told to begin with them.
const early = 4 << 20

// Writeback has the disk work while a large file is still being written, so that little is left to wait for when it is
// synced. The zero value is for an empty file that is written from its start.
type Writeback struct{ written, begun int64 }

// Wrote says that n more bytes were written to f.
func (w *Writeback) Wrote(f *os.File, n int) {
	w.written += int64(n)
	more := w.written - w.begun
	if more < early {
		return
	}
	// Advice only: the sync before a file becomes visible reports every error.
	if err := unix.SyncFileRange(int(f.Fd()), w.begun, more, unix.SYNC_FILE_RANGE_WRITE); err == nil {
		w.begun = w.written
	}
}
