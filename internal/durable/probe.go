package durable

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// SlowSync is the time of a write with fdatasync, at the 99th percentile, above which a disk is too slow for the state
// store: every decision waits for at least one, and an election for several.
// Source: etcd's hardware guide asks for a WAL fsync p99 below 10 ms.
const SlowSync = 10 * time.Millisecond

const (
	probes     = 100
	probeBytes = 1 << 10
	probeTime  = 500 * time.Millisecond // so that a very slow disk does not hold up the start
)

// ProbeSync measures how long a 1 KiB append with fdatasync takes in dir and returns the 99th percentile. It takes at
// most half a second, and on a good disk a few hundredths.
func ProbeSync(dir string) (p99 time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".probe-*"+tempMark)
	if err != nil {
		return 0, fmt.Errorf("cannot measure the disk of %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := make([]byte, probeBytes)
	var took []time.Duration
	for start := time.Now(); len(took) < probes && time.Since(start) < probeTime; {
		t := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, fmt.Errorf("cannot measure the disk of %s: %w", dir, err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, fmt.Errorf("cannot measure the disk of %s: %w", dir, err)
		}
		took = append(took, time.Since(t))
	}
	slices.Sort(took)
	return took[(len(took)-1)*99/100], nil
}
