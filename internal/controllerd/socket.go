package controllerd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/starpatch/starpatch/internal/server"
	"github.com/starpatch/starpatch/problem"
)

// listenSocket opens the unix socket for local command lines. Everybody may connect: what a caller may do depends on
// who the kernel says it is.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(problem.Errorf(problem.Conflict, "another controller answers on %s; stop it first", path), c.Close())
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != fs.ModeSocket {
		return nil, problem.Errorf(problem.Conflict, "cannot open the socket %s: there is a file that is no socket; remove it, or set socket in the configuration", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, cannotListen(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &fair{UnixListener: l.(*net.UnixListener), uid: server.PeerUID, open: map[uint32]int{}}, nil
}

// maxPerUser is how many connections a user other than root may have open. Everybody may connect, and each connection
// takes one of the descriptors that the state store needs, too.
const maxPerUser = 64

// fair is a unix socket on which no user can take everything.
type fair struct {
	*net.UnixListener
	uid func(net.Conn) (uint32, bool)

	mu   sync.Mutex
	open map[uint32]int // connections of each user but root
}

// Accept returns the next connection that its user may have; others are closed without a word.
func (l *fair) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, known := l.uid(c)
		if known && uid == 0 {
			return c, nil
		}
		if known && l.take(uid) {
			return &counted{UnixConn: c, gone: sync.OnceFunc(func() { l.leave(uid) })}, nil
		}
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
}

func (l *fair) take(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid] >= maxPerUser {
		return false
	}
	l.open[uid]++
	return true
}

func (l *fair) leave(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid]--; l.open[uid] == 0 {
		delete(l.open, uid)
	}
}

// counted is a connection that tells when it is closed.
type counted struct {
	*net.UnixConn
	gone func()
}

func (c *counted) Close() error {
	defer c.gone()
	return c.UnixConn.Close()
}
