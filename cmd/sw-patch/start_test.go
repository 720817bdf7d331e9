package main

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startBar is how long the command line may take to start; docs/perf.md has the measured figures.
const startBar = 20 * time.Millisecond

// BenchmarkStart runs the program as it is shipped, from exec to exit.
func BenchmarkStart(b *testing.B) {
	program := filepath.Join(bin, "sw-patch")
	fastest := time.Hour
	for b.Loop() {
		began := time.Now()
		if out, err := exec.CommandContext(b.Context(), program, "--help").CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > startBar && b.N > 10 {
		b.Errorf("the fastest of %d starts took %v, at most %v wanted", b.N, fastest, startBar)
	}
}
