package bench_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// BenchmarkControllerStart is the time from exec to ready, of a controller that knows 500 patches and was stopped.
func BenchmarkControllerStart(b *testing.B) { starts(b, os.Interrupt) }

// BenchmarkControllerRestartAfterKill is the same after kill -9.
func BenchmarkControllerRestartAfterKill(b *testing.B) { starts(b, os.Kill) }

func starts(b *testing.B, signal os.Signal) {
	c := newController(b)
	c.smallPatches(size(500, 10))
	var took times
	for b.Loop() {
		b.StopTimer()
		c.end(signal)
		b.StartTimer()
		began := time.Now()
		c.start()
		took = append(took, time.Since(began))
		b.StopTimer()
		c.client.CloseIdle()
		if _, err := c.client.Query(context.Background(), "all", ""); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	took.report(b)
}

// BenchmarkCommandStart is a command line's run from exec to exit, without a controller.
func BenchmarkCommandStart(b *testing.B) {
	for _, name := range []string{"sw-patch", "patch_build", "query_patch"} {
		b.Run(name, func(b *testing.B) {
			var took times
			for b.Loop() {
				began := time.Now()
				if out, err := exec.Command(program(name), "--help").CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				took = append(took, time.Since(began))
			}
			took.report(b)
		})
	}
}
