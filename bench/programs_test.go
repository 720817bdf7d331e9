package bench_test

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// bin is where make build puts the programs; what is measured is what operators run.
const bin = "../bin"

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() != "" {
		if out, err := exec.Command("make", "-s", "-C", "..", "build").CombinedOutput(); err != nil {
			log.Fatalf("cannot build the programs: %v\n%s", err, out)
		}
	}
	os.Exit(m.Run())
}

// quick says that every benchmark runs only once, to see that it works: sizes are then small, and figures mean nothing.
func quick() bool { return flag.Lookup("test.benchtime").Value.String() == "1x" }

// size is n, or small when benchmarks only have to work.
func size(n, small int) int {
	if quick() {
		return small
	}
	return n
}

// program is the path of one of our programs.
func program(name string) string { return filepath.Join(bin, name) }

// run runs a program and returns how long it took and its largest resident memory in bytes. A small process starts it,
// because Linux counts the memory of the starter, and this one holds the packages.
func run(b *testing.B, name string, args ...string) (time.Duration, int64) {
	b.Helper()
	cmd := exec.Command("/usr/bin/python3", append([]string{"baseline.py", "measure", name}, args...)...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s: %v: %s", name, err, errors.String())
	}
	var seconds float64
	var memory int64
	if _, err := fmt.Sscan(string(out), &seconds, &memory); err != nil {
		b.Fatalf("%s: %v in %q", name, err, out)
	}
	return time.Duration(seconds * float64(time.Second)), memory
}

// times are what something took, run by run.
type times []time.Duration

// at is the time that the given part of all runs did not exceed, in milliseconds.
func (t times) at(part float64) float64 {
	sorted := slices.Sorted(slices.Values(t))
	return milliseconds(sorted[min(len(sorted)-1, int(part*float64(len(sorted))))])
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// report adds the median and the slowest hundredth to the result.
func (t times) report(b *testing.B) {
	b.Helper()
	b.ReportMetric(t.at(0.50), "ms-p50")
	b.ReportMetric(t.at(0.99), "ms-p99")
}
