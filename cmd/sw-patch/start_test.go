package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkStart runs the program as it is shipped, from exec to exit; docs/perf.md has the figures and the bar.
func BenchmarkStart(b *testing.B) {
	program := filepath.Join(bin, "sw-patch")
	for b.Loop() {
		if out, err := exec.CommandContext(b.Context(), program, "--help").CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
	}
}
