package rpm

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strings"

	"github.com/starpatch/starpatch/problem"
)

// Header is what a package's own headers say of it.
type Header struct {
	NEVRA
	Summary string // first language; may be empty
	Source  bool   // a source package: it cannot be installed on a host
	Built   int64  // Unix seconds; 0: the header has no build time
	// PayloadSHA256 is the digest that the compressed payload, everything after the headers, must have, in lower-case
	// hexadecimal; empty: the package states none or one of another kind.
	PayloadSHA256 string
}

// MaxHeader is how many bytes each of the two headers of a package may have. The largest that distributions ship, those
// of packages with a hundred thousand files, have about 20 MiB; rpm itself refuses 64 and 256 MiB.
const MaxHeader = 32 << 20

// Sizes and magic numbers of the format.
// Source: rpm.org, "RPM V4 file format" (lead, header structure).
const (
	leadSize   = 96
	introSize  = 16 // magic, version, reserved, number of entries, size of the store
	entrySize  = 16 // tag, type, offset, count
	leadMagic  = 0xedabeedb
	introMagic = 0x8eade801 // magic and version 1
)

// tag numbers an entry of a header.
type tag uint32

// The tags that matter here, of the signature header and of the main header.
const (
	sigSHA1   tag = 269
	sigSHA256 tag = 273

	tagName              tag = 1000
	tagVersion           tag = 1001
	tagRelease           tag = 1002
	tagEpoch             tag = 1003
	tagSummary           tag = 1004
	tagBuildTime         tag = 1006
	tagArch              tag = 1022
	tagSourcePackage     tag = 1106
	tagPayloadDigest     tag = 5092
	tagPayloadDigestAlgo tag = 5093
)

// kind is the type of an entry's data.
type kind uint32

const (
	kindInt32       kind = 4
	kindString      kind = 6
	kindStringArray kind = 8
	kindI18NString  kind = 9
)

const algoSHA256 = 8 // number of SHA-256 among OpenPGP hash algorithms, which rpm uses

// ReadHeader reads the lead and both headers of a package and leaves r at the first byte of the payload. It trusts no
// size that it reads: memory grows with the bytes that r really delivers, up to [MaxHeader] each. The header's own digest is
// checked when the package states one. Errors about the package are of kind problem.Invalid or problem.TooLarge and do not
// name it; an error of r is its cause.
func ReadHeader(r io.Reader) (Header, error) {
	var lead [leadSize]byte
	if _, err := io.ReadFull(r, lead[:]); err != nil {
		return Header{}, cut("lead", err)
	}
	if binary.BigEndian.Uint32(lead[:]) != leadMagic {
		return Header{}, problem.Errorf(problem.Invalid, "it is not an RPM package: the first four bytes are %x", lead[:4])
	}
	if major := lead[4]; major != 3 && major != 4 {
		return Header{}, problem.Errorf(problem.Invalid, "it is an RPM package of format %d; expected format 3 or 4", major)
	}
	signature, err := readRawHeader(r, "signature header")
	if err != nil {
		return Header{}, err
	}
	if pad := (8 - len(signature.raw)%8) % 8; pad > 0 { // the main header starts at a multiple of 8
		if _, err := io.CopyN(io.Discard, r, int64(pad)); err != nil {
			return Header{}, cut("signature header", err)
		}
	}
	main, err := readRawHeader(r, "header")
	if err != nil {
		return Header{}, err
	}
	if err := checkDigest(signature, main.raw); err != nil {
		return Header{}, err
	}
	h, err := main.identity()
	if err != nil {
		return Header{}, err
	}
	h.Source = h.Source || binary.BigEndian.Uint16(lead[6:]) == 1
	return h, nil
}

func cut(what string, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return problem.Errorf(problem.Invalid, "it is not a whole RPM package: it ends within its %s", what)
	}
	return problem.Errorf(problem.KindOf(err), "cannot read its %s: %w", what, err)
}

// rawHeader is one header structure as it was read.
type rawHeader struct {
	raw     []byte // intro, entries and store
	entries []byte
	store   []byte
	what    string
}

func readRawHeader(r io.Reader, what string) (rawHeader, error) {
	var intro [introSize]byte
	if _, err := io.ReadFull(r, intro[:]); err != nil {
		return rawHeader{}, cut(what, err)
	}
	if binary.BigEndian.Uint32(intro[:]) != introMagic {
		return rawHeader{}, problem.Errorf(problem.Invalid, "it is not an RPM package: its %s starts with %x", what, intro[:4])
	}
	n, size := int64(binary.BigEndian.Uint32(intro[8:])), int64(binary.BigEndian.Uint32(intro[12:]))
	total := n*entrySize + size
	if total > MaxHeader {
		return rawHeader{}, problem.Errorf(problem.TooLarge, "its %s claims %d bytes; at most %d are accepted", what, total, MaxHeader)
	}
	b := bytes.NewBuffer(make([]byte, 0, introSize+min(total, 64<<10)))
	b.Write(intro[:])
	if _, err := io.CopyN(b, r, total); err != nil {
		return rawHeader{}, cut(what, err)
	}
	raw := b.Bytes()
	return rawHeader{raw: raw, entries: raw[introSize : introSize+n*entrySize], store: raw[introSize+n*entrySize:], what: what}, nil
}

// entry returns type, count and data from the start of the value to the end of the store. A tag that is there twice is
// refused: readers would disagree on which one counts.
func (h rawHeader) entry(t tag) (k kind, count uint32, data []byte, found bool, err error) {
	for e := h.entries; len(e) >= entrySize; e = e[entrySize:] {
		if tag(binary.BigEndian.Uint32(e)) != t {
			continue
		}
		if found {
			return 0, 0, nil, false, problem.Errorf(problem.Invalid, "its %s has tag %d twice", h.what, t)
		}
		found = true
		k, count = kind(binary.BigEndian.Uint32(e[4:])), binary.BigEndian.Uint32(e[12:])
		off := binary.BigEndian.Uint32(e[8:])
		if int64(off) >= int64(len(h.store)) || count == 0 {
			return 0, 0, nil, false, problem.Errorf(problem.Invalid, "tag %d of its %s points outside the header", t, h.what)
		}
		data = h.store[off:]
	}
	return k, count, data, found, nil
}

// text returns the first string of a string, string array or translated string; "" when the tag is not there.
func (h rawHeader) text(t tag) (string, error) {
	k, _, data, found, err := h.entry(t)
	if err != nil || !found {
		return "", err
	}
	if k != kindString && k != kindStringArray && k != kindI18NString {
		return "", problem.Errorf(problem.Invalid, "tag %d of its %s is not text", t, h.what)
	}
	text, _, ok := bytes.Cut(data, []byte{0})
	if !ok {
		return "", problem.Errorf(problem.Invalid, "tag %d of its %s does not end", t, h.what)
	}
	return string(text), nil
}

// number returns the first number of an entry of 32-bit numbers; 0 when the tag is not there.
func (h rawHeader) number(t tag) (n uint32, found bool, err error) {
	k, _, data, found, err := h.entry(t)
	if err != nil || !found {
		return 0, false, err
	}
	if k != kindInt32 || len(data) < 4 {
		return 0, false, problem.Errorf(problem.Invalid, "tag %d of its %s is not a number", t, h.what)
	}
	return binary.BigEndian.Uint32(data), true, nil
}

// checkDigest compares the main header with the strongest digest of it in the signature header.
func checkDigest(signature rawHeader, header []byte) error {
	for _, d := range [...]struct {
		tag  tag
		name string
		sum  func() []byte
	}{
		{sigSHA256, "SHA-256", func() []byte { s := sha256.Sum256(header); return s[:] }},
		{sigSHA1, "SHA-1", func() []byte { s := sha1.Sum(header); return s[:] }},
	} {
		want, err := signature.text(d.tag)
		if err != nil {
			return err
		}
		if want == "" {
			continue
		}
		if got := hex.EncodeToString(d.sum()); !strings.EqualFold(got, want) {
			return problem.Errorf(problem.Invalid, "its header is damaged: the %s digest is %s and should be %s", d.name, got, want)
		}
		return nil
	}
	return nil
}

func (h rawHeader) identity() (Header, error) {
	var out Header
	for _, f := range [...]struct {
		tag tag
		to  *string
	}{{tagName, &out.Name}, {tagVersion, &out.Version}, {tagRelease, &out.Release}, {tagArch, &out.Arch}, {tagSummary, &out.Summary}} {
		s, err := h.text(f.tag)
		if err != nil {
			return Header{}, err
		}
		*f.to = s
	}
	epoch, _, err := h.number(tagEpoch)
	if err != nil {
		return Header{}, err
	}
	if epoch > 1<<31-1 {
		return Header{}, problem.Errorf(problem.Invalid, "its epoch %d is larger than 2147483647", epoch)
	}
	out.Epoch = int(epoch)
	built, _, err := h.number(tagBuildTime)
	if err != nil {
		return Header{}, err
	}
	out.Built = int64(built)
	if _, out.Source, err = h.number(tagSourcePackage); err != nil {
		return Header{}, err
	}
	if err := out.NEVRA.check(); err != nil {
		return Header{}, problem.Errorf(problem.Invalid, "its header does not name a package: %v", err)
	}
	algo, _, err := h.number(tagPayloadDigestAlgo)
	if err != nil {
		return Header{}, err
	}
	if algo == algoSHA256 {
		s, err := h.text(tagPayloadDigest)
		if err != nil {
			return Header{}, err
		}
		out.PayloadSHA256 = strings.ToLower(s)
	}
	return out, nil
}
