package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// changed is what a watch has seen since it was last asked.
type changed struct {
	flags    bool // a flag file came or went
	packages bool // somebody's package transaction ended
}

// watch sees changes of the host as they happen, so that nothing has to look again and again.
type watch struct {
	f             *os.File
	path          string       // folder of the package database
	run, lib, rpm int32        // descriptors of the folder of flags, and of the database and the one that holds it
	seen          chan changed // room for one; newer observations are merged into it
}

// openWatch watches the folder of the flag files and the lock of the package database. The lock is opened for writing by
// whoever changes packages and by nobody else, and its closing is the end of a transaction, also of a killed one. The
// folder of the database is replaced when the database is rebuilt (rpm --rebuilddb), so the one that holds it is watched, too.
func openWatch(t tree) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot watch the host: %w", err)
	}
	w := &watch{f: os.NewFile(uintptr(fd), "inotify"), path: t.path(rpmDir), seen: make(chan changed, 1)}
	for _, d := range []struct {
		to   *int32
		path string
		mask uint32
	}{
		{&w.run, t.path(t.run), unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_ONLYDIR},
		{&w.lib, filepath.Dir(w.path), unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR},
		{&w.rpm, w.path, databaseMask},
	} {
		wd, err := unix.InotifyAddWatch(fd, d.path, d.mask)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot watch %s: %w", d.path, err), w.f.Close())
		}
		*d.to = int32(wd)
	}
	return w, nil
}

const databaseMask = unix.IN_CLOSE_WRITE | unix.IN_ONLYDIR

// follow watches the database's folder that has taken the place of another one.
func (w *watch) follow() error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = raw.Control(func(fd uintptr) {
		var wd int
		if wd, werr = unix.InotifyAddWatch(int(fd), w.path, databaseMask); werr == nil {
			w.rpm = int32(wd)
		}
	})
	if errors.Is(werr, fs.ErrNotExist) {
		return err // replaced once more; that is told, too
	}
	return errors.Join(err, werr)
}

// read delivers changes until ctx ends.
func (w *watch) read(ctx context.Context) error {
	defer w.f.Close()
	stop := context.AfterFunc(ctx, func() { w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("cannot watch the host: %w", err)
		}
		c, replaced := w.parse(buf[:n])
		if replaced {
			if err := w.follow(); err != nil {
				return fmt.Errorf("cannot watch %s: %w", w.path, err)
			}
		}
		if c != (changed{}) {
			w.tell(c)
		}
	}
}

func (w *watch) tell(c changed) {
	select {
	case old := <-w.seen:
		c = changed{c.flags || old.flags, c.packages || old.packages}
	default:
	}
	w.seen <- c
}

// parse reads events. replaced says that there is another folder where the database's was.
func (w *watch) parse(b []byte) (c changed, replaced bool) {
	for len(b) >= unix.SizeofInotifyEvent { // struct inotify_event: wd, mask, cookie, length of the name, the name
		wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if end > len(b) {
			break
		}
		name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		b = b[end:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			return changed{flags: true, packages: true}, true
		case wd == w.run && (name == flagLocked || name == flagPatched || name == flagReboot):
			c.flags = true
		case wd == w.rpm && name == rpmLock:
			c.packages = true
		case wd == w.lib && name == filepath.Base(w.path):
			c.packages, replaced = true, true
		}
	}
	return c, replaced
}
