// Package durable makes files visible whole: a reader, and the machine after a power cut, sees either the old file or
// the complete new one, never a part. It is the only package that renames, so that the order that makes this true
// (write, fsync the file, rename, fsync the folder) is written down once.
//
// When a function returns nil, what it did survives a power cut. When it returns an error, the old state is still there,
// or the new one whole.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tempMark ends the name of every temporary file of this package, so that [Sweep] knows what a crash left behind.
const tempMark = ".starpatch-tmp"

// WriteFile replaces path with a file of these bytes.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Abort())
	}
	return f.Commit()
}

// File is a file being written that nobody sees under its name until Commit. It is not safe for concurrent use.
type File struct {
	f    *os.File
	path string
	done bool

	ahead Writeback
}

// Create starts a file that will appear at path with the permissions perm, whatever the umask. The folder must exist.
// The caller ends it with Commit or Abort.
func Create(path string, perm fs.FileMode) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*"+tempMark)
	if err != nil {
		return nil, fmt.Errorf("cannot create %s: %w", path, err)
	}
	if err := f.Chmod(perm); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot create %s: %w", path, err), f.Close(), os.Remove(f.Name()))
	}
	return &File{f: f, path: path}, nil
}

// Write adds to the file.
func (f *File) Write(p []byte) (int, error) {
	n, err := f.f.Write(p)
	f.ahead.Wrote(f.f, n)
	return n, err
}

// Commit makes the file visible at its path, durably. After an error the old file is still there, or the new one whole.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("cannot commit %s: %w", f.path, fs.ErrClosed)
	}
	if err := f.f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("cannot write %s: %w", f.path, err), f.Abort())
	}
	f.done = true
	if err := f.f.Close(); err != nil {
		return errors.Join(fmt.Errorf("cannot write %s: %w", f.path, err), os.Remove(f.f.Name()))
	}
	if err := os.Rename(f.f.Name(), f.path); err != nil {
		return errors.Join(err, os.Remove(f.f.Name()))
	}
	return SyncDir(filepath.Dir(f.path))
}

// Abort forgets the file; what is at its path stays. After Commit or Abort it does nothing, so it can be deferred.
func (f *File) Abort() error {
	if f.done {
		return nil
	}
	f.done = true
	return errors.Join(f.f.Close(), os.Remove(f.f.Name()))
}

// Move is one step of [RenameAll].
type Move struct{ From, To string }

// Rename moves a file or folder whose contents are already durable, replacing a file at the new name.
func Rename(from, to string) error { return RenameAll([]Move{{from, to}}) }

// RenameAll does the moves in order and then syncs every folder that changed once, which is much faster than one
// [Rename] each. Each move is atomic, all of them together are not: after an error some may have happened.
func RenameAll(moves []Move) error {
	var dirs []string
	for _, m := range moves {
		if err := os.Rename(m.From, m.To); err != nil {
			return err
		}
		// The new name first: after a power cut between the two syncs a file may have both names, never none.
		dirs = append(dirs, filepath.Dir(m.To))
	}
	for _, m := range moves {
		dirs = append(dirs, filepath.Dir(m.From))
	}
	return SyncDirs(dirs)
}

// Replace makes the finished folder dir visible at path in one step, its contents durable first. What stood at path lies
// at dir afterwards, for the caller to remove; if nothing stood there, nothing does. Both are on one file system.
func Replace(dir, path string) error {
	if err := syncTree(dir); err != nil {
		return err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return Rename(dir, path)
	}
	if err := exchange(dir, path); err != nil {
		return &os.LinkError{Op: "exchange", Old: dir, New: path, Err: err}
	}
	return SyncDirs([]string{filepath.Dir(dir), filepath.Dir(path)})
}

// Remove deletes a file or an empty folder; a missing one is not an error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error { return syncPath(dir) }

// SyncDirs is [SyncDir] of each folder, once.
func SyncDirs(dirs []string) error {
	seen := map[string]bool{}
	for _, d := range dirs {
		if d = filepath.Clean(d); seen[d] {
			continue
		}
		seen[d] = true
		if err := SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// syncTree makes a folder and everything in it durable: the contents of every regular file and the names in every
// folder. Symbolic links are not followed.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() || d.Type().IsRegular():
			return syncPath(path)
		}
		return nil
	})
}

// Sweep removes the temporary files that a crash left in dir (not in its subfolders). Call it at start, before anything
// writes there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	removed := false
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), tempMark) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
		removed = true
	}
	if !removed {
		return nil
	}
	return SyncDir(dir)
}
