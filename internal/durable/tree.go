package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// PublishTree makes the finished folder from visible as to, whole and durable: after a crash there is either nothing at
// to or everything. Both lie in the same folder, and to must not exist. Files that have several names are links to blobs,
// which are durable already; all others and every folder are synced first.
func PublishTree(from, to string) error {
	if filepath.Dir(from) != filepath.Dir(to) {
		return fmt.Errorf("cannot publish %s as %s: they are not in one folder", from, to)
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("cannot publish %s: it exists", to), err)
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			if st, ok := info.Sys().(*syscall.Stat_t); !info.Mode().IsRegular() || ok && st.Nlink > 1 {
				return nil
			}
		}
		return syncPath(path)
	})
	if err != nil {
		return fmt.Errorf("cannot publish %s: %w", to, err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("cannot publish %s: %w", to, err)
	}
	return syncPath(filepath.Dir(to))
}

// RetireTree makes the folder at path disappear at once and durably, by renaming it to aside in the same folder; removing
// what is there then may be interrupted.
func RetireTree(path, aside string) error {
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("cannot retire %s: %w", path, err)
	}
	return syncPath(filepath.Dir(path))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// MkdirAll makes a folder and the missing ones above it, and makes each of their names durable.
func MkdirAll(path string, mode fs.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	if parent := filepath.Dir(path); parent != path {
		if err := MkdirAll(parent, mode); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncPath(filepath.Dir(path))
}
