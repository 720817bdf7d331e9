package patchfile

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Options says how a patch file is opened.
type Options struct {
	// Stem is the file's name without extension, which must equal the patch ID. Empty: not checked.
	Stem   string
	Trust  Trust
	Limits Limits
	// KeepTars also spools the signed tars as they are, so that the file can be written again; see File.Rewrite.
	KeepTars bool
	// Fanout lets the hashes work side by side; nil: one after the other.
	Fanout Fanout
}

// Most bytes that the two signature members may have: a number of 128 bits, and an RSA signature of the largest key.
const (
	maxChecksum  = 256
	maxSignature = maxKeyBits / 8
)

// Open reads a patch file from r to its end and checks everything that can be checked without knowing other patches:
// container, both signatures, metadata, packages. What it holds is in spool when Open returns; the caller then owns both.
// On error the spool is discarded. Errors about the file are of kind problem.Invalid or problem.TooLarge and carry one of the
// sentences of this package; an error of r keeps its kind.
func Open(r io.Reader, spool Spool, o Options) (*File, error) {
	limits := o.Limits.WithDefaults()
	op := &opener{spool: spool, keep: o.KeepTars, fanout: o.Fanout, left: limits.Members, sum: sha256.New(), buf: make([]byte, chunk),
		header: map[string]rpm.Header{}, checks: map[patch.Action]string{},
		f: &File{checks: map[patch.Action]Member{}, tars: map[string]Member{}}}
	f, err := op.open(r, limits, o)
	if err != nil {
		if derr := spool.Discard(); derr != nil {
			return nil, errors.Join(err, derr)
		}
		return nil, err
	}
	return f, nil
}

// opener is the state of one Open.
type opener struct {
	spool  Spool
	keep   bool
	fanout Fanout
	left   int // members that the limit still allows
	buf    []byte

	sum    hash.Hash // over the signed members in signedOrder
	next   int       // how many of signedOrder are in sum
	md5s   checksum
	header map[string]rpm.Header   // of f.packages, by file name
	checks map[patch.Action]string // the patch ID in each semantic check's name

	// content is the first thing wrong inside a signed member. It is reported after the signatures were checked: a
	// damaged or foreign file is told as such, not by what its damage looks like.
	content error

	f *File
}

func (op *opener) open(r io.Reader, limits Limits, o Options) (*File, error) {
	u, err := newUnpacker(r, limits)
	if err != nil {
		return nil, err
	}
	outer := newMembers(u, "the container", &op.left)
	for {
		h, err := outer.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = op.member(h.Name, h.Size, outer.tar)
		}
		if err != nil {
			return nil, extraction(err)
		}
	}
	if err := drainZeros(u, "the container"); err != nil {
		return nil, extraction(err)
	}
	for _, name := range []string{metadataTar, softwareTar, signatureMD5} {
		if !outer.seen[name] {
			return nil, refuse(ErrExtraction, problem.Invalid, "there is no %s in it", name)
		}
	}
	if err := op.authenticate(o.Trust); err != nil {
		return nil, err
	}
	if op.content != nil {
		return nil, extraction(op.content)
	}
	if err := op.contents(o.Stem); err != nil {
		return nil, err
	}
	return op.f, nil
}

// extraction puts the sentence in front of an error that has none. Errors of the spool or the caller's reader stay as
// they are: they say nothing about the file.
func extraction(err error) error {
	if _, ok := errors.AsType[spoolError](err); ok {
		return err
	}
	if _, ok := errors.AsType[sourceError](err); ok {
		return err
	}
	for _, s := range []sentence{ErrExtraction, ErrVerification, ErrUnsigned, ErrSignature} {
		if errors.Is(err, s) {
			return err
		}
	}
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return refuse(ErrExtraction, e.Kind, "%s", e.Msg)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse(ErrExtraction, problem.Invalid, "an archive in it is cut off")
	}
	return refuse(ErrExtraction, problem.Invalid, "%v", err)
}

// spoolError marks a failure to keep what was read: ours, not the file's.
type spoolError struct{ err error }

func (e spoolError) Error() string { return "cannot spool the patch: " + e.err.Error() }
func (e spoolError) Unwrap() error { return e.err }

// member takes one member of the container. Only errors that make reading on pointless are returned.
func (op *opener) member(name string, size int64, r io.Reader) error {
	switch name {
	case metadataTar, softwareTar, semanticsTar:
		return op.signed(name, r)
	case signatureMD5, signatureRSA:
		limit := int64(maxChecksum)
		if name == signatureRSA {
			limit = maxSignature
		}
		if size > limit {
			return problem.Errorf(problem.TooLarge, "%s has %d bytes; at most %d are accepted", name, size, limit)
		}
		b, err := io.ReadAll(r)
		if name == signatureMD5 {
			op.f.md5 = b
		} else {
			op.f.rsa = b
		}
		return err
	}
	return nil // other members mean nothing
}

// signed hashes one of the three tars, and spools what is in it on the way.
func (op *opener) signed(name string, r io.Reader) error {
	sum := md5.New()
	sinks := []io.Writer{sum}
	inOrder := op.next < len(signedOrder) && signedOrder[op.next] == name
	if inOrder {
		sinks = append(sinks, op.sum)
		op.next++
	}
	var raw *spoolWriter
	if !inOrder || op.keep {
		var err error
		if raw, err = op.create(name); err != nil {
			return err
		}
		sinks = append(sinks, raw)
	}
	all := op.fanout.join(sinks...)
	err := op.inside(name, io.TeeReader(r, all))
	if cerr := all.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if raw != nil {
		op.f.tars[name] = raw.member()
	}
	op.md5s.add(sum.Sum(nil))
	return nil
}

// inside reads one of the three tars to its end. What is wrong in it is kept for later; only errors that make reading on
// pointless are returned.
func (op *opener) inside(name string, body io.Reader) error {
	if op.content == nil {
		inside := newMembers(body, name, &op.left)
		switch name {
		case metadataTar:
			op.content = op.metadata(inside)
		case softwareTar:
			op.content = op.software(inside)
		default:
			op.content = op.semantics(inside)
		}
		if op.content == nil {
			op.content = drainZeros(body, name)
		}
		if _, ok := errors.AsType[spoolError](op.content); ok {
			return op.content
		}
	}
	// The rest belongs to the hash whatever stands in it. A broken stream shows here, since its errors stay.
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{body}, op.buf)
	return err
}

// spoolWriter writes one spooled file and knows its digest and size.
type spoolWriter struct {
	name string
	file SpoolFile
	sum  hash.Hash
	size int64
	err  error
}

func (op *opener) create(name string) (*spoolWriter, error) {
	f, err := op.spool.Create(name)
	if err != nil {
		return nil, spoolError{err}
	}
	return &spoolWriter{name: name, file: f, sum: sha256.New()}, nil
}

func (w *spoolWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.file.Write(p)
	w.sum.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		w.err = spoolError{err}
	}
	return n, w.err
}

func (w *spoolWriter) member() Member {
	return Member{Name: w.name, SHA256: hex.EncodeToString(w.sum.Sum(nil)), Size: w.size, File: w.file}
}

// metadata keeps the one member of metadata.tar.
func (op *opener) metadata(in *members) error {
	for {
		h, err := in.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if h.Name != metadataXML {
			return problem.Errorf(problem.Invalid, "%s has a member %q; expected %s only", metadataTar, h.Name, metadataXML)
		}
		if h.Size > patch.MaxMetadata {
			return problem.Errorf(problem.TooLarge, "%s has %d bytes; at most %d are accepted", metadataXML, h.Size, patch.MaxMetadata)
		}
		if op.f.XML, err = io.ReadAll(in.tar); err != nil {
			return err
		}
	}
	if !in.seen[metadataXML] {
		return problem.Errorf(problem.Invalid, "there is no %s in %s", metadataXML, metadataTar)
	}
	return nil
}

// software spools the packages, reading each one's header on the way.
func (op *opener) software(in *members) error {
	for {
		h, err := in.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := op.rpm(h.Name, in.tar); err != nil {
			return err
		}
	}
	if len(op.f.packages) == 0 {
		return problem.Errorf(problem.Invalid, "there is no package in %s", softwareTar)
	}
	return nil
}

func (op *opener) rpm(file string, r io.Reader) error {
	if _, err := rpm.ParseFileName(file); err != nil {
		return problem.Errorf(problem.Invalid, "%s: %v", softwareTar, err)
	}
	w, err := op.create(file)
	if err != nil {
		return err
	}
	header, err := readRPM(file, io.TeeReader(r, w), op.buf)
	if err != nil {
		if w.err != nil {
			return w.err
		}
		return err
	}
	op.f.packages = append(op.f.packages, w.member())
	op.header[file] = header
	return nil
}

// readRPM reads a whole package and demands that it is what its file name says, and whole.
func readRPM(file string, r io.Reader, buf []byte) (rpm.Header, error) {
	h, err := rpm.ReadHeader(r)
	if err != nil {
		if e, ok := errors.AsType[*problem.Error](err); ok && e.Kind != problem.Internal {
			return h, problem.Errorf(e.Kind, "package %s: %s", file, e.Msg)
		}
		return h, err
	}
	if err := checkIdentity(file, h); err != nil {
		return h, err
	}
	var payload io.Writer = io.Discard
	sum := sha256.New()
	if h.PayloadSHA256 != "" {
		payload = sum
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{payload}, struct{ io.Reader }{r}, buf); err != nil {
		return h, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); h.PayloadSHA256 != "" && got != h.PayloadSHA256 {
		return h, problem.Errorf(problem.Invalid, "package %s: its payload is damaged: the SHA-256 digest is %s and should be %s", file, got, h.PayloadSHA256)
	}
	return h, nil
}

// checkIdentity compares a package's own header with its file name, which is what metadata and other patches refer to.
func checkIdentity(file string, h rpm.Header) error {
	n, err := rpm.ParseFileName(file)
	if err != nil {
		return err
	}
	if h.Source {
		return problem.Errorf(problem.Invalid, "package %s is a source package; expected one that can be installed", file)
	}
	if !strings.Contains(file, ":") {
		n.Epoch = h.Epoch // a file name need not tell the epoch
	}
	if n != h.NEVRA {
		return problem.Errorf(problem.Invalid, "package %s says in its header that it is %s; expected the file name %s", file, h.NEVRA, h.FileName())
	}
	return nil
}

// semantics spools the semantic checks.
func (op *opener) semantics(in *members) error {
	for {
		h, err := in.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		dir, id, ok := strings.Cut(h.Name, "/")
		action, aerr := patch.ParseAction(dir)
		if !ok || aerr != nil {
			return problem.Errorf(problem.Invalid, "%s has a member %q; expected pre-apply/<patch ID> or pre-remove/<patch ID>", semanticsTar, h.Name)
		}
		if _, twice := op.checks[action]; twice {
			return problem.Errorf(problem.Invalid, "%s has two checks for %s", semanticsTar, action)
		}
		w, err := op.create(string(action))
		if err != nil {
			return err
		}
		if _, err := io.CopyBuffer(w, struct{ io.Reader }{in.tar}, op.buf); err != nil {
			return err
		}
		op.checks[action] = id
		op.f.checks[action] = w.member()
	}
}

// authenticate checks both signatures over the signed members in their fixed order.
func (op *opener) authenticate(t Trust) error {
	if err := op.md5s.check(string(op.f.md5)); err != nil {
		return refuse(ErrVerification, problem.Invalid, "%v", err)
	}
	if op.f.rsa == nil {
		return refuse(ErrUnsigned, problem.Invalid, "there is no %s in it", signatureRSA)
	}
	digest, err := op.digest()
	if err != nil {
		return err
	}
	signer, ok := t.verify(digest, op.f.rsa)
	if !ok {
		return refuse(ErrSignature, problem.Invalid, "no trusted key made its signature; trusted are %d formal and %d development keys", len(t.Formal), len(t.Dev))
	}
	op.f.Signer = signer
	return nil
}

// digest finishes the hash with the members that did not come in order, read back from the spool.
func (op *opener) digest() ([sha256.Size]byte, error) {
	for _, name := range signedOrder[op.next:] {
		m, ok := op.f.tars[name]
		if !ok {
			continue // only semantics.tar may be missing
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{op.sum}, struct{ io.Reader }{m.Reader()}, op.buf); err != nil {
			return [sha256.Size]byte{}, spoolError{err}
		}
	}
	return [sha256.Size]byte(op.sum.Sum(nil)), nil
}

// contents reads the metadata, which is authentic by now, and compares it with what is in the tars.
func (op *opener) contents(stem string) error {
	m, err := patch.ReadMetadata(bytes.NewReader(op.f.XML))
	if err != nil {
		return extraction(err)
	}
	if stem != "" && stem != string(m.ID) {
		return problem.Errorf(problem.Invalid, "the file is called %s and holds patch %s; rename it to %s", stem+Extension, m.ID, string(m.ID)+Extension)
	}
	f := op.f
	f.Metadata = m
	slices.SortFunc(f.packages, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	if why := setDifference(m.Contents, f.packages); why != "" {
		return refuse(ErrExtraction, problem.Invalid, "%s", why)
	}
	builds := map[rpm.Key]string{}
	for _, p := range f.packages {
		h := op.header[p.Name]
		if other, ok := builds[h.Key()]; ok {
			return refuse(ErrExtraction, problem.Invalid, "%s and %s are two builds of %s; a patch brings one", other, p.Name, h.Key())
		}
		builds[h.Key()] = p.Name
		f.Packages = append(f.Packages, patch.Package{File: p.Name, NEVRA: h.NEVRA, SHA256: p.SHA256, Size: p.Size, Built: h.Built})
	}
	for action, id := range op.checks {
		if id != string(m.ID) {
			return refuse(ErrExtraction, problem.Invalid, "the %s check is for patch %s, not for %s", action, id, m.ID)
		}
	}
	return nil
}

// setDifference names the first package that only one of the two sorted lists has; "" when they are equal.
func setDifference(contents []string, packages []Member) string {
	for i := 0; i < len(contents) || i < len(packages); i++ {
		switch {
		case i == len(packages) || i < len(contents) && contents[i] < packages[i].Name:
			return "metadata.xml lists " + contents[i] + ", which is not in software.tar"
		case i == len(contents) || contents[i] > packages[i].Name:
			return packages[i].Name + " is in software.tar and not in the contents of metadata.xml"
		}
	}
	return ""
}
