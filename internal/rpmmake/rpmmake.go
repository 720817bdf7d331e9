// Package rpmmake makes RPM packages and package sets for tests and for the lab, without rpmbuild: a package in about a
// millisecond, the same bytes for the same [Spec]. It is not for making packages that are shipped.
package rpmmake

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/rpmpack"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// File is one file, folder or symbolic link of a package. Owner and group are root.
type File struct {
	Path   string      // absolute
	Body   []byte      // content of a regular file
	Mode   fs.FileMode // permission bits; 0: 0644 for files, 0755 for folders
	Dir    bool        // a folder
	Link   string      // a symbolic link to this target
	Config bool        // config(noreplace)
}

// Scripts are the scriptlets, run by /bin/sh; empty ones are left out. A package with any requires /bin/sh.
type Scripts struct {
	PreTrans, Pre, Post, PreUn, PostUn, PostTrans string
}

// Spec says what a package is. The zero BuildTime is the first second of 2019-09-01, UTC.
type Spec struct {
	Name      string
	EVR       rpm.EVR
	Arch      string // empty: noarch
	Summary   string // empty: the name
	Files     []File
	Scripts   Scripts
	Requires  []string // "name" or "name = version-release"
	Provides  []string
	Conflicts []string
	BuildTime time.Time
}

// defaultBuildTime stands in when a Spec has none: a package's bytes must not depend on when it was made.
var defaultBuildTime = time.Date(2019, 9, 1, 0, 0, 0, 0, time.UTC)

// NEVRA is the identity of the package.
func (s Spec) NEVRA() rpm.NEVRA {
	arch := s.Arch
	if arch == "" {
		arch = "noarch"
	}
	return rpm.NEVRA{Name: s.Name, EVR: s.EVR, Arch: arch}
}

// FileName is the usual file name of the package.
func (s Spec) FileName() string { return s.NEVRA().FileName() }

// Write makes the package. Equal Specs give equal bytes.
func (s Spec) Write(w io.Writer) error {
	built := s.BuildTime
	if built.IsZero() {
		built = defaultBuildTime
	}
	summary := s.Summary
	if summary == "" {
		summary = s.Name
	}
	meta := rpmpack.RPMMetaData{
		Name: s.Name, Version: s.EVR.Version, Release: s.EVR.Release, Epoch: rpmpack.NoEpoch, Arch: s.NEVRA().Arch,
		Summary: summary, Description: summary, Licence: "Apache-2.0", BuildHost: "starpatch", BuildTime: built,
		Compressor: "gzip:1",
	}
	if s.EVR.Epoch > 0 {
		meta.Epoch = uint32(s.EVR.Epoch)
	}
	requires := s.Requires
	if s.Scripts != (Scripts{}) {
		requires = append([]string{"/bin/sh"}, requires...)
	}
	for _, r := range []struct {
		to   *rpmpack.Relations
		from []string
	}{{&meta.Requires, requires}, {&meta.Provides, s.Provides}, {&meta.Conflicts, s.Conflicts}} {
		for _, rel := range r.from {
			if err := r.to.Set(rel); err != nil {
				return problem.Errorf(problem.Invalid, "cannot make %s: relation %q: %w", s.FileName(), rel, err)
			}
		}
	}
	p, err := rpmpack.NewRPM(meta)
	if err != nil {
		return problem.Errorf(problem.Invalid, "cannot make %s: %w", s.FileName(), err)
	}
	for _, f := range s.Files {
		p.AddFile(f.packed(built))
	}
	for _, sc := range []struct {
		add  func(string)
		body string
	}{
		{p.AddPretrans, s.Scripts.PreTrans}, {p.AddPrein, s.Scripts.Pre}, {p.AddPostin, s.Scripts.Post},
		{p.AddPreun, s.Scripts.PreUn}, {p.AddPostun, s.Scripts.PostUn}, {p.AddPosttrans, s.Scripts.PostTrans},
	} {
		if sc.body != "" {
			sc.add(sc.body)
		}
	}
	return p.Write(w)
}

// Bytes is the package in memory.
func (s Spec) Bytes() ([]byte, error) {
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// WriteTo makes the package as a file of its usual name in dir, which must exist, and returns the file's path.
func (s Spec) WriteTo(dir string) (string, error) {
	b, err := s.Bytes()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, s.FileName())
	return path, os.WriteFile(path, b, 0o644)
}

func (f File) packed(built time.Time) rpmpack.RPMFile {
	// The type bits are those of struct stat, which RPM headers carry.
	const folder, link, regular = 0o040000, 0o120000, 0o100000
	r := rpmpack.RPMFile{Name: f.Path, Body: f.Body, Owner: "root", Group: "root", MTime: uint32(built.Unix())}
	mode := uint(f.Mode.Perm())
	switch {
	case f.Dir:
		if mode == 0 {
			mode = 0o755
		}
		r.Mode, r.Body = folder|mode, nil
	case f.Link != "":
		r.Mode, r.Body = link|0o777, []byte(f.Link)
	default:
		if mode == 0 {
			mode = 0o644
		}
		r.Mode = regular | mode
	}
	if f.Config {
		r.Type = rpmpack.ConfigFile | rpmpack.NoReplaceFile
	}
	return r
}

// EVR reads "[epoch:]version-release" for literals in tests and package tables; it panics on anything else.
func EVR(s string) rpm.EVR {
	n, err := rpm.ParseFileName("x-" + strings.TrimPrefix(s, "0:") + ".noarch.rpm")
	if epoch, rest, ok := strings.Cut(s, ":"); ok {
		n, err = rpm.ParseFileName(epoch + ":x-" + rest + ".noarch.rpm")
	}
	if err != nil {
		panic("internal error: rpmmake.EVR: " + err.Error())
	}
	return n.EVR
}
