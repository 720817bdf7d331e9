package lab

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// The keeper and every init answer one request per connection on a unix socket that only root can open: one line of
// JSON each way.

// request asks a keeper or an init to do something.
type request struct {
	Do   string `json:"do"`             // keeper: status, on, wait, reboot; init: status, start, restart
	Name string `json:"name,omitempty"` // of the host or of the unit
	Not  int    `json:"not,omitempty"`  // wait: a boot whose init has another process id than this
}

// reply is the answer. An empty Error means that it is done, not that it was begun.
type reply struct {
	Error string      `json:"error,omitempty"`
	Boot  *bootReport `json:"boot,omitempty"`  // on, wait, reboot
	Hosts []powered   `json:"hosts,omitempty"` // status of a keeper
	Units []unitState `json:"units,omitempty"` // status of an init
}

// powered is what a keeper knows of a host.
type powered struct {
	Name   string    `json:"name"`
	PID    int       `json:"pid"` // of its init, as the machine sees it; 0: off
	BootID string    `json:"boot_id"`
	Boots  int       `json:"boots"`
	Since  time.Time `json:"since"`
}

// unitState is what an init knows of one of its processes.
type unitState struct {
	Name   string    `json:"name"`
	PID    int       `json:"pid"` // as the host sees it; 0: not running
	Up     bool      `json:"up"`  // running, and it said that it is ready if it is one that says so
	Starts int       `json:"starts"`
	Since  time.Time `json:"since"`
}

// shortPath returns a name for path that is short enough for a socket's address, valid until close is called.
func shortPath(path string) (short string, close func(), err error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path), func() { closeFD(dir) }, nil
}

// listen opens a control socket; an old one at the same path is replaced.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); !gone(err) {
		return nil, err
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the short name means nothing by then
	return l, errors.Join(os.Chmod(path, 0o600))
}

// ask sends one request and waits for its reply as long as ctx lives.
func ask(ctx context.Context, path string, r request) (reply, error) {
	short, done, err := shortPath(path)
	if err != nil {
		return reply{}, err
	}
	defer done()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", short)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close() // the reply was read, or is not wanted any more
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return reply{}, err
	}
	var answer reply
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return reply{}, err
	}
	if answer.Error != "" {
		return answer, problem.Errorf(problem.Conflict, "%s", answer.Error)
	}
	return answer, nil
}

// asked is a request on its way to the goroutine that owns what it is about; the owner sends exactly one reply.
type asked struct {
	request
	answer chan reply
}

// requestLimit bounds reading and writing of one message, so that a silent caller costs nothing.
const requestLimit = 10 * time.Second

// serve passes the requests that come in on l to the owner until ctx ends, and returns when every caller has its reply.
func serve(ctx context.Context, l net.Listener, owner chan<- asked) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var callers sync.WaitGroup
	defer callers.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed above, or a listener that cannot accept any more
		}
		callers.Go(func() {
			defer conn.Close() // the caller has its reply, or has gone
			a := asked{answer: make(chan reply, 1)}
			if conn.SetDeadline(time.Now().Add(requestLimit)) != nil || json.NewDecoder(conn).Decode(&a.request) != nil {
				return
			}
			select {
			case owner <- a:
			case <-ctx.Done():
				return
			}
			select {
			case r := <-a.answer:
				if conn.SetDeadline(time.Now().Add(requestLimit)) == nil {
					json.NewEncoder(conn).Encode(r) // a caller that has gone does not want it
				}
			case <-ctx.Done():
			}
		})
	}
}
