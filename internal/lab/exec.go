package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// Exec runs a command inside a host, chrooted into its root, with this process's standard streams, and returns its exit
// code; 127 means that the host has no such command. The calling thread is spent by it.
func (l *Lab) Exec(ctx context.Context, name string, argv []string) (int, error) {
	if os.Geteuid() != 0 {
		return 0, problem.Errorf(problem.Forbidden, "patch-lab exec must run as root; run it with sudo")
	}
	if _, err := l.Host(name); err != nil {
		return 0, err
	}
	fd, err := l.holdInit(ctx, name)
	if err != nil {
		return 0, err
	}
	defer closeFD(fd)
	cmd := exec.CommandContext(ctx, "/usr/bin/env", argv...) // of the host: it looks the command up in the host's PATH
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.Env = []string{"PATH=" + systemPath, "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM")}
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: l.Root(name)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	runtime.LockOSThread() // and never unlocked: the thread is in the host from here on
	spaces := unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	if l.NetNS {
		spaces |= unix.CLONE_NEWNET
	}
	if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(fd, spaces)); err != nil {
		return 0, problem.Errorf(problem.Unavailable, "cannot enter host %s: %w", name, err)
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil // as a shell says it
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 0, problem.Errorf(problem.Unavailable, "cannot run a command on host %s: %w", name, err)
	}
	return 0, nil
}

// holdInit returns a descriptor of the process that holds a host's namespaces. A host that is going down or coming up is
// waited for.
func (l *Lab) holdInit(ctx context.Context, name string) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, problem.Errorf(problem.Unavailable, "it is not up after %s", bootLimit))
	defer cancel()
	not := 0
	for {
		answer, err := l.askKeeper(ctx, request{Do: "wait", Name: name, Not: not})
		if err != nil {
			return 0, fmt.Errorf("%s: %w; %s", name, err, l.logsHint(name))
		}
		not = answer.Boot.PID
		fd, err := unix.PidfdOpen(not, 0)
		if err != nil {
			continue // it has ended since; the next boot is another process
		}
		// Asked with the process held: it is this lab's and not one that got its number since.
		if environ(not, markLab) == l.ID {
			return fd, nil
		}
		closeFD(fd)
	}
}

// askKeeper asks the keeper, and says it when there is none.
func (l *Lab) askKeeper(ctx context.Context, r request) (reply, error) {
	answer, err := ask(ctx, l.keeperSocket(), r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return reply{}, problem.Errorf(problem.Unavailable, "the lab in %s does not run: its keeper has gone; patch-lab down --dir %s removes it", l.Dir, l.Dir)
	}
	return answer, err
}

// HostStatus is one host as [Lab.Status] sees it.
type HostStatus struct {
	Host
	PID    int         // of its init; 0: off
	BootID string      // of its last boot
	Boots  int         // since the lab is up
	Units  []unitState // what its init runs; nil when it does not answer
}

// State says what became of a unit: up, starting, down, or none if the host has no such unit.
func (h HostStatus) State(unit string) string {
	for _, u := range h.Units {
		switch {
		case u.Name != unit:
		case u.Up:
			return "up"
		case u.PID != 0:
			return "starting"
		default:
			return "down"
		}
	}
	return "-"
}

// Status asks the keeper and the hosts' inits what runs.
func (l *Lab) Status(ctx context.Context) ([]HostStatus, error) {
	if os.Geteuid() != 0 {
		return nil, problem.Errorf(problem.Forbidden, "patch-lab status must run as root, as up did; run it with sudo")
	}
	answer, err := l.askKeeper(ctx, request{Do: "status"})
	if err != nil {
		return nil, err
	}
	var all []HostStatus
	for _, p := range answer.Hosts {
		h, err := l.Host(p.Name)
		if err != nil {
			return nil, err
		}
		s := HostStatus{Host: h, PID: p.PID, BootID: p.BootID, Boots: p.Boots}
		if p.PID != 0 {
			// An init that goes down right now does not answer: its host is shown without units.
			if answer, err := ask(ctx, filepath.Join(l.Root(h.Name), initSocket), request{Do: "status"}); err == nil {
				s.Units = answer.Units
			}
		}
		all = append(all, s)
	}
	return all, nil
}
