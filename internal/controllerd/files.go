package controllerd

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

// files is what the repository service serves: the base feeds and the generations, each from below its own folder and
// nothing else.
type files struct {
	feed, updates *os.Root
	current       func(release string) int64 // generation of a release that is current; 0: none
}

// openFiles makes the two folders if need be. Close the result.
func openFiles(feed, updates string, current func(string) int64) (*files, error) {
	f := &files{current: current}
	for _, r := range []struct {
		dir  string
		root **os.Root
	}{{feed, &f.feed}, {updates, &f.updates}} {
		if err := durable.MkdirAll(r.dir, 0o755); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		root, err := os.OpenRoot(r.dir)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		*r.root = root
	}
	return f, nil
}

func (f *files) Close() error {
	var errs []error
	for _, r := range []*os.Root{f.feed, f.updates} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(errs...)
}

// Open returns a file of feed/rel-R/... or updates/rel-R/<revision>/... or, of the current generation,
// updates/rel-R/.... Files below a revision never change.
func (f *files) Open(path string) (*os.File, bool, error) {
	missing := func() (*os.File, bool, error) {
		return nil, false, problem.Errorf(problem.NotFound, "no such file: %s", path)
	}
	parts := strings.Split(path, "/")
	for _, p := range parts {
		if strings.HasPrefix(p, ".") || p == "" {
			return missing() // folders that are being built or removed
		}
	}
	if len(parts) < 3 || !strings.HasPrefix(parts[1], "rel-") {
		return missing()
	}
	root, immutable := f.feed, false
	if parts[0] == "updates" {
		root = f.updates
		if _, err := strconv.ParseInt(parts[2], 10, 64); err == nil {
			immutable = true
		} else {
			revision := f.current(strings.TrimPrefix(parts[1], "rel-"))
			parts = append([]string{parts[0], parts[1], strconv.FormatInt(revision, 10)}, parts[2:]...)
		}
	}
	file, err := root.Open(strings.Join(parts[1:], "/"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return missing()
	}
	return file, immutable, err
}
