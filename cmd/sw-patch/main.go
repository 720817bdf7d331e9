// Command sw-patch is the operator's command line of patching; sw-patch --help lists what it does. It speaks to the
// controller of this machine through its unix socket, or to the one that STARPATCH_SOCKET or STARPATCH_URL names.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/internal/swpatch"
	"github.com/starpatch/starpatch/internal/version"
)

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return swpatch.Run(ctx, swpatch.Env{
		Args:            os.Args[1:],
		Stdout:          os.Stdout,
		Stderr:          os.Stderr,
		Getenv:          os.Getenv,
		UID:             os.Geteuid(),
		Width:           cli.TextWidth(os.Getenv, os.Stdout, os.Stderr, os.Stdin),
		Dots:            cli.IsTerminal(os.Stdout),
		Progress:        cli.Columns(os.Stderr),
		Version:         version.Version,
		Uninterruptible: func() { signal.Ignore(os.Interrupt) },
	})
}
