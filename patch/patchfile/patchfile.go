// Package patchfile builds, reads and verifies .patch files over io interfaces.
//
// A .patch is a gzip-compressed tar of metadata.tar, software.tar, semantics.tar (optional), signature and signature.v2;
// docs/format.md describes it. [Build] makes one and [Open] reads one, both in a single pass and with memory that does not
// grow with the file. Open trusts nothing in the file: it writes packages only to the [Spool] that the caller gives, returns
// the value that can read them back only after every check passed, and otherwise discards the spool.
//
// The first signature (MD5, [ErrVerification]) is the format's checksum. Only signature.v2 (RSA, [ErrUnsigned],
// [ErrSignature]) says who made the patch; which keys count is a [Trust].
package patchfile

import (
	"io"
	"slices"

	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Names of the container's members.
const (
	metadataTar  = "metadata.tar"
	softwareTar  = "software.tar"
	semanticsTar = "semantics.tar"
	signatureMD5 = "signature"
	signatureRSA = "signature.v2"

	metadataXML = "metadata.xml"
)

// signedOrder is the order in which the signed members are hashed, whatever their order in the container.
var signedOrder = [...]string{metadataTar, softwareTar, semanticsTar}

// IsTar says that a spooled file is one of the signed tars, which are spooled to be read again by this package.
func IsTar(name string) bool { return slices.Contains(signedOrder[:], name) }

// Extension is the end of every patch file's name.
const Extension = ".patch"

// sentence is a refusal in the original's words. Errors of this package that are about the file start with one of them,
// followed by ": " and the detail, because clients and people know them.
type sentence string

func (s sentence) Error() string { return string(s) }

// Why a file was refused; test with errors.Is.
const (
	ErrExtraction   sentence = "Failed during patch extraction" // container, packages or metadata are not as they must be
	ErrVerification sentence = "Patch failed verification"      // the MD5 signature does not fit
	ErrUnsigned     sentence = "Patch has not been signed"      // there is no RSA signature
	ErrSignature    sentence = "Signature check failed"         // no trusted key made the RSA signature
)

// refuse makes the error for one of the sentences above.
func refuse(why sentence, kind problem.Kind, format string, args ...any) error {
	e := problem.Errorf(kind, format, args...)
	return &problem.Error{Kind: kind, Msg: string(why) + ": " + e.Msg, Err: why}
}

// Limits bound what [Open] accepts. A zero field means its default.
type Limits struct {
	Size    int64 // bytes of the unpacked container; default 8 GiB
	Members int   // members of the container and of the tars in it; default 10,000
	Ratio   int64 // unpacked bytes per compressed byte, beyond the first 16 MiB; default 200
}

// freeExpansion is how much may be unpacked before the ratio counts: the tars of a small patch are mostly padding.
const freeExpansion = 16 << 20

// WithDefaults fills in what is zero.
func (l Limits) WithDefaults() Limits {
	if l.Size == 0 {
		l.Size = 8 << 30
	}
	if l.Members == 0 {
		l.Members = 10_000
	}
	if l.Ratio == 0 {
		l.Ratio = 200
	}
	return l
}

// Fanout joins sinks into one writer that gives all bytes to each of them, as io.MultiWriter does, and may let them work
// side by side: internal/fanout does. Close waits until every sink has everything.
type Fanout func(sinks ...io.Writer) io.WriteCloser

// join is f, or one sink after the other where f is nil.
func (f Fanout) join(sinks ...io.Writer) io.WriteCloser {
	if f == nil {
		return inTurn{io.MultiWriter(sinks...)}
	}
	return f(sinks...)
}

type inTurn struct{ io.Writer }

func (inTurn) Close() error { return nil }

// Spool keeps what a patch file holds until the caller has decided what becomes of it. It is used by one goroutine; of its
// files each is written by one goroutine, several at a time with a Fanout.
type Spool interface {
	// Create makes an empty file. Names are unique within a spool and safe as file names: a package's file name, the
	// name of a semantic action, or the name of a tar.
	Create(name string) (SpoolFile, error)
	// Discard removes everything that was created. It is called at most once, after every file was closed or left open
	// by an error.
	Discard() error
}

// SpoolFile is one file of a spool: written once from start to end, then read.
type SpoolFile interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// Member is one thing that a patch brings, readable from the spool.
type Member struct {
	Name   string // as given to Spool.Create
	SHA256 string // lower-case hexadecimal
	Size   int64  // bytes
	File   SpoolFile
}

// Reader reads the member from its start.
func (m Member) Reader() *io.SectionReader { return io.NewSectionReader(m.File, 0, m.Size) }

// File is a patch file that passed every check.
type File struct {
	Metadata patch.Metadata
	XML      []byte          // metadata.xml as it is in the file
	Packages []patch.Package // in order of Metadata.Contents
	Signer   patch.Signer

	packages []Member // in order of Packages
	checks   map[patch.Action]Member
	tars     map[string]Member // with Options.KeepTars
	md5      []byte            // the signature member
	rsa      []byte            // the signature.v2 member
}

// PackageFiles returns the spooled packages in order of Packages.
func (f *File) PackageFiles() []Member { return f.packages }

// Checks returns the spooled semantic checks by action. Which there are depends on the files found, not on what the
// metadata says.
func (f *File) Checks() map[patch.Action]Member { return f.checks }

// Close closes all spooled files. It does not remove them; that is the spool's business.
func (f *File) Close() error {
	var first error
	for _, m := range f.all() {
		if err := m.File.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (f *File) all() []Member {
	out := append([]Member(nil), f.packages...)
	for _, m := range f.checks {
		out = append(out, m)
	}
	for _, m := range f.tars {
		out = append(out, m)
	}
	return out
}
