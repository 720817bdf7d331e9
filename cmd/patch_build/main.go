// Command patch_build makes a signed patch file of RPMs; patch_build --help lists its options.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/starpatch/starpatch/internal/buildtool"
	"github.com/starpatch/starpatch/internal/trust"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return buildtool.Build(ctx, buildtool.Env{
		Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now, LoadTrust: trust.Load,
	})
}
