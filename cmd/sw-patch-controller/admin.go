package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/controllerd"
	"github.com/starpatch/starpatch/problem"
)

// connect returns a client of the running controller: by STARPATCH_SOCKET, else by the configuration, else by default.
func (p *program) connect(path string) (*client.Client, error) {
	if s := p.getenv("STARPATCH_SOCKET"); s != "" {
		return client.Unix(s), nil
	}
	cfg, err := controllerd.LoadConfig(path)
	if problem.KindOf(err) == problem.NotFound && path == controllerd.DefaultConfig {
		return client.Unix(client.DefaultSocket), nil
	}
	if err != nil {
		return nil, err
	}
	return client.Unix(cfg.Socket), nil
}

// printf writes to stdout.
func (p *program) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(p.out, format, args...)
	return err
}

// asking makes the body of a subcommand that needs the running controller.
func (p *program) asking(path *string, do func(cmd *cobra.Command, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := p.connect(*path)
		if err != nil {
			return err
		}
		defer c.CloseIdle()
		err = do(cmd, c, args)
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return problem.Errorf(problem.Unavailable, "%w; check that sw-patch-controller runs on this machine, or set STARPATCH_SOCKET to its socket", err)
		}
		return err
	}
}

func (p *program) status(path *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what the running controller says of itself",
		Args:  noArgs,
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return p.json(s)
			}
			return p.printStatus(s)
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (p *program) json(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return p.printf("%s\n", text)
}

func (p *program) printStatus(s api.Status) error {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-15s %s\n", label+":", fmt.Sprintf(format, args...))
	}
	line("Controller", "%s", s.Controller)
	line("Version", "%s", s.Version)
	line("Release", "%s", s.Release)
	line("Started", "%s", s.Started.Format(time.RFC3339))
	line("Patches", "%d", s.Patches)
	line("Hosts", "%d, %d connected", s.Hosts, s.Connected)
	for _, r := range s.Releases {
		line("Repository", "%s: generation %d, %d base packages", r.Release, r.Revision, r.Packages)
	}
	line("Journal", "record %d, %s", s.Journal.Number, s.Journal.Hash)
	line("Durable write", "%.2f ms (99th percentile)", s.FsyncP99)
	for _, l := range s.Listeners {
		line("Listening", "%s (%s)", l.Address, strings.Join(l.Services, ", "))
	}
	for _, w := range s.Warnings {
		line("Warning", "%s", w)
	}
	return p.printf("%s", b.String())
}

// group is a subcommand that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return usage{fmt.Errorf("%s needs a subcommand; see %s --help", cmd.CommandPath(), cmd.CommandPath())}
	}}
	c.AddCommand(subs...)
	return c
}

func (p *program) token(path *string) *cobra.Command {
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create HOST",
		Short: "Make a token with which the agent of one host may join once, and print it",
		Args:  exactArgs(1),
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.CreateToken(cmd.Context(), args[0], ttl)
			if err != nil {
				return err
			}
			return p.printf("%s\n", t.Secret)
		}),
	}
	create.Flags().DurationVar(&ttl, "ttl", 0, "how long the token is good for (default 1h)")
	list := &cobra.Command{
		Use:   "list",
		Short: "List join tokens, without their secrets",
		Args:  noArgs,
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			for _, t := range all {
				state := "unused"
				if t.Used {
					state = "used"
				}
				if err := p.printf("%s  %s  %s, expires %s\n", t.ID, t.Host, state, t.Expires.Format(time.RFC3339)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	return group("token", "Join tokens of agents", create, list)
}

func (p *program) trust(path *string) *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the keys that patches are verified with",
		Args:  noArgs,
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			keys, err := c.Trust(cmd.Context())
			if err != nil {
				return err
			}
			for _, k := range keys {
				note := ""
				if !k.Counts {
					note = "  (does not count)"
				}
				if err := p.printf("%-6s  %s  %s%s\n", k.Class, k.Key, k.Name, note); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	add := &cobra.Command{
		Use:   "add CLASS FILE",
		Short: "Trust a public key or certificate (PEM); CLASS is formal or dev",
		Args:  exactArgs(2),
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, args []string) error {
			text, err := os.ReadFile(args[1])
			if err != nil {
				return problem.Errorf(problem.Invalid, "cannot read the key: %w", err)
			}
			k, err := c.AddTrust(cmd.Context(), args[0], filepath.Base(args[1]), string(text))
			if err != nil {
				return err
			}
			return p.printf("%s key %s is trusted as %s\n", k.Class, k.Key, k.Name)
		}),
	}
	remove := &cobra.Command{
		Use:   "remove CLASS NAME",
		Short: "Trust a key no more; NAME is as list shows it",
		Args:  exactArgs(2),
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RemoveTrust(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			return p.printf("%s key %s is not trusted any more\n", args[0], args[1])
		}),
	}
	return group("trust", "Keys that patches are verified with", list, add, remove)
}

func (p *program) feed(path *string) *cobra.Command {
	add := &cobra.Command{
		Use:   "add RELEASE DIR",
		Short: "Bring in the base packages of a release from a folder of this machine",
		Args:  exactArgs(2),
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, args []string) error {
			dir, err := filepath.Abs(args[1])
			if err != nil {
				return err
			}
			f, err := c.AddFeed(cmd.Context(), args[0], dir)
			if err != nil {
				return err
			}
			return p.printf("release %s has %d base packages\n", f.Release, f.Packages)
		}),
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "List the releases whose base packages are here",
		Args:  noArgs,
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			all, err := c.Feeds(cmd.Context())
			if err != nil {
				return err
			}
			for _, f := range all {
				if err := p.printf("%s  %d packages  generation %d\n", f.Release, f.Packages, f.Revision); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	return group("feed", "Base packages of the releases", add, list)
}

func (p *program) journal(path *string) *cobra.Command {
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Check the chain of hashes",
		Args:  noArgs,
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			v, err := c.VerifyJournal(cmd.Context())
			if err != nil {
				return err
			}
			return p.printf("the journal is whole: %d records, head %d %s\n", v.Records, v.Head.Number, v.Head.Hash)
		}),
	}
	export := &cobra.Command{
		Use:   "export",
		Short: "Print every record, one line of JSON each",
		Args:  noArgs,
		RunE: p.asking(path, func(cmd *cobra.Command, c *client.Client, _ []string) error {
			for after := int64(0); ; {
				page, err := c.Journal(cmd.Context(), after)
				if err != nil {
					return err
				}
				for _, r := range page.Records {
					if err := p.printf("%s\n", r); err != nil {
						return err
					}
				}
				if page.Next == 0 {
					return nil
				}
				after = page.Next
			}
		}),
	}
	return group("journal", "The journal of decisions and facts", verify, export)
}
