package dnf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// rpmLock is held for writing by whoever changes packages, from before the first to after the last scriptlet.
const rpmLock = ".rpm.lock"

// quiet returns when nobody changes packages. In the middle of somebody else's transaction the database has new packages
// whose scriptlets have not run, and both builds of others: a list made then is true of nothing.
func (d *Driver) quiet(ctx context.Context) error {
	path := filepath.Join(d.cfg.Root, dbPath, rpmLock)
	if pid, err := lockedBy(path); err != nil || pid == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Limit)
	defer cancel()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot watch %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	// Who holds the lock closes the file at the end, also when it is killed; that of a rebuilt database goes away.
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("cannot watch %s: %w", path, err)
	}
	buf := make([]byte, 4<<10)
	for {
		pid, err := lockedBy(path)
		if err != nil || pid == 0 {
			return err
		}
		if err := f.SetReadDeadline(time.Now().Add(lookAgain)); err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
		_, err = f.Read(buf)
		stop()
		if ctx.Err() != nil {
			return problem.Errorf(problem.Unavailable, "cannot read the package database: process %d is changing it: %w", pid, context.Cause(ctx))
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("cannot watch %s: %w", path, err)
		}
	}
}

// lookAgain is for programs that run on after a transaction and keep the file open: nothing tells that they let the lock go.
const lookAgain = 5 * time.Second

// lockedBy is the process that holds a lock file for writing; 0: none.
func lockedBy(path string) (_ int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
		return 0, fmt.Errorf("cannot look at the lock %s: %w", path, err)
	}
	if l.Type == unix.F_UNLCK {
		return 0, nil
	}
	if l.Pid <= 0 {
		return -1, nil // in another PID namespace, or by a lock that belongs to no process
	}
	return int(l.Pid), nil
}
