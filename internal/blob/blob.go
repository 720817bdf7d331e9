// Package blob keeps files by the SHA-256 of their content: packages, scripts and metadata. A file is there whole and
// durable under its hash, or not at all; it is never changed, so it can be linked into repositories and served from there.
//
// What an upload brings lies in a [Spool] first, which belongs to nobody but the upload. [Store.Keep] turns its files into
// blobs after every check has passed and before the record that names them is committed; a crash in between leaves blobs
// that no record names, which [Store.Sweep] removes.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

// ErrNotFound is the error for a hash that no blob has.
var ErrNotFound = errors.New("no such blob")

// Store is a folder of blobs: sha256/ab/abcd... It is safe for concurrent use, but see [Store.Sweep].
type Store struct {
	dir string
}

// Folders below the store's own.
const (
	contents = "sha256"
	spools   = "tmp"
)

// Open opens the folder dir, makes it when it is missing, and removes the spools that a crash has left. One process at a
// time may have it open.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, sub := range []string{contents, spools} {
		if err := durable.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("cannot open the blobs in %s: %w", dir, err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, spools))
	if err != nil {
		return nil, fmt.Errorf("cannot open the blobs in %s: %w", dir, err)
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(dir, spools, e.Name())); err != nil {
			return nil, fmt.Errorf("cannot remove what an interrupted upload left: %w", err)
		}
	}
	return s, nil
}

// path is where the blob of a hash lies, or an error if that is no hash.
func (s *Store) path(digest string) (string, error) {
	if len(digest) != 2*sha256.Size || strings.Trim(digest, "0123456789abcdef") != "" {
		return "", fmt.Errorf("cannot use %.80q as the hash of a blob: want the 64 hexadecimal digits of a SHA-256 in lower case", digest)
	}
	return filepath.Join(s.dir, contents, digest[:2], digest), nil
}

// stat finds a blob, or returns ErrNotFound.
func (s *Store) stat(digest string) (fs.FileInfo, error) {
	path, err := s.path(digest)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, digest)
	}
	return fi, err
}

// Open opens a blob for reading. The caller closes it.
func (s *Store) Open(digest string) (*os.File, error) {
	if _, err := s.stat(digest); err != nil {
		return nil, err
	}
	path, err := s.path(digest)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// mode of a blob: nobody may write it, and whoever can reach a repository that links it may read it.
const mode = 0o444

// Put stores a small content durably and returns its hash.
func (s *Store) Put(content []byte) (string, error) {
	raw := sha256.Sum256(content)
	digest := hex.EncodeToString(raw[:])
	path, err := s.path(digest)
	if err != nil {
		return "", err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", s.cannotWrite(err)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Size() == int64(len(content)) {
		return digest, durable.SyncDir(filepath.Dir(path)) // its own process may have died before it did that
	}
	if err := durable.WriteFile(path, content, mode); err != nil {
		return "", s.cannotWrite(err)
	}
	return digest, nil
}

// Link gives a blob the further name dst, which must not exist. On another file system, or when the blob has as many
// names as it can have, it is copied. Making dst durable is the caller's.
func (s *Store) Link(digest, dst string) error {
	if _, err := s.stat(digest); err != nil {
		return err
	}
	path, err := s.path(digest)
	if err != nil {
		return err
	}
	err = os.Link(path, dst)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) {
		return copyTo(path, dst)
	}
	return err
}

func copyTo(path, dst string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close(), os.Remove(dst))
	}
	return out.Close()
}

// Sweep removes every blob whose hash keep does not know. It must not run between keeping a blob and committing the
// record that names it: whoever owns the records does both, one after the other.
func (s *Store) Sweep(keep func(digest string) bool) error {
	folders, err := os.ReadDir(filepath.Join(s.dir, contents))
	if err != nil {
		return fmt.Errorf("cannot look through the blobs: %w", err)
	}
	for _, folder := range folders {
		dir := filepath.Join(s.dir, contents, folder.Name())
		if err := durable.Sweep(dir); err != nil {
			return fmt.Errorf("cannot look through the blobs: %w", err)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("cannot look through the blobs: %w", err)
		}
		for _, f := range files {
			if _, err := s.path(f.Name()); err != nil || keep(f.Name()) {
				continue // not ours, or needed
			}
			// Not synced: should it come back after a power cut, the next sweep finds it.
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return fmt.Errorf("cannot remove a blob that nobody needs: %w", err)
			}
		}
	}
	return nil
}

// Free is the space left on the disk, in bytes.
func (s *Store) Free() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return 0, fmt.Errorf("cannot ask for the free space of %s: %w", s.dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// cannotWrite says what an operator can do about a full disk.
func (s *Store) cannotWrite(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return problem.Errorf(problem.Unavailable, "the disk of %s is full; free some space and try again: %w", s.dir, err)
	}
	return err
}
