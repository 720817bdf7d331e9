package server

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"slices"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/problem"
)

// The handlers of the patching service, in the order of the route table.

func (s *Server) query(c *call) (reply, error) {
	return said(s.Patching.Query(c.r.Context(), c.one("show"), c.one("release")))
}

func (s *Server) show(c *call) (reply, error) { return said(s.Patching.Show(c.r.Context(), c.args)) }

// upload streams the part "file" of a form into the controller. The rest of the body is read before the answer is
// sent, so that a client which sends first and listens then gets to hear the refusal.
func (s *Server) upload(c *call) (reply, error) {
	if s.MaxUpload > 0 {
		c.r.Body = http.MaxBytesReader(c.w, c.r.Body, s.MaxUpload)
	}
	c.r.Body = buffered{bufio.NewReaderSize(c.r.Body, uploadBuffer), c.r.Body}
	form, err := c.r.MultipartReader()
	if err != nil {
		return reply{}, noFile(err)
	}
	for {
		part, err := form.NextPart()
		if err != nil {
			return reply{}, noFile(err)
		}
		if part.FormName() != "file" || part.FileName() == "" {
			continue
		}
		m, err := s.Patching.Upload(c.r.Context(), c.caller.Name, part.FileName(), limited{part})
		if _, derr := io.Copy(io.Discard, c.r.Body); derr != nil && c.r.Context().Err() == nil {
			s.Log.Debug("an upload ended early", "err", derr)
		}
		return said(m, err)
	}
}

// uploadBuffer is how many bytes of an upload are read from the connection at a time. The reader of forms alone asks for 4 KiB,
// which costs more than all hashes together.
const uploadBuffer = 256 << 10

// buffered is a body that is read in large pieces.
type buffered struct {
	io.Reader
	io.Closer
}

// limited is a part of an upload whose body may turn out to be too large.
type limited struct{ io.Reader }

func (l limited) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if large := tooLarge(err); large != nil {
		return n, large
	}
	return n, err
}

// tooLarge is the refusal of a body that has more bytes than are accepted; nil if err says something else.
func tooLarge(err error) error {
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem.Errorf(problem.TooLarge, "the upload has more than %d bytes, the most that is accepted", e.Limit)
	}
	return nil
}

func noFile(err error) error {
	if large := tooLarge(err); large != nil {
		return large
	}
	return problem.Errorf(problem.Invalid, "Error: No file uploaded")
}

// uploadDir is refused: naming folders of the controller would let a client read anything there (docs/compat.md).
func (s *Server) uploadDir(*call) (reply, error) {
	return reply{}, problem.Errorf(problem.NotSupported, "upload_dir is not offered: the controller does not read folders that a client names; upload the files one by one, as sw-patch upload-dir does")
}

func (s *Server) apply(c *call) (reply, error) {
	return said(s.Patching.Apply(c.r.Context(), c.caller.Name, c.args, api.ApplyOptions{SkipSemantic: c.is("skip-semantic", "yes"), Release: c.one("release")}))
}

func (s *Server) remove(c *call) (reply, error) {
	return said(s.Patching.Remove(c.r.Context(), c.caller.Name, c.args, api.RemoveOptions{
		RemoveUnremovable: c.is("removeunremovable", "yes"), SkipAppCheck: c.is("skipappcheck", "yes"), SkipSemantic: c.is("skip-semantic", "yes")}))
}

func (s *Server) delete(c *call) (reply, error) {
	return said(s.Patching.Delete(c.r.Context(), c.caller.Name, c.args))
}

func (s *Server) queryHosts(c *call) (reply, error) {
	return said(s.Patching.QueryHosts(c.r.Context()))
}

func (s *Server) whatRequires(c *call) (reply, error) {
	return said(s.Patching.WhatRequires(c.r.Context(), c.args))
}

func (s *Server) queryDependencies(c *call) (reply, error) {
	return said(s.Patching.QueryDependencies(c.r.Context(), c.args, c.is("recursive", "yes")))
}

func (s *Server) isApplied(c *call) (reply, error) {
	return said(s.Patching.IsApplied(c.r.Context(), c.args))
}

func (s *Server) isAvailable(c *call) (reply, error) {
	return said(s.Patching.IsAvailable(c.r.Context(), c.args))
}

func (s *Server) hostInstall(*call) (reply, error) {
	return reply{}, problem.Errorf(problem.NotSupported, "Deprecated: Use host_install_async")
}

func (s *Server) hostInstallAsync(c *call) (reply, error) {
	if len(c.args) == 0 {
		return reply{}, rejected{problem.Errorf(problem.Invalid, "Host must be specified for install")}
	}
	op, err := s.Patching.InstallHost(c.r.Context(), c.caller.Name, c.args[0], slices.Contains(c.args[1:], "force"))
	if err != nil {
		return lines(err)
	}
	return said(api.Messages{Info: "Patch installation request sent to " + op.Host + ".\n"}, nil)
}

func (s *Server) dropHost(c *call) (reply, error) {
	if len(c.args) == 0 {
		return reply{}, rejected{problem.Errorf(problem.Invalid, "Host must be specified")}
	}
	m, err := s.Patching.DropHost(c.r.Context(), c.caller.Name, c.args[0])
	if err != nil {
		return lines(err)
	}
	return said(m, nil)
}

// lines makes a refusal the error line of an ordinary reply.
func lines(err error) (reply, error) {
	if problem.KindOf(err) == problem.Internal {
		return reply{}, err
	}
	return said(api.Messages{Error: err.Error() + "\n"}, nil)
}

// notYet refuses what this version does not do, so that nobody believes that it was done.
func (s *Server) notYet(c *call) (reply, error) {
	return reply{}, problem.Errorf(problem.NotSupported, "this version cannot do that yet: %s", c.r.URL.Path)
}
