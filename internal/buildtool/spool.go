package buildtool

import (
	"errors"
	"os"

	"github.com/starpatch/starpatch/patch/patchfile"
)

// spool keeps the tars of a patch in a temporary folder. Packages and checks are only looked at by these tools, so
// nothing of them is kept.
type spool struct {
	dir  string
	root *os.Root
}

func newSpool() (*spool, error) {
	dir, err := os.MkdirTemp("", "patch-")
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &spool{dir: dir, root: root}, nil
}

func (s *spool) Create(name string) (patchfile.SpoolFile, error) {
	if !patchfile.IsTar(name) {
		return forgotten{}, nil
	}
	return s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Discard removes the folder. Doing it again is harmless.
func (s *spool) Discard() error {
	if s.root == nil {
		return nil
	}
	err := errors.Join(s.root.Close(), os.RemoveAll(s.dir))
	s.root = nil
	return err
}

// forgotten takes everything and gives nothing back.
type forgotten struct{}

func (forgotten) Write(p []byte) (int, error) { return len(p), nil }
func (forgotten) ReadAt([]byte, int64) (int, error) {
	return 0, errors.New("internal error: this member was not kept")
}
func (forgotten) Close() error { return nil }
