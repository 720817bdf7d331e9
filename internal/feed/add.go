package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Added says what [Feeds.Add] did.
type Added struct {
	Packages int // in the feed now
	New      int // of them, brought in by this call; 0: nothing changed
}

// Add copies every package below the folder from into the base feed of a release and makes its metadata, which installs
// the release if it was not. The feed changes in one step, once all of it is durable; after an error it is as it was.
// Packages that are there already are left alone; another file under the name of one is refused, because hosts may have
// installed the first. Files that are no packages and source packages are refused by name.
func (f *Feeds) Add(ctx context.Context, release, from string) (_ Added, err error) {
	if _, err := patch.ParseRelease(release); err != nil {
		return Added{}, err
	}
	fail := func(err error) (Added, error) {
		return Added{}, fmt.Errorf("cannot add %s to the base feed of release %s: %w", from, release, err)
	}
	offered, err := collect(ctx, from)
	if err != nil {
		return fail(err)
	}
	if err := durable.MkdirAll(f.dir, 0o755); err != nil {
		return fail(err)
	}
	if err := f.Sweep(); err != nil {
		return fail(err)
	}
	live := f.Path(release)
	temp, err := os.MkdirTemp(f.dir, aside)
	if err != nil {
		return fail(err)
	}
	// Whatever is there by then: a failed attempt, or the feed that was replaced.
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	had, err := linkTree(ctx, live, temp)
	if err != nil {
		return fail(err)
	}
	added := Added{Packages: had.packages}
	for name, p := range offered {
		if old, ok := had.paths[name]; ok {
			if same, err := sameContent(old, p.path); err != nil {
				return fail(err)
			} else if !same {
				return fail(problem.Errorf(problem.Conflict, "the feed has another %s already; give the changed package a higher release", name))
			}
			continue
		}
		if err := copyPackage(ctx, p, filepath.Join(temp, "Packages", name)); err != nil {
			return fail(err)
		}
		added.New++
		added.Packages++
	}
	if added.New == 0 && had.metadata {
		return added, nil
	}
	newest := had.newest
	for _, p := range offered {
		newest = max(newest, p.header.Built)
	}
	if err := f.publish(ctx, temp, live, newest); err != nil {
		return fail(err)
	}
	return added, nil
}

// publish makes the metadata of the finished folder temp, with revision as its only time, and puts it in the place of
// live.
func (f *Feeds) publish(ctx context.Context, temp, live string, revision int64) error {
	groups := filepath.Join(temp, "comps.xml")
	if _, err := os.Stat(groups); err != nil {
		groups = ""
	}
	if err := errors.Join(os.Chmod(temp, 0o755), repodata.Create(ctx, temp, revision, groups)); err != nil {
		return err
	}
	return durable.Replace(temp, live)
}

// offer is one package that Add may bring in.
type offer struct {
	path   string
	header rpm.Header
}

// collect returns the packages below a folder by file name.
func collect(ctx context.Context, from string) (map[string]offer, error) {
	out := map[string]offer{}
	err := walk(ctx, from, func(path string, _ fs.FileInfo) error {
		h, err := readHeader(path)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		if h.Source {
			return problem.Errorf(problem.Invalid, "%s is a source package; only binary packages belong to a base feed", name)
		}
		if other, ok := out[name]; ok {
			if same, err := sameContent(other.path, path); err != nil || !same {
				return errors.Join(problem.Errorf(problem.Invalid, "%s and %s differ but have one name; leave one of them out", other.path, path), err)
			}
		}
		out[name] = offer{path, h}
		return nil
	})
	if err == nil && len(out) == 0 {
		err = problem.Errorf(problem.Invalid, "there is no .rpm file in it")
	}
	return out, err
}

// present is what a feed had before.
type present struct {
	packages int
	paths    map[string]string // package file name to path
	newest   int64             // build time of its newest package
	metadata bool              // it has repodata
}

// linkTree gives everything in live but its metadata a second name in temp; a missing live is an empty one.
func linkTree(ctx context.Context, live, temp string) (present, error) {
	had := present{paths: map[string]string{}}
	if err := os.Mkdir(filepath.Join(temp, "Packages"), 0o755); err != nil {
		return had, err
	}
	err := filepath.WalkDir(live, func(path string, d fs.DirEntry, err error) error {
		if path == live && errors.Is(err, fs.ErrNotExist) {
			return fs.SkipAll
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(live, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(temp, rel)
		switch {
		case rel == "repodata":
			_, err := os.Stat(filepath.Join(path, filepath.Base(repodata.RepomdPath)))
			had.metadata = err == nil
			return fs.SkipDir
		case d.IsDir():
			if err := os.Mkdir(dst, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			return nil
		case filepath.Ext(path) == ".rpm":
			h, err := readHeader(path)
			if err != nil {
				return err
			}
			had.packages++
			had.paths[filepath.Base(path)] = path
			had.newest = max(had.newest, h.Built)
		}
		return os.Link(path, dst)
	})
	return had, err
}

// copyPackage copies a package and gives the copy its build time: the metadata records it, and must not depend on when
// the feed was made.
func copyPackage(ctx context.Context, p offer, dst string) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	src, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, src)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	built := time.Unix(p.header.Built, 0)
	return os.Chtimes(dst, built, built)
}

// sameContent compares two files byte by byte.
func sameContent(a, b string) (same bool, err error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errX := io.ReadFull(f, x)
		m, errY := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		end := errors.Is(errX, io.EOF) || errors.Is(errX, io.ErrUnexpectedEOF)
		if end && (errors.Is(errY, io.EOF) || errors.Is(errY, io.ErrUnexpectedEOF)) {
			return true, nil
		}
		if err := errors.Join(errX, errY); err != nil {
			return false, err
		}
	}
}

// Sweep removes what interrupted calls of [Feeds.Add] left, as each call does. It must not run beside one.
func (f *Feeds) Sweep() error {
	left, err := filepath.Glob(filepath.Join(f.dir, aside+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range left {
		errs = append(errs, os.RemoveAll(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot sweep the base feeds: %w", err)
	}
	return nil
}
