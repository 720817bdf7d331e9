package etcd_test

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/starpatch/starpatch/internal/durable/durabletest"
)

// A power cut stops the machine as a whole, so the process is frozen before its disk is cut. A disk that fails under the
// running process cannot be had this way: see durabletest.Disk.Cut.
func TestSoakAPowerCutLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	rounds := 2
	if *soak {
		rounds = 50
	}
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(uint64(*seed), 1))
	d := durabletest.NewDisk(t)
	acked := map[int]int{}
	for range rounds {
		c := start(t, d.Dir, acked)
		c.read(t, 1+random.IntN(2000))
		c.freeze(t)
		d.Cut(t)
		c.kill(t)
		d.Restore(t)
		check(t, d.Dir, acked)
		if left, err := filepath.Glob(filepath.Join(d.Dir, "journal", "*", ".*")); err != nil || len(left) > 0 {
			t.Errorf("files %v left after a start, %v", left, err)
		}
	}
}
