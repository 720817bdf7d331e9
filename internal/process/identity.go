package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ID is a program that was started, in a form that can be saved: its number, which is also that of its session and
// process group, and when it started, because numbers are used again.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// stat is what /proc/<pid>/stat tells of a process.
type stat struct {
	group int
	start uint64
	state byte
}

// readStat returns os.ErrNotExist when there is no such process.
func readStat(pid string) (stat, error) {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrNotExist
	}
	if err != nil {
		return stat{}, err
	}
	// The name in parentheses may contain anything; what follows the last one is fields from the third on.
	i := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[i+1:])
	if i < 0 || len(f) < 20 {
		return stat{}, fmt.Errorf("cannot read /proc/%s/stat: it has %d fields", pid, len(f))
	}
	group, err := strconv.Atoi(string(f[2]))
	if err != nil {
		return stat{}, fmt.Errorf("cannot read /proc/%s/stat: %w", pid, err)
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("cannot read /proc/%s/stat: %w", pid, err)
	}
	return stat{group: group, start: start, state: f[0][0]}, nil
}

func identify(pid int) (ID, error) {
	st, err := readStat(strconv.Itoa(pid))
	return ID{PID: pid, Start: st.start}, err
}

// Alive says whether the program itself still runs; a zombie does not.
func (id ID) Alive() (bool, error) {
	st, err := readStat(strconv.Itoa(id.PID))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.start == id.Start && st.state != 'Z' && st.state != 'X', err
}

// members lists the running processes of the group that did not start before the program did.
func (id ID) members() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		st, err := readStat(e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if st.group != id.PID || st.state == 'Z' || st.state == 'X' || st.start < id.Start {
			continue
		}
		if pid == id.PID && st.start != id.Start {
			return nil, nil // the number has been given to somebody else, so the group was empty
		}
		out = append(out, pid)
	}
	return out, nil
}

// Wait returns when no process of the program's group runs any more, or with the cause of ctx. It does not poll.
func (id ID) Wait(ctx context.Context) error {
	for {
		pids, err := id.members()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := waitEnd(ctx, pid); err != nil {
				return err
			}
		}
	}
}

// Outlive returns when the program has ended and whatever it left running in its group has had a moment to end, too. A
// program that still runs after limit is asked to end, and its whole group is killed after grace more.
func (id ID) Outlive(ctx context.Context, limit, grace time.Duration) error {
	for _, step := range []struct {
		signal unix.Signal
		target int
		wait   time.Duration
	}{{0, 0, limit}, {unix.SIGTERM, id.PID, grace}, {unix.SIGKILL, -id.PID, limit}} {
		alive, err := id.Alive()
		if err != nil {
			return err
		}
		if !alive {
			break
		}
		if step.signal != 0 {
			if err := unix.Kill(step.target, step.signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if err := bounded(ctx, step.wait, func(ctx context.Context) error { return waitEnd(ctx, id.PID) }); err != nil {
			return err
		}
	}
	return bounded(ctx, orphanLimit, id.Wait)
}

// bounded calls f with a time limit, which is no error.
func bounded(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := f(inner); err != nil && (ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
		return err
	}
	return nil
}

// waitEnd returns when the process has ended, whoever its parent is, or with the cause of ctx.
func waitEnd(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot watch process %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var perr error
	err = conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		if errors.Is(err, unix.EINTR) {
			return false
		}
		perr = err
		return n > 0 || err != nil
	})
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return errors.Join(err, perr)
}
