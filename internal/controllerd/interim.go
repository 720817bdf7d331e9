package controllerd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/patch/patchfile"
)

// readBelow reads a file below dir without leaving it.
func readBelow(dir, path string) (_ []byte, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return root.ReadFile(filepath.FromSlash(path))
}

// dirBlobs keeps contents below a folder.
type dirBlobs struct{ dir string }

func newBlobs(dir string) (*dirBlobs, error) {
	b := &dirBlobs{dir}
	return b, errors.Join(durable.MkdirAll(filepath.Join(dir, "sha256"), 0o700), durable.MkdirAll(filepath.Join(dir, "tmp"), 0o700))
}

func (b *dirBlobs) path(d string) string { return filepath.Join(b.dir, "sha256", d[:2], d) }

type spool struct{ dir string }

func (b *dirBlobs) Spool() (patchfile.Spool, error) {
	d, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "spool-")
	return &spool{d}, err
}

func (s *spool) Create(name string) (patchfile.SpoolFile, error) {
	return os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
}

func (s *spool) Discard() error { return os.RemoveAll(s.dir) }

func (b *dirBlobs) Keep(sp patchfile.Spool, files []patchfile.Member) error {
	for _, m := range files {
		text, err := io.ReadAll(m.Reader())
		if err != nil {
			return err
		}
		if _, err := b.Put(text); err != nil {
			return err
		}
	}
	return sp.Discard()
}

func (b *dirBlobs) Put(content []byte) (string, error) {
	sum := sha256.Sum256(content)
	d := hex.EncodeToString(sum[:])
	if _, err := os.Stat(b.path(d)); err == nil {
		return d, nil
	}
	if err := durable.MkdirAll(filepath.Dir(b.path(d)), 0o700); err != nil {
		return "", err
	}
	return d, durable.WriteFile(b.path(d), content, 0o644)
}

func (b *dirBlobs) Link(d, dst string) error { return os.Link(b.path(d), dst) }

func (b *dirBlobs) Sweep(keep func(string) bool) error {
	return filepath.WalkDir(filepath.Join(b.dir, "sha256"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || keep(e.Name()) {
			return err
		}
		return os.Remove(path)
	})
}

func (b *dirBlobs) Free() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(b.dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}
