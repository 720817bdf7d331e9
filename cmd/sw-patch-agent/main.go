// Command sw-patch-agent keeps one host as its controllers want it: it compares, installs when an operator asked for it,
// and reports.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/starpatch/starpatch/internal/agent"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/config"
	"github.com/starpatch/starpatch/internal/daemon"
	"github.com/starpatch/starpatch/internal/installer/dnf"
	"github.com/starpatch/starpatch/internal/version"
	"github.com/starpatch/starpatch/problem"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// joinPause is how long a host waits before it tries again to join a system whose controllers it cannot reach.
const joinPause = time.Second

// memoryLimit makes the collector work harder where more would be used: an agent shares its host with the workload.
const memoryLimit = 16 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := pflag.NewFlagSet("sw-patch-agent", pflag.ContinueOnError)
	flags.Usage = func() {} // we print it where it belongs
	path := flags.String("config", defaultConfig, "configuration `file`")
	help := flags.BoolP("help", "h", false, "help for sw-patch-agent")
	show := flags.Bool("print-config", false, "print the configuration with everything filled in, and end")
	readyFD := flags.Int("ready-fd", -1, "write a line to this file `descriptor` when a controller knows this host, and close it")
	tell := flags.BoolP("version", "v", false, "version for sw-patch-agent")
	if err := flags.Parse(args); err != nil {
		return failed(stderr, err, exitUsage)
	}
	if flags.NArg() > 0 {
		return failed(stderr, fmt.Errorf("unexpected argument %q", flags.Arg(0)), exitUsage)
	}
	err := func() error {
		if *help {
			_, err := fmt.Fprint(stdout, about+flags.FlagUsages())
			return err
		}
		if *tell {
			_, err := fmt.Fprintln(stdout, "sw-patch-agent version "+version.Version)
			return err
		}
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		if *show {
			text, err := config.Print(cfg)
			if err != nil {
				return err
			}
			_, err = stdout.Write(text)
			return err
		}
		return serve(ctx, cfg, *readyFD, stderr)
	}()
	if err != nil {
		return failed(stderr, err, exitFailure)
	}
	return exitOK
}

// about stands above the list of flags.
const about = `Keep this host as its controllers want it: compare, install when an operator asked for it, report

Usage:
  sw-patch-agent [flags]

Flags:
`

// failed says why the program ends with code. There is nowhere to say that this failed.
func failed(stderr io.Writer, err error, code int) int {
	_, _ = fmt.Fprintln(stderr, "Error: "+err.Error())
	return code
}

// serve puts the parts together and runs them until ctx ends.
func serve(ctx context.Context, cfg fileConfig, readyFD int, stderr io.Writer) error {
	debug.SetMemoryLimit(memoryLimit)
	log, err := daemon.Logger(stderr, cfg.LogLevel)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	var ready sync.Once
	link, err := connect(ctx, cfg, log, func() { ready.Do(func() { daemon.Announce(log, readyFD) }) })
	if err != nil {
		return ended(ctx, err)
	}
	if link.Host() != cfg.Name {
		return problem.Errorf(problem.Invalid, "the certificate in %s is of host %s and the configuration names %s; set name, or remove the folder and join again", cfg.identityDir(), link.Host(), cfg.Name)
	}
	tools, err := dnf.New(dnf.Config{Root: cfg.Root, Dir: filepath.Join(cfg.CacheDir, "packages"), Keys: cfg.RPMKeys})
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		Root: cfg.Root, StateDir: cfg.StateDir, CacheDir: cfg.CacheDir, Personality: cfg.Personality, Release: cfg.Release,
		BootIDFile: cfg.BootIDFile, Dial: cfg.dialer(), Log: log, ScriptLimit: cfg.ScriptLimit,
	}, tools, link, link)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.Run(ctx) })
	group.Go(func() error { return link.Run(ctx, a) })
	return ended(ctx, group.Wait())
}

// ended hides that we were asked to end.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// connect returns this host's end of the link; a host that has not joined joins first, and so does one that an operator
// gave another token because its certificate had been revoked or had expired.
func connect(ctx context.Context, cfg fileConfig, log *slog.Logger, acked func()) (*agentlink.Client, error) {
	client := func() (*agentlink.Client, error) {
		return agentlink.NewClient(agentlink.ClientConfig{Dir: cfg.identityDir(), Controllers: cfg.Controllers, Dial: cfg.dialer(), Log: log, ReportAcked: acked})
	}
	link, err := client()
	if err != nil && problem.KindOf(err) != problem.NotFound {
		return nil, err
	}
	token, err := cfg.token()
	if link != nil {
		if again, e := agentlink.NeedsJoin(cfg.identityDir(), token); err != nil || e != nil || !again {
			return link, nil // the token is gone, as it may be, or was used
		}
	}
	if err != nil {
		return nil, err
	}
	for said := ""; ; {
		_, err := agentlink.Join(ctx, agentlink.JoinConfig{Controllers: cfg.Controllers, Token: token, Host: cfg.Name, Dir: cfg.identityDir(), Dial: cfg.dialer()})
		if err == nil {
			log.Info("joined", "host", cfg.Name)
			return client()
		}
		if problem.KindOf(err) != problem.Unavailable {
			if link != nil {
				log.Warn("cannot join again; going on with the present certificate", "err", err)
				return link, nil
			}
			return nil, err
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("cannot join yet", "err", err)
		}
		timer := time.NewTimer(joinPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}
