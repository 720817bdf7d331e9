package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/starpatch/starpatch/problem"
)

// runRoot holds one folder for every lab on this machine, named after the lab's id.
const runRoot = "/run/patch-lab"

// The addresses that labs take: 127.64.0.0 and up, a /24 each. Lower ones are left to everybody else's habits.
const (
	firstOctet = 64
	octets     = 128
	firstHost  = 11 // two digits from the start, so that addresses sort as text
)

// netnsPrefix is the network of hosts with network namespaces of their own; every lab has it to itself.
const netnsPrefix = "192.168.204."

// locked calls f while this process alone may change which labs there are.
func locked(f func() error) error {
	if err := os.MkdirAll(runRoot, 0o755); err != nil {
		return problem.Errorf(problem.Unavailable, "cannot make %s: %w", runRoot, err)
	}
	lock, err := os.OpenFile(filepath.Join(runRoot, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return problem.Errorf(problem.Unavailable, "cannot lock the labs of this machine: %w", err)
	}
	defer lock.Close() // which also releases the lock
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
		if err == nil {
			return f()
		}
		if !errors.Is(err, syscall.EINTR) {
			return problem.Errorf(problem.Unavailable, "cannot lock the labs of this machine: %w", err)
		}
	}
}

// claim takes an id, and with it a /24, for the lab, gives its hosts their addresses and saves it. A folder that holds a
// lab already is refused, and so is one with something of anybody else's that down would take for the lab's.
func (l *Lab) claim() error {
	return locked(func() error {
		if _, err := Open(l.Dir); !errors.Is(err, errNoLab) {
			return problem.Errorf(problem.Conflict, "%s holds a lab already; patch-lab down --dir %s ends and removes it", l.Dir, l.Dir)
		}
		if id := claimOf(l.Dir); id != "" {
			return problem.Errorf(problem.Conflict, "the lab that was in %s still runs; patch-lab down --dir %s ends it", l.Dir, l.Dir)
		}
		for _, p := range parts {
			if _, err := os.Lstat(filepath.Join(l.Dir, p)); !errors.Is(err, fs.ErrNotExist) {
				return problem.Errorf(problem.Conflict, "%s has %s already, which a lab makes and removes there; give a new folder or an empty one", l.Dir, p)
			}
		}
		sweepAbandoned()
		for n := range octets * 256 {
			prefix := fmt.Sprintf("127.%d.%d.", firstOctet+n/256, n%256)
			id := strconv.Itoa(firstOctet+n/256) + "-" + strconv.Itoa(n%256)
			if err := os.Mkdir(filepath.Join(runRoot, id), 0o755); errors.Is(err, fs.ErrExist) {
				continue
			} else if err != nil {
				return problem.Errorf(problem.Unavailable, "cannot take a network for the lab: %w", err)
			}
			if !l.NetNS && !free(prefix+strconv.Itoa(firstHost), l.PortOffset) {
				if err := os.Remove(filepath.Join(runRoot, id)); err != nil {
					return err
				}
				return problem.Errorf(problem.Conflict, "a program listens on every address of this machine at a port that the lab needs (%d, %d, %d or %d); stop it or shift the lab's ports by --port-base",
					compatPort+l.PortOffset, linkPort+l.PortOffset, repoPort+l.PortOffset, servicePort+l.PortOffset)
			}
			l.ID = id
			if l.NetNS {
				prefix = netnsPrefix
			}
			for i := range l.Hosts {
				l.Hosts[i].Address = prefix + strconv.Itoa(firstHost+i)
			}
			if err := os.WriteFile(filepath.Join(l.runDir(), "dir"), []byte(l.Dir+"\n"), 0o644); err != nil {
				return err
			}
			return l.save()
		}
		return problem.Errorf(problem.Unavailable, "all %d networks of labs on this machine are taken; patch-lab down frees one", octets*256)
	})
}

// release gives the lab's id back.
func (l *Lab) release() error {
	return locked(func() error { return os.RemoveAll(l.runDir()) })
}

// claimOf finds the id of the lab that was made in dir, by what /run remembers; "" when there is none.
func claimOf(dir string) string {
	entries, err := os.ReadDir(runRoot)
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if text, err := os.ReadFile(filepath.Join(runRoot, e.Name(), "dir")); err == nil && strings.TrimSuffix(string(text), "\n") == dir {
			return e.Name()
		}
	}
	return ""
}

// sweepAbandoned frees the ids of labs whose folder is gone and of which nothing runs any more. What cannot be looked at
// stays taken.
func sweepAbandoned() {
	entries, err := os.ReadDir(runRoot)
	if err != nil {
		return
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(runRoot, e.Name(), "dir"))
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(strings.TrimSuffix(string(text), "\n"), "lab.json")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if left, err := marked(e.Name()); err == nil && len(left) == 0 {
			os.RemoveAll(filepath.Join(runRoot, e.Name())) // another lab can use the next number
		}
	}
}

// free says whether the ports that a lab needs can be bound at an address.
func free(address string, offset int) bool {
	for _, port := range []int{compatPort, linkPort, repoPort, servicePort} {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port+offset)))
		if err != nil {
			return false
		}
		if l.Close() != nil {
			return false
		}
	}
	return true
}
