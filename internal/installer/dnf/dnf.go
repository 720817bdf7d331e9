// Package dnf drives dnf and rpm: dnf for transactions that bring packages in, because it solves, downloads, checks and
// tests them in one strict transaction; rpm for queries, removals and repairs, because it does what it is told and
// nothing else. Both get a configuration, a home and an environment of their own, so that nothing on the machine can
// change what they do.
package dnf

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/process"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// Config says which host and with which programs. Zero values take the defaults beside them.
type Config struct {
	Root  string // the host's root folder; "/" for this machine
	Dir   string // own folder for configuration, metadata and downloads; made when missing
	Dnf   string // /usr/bin/dnf
	RPM   string // /usr/bin/rpm
	Limit time.Duration
	Grace time.Duration
	// Keys are files of GPG keys; with any, packages without a good signature by one of them are refused.
	Keys []string
}

const (
	defaultLimit = 2 * time.Hour
	// defaultGrace is long because a tool that was asked to end finishes its transaction first.
	defaultGrace = 15 * time.Minute
	// dbPath is given to rpm explicitly: Debian's default depends on HOME.
	dbPath = "/var/lib/rpm"
	// maxList is the largest answer to a query, in bytes: far more than any host has packages.
	maxList = 64 << 20
)

// Driver is an [installer.Tools].
type Driver struct {
	cfg  Config
	turn chan struct{} // holds one while a tool runs
	base []string      // arguments of every call of rpm
}

// New checks the configuration and prepares the driver's folder.
func New(cfg Config) (*Driver, error) {
	cfg.Dnf, cfg.RPM = cmp.Or(cfg.Dnf, "/usr/bin/dnf"), cmp.Or(cfg.RPM, "/usr/bin/rpm")
	cfg.Limit, cfg.Grace = cmp.Or(cfg.Limit, defaultLimit), cmp.Or(cfg.Grace, defaultGrace)
	if !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.Dir) {
		return nil, problem.Errorf(problem.Invalid, "cannot use packages of root %q with folder %q: both must be absolute paths", cfg.Root, cfg.Dir)
	}
	d := &Driver{cfg: cfg, turn: make(chan struct{}, 1), base: []string{"--root", cfg.Root, "--dbpath", dbPath}}
	for _, dir := range []string{d.home(), d.cache(), d.scratch()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	macros := "%_dbpath " + dbPath + "\n"
	if len(cfg.Keys) > 0 {
		macros += "%_pkgverify_level all\n"
	}
	if err := durable.WriteFile(filepath.Join(d.home(), ".rpmmacros"), []byte(macros), 0o600); err != nil {
		return nil, err
	}
	// Debian's rpm warns at every transaction unless it is told that it is meant; other rpms do not know the option.
	probe := exec.Command(cfg.RPM, "--force-debian", "--version")
	probe.Env = d.env()
	if err := probe.Run(); err == nil {
		d.base = append(d.base, "--force-debian")
	} else if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		return nil, problem.Errorf(problem.Unavailable, "cannot run %s: %w; install the packages rpm and dnf", cfg.RPM, err)
	}
	return d, nil
}

func (d *Driver) home() string    { return filepath.Join(d.cfg.Dir, "home") }
func (d *Driver) cache() string   { return filepath.Join(d.cfg.Dir, "cache") }
func (d *Driver) scratch() string { return filepath.Join(d.cfg.Dir, "scratch") }

// env is the whole environment of a tool and of the scriptlets that it runs.
func (d *Driver) env() []string {
	return []string{"HOME=" + d.home(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TMPDIR=/var/tmp"}
}

// exclusive waits for the database to be free of our own calls; call the result when done.
func (d *Driver) exclusive(ctx context.Context) (func(), error) {
	select {
	case d.turn <- struct{}{}:
		return func() { <-d.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// query runs rpm for its answer. It changes nothing, so it may be killed at once.
func (d *Driver) query(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, d.cfg.RPM, slices.Concat(d.base, args)...)
	cmd.Env, cmd.Dir = d.env(), "/"
	var out, said capped
	out.left, said.left = maxList, installer.MaxOutput
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, problem.Errorf(problem.Unavailable, "cannot read the package database: rpm %s: %v%s", strings.Join(args[:1], " "), err, quote(said.Bytes()))
	}
	if out.left < 0 {
		return nil, problem.Errorf(problem.TooLarge, "cannot read the package database: the answer is longer than %d bytes", maxList)
	}
	return out.Bytes(), nil
}

// capped takes bytes up to a limit and then only counts.
type capped struct {
	bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	keep := p[:max(0, min(len(p), c.left))]
	c.left -= len(p)
	if _, err := c.Buffer.Write(keep); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Installed implements [installer.Tools].
func (d *Driver) Installed(ctx context.Context) ([]rpm.NEVRA, error) {
	done, err := d.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := d.quiet(ctx); err != nil {
		return nil, err
	}
	out, err := d.query(ctx, "-qa", "--qf", `%{NAME}\t%{EPOCHNUM}\t%{VERSION}\t%{RELEASE}\t%{ARCH}\n`)
	if err != nil {
		return nil, err
	}
	var list []rpm.NEVRA
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return nil, problem.Errorf(problem.Unavailable, "cannot read the package database: rpm -qa wrote %.80q", line)
		}
		if f[0] == "gpg-pubkey" { // a key, kept as if it were a package
			continue
		}
		epoch, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, problem.Errorf(problem.Unavailable, "cannot read the package database: rpm -qa wrote the epoch %.80q of %s", f[1], f[0])
		}
		list = append(list, rpm.NEVRA{Name: f[0], EVR: rpm.EVR{Epoch: epoch, Version: f[2], Release: f[3]}, Arch: f[4]})
	}
	slices.SortFunc(list, rpm.NEVRA.Compare)
	return list, nil
}

// Install implements [installer.Tools].
func (d *Driver) Install(ctx context.Context, src installer.Source, packages []rpm.NEVRA, started installer.Started) (installer.Result, error) {
	names, err := arguments(packages, rpm.NEVRA.String)
	if err != nil || len(names) == 0 {
		return installer.Result{}, err
	}
	done, err := d.exclusive(ctx)
	if err != nil {
		return installer.Result{}, err
	}
	defer done()
	conf := filepath.Join(d.cfg.Dir, "dnf.conf")
	if err := durable.WriteFile(conf, d.conf(src), 0o600); err != nil {
		return installer.Result{}, err
	}
	args := []string{"-c", conf, "--installroot=" + d.cfg.Root, "--releasever=" + src.Release, "--noplugins", "-y", "--refresh",
		"--setopt=cachedir=" + d.cache(), // in a file it would be a path below the root
		"install"}
	return d.transaction(ctx, "install", started, d.cfg.Dnf, append(args, names...)...)
}

// Remove implements [installer.Tools].
func (d *Driver) Remove(ctx context.Context, packages []rpm.NEVRA, started installer.Started) (installer.Result, error) {
	// Older rpms do not find a package by a name with epoch.
	names, err := arguments(packages, func(n rpm.NEVRA) string { return n.Name + "-" + n.VersionRelease() + "." + n.Arch })
	if err != nil || len(names) == 0 {
		return installer.Result{}, err
	}
	done, err := d.exclusive(ctx)
	if err != nil {
		return installer.Result{}, err
	}
	defer done()
	return d.transaction(ctx, "remove", started, d.cfg.RPM, slices.Concat(d.base, []string{"-e"}, names)...)
}

// Repair implements [installer.Tools].
func (d *Driver) Repair(ctx context.Context, files []string, started installer.Started) (installer.Result, error) {
	if len(files) == 0 {
		return installer.Result{}, nil
	}
	done, err := d.exclusive(ctx)
	if err != nil {
		return installer.Result{}, err
	}
	defer done()
	args := slices.Concat(d.base, []string{"-U", "--oldpackage", "--replacepkgs", "--nomanifest"})
	test, err := d.transaction(ctx, "repair", started, d.cfg.RPM, slices.Concat(args, []string{"--test"}, files)...)
	if err != nil {
		return test, err
	}
	res, err := d.transaction(ctx, "repair", started, d.cfg.RPM, slices.Concat(args, files)...)
	res.Took += test.Took
	return res, err
}

// arguments spells packages for a command line. Names that could be taken for something else are refused.
func arguments(packages []rpm.NEVRA, spell func(rpm.NEVRA) string) ([]string, error) {
	var out []string
	for _, n := range packages {
		if p, err := rpm.ParseFileName(n.FileName()); err != nil || p.Key() != n.Key() || n.Epoch < 0 {
			return nil, problem.Errorf(problem.Invalid, "%q is not a package that can be given to a package tool", n.String())
		}
		out = append(out, spell(n))
	}
	return out, nil
}

// transaction runs one tool to its end and searches what it wrote: a failed %post is a failure that no exit code tells.
func (d *Driver) transaction(ctx context.Context, what string, started installer.Started, program string, args ...string) (installer.Result, error) {
	out, err := os.CreateTemp(d.scratch(), "output-")
	if err != nil {
		return installer.Result{}, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	exit, runErr := process.Run(ctx, process.Cmd{
		Path: program, Args: args, Env: d.env(), Output: out, Limit: d.cfg.Limit, Grace: d.cfg.Grace, Started: started,
	})
	res := installer.Result{Took: exit.Took}
	said, err := digest(out)
	if err != nil {
		return res, err
	}
	res.Output = said.tail
	if runErr != nil {
		return res, fmt.Errorf("cannot %s packages: %w", what, runErr)
	}
	tool := filepath.Base(program)
	switch {
	case !exit.OK() && said.unreachable && !interrupted(exit) && !exit.TimedOut:
		return res, &problem.Error{Kind: problem.Unavailable, Err: installer.ErrUnreachable,
			Msg: fmt.Sprintf("cannot %s packages: %s: %s", what, tool, strings.Join(said.errors, "; "))}
	case interrupted(exit):
		return res, problem.Errorf(problem.Unavailable, "cannot %s packages: %s: %s: %w", what, tool, exit, installer.ErrInterrupted)
	case !exit.OK() && len(said.errors) > 0:
		return res, problem.Errorf(problem.Unavailable, "cannot %s packages: %s: %s", what, tool, strings.Join(said.errors, "; "))
	case !exit.OK():
		return res, problem.Errorf(problem.Unavailable, "cannot %s packages: %s: %s%s", what, tool, exit, quote(lastLine(said.tail)))
	case len(said.scriptlets) > 0:
		return res, problem.Errorf(problem.Unavailable, "a scriptlet failed: %s", strings.Join(said.scriptlets, "; "))
	}
	return res, nil
}

// interrupted says that a tool ended because somebody wanted it to: by a signal, or, as these tools do, with the exit code
// that shells give to signals.
func interrupted(exit process.Exit) bool {
	switch exit.Code {
	case 128 + int(syscall.SIGHUP), 128 + int(syscall.SIGINT), 128 + int(syscall.SIGTERM), 128 + int(syscall.SIGKILL):
		return !exit.TimedOut
	}
	return exit.Signal != 0 && !exit.TimedOut
}

// Kept implements [installer.Tools].
func (d *Driver) Kept() ([]string, error) {
	var files []string
	err := filepath.WalkDir(d.cache(), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasSuffix(path, ".rpm") {
			files = append(files, path)
		}
		return err
	})
	return files, err
}

// Clean implements [installer.Tools].
func (d *Driver) Clean() error {
	files, err := d.Kept()
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}
