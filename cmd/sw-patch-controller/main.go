// Command sw-patch-controller is the controller: APIs, patch store, repositories and the table of hosts. Without a
// subcommand it runs; init prepares a machine before the first start; the others talk to the running controller over its
// unix socket.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/starpatch/starpatch/internal/config"
	"github.com/starpatch/starpatch/internal/controllerd"
	"github.com/starpatch/starpatch/internal/daemon"
	"github.com/starpatch/starpatch/internal/version"
	"github.com/starpatch/starpatch/problem"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// program is one run of the command.
type program struct {
	out, err io.Writer
	getenv   func(string) string
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	p := &program{stdout, stderr, getenv}
	root := p.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if _, werr := fmt.Fprintln(stderr, "Error: "+err.Error()); werr != nil {
		return exitFailure
	}
	if problem.KindOf(err) == problem.Internal && isUsage(err) {
		return exitUsage
	}
	return exitFailure
}

// usage is an error of the command line itself.
type usage struct{ error }

func isUsage(err error) bool {
	_, ok := errors.AsType[usage](err)
	return ok
}

func (p *program) root() *cobra.Command {
	var path string
	var show bool
	var readyFD int
	c := &cobra.Command{
		Use:           "sw-patch-controller",
		Short:         "Run the controller of the patching system",
		Args:          noArgs,
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := controllerd.LoadConfig(path)
			if err != nil {
				return err
			}
			if show {
				text, err := config.Print(cfg)
				if err != nil {
					return err
				}
				_, err = p.out.Write(text)
				return err
			}
			return p.serve(cmd.Context(), cfg, readyFD)
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	c.CompletionOptions.DisableDefaultCmd = true
	c.PersistentFlags().StringVar(&path, "config", controllerd.DefaultConfig, "configuration `file`")
	c.Flags().BoolVar(&show, "print-config", false, "print the configuration with everything filled in, and end")
	c.Flags().IntVar(&readyFD, "ready-fd", -1, "write a line to this file `descriptor` when everything is open, and close it")
	c.AddCommand(p.init(&path), p.status(&path), p.token(&path), p.trust(&path), p.feed(&path), p.journal(&path))
	return c
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usage{err}
	}
	return nil
}

func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return usage{fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// serve runs the daemon until ctx ends.
func (p *program) serve(ctx context.Context, cfg controllerd.Config, readyFD int) error {
	log, err := daemon.Logger(p.err, cfg.LogLevel)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	d := &controllerd.Daemon{Config: cfg, Log: log, Ready: func() { daemon.Announce(log, readyFD) }}
	return d.Run(ctx)
}

func (p *program) init(path *string) *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "Prepare this machine: configuration, folders, certificate authority",
		Long:  "Prepare this machine to be a controller. What is there already stays as it is. Run it before the first start.",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return controllerd.Init(*path, p.out) },
	}
}
