// Package feed keeps the base repository of each installed release: rel-R/Packages with the packages that hosts were
// installed from, and the metadata that agents read. A release is installed when it has a base feed.
package feed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// aside starts the names of folders that are being built or removed; nobody looks at them.
const aside = ".aside-"

// Feeds is the folder of all base feeds. It is safe for concurrent use, except that [Feeds.Add] runs one at a time.
type Feeds struct {
	dir string

	mu      sync.Mutex
	headers map[string]cached // by path; what an earlier Base read
}

// cached is one package file and what its header said when the file had this size and time.
type cached struct {
	size  int64
	mtime int64
	nevra rpm.NEVRA
}

// New returns the feeds in the folder dir, which need not exist yet.
func New(dir string) *Feeds { return &Feeds{dir: dir, headers: map[string]cached{}} }

// Path is the folder of a release's feed, whether it exists or not.
func (f *Feeds) Path(release string) string { return filepath.Join(f.dir, "rel-"+release) }

// Releases returns the installed releases, sorted.
func (f *Feeds) Releases() ([]string, error) {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the base feeds: %w", err)
	}
	var out []string
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "rel-")
		if _, err := patch.ParseRelease(name); !ok || err != nil {
			continue
		}
		if info, err := os.Stat(filepath.Join(f.dir, e.Name())); err == nil && info.IsDir() {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Base returns the highest version of each package in the base feed of a release, read from the packages' own headers, or
// nil if the release is not installed. Packages that came or went since the last call are noticed.
func (f *Feeds) Base(ctx context.Context, release string) (map[rpm.Key]rpm.NEVRA, error) {
	if _, err := patch.ParseRelease(release); err != nil {
		return nil, nil // no release of that name can be
	}
	root := f.Path(release)
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out, seen := map[rpm.Key]rpm.NEVRA{}, map[string]bool{}
	err := walk(ctx, root, func(path string, info fs.FileInfo) error {
		seen[path] = true
		have, ok := f.headers[path]
		if !ok || have.size != info.Size() || have.mtime != info.ModTime().UnixNano() {
			h, err := readHeader(path)
			if err != nil {
				return err
			}
			have = cached{info.Size(), info.ModTime().UnixNano(), h.NEVRA}
			f.headers[path] = have
		}
		if old, ok := out[have.nevra.Key()]; !ok || have.nevra.EVR.Compare(old.EVR) > 0 {
			out[have.nevra.Key()] = have.nevra
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the base feed of release %s: %w", release, err)
	}
	for path := range f.headers {
		if strings.HasPrefix(path, root+string(filepath.Separator)) && !seen[path] {
			delete(f.headers, path)
		}
	}
	return out, nil
}

// walk calls visit for each package file below root. Symbolic links count as what they point to if that is a file; linked
// folders are not entered.
func walk(ctx context.Context, root string, visit func(path string, info fs.FileInfo) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if d.IsDir() || filepath.Ext(path) != ".rpm" {
			return nil
		}
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		return visit(path, info)
	})
}

// readHeader reads a package's header and names the file when that is not possible.
func readHeader(path string) (rpm.Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return rpm.Header{}, err
	}
	h, err := rpm.ReadHeader(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return h, problem.Errorf(problem.Invalid, "cannot read %s: %w", filepath.Base(path), err)
	}
	return h, nil
}
