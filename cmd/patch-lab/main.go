// Command patch-lab runs a real cluster of RPM hosts on one machine; patch-lab --help lists what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/internal/lab"
	"github.com/starpatch/starpatch/internal/version"
	"github.com/starpatch/starpatch/problem"
)

func main() { os.Exit(run()) }

// exitCode is the outcome of a command that patch-lab ran on a host: its exit code becomes ours, without a word.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:   "patch-lab",
		Short: "Run a real cluster of RPM hosts on one machine",
		Long: "patch-lab runs a real cluster on one machine: every host has its own package database, processes, services and reboots.\n" +
			"Installations are real dnf and rpm transactions; only the power switch is pretended. It needs root.",
		Version:       version.Version,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(upCommand(), downCommand(), statusCommand(), envCommand(), execCommand(), rpmCommand(), keeperCommand(), initCommand())
	err := root.ExecuteContext(ctx)
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "patch-lab: "+err.Error())
		return 1
	}
	return 0
}

// dirFlag adds the flag that every command has.
func dirFlag(c *cobra.Command) *string {
	dir := c.Flags().String("dir", "", "folder of the lab")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic("internal error: " + err.Error())
	}
	return dir
}

// counted is how many arguments a command takes; a refusal shows what they are.
func counted(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return problem.Errorf(problem.Invalid, "%w; usage: %s", err, c.UseLine())
		}
		return nil
	}
}

// programs is the folder that this program is in: make build puts all programs into one.
func programs() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}

func upCommand() *cobra.Command {
	var o lab.Options
	var topology string
	c := &cobra.Command{
		Use: "up --dir DIR", Short: "Make a cluster in DIR and start it; returns when every host has reported", Args: cobra.NoArgs,
	}
	dir := dirFlag(c)
	f := c.Flags()
	f.StringVar(&topology, "topology", "2+2+2", "controllers+storage+workers, controllers+workers, aio-sx or aio-dx")
	f.IntVar(&o.PortOffset, "port-base", 0, "number added to every default port")
	f.BoolVar(&o.Compat, "compat", false, "open the token-less compatible API on controller-0's address")
	f.BoolVar(&o.NetNS, "netns", false, "give every host a network namespace of its own")
	f.StringVar(&o.Feed, "feed", "", "folder with more base packages, installed on every host")
	f.StringVar(&o.Bin, "bin", "", "folder with the other programs (default: that of patch-lab)")
	f.BoolVar(&o.Bare, "bare", false, "hosts and their services only, without controller and agents")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var err error
		if o.Topology, err = lab.ParseTopology(topology); err != nil {
			return err
		}
		if o.Bin == "" {
			if o.Bin, err = programs(); err != nil {
				return err
			}
		}
		o.Dir = *dir
		say := func(string, ...any) {}
		if cli.IsTerminal(os.Stderr) {
			say = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
		}
		l, err := lab.Up(c.Context(), o, say)
		if err != nil {
			return err
		}
		hosts := "hosts are"
		if len(l.Hosts) == 1 {
			hosts = "host is"
		}
		_, err = fmt.Printf("%d %s up, release %s; for the command lines: eval \"$(patch-lab env --dir %s)\"\n", len(l.Hosts), hosts, lab.Release, l.Dir)
		return err
	}
	return c
}

func downCommand() *cobra.Command {
	c := &cobra.Command{Use: "down --dir DIR", Short: "End and remove the cluster in DIR, whatever state it is in", Args: cobra.NoArgs}
	dir := dirFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		was, err := lab.Down(*dir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return err
		}
		if !was {
			_, err = fmt.Printf("there is no lab in %s\n", *dir)
			return err
		}
		_, err = fmt.Println("everything has ended and is removed")
		return err
	}
	return c
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status --dir DIR", Short: "Show what runs on every host", Args: cobra.NoArgs}
	dir := dirFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		hosts, err := l.Status(c.Context())
		if err != nil {
			return err
		}
		var columns []cli.Column
		for _, c := range []string{"Hostname", "IP Address", "Personality", "Init", "Boots", "Boot ID", "Controller", "Agent", "Service"} {
			columns = append(columns, cli.Column{Header: c, Left: true})
		}
		var rows [][]string
		for _, h := range hosts {
			pid := "off"
			if h.PID != 0 {
				pid = fmt.Sprint(h.PID)
			}
			rows = append(rows, []string{h.Name, h.Address, string(h.Personality), pid, fmt.Sprint(h.Boots), h.BootID,
				h.State("sw-patch-controller"), h.State("sw-patch-agent"), h.State(lab.Service)})
		}
		_, err = fmt.Print(cli.Table(columns, rows))
		return err
	}
	return c
}

func envCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "env --dir DIR", Short: "Print the settings that the command lines need, for eval in a shell", Args: cobra.NoArgs,
		Example: `  eval "$(patch-lab env --dir DIR)"`,
	}
	dir := dirFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "export PATH='%s':\"$PATH\"\n", l.Bin)
		for _, kv := range l.Env() {
			fmt.Fprintf(&b, "export %s='%s'\n", kv[0], kv[1])
		}
		_, err = fmt.Print(b.String())
		return err
	}
	return c
}

func execCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "exec --dir DIR HOST -- COMMAND [ARGUMENT...]", Short: "Run a command on a host; the command reboot reboots it",
		Long: "Runs a command inside a host and ends with its exit code. The command reboot, alone, reboots the host and returns when\n" +
			"everything on it is up again and its agent has reported.",
		Args: counted(cobra.MinimumNArgs(2)),
	}
	dir := dirFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		if len(args) == 2 && args[1] == "reboot" {
			return l.Reboot(c.Context(), args[0])
		}
		code, err := l.Exec(c.Context(), args[0], args[1:])
		if err == nil && code != 0 {
			return exitCode(code)
		}
		return err
	}
	return c
}

func rpmCommand() *cobra.Command {
	var out, bin string
	var reboot bool
	c := &cobra.Command{
		Use: "rpm NAME VERSION-RELEASE", Short: "Make another version of one of the lab's own packages, for a patch to carry",
		Example: "  patch-lab rpm demo-service 1.0-2", Args: counted(cobra.ExactArgs(2)),
	}
	c.Flags().StringVar(&out, "output-dir", ".", "folder to write it into")
	c.Flags().StringVar(&bin, "bin", "", "folder with the other programs (default: that of patch-lab)")
	c.Flags().BoolVar(&reboot, "reboot-required", false, "it asks for a reboot, instead of restarting the service")
	c.RunE = func(_ *cobra.Command, args []string) error {
		if bin == "" {
			var err error
			if bin, err = programs(); err != nil {
				return err
			}
		}
		path, err := lab.MakePackage(bin, out, args[0], args[1], reboot)
		if err != nil {
			return err
		}
		_, err = fmt.Println(path)
		return err
	}
	return c
}

// The descriptors that keepers and inits are started with.
const (
	keeperSocketFD = 3
	initReportFD   = 3
	initPowerFD    = 4
)

func keeperCommand() *cobra.Command {
	c := &cobra.Command{Use: "keeper --dir DIR", Hidden: true, Args: cobra.NoArgs}
	dir := dirFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		f := inherited(keeperSocketFD, "socket")
		socket, err := net.FileListener(f)
		if err != nil {
			return problem.Errorf(problem.Invalid, "patch-lab keeper is started by patch-lab up: %w", err)
		}
		if err := f.Close(); err != nil {
			return err
		}
		return lab.RunKeeper(c.Context(), l, socket, slog.New(slog.NewTextHandler(os.Stdout, nil)))
	}
	return c
}

func initCommand() *cobra.Command {
	c := &cobra.Command{Use: "init --dir DIR HOST", Hidden: true, Args: cobra.ExactArgs(1)}
	dir := dirFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := lab.Open(*dir)
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(os.Stdout, nil))
		return lab.RunInit(c.Context(), l, args[0], log, inherited(initPowerFD, "power"), inherited(initReportFD, "report"))
	}
	return c
}

// inherited is a descriptor that the parent process left open for this one and for none of its children.
func inherited(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
