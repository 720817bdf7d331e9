// Command query_patch verifies a patch file and shows its metadata.
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
	return buildtool.Query(ctx, buildtool.Env{
		Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now, LoadTrust: trust.Load,
	})
}
