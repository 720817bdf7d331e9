package patchfile

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/pgzip"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Levels of compression besides 2 to 8.
const (
	Stored   = -1 // not compressed
	Fastest  = 1  // the default: packages are compressed already
	Smallest = 9  // what the original uses
)

// BuildOptions says how a patch file is written. With equal input, equal options give equal bytes, but for the salt in
// signature.v2.
type BuildOptions struct {
	Level int       // 1 to 9, or Stored; 0: Fastest
	Time  time.Time // modification time of every member and in the gzip header; zero: 1970
	Rand  io.Reader // source of the signature's salt; nil: crypto/rand
	// Workers is how many blocks of 1 MiB are compressed at a time; 0: 2. Memory grows with it.
	Workers int
	Fanout  Fanout // lets the hashes work side by side; nil: one after the other
}

// Input is one file that goes into a patch.
type Input struct {
	Name string // of a package: its file name
	Size int64  // bytes
	Open func() (io.ReadCloser, error)
}

// BytesInput is an Input from memory.
func BytesInput(name string, b []byte) Input {
	return Input{Name: name, Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// Source is what a patch is built from.
type Source struct {
	Metadata patch.Metadata // Contents and Semantics are taken from the two fields below
	Packages []Input
	Checks   map[patch.Action]Input
}

// Build writes the patch file of src to w in one pass, signed by signer, an RSA key. It refuses to build what [Open] would
// refuse to read. On error, what w got so far is of no use.
func Build(w io.Writer, src Source, signer crypto.Signer, o BuildOptions) error {
	m := src.Metadata
	m.Contents, m.Semantics = nil, slices.Sorted(maps.Keys(src.Checks))
	packages := slices.SortedFunc(slices.Values(src.Packages), func(a, b Input) int { return strings.Compare(a.Name, b.Name) })
	builds := map[rpm.Key]string{}
	for _, p := range packages {
		n, err := rpm.ParseFileName(p.Name)
		if err != nil {
			return err
		}
		if other, ok := builds[n.Key()]; ok {
			return problem.Errorf(problem.Invalid, "%s and %s are two builds of %s; a patch brings one", other, p.Name, n.Key())
		}
		builds[n.Key()] = p.Name
		m.Contents = append(m.Contents, p.Name)
	}
	if len(packages) == 0 {
		return problem.Errorf(problem.Invalid, "Cannot generate empty patch")
	}
	metadata, err := metadataPart(m, o)
	if err != nil {
		return err
	}
	parts := []part{metadata, tarPart(softwareTar, packages, 0o644, o, checkedCopy)}
	if len(src.Checks) > 0 {
		var checks []Input
		for _, a := range m.Semantics {
			in := src.Checks[a]
			in.Name = string(a) + "/" + string(m.ID)
			checks = append(checks, in)
		}
		parts = append(parts, tarPart(semanticsTar, checks, 0o755, o, plainCopy))
	}
	sign, err := pssSigner(signer, o)
	if err != nil {
		return err
	}
	return writeContainer(w, string(m.ID), parts, sign, o)
}

// Rewrite writes the file again with other metadata, signed anew; packages and semantic checks stay byte for byte. The
// file must have been opened with KeepTars.
func (f *File) Rewrite(w io.Writer, m patch.Metadata, signer crypto.Signer, o BuildOptions) error {
	if m.ID != f.Metadata.ID || !slices.Equal(m.Contents, f.Metadata.Contents) {
		return problem.Errorf(problem.Invalid, "cannot rewrite %s: its ID and contents must stay as they are", f.Metadata.ID)
	}
	metadata, err := metadataPart(m, o)
	if err != nil {
		return err
	}
	sign, err := pssSigner(signer, o)
	if err != nil {
		return err
	}
	return writeContainer(w, string(m.ID), append([]part{metadata}, f.kept(softwareTar, semanticsTar)...), sign, o)
}

// Copy writes the file again as it is: the signed members and both signatures byte for byte. The file must have been opened
// with KeepTars.
func (f *File) Copy(w io.Writer, o BuildOptions) error {
	sign := func([sha256.Size]byte, string) ([]byte, []byte, error) { return f.md5, f.rsa, nil }
	return writeContainer(w, string(f.Metadata.ID), f.kept(signedOrder[:]...), sign, o)
}

// kept returns the kept tars that the file has among names.
func (f *File) kept(names ...string) []part {
	var out []part
	for _, name := range names {
		m, ok := f.tars[name]
		if !ok {
			if name != semanticsTar {
				panic("internal error: patchfile: written again without KeepTars")
			}
			continue
		}
		out = append(out, part{name: name, size: m.Size, write: func(w io.Writer, buf []byte) error {
			_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{m.Reader()}, buf)
			return err
		}})
	}
	return out
}

// part is one signed member of the container: a tar whose size is known before it is written.
type part struct {
	name  string
	size  int64
	write func(w io.Writer, buf []byte) error
}

// signer makes the two signature members from the digest and the checksum text of the signed ones.
type signFunc func(digest [sha256.Size]byte, checksum string) (md5Text, rsaSignature []byte, err error)

func pssSigner(s crypto.Signer, o BuildOptions) (signFunc, error) {
	if _, err := NewKey(s.Public()); err != nil {
		return nil, problem.Errorf(problem.Invalid, "cannot sign: %v", err)
	}
	random := o.Rand
	if random == nil {
		random = rand.Reader
	}
	return func(digest [sha256.Size]byte, checksum string) ([]byte, []byte, error) {
		sig, err := s.Sign(random, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
		if err != nil {
			return nil, nil, fmt.Errorf("cannot sign: %w", err)
		}
		return []byte(checksum), sig, nil
	}, nil
}

func metadataPart(m patch.Metadata, o BuildOptions) (part, error) {
	if _, err := patch.ParseID(string(m.ID)); err != nil {
		return part{}, err
	}
	if m.Release == "" {
		return part{}, problem.Errorf(problem.Invalid, "The release version must be specified in the sw_version field")
	}
	var b bytes.Buffer
	if err := patch.WriteMetadata(&b, m); err != nil {
		return part{}, err
	}
	if _, err := patch.ReadMetadata(bytes.NewReader(b.Bytes())); err != nil {
		return part{}, err
	}
	return tarPart(metadataTar, []Input{BytesInput(metadataXML, b.Bytes())}, 0o644, o, plainCopy), nil
}

// record is what a tar's size is a multiple of, as the original's writer pads it.
const record = 10240

// tarPart lays out a tar of files, all with one mode.
func tarPart(name string, files []Input, mode int64, o BuildOptions, copyFile copyFunc) part {
	size := int64(0)
	for _, f := range files {
		size += headerSize(header(f.Name, f.Size, mode, o)) + (f.Size+511)/512*512
	}
	size = (size + 1024 + record - 1) / record * record
	return part{name: name, size: size, write: func(w io.Writer, buf []byte) error {
		out := &counter{w: w}
		t := tar.NewWriter(out)
		for _, f := range files {
			if err := t.WriteHeader(header(f.Name, f.Size, mode, o)); err != nil {
				return problem.Errorf(problem.Invalid, "cannot put %s into %s: %w", f.Name, name, err)
			}
			if err := addFile(t, f, copyFile, buf); err != nil {
				return err
			}
		}
		if err := t.Close(); err != nil {
			return err
		}
		_, err := out.Write(make([]byte, size-out.n))
		return err
	}}
}

// copyFunc copies the content of the input called name.
type copyFunc func(w io.Writer, name string, r io.Reader, buf []byte) error

func plainCopy(w io.Writer, _ string, r io.Reader, buf []byte) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, buf)
	return err
}

// checkedCopy copies a package and checks it as Open does.
func checkedCopy(w io.Writer, name string, r io.Reader, buf []byte) error {
	_, err := readRPM(name, io.TeeReader(r, w), buf)
	return err
}

func addFile(w io.Writer, f Input, copyFile copyFunc, buf []byte) (err error) {
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	in := &io.LimitedReader{R: r, N: f.Size}
	if err := copyFile(w, f.Name, in, buf); err != nil {
		return err
	}
	var more [1]byte
	n, err := io.ReadFull(r, more[:])
	if err != nil && err != io.EOF {
		return err
	}
	if in.N > 0 || n > 0 {
		return problem.Errorf(problem.Conflict, "%s changed while it was read; try again", f.Name)
	}
	return nil
}

func header(name string, size, mode int64, o BuildOptions) *tar.Header {
	mtime := o.Time.Truncate(time.Second)
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: mode, ModTime: mtime, Uname: "root", Gname: "root", Format: tar.FormatGNU}
}

// headerSize is how many bytes the header takes: 512, more for a long name.
func headerSize(h *tar.Header) int64 {
	c := &counter{w: io.Discard}
	if err := tar.NewWriter(c).WriteHeader(h); err != nil {
		return 512 // refused again, and then reported, when it is written
	}
	return c.n
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Blocks that are compressed side by side.
const (
	blockSize      = 1 << 20
	defaultWorkers = 2
)

// writeContainer writes parts and their signatures. Everything is hashed while it is written.
func writeContainer(w io.Writer, id string, parts []part, sign signFunc, o BuildOptions) error {
	level := o.Level
	switch {
	case level == 0:
		level = Fastest
	case level == Stored:
		level = pgzip.NoCompression
	case level < Fastest || level > Smallest:
		return problem.Errorf(problem.Invalid, "%d is not a compression level; expected 1 to 9", level)
	}
	gz, err := pgzip.NewWriterLevel(w, level)
	if err != nil {
		return err
	}
	workers := o.Workers
	if workers <= 0 {
		workers = defaultWorkers
	}
	if err := gz.SetConcurrency(blockSize, workers); err != nil {
		return err
	}
	gz.Name, gz.ModTime = id+Extension, o.Time
	if err := writeMembers(gz, parts, sign, o); err != nil {
		return errors.Join(err, gz.Close()) // ends the compressor
	}
	return gz.Close()
}

func writeMembers(w io.Writer, parts []part, sign signFunc, o BuildOptions) error {
	out := &counter{w: w}
	t := tar.NewWriter(out)
	digest, sums, buf := sha256.New(), checksum{}, make([]byte, chunk)
	for _, p := range parts {
		if err := t.WriteHeader(header(p.name, p.size, 0o644, o)); err != nil {
			return err
		}
		sum := md5.New()
		hashes := o.Fanout.join(sum, digest)
		err := p.write(io.MultiWriter(t, hashes), buf)
		if cerr := hashes.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		sums.add(sum.Sum(nil))
	}
	text, sig, err := sign([sha256.Size]byte(digest.Sum(nil)), sums.text())
	if err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		body []byte
	}{{signatureMD5, text}, {signatureRSA, sig}} {
		if err := t.WriteHeader(header(m.name, int64(len(m.body)), 0o644, o)); err != nil {
			return err
		}
		if _, err := t.Write(m.body); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	_, err = out.Write(make([]byte, (record-out.n%record)%record))
	return err
}
