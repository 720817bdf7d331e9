package server

import (
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/starpatch/starpatch/problem"
)

// file serves one file of the repositories, whole or in ranges. Names are not listed: an agent reads repomd.xml.
func (s *Server) file(c *call) (reply, error) {
	name := strings.TrimPrefix(c.r.URL.Path, "/")
	if path.Clean("/"+name) != "/"+name || strings.ContainsAny(name, "\x00\\") {
		return reply{}, problem.Errorf(problem.NotFound, "no such file: %s", name)
	}
	f, immutable, err := s.Files.Open(name)
	if err != nil {
		return reply{}, err
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return reply{}, err
	}
	if !info.Mode().IsRegular() {
		return reply{}, problem.Errorf(problem.NotFound, "no such file: %s", name)
	}
	c.w.Header().Set("Content-Type", contentType(name))
	modified := info.ModTime()
	if immutable {
		c.w.Header().Set("Cache-Control", "max-age=31536000, immutable")
	} else {
		c.w.Header().Set("Cache-Control", "no-cache")
		modified = time.Time{} // two generations may share a time: always send what is current
	}
	http.ServeContent(c.w, c.r, "", modified, f)
	return reply{}, nil
}

func contentType(name string) string {
	switch path.Ext(name) {
	case ".rpm":
		return "application/x-rpm"
	case ".xml":
		return "application/xml"
	case ".gz":
		return "application/gzip"
	}
	return "application/octet-stream"
}
