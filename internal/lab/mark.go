package lab

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// Every keeper, every init and every tool that up runs carries these in its environment. A process cannot lose them by accident, and whatever
// runs in a host without them dies with the host's init.
const (
	markLab  = "STARPATCH_LAB"
	markRole = "STARPATCH_LAB_ROLE"
)

// A mark is a process of a lab, held by a descriptor that no other process can come to stand for.
type mark struct {
	pid  int
	fd   int
	role string // keeper, init or tool
}

// marked finds the keeper, the inits and the tools of a lab among all processes. The caller closes the descriptors.
func marked(id string) ([]mark, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, problem.Errorf(problem.Unavailable, "cannot look for the lab's processes: %w", err)
	}
	var found []mark
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || environ(pid, markLab) != id {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, problem.Errorf(problem.Unavailable, "cannot watch process %d of the lab: %w", pid, err)
		}
		// Asked again with the process held: it is this one and not one that got its number since.
		if environ(pid, markLab) != id {
			closeFD(fd)
			continue
		}
		found = append(found, mark{pid: pid, fd: fd, role: environ(pid, markRole)})
	}
	return found, nil
}

// environ reads one variable of a process; "" when it has none or has ended.
func environ(pid int, name string) string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	for kv := range bytes.SplitSeq(text, []byte{0}) {
		if v, ok := bytes.CutPrefix(kv, []byte(name+"=")); ok {
			return string(v)
		}
	}
	return ""
}

// signal sends sig; a process that has ended is no error.
func (m mark) signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(m.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return problem.Errorf(problem.Unavailable, "cannot end process %d of the lab: %w", m.pid, err)
	}
	return nil
}

// wait returns true when the process has ended, false when it has not within the limit.
func (m mark) wait(limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		ms := int(max(time.Until(deadline), 0).Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}, ms)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, problem.Errorf(problem.Unavailable, "cannot wait for process %d of the lab: %w", m.pid, err)
		}
		return n > 0, nil
	}
}

// closeFD closes a descriptor that was only watched: there is nothing to lose.
func closeFD(fd int) {
	if err := unix.Close(fd); err != nil {
		panic("internal error: closing a descriptor twice: " + err.Error())
	}
}

// sweepLimit bounds the wait for a process that was killed; only one that hangs in the kernel needs longer.
const sweepLimit = 30 * time.Second

// sweep kills everything that is left of a lab and returns when it has ended: first the keeper, so that it starts
// nothing anew, then the inits, with which the kernel ends their namespaces and everything in them.
func sweep(id string) error {
	for {
		left, err := marked(id)
		if err != nil || len(left) == 0 {
			return err
		}
		var failed error
		for _, role := range []string{"keeper", ""} {
			for _, m := range left {
				if (m.role == "keeper") == (role == "keeper") && failed == nil {
					failed = m.signal(unix.SIGKILL)
				}
			}
		}
		for _, m := range left {
			if failed == nil {
				var ended bool
				if ended, failed = m.wait(sweepLimit); failed == nil && !ended {
					failed = problem.Errorf(problem.Unavailable, "process %d of the lab does not end although it was killed; see /proc/%d/stack", m.pid, m.pid)
				}
			}
			closeFD(m.fd)
		}
		if failed != nil {
			return failed
		}
	}
}

// environment is the whole environment of a process of the lab.
func (l *Lab) environment(role string, more ...string) []string {
	return append([]string{"PATH=" + systemPath, "LANG=C.UTF-8", markLab + "=" + l.ID, markRole + "=" + role}, more...)
}

// gone says that a file is not there, which who removes it does not mind.
func gone(err error) bool { return err == nil || errors.Is(err, fs.ErrNotExist) }
