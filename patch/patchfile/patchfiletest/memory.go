// Package patchfiletest has a spool in memory and the keys and files that tests of patch files need.
package patchfiletest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/starpatch/starpatch/patch/patchfile"
)

// Spool is a patchfile.Spool in memory. The zero value is empty and ready.
type Spool struct {
	// Fail, when set, is asked before each Create and Write; what it returns is the error.
	Fail func(op, name string) error

	files     map[string]*file
	discarded bool
}

type file struct {
	spool *Spool
	name  string
	b     bytes.Buffer
}

// Create implements patchfile.Spool.
func (s *Spool) Create(name string) (patchfile.SpoolFile, error) {
	if s.Fail != nil {
		if err := s.Fail("create", name); err != nil {
			return nil, err
		}
	}
	if _, ok := s.files[name]; ok {
		return nil, fmt.Errorf("%s is created twice", name)
	}
	if s.files == nil {
		s.files = map[string]*file{}
	}
	s.files[name] = &file{spool: s, name: name}
	return s.files[name], nil
}

// Discard implements patchfile.Spool.
func (s *Spool) Discard() error {
	if s.discarded {
		return errors.New("the spool is discarded twice")
	}
	s.files, s.discarded = nil, true
	return nil
}

// Names lists what is in the spool, sorted.
func (s *Spool) Names() []string { return slices.Sorted(maps.Keys(s.files)) }

// Discarded says that the spool was discarded.
func (s *Spool) Discarded() bool { return s.discarded }

func (f *file) Write(p []byte) (int, error) {
	if f.spool.Fail != nil {
		if err := f.spool.Fail("write", f.name); err != nil {
			return 0, err
		}
	}
	return f.b.Write(p)
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b.Bytes()).ReadAt(p, off)
}

func (f *file) Close() error { return nil }
