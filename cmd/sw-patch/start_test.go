package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startBar is how long the command line may take to start; docs/perf.md has the measured figures.
const startBar = 20 * time.Millisecond

// BenchmarkStart runs the program as it is shipped, from exec to exit.
func BenchmarkStart(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "sw-patch")
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	fastest := time.Hour
	for b.Loop() {
		began := time.Now()
		if out, err := exec.CommandContext(context.Background(), bin, "--help").CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > startBar && b.N > 10 {
		b.Errorf("the fastest of %d starts took %v, at most %v wanted", b.N, fastest, startBar)
	}
}
