package patchfile

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/starpatch/starpatch/problem"
)

// chunk is the size of the pieces in which members are hashed and copied: large enough to be fast, small enough to
// stay in the processor's cache.
const chunk = 128 << 10

// source counts what is read from the caller and remembers the caller's own error, so that a lost connection is told
// apart from a damaged file.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// sourceError marks an error of the caller's reader: it says nothing about the file.
type sourceError struct{ err error }

func (e sourceError) Error() string { return "cannot read the patch file: " + e.err.Error() }
func (e sourceError) Unwrap() error { return e.err }

// unpacker is the uncompressed stream, with the limits on size and expansion. Its errors stay.
type unpacker struct {
	src    *source
	gz     *gzip.Reader
	n      int64
	limits Limits
	err    error
}

func newUnpacker(r io.Reader, l Limits) (*unpacker, error) {
	u := &unpacker{src: &source{r: r}, limits: l}
	var err error
	if u.gz, err = gzip.NewReader(bufio.NewReaderSize(u.src, chunk)); err != nil {
		return nil, u.explain(err)
	}
	return u, nil
}

func (u *unpacker) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	n, err := u.gz.Read(p)
	u.n += int64(n)
	switch {
	case u.n > u.limits.Size:
		err = refuse(ErrExtraction, problem.TooLarge, "it unpacks to more than %d bytes", u.limits.Size)
	case u.n > freeExpansion && u.n/u.limits.Ratio > u.src.n:
		err = refuse(ErrExtraction, problem.TooLarge, "it unpacks to more than %d times its size", u.limits.Ratio)
	case err != nil && err != io.EOF:
		err = u.explain(err)
	}
	if err != nil {
		n, u.err = max(n, 0), err
	}
	return n, err
}

// explain turns an error of the gzip layer into a refusal; an error of the caller's reader stays what it is.
func (u *unpacker) explain(err error) error {
	switch {
	case u.src.err != nil && !errors.Is(u.src.err, io.ErrUnexpectedEOF):
		return sourceError{u.src.err}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return refuse(ErrExtraction, problem.Invalid, "the file is cut off after %d bytes", u.src.n)
	case errors.Is(err, gzip.ErrHeader) && u.n == 0:
		return refuse(ErrExtraction, problem.Invalid, "it is not a gzip file")
	case errors.Is(err, gzip.ErrHeader):
		return refuse(ErrExtraction, problem.Invalid, "there are bytes behind the end of the gzip stream")
	}
	return refuse(ErrExtraction, problem.Invalid, "the gzip stream is damaged: %v", err)
}

// memberTypes names what is refused, for the message.
var memberTypes = map[byte]string{
	tar.TypeLink: "a hard link", tar.TypeSymlink: "a symbolic link", tar.TypeChar: "a device", tar.TypeBlock: "a device",
	tar.TypeDir: "a folder", tar.TypeFifo: "a pipe", tar.TypeGNUSparse: "a sparse file",
}

// members walks a tar that may hold plain regular files only, each once.
type members struct {
	tar  *tar.Reader
	what string // "the patch file" or the name of the tar, for messages
	left *int   // members that the limit still allows, shared by all tars of a patch
	seen map[string]bool
}

func newMembers(r io.Reader, what string, left *int) *members {
	return &members{tar: tar.NewReader(r), what: what, left: left, seen: map[string]bool{}}
}

// next returns the next member; io.EOF after the last. Errors have no sentence in front.
func (m *members) next() (*tar.Header, error) {
	for {
		h, err := m.tar.Next()
		if err == io.EOF {
			return nil, io.EOF
		}
		if errors.Is(err, tar.ErrHeader) {
			return nil, problem.Errorf(problem.Invalid, "%s is not a tar, or damaged", m.what)
		}
		if err != nil {
			return nil, err
		}
		if *m.left--; *m.left < 0 {
			return nil, problem.Errorf(problem.TooLarge, "it has too many members")
		}
		if h.Typeflag == tar.TypeXGlobalHeader && !overrides(h) {
			continue
		}
		if err := m.check(h); err != nil {
			return nil, err
		}
		m.seen[h.Name] = true
		return h, nil
	}
}

// overrides says that a global header changes what later members are, which readers take differently.
func overrides(h *tar.Header) bool {
	for _, k := range []string{"path", "linkpath", "size"} {
		if _, ok := h.PAXRecords[k]; ok {
			return true
		}
	}
	return false
}

func (m *members) check(h *tar.Header) error {
	bad := func(format string, args ...any) error {
		return problem.Errorf(problem.Invalid, m.what+": "+format, args...)
	}
	if what, ok := memberTypes[h.Typeflag]; ok {
		return bad("%.80q is %s; only regular files are accepted", h.Name, what)
	}
	if h.Typeflag != tar.TypeReg {
		return bad("%.80q is of type %q; only regular files are accepted", h.Name, h.Typeflag)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return bad("%.80q is a sparse file; only regular files are accepted", h.Name)
		}
	}
	if err := checkMemberName(h.Name); err != nil {
		return bad("%v", err)
	}
	if m.seen[h.Name] {
		return bad("%q is there twice", h.Name)
	}
	return nil
}

// checkMemberName holds the grammar of names in all tars: at most two parts, each of 1 to 255 letters, digits and
// . _ - + ~ ^ : and not starting with a dot or a dash.
func checkMemberName(name string) error {
	parts := strings.Split(name, "/")
	if len(parts) > 2 {
		return problem.Errorf(problem.Invalid, "the member name %.80q has more than two parts", name)
	}
	for _, p := range parts {
		if p == "" || len(p) > 255 || p[0] == '.' || p[0] == '-' {
			return problem.Errorf(problem.Invalid, "%.80q is not an acceptable member name; expected one or two parts of 1 to 255 characters, not starting with '.' or '-'", name)
		}
		if i := strings.IndexFunc(p, func(r rune) bool { return !nameRune(r) }); i >= 0 {
			return problem.Errorf(problem.Invalid, "the member name %.80q contains %q", name, p[i])
		}
	}
	return nil
}

func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-+~^:", r)
}

// drainZeros reads r to its end and refuses anything but the zeros that fill up a tar: what stands behind the end of an
// archive is signed and yet invisible to most readers.
func drainZeros(r io.Reader, what string) error {
	buf, zeros := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			return problem.Errorf(problem.Invalid, "%s has data behind the end of its archive", what)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
