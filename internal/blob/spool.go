package blob

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/patch/patchfile"
)

// Spool is a folder for the files of one upload. It implements [patchfile.Spool].
type Spool struct {
	store *Store
	dir   string
}

// Spool returns an empty spool.
func (s *Store) Spool() (patchfile.Spool, error) {
	dir, err := os.MkdirTemp(filepath.Join(s.dir, spools), "spool-")
	if err != nil {
		return nil, s.cannotWrite(err)
	}
	return &Spool{store: s, dir: dir}, nil
}

// Create makes an empty file.
func (sp *Spool) Create(name string) (patchfile.SpoolFile, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("cannot use %q as the name of a spooled file", name)
	}
	f, err := os.OpenFile(filepath.Join(sp.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, sp.store.cannotWrite(err)
	}
	return &spoolFile{File: f, store: sp.store}, nil
}

// Discard removes everything in the spool. Discarding twice is no error.
func (sp *Spool) Discard() error { return os.RemoveAll(sp.dir) }

// spoolFile has the disk write while the upload goes on, so that little is left to wait for in the end.
type spoolFile struct {
	*os.File
	store *Store
	ahead durable.Writeback
}

func (f *spoolFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.ahead.Wrote(f.File, n)
	if err != nil {
		return n, f.store.cannotWrite(err)
	}
	return n, nil
}

// Keep makes spooled files durable under their hashes and uses the spool up, whatever happens. Content that is there
// already stays. The hashes are taken from the members: patchfile computed them while the files were written.
func (s *Store) Keep(spool patchfile.Spool, members []patchfile.Member) (err error) {
	sp, ok := spool.(*Spool)
	if !ok || sp.store != s {
		return errors.New("internal error: a spool of another store")
	}
	defer func() { err = errors.Join(err, sp.Discard()) }()
	var moves []durable.Move
	var dirs []string
	seen := map[string]bool{}
	for _, m := range members {
		to, err := s.path(m.SHA256)
		if err != nil {
			return err
		}
		if seen[m.SHA256] {
			continue
		}
		seen[m.SHA256] = true
		from := filepath.Join(sp.dir, m.Name)
		if fi, err := os.Lstat(from); err != nil {
			return err
		} else if fi.Size() != m.Size {
			return fmt.Errorf("the spooled file %s has %d bytes, not %d", m.Name, fi.Size(), m.Size)
		}
		dirs = append(dirs, filepath.Dir(to))
		// One that is there is durable, except for its name if its own process died too early; hence the folder is
		// synced for it too. A different size can only be damage: the new one takes its place.
		if fi, err := os.Lstat(to); err == nil && fi.Size() == m.Size {
			continue
		}
		moves = append(moves, durable.Move{From: from, To: to})
	}
	for _, dir := range dirs {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return s.cannotWrite(err)
		}
	}
	if err := syncAll(moves); err != nil {
		return s.cannotWrite(err)
	}
	if err := durable.RenameAll(moves); err != nil {
		return s.cannotWrite(err)
	}
	return durable.SyncDirs(dirs)
}

// syncers is how many files are synced at once: the file system's journal then commits them together.
const syncers = 8

// syncAll makes the files durable under the names that they have, with the mode of blobs.
func syncAll(moves []durable.Move) error {
	work := make(chan string)
	errs := make(chan error, syncers)
	var wg sync.WaitGroup
	for range min(syncers, len(moves)) {
		wg.Go(func() {
			var err error
			for path := range work {
				if err == nil {
					err = finish(path)
				}
			}
			errs <- err
		})
	}
	for _, m := range moves {
		work <- m.From
	}
	close(work)
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

func finish(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(mode), f.Sync(), f.Close())
}
