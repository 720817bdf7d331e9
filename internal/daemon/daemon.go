// Package daemon is what every daemon does alike towards whoever started it: it logs at the level that its configuration
// names, and says when it is ready. It knows nothing of what the daemon is for.
package daemon

import (
	"errors"
	"io"
	"log/slog"
	"os"

	"github.com/starpatch/starpatch/problem"
)

// Logger returns a logger that writes to w what is of a level (debug, info, warn or error) or above.
func Logger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, problem.Errorf(problem.Invalid, "log-level must be debug, info, warn or error, not %q", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// Announce writes a line to a descriptor that whoever started us left open, and closes it. A negative one asks for
// nothing. That nobody listens does not stop a daemon: it is logged.
func Announce(log *slog.Logger, fd int) {
	if fd < 0 {
		return
	}
	f := os.NewFile(uintptr(fd), "ready")
	if f == nil {
		log.Warn("cannot announce readiness: the descriptor is not open", "fd", fd)
		return
	}
	_, err := f.WriteString("ready\n")
	if err := errors.Join(err, f.Close()); err != nil {
		log.Warn("cannot announce readiness", "err", err)
	}
}
