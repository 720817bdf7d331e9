package patchfile_test

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/patch/patchfile/patchfiletest"
	"github.com/starpatch/starpatch/problem"
)

// craft makes patch files that Build would not: each part can be replaced, and the signatures fit unless they are given.
type craft struct {
	metadata, software, semantics []entry // of the inner tars
	rawSoftware                   []byte  // instead of a tar of software
	extra                         []entry // more members of the container, first
	order                         []string
	leave                         string // member that is left out
	md5                           string
	rsa                           []byte
	after                         []byte // behind the end of the container's tar
}

const craftedXML = "<patch><id>P1</id><sw_version>19.09</sw_version><reboot_required>N</reboot_required><contents><rpm>a-1-1.noarch.rpm</rpm></contents></patch>"

func crafted(t testing.TB) craft {
	t.Helper()
	a, err := rpmmake.Spec{Name: "a", EVR: rpmmake.EVR("1-1")}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return craft{
		metadata: []entry{regular("metadata.xml", []byte(craftedXML))},
		software: []entry{regular("a-1-1.noarch.rpm", a)},
		order:    []string{"metadata.tar", "software.tar", "semantics.tar", "signature", "signature.v2"},
	}
}

func (c craft) tar(t testing.TB) []byte {
	t.Helper()
	parts := map[string][]byte{"metadata.tar": tarred(t, c.metadata...), "software.tar": tarred(t, c.software...)}
	if c.rawSoftware != nil {
		parts["software.tar"] = c.rawSoftware
	}
	signed := [][]byte{parts["metadata.tar"], parts["software.tar"]}
	if c.semantics != nil {
		parts["semantics.tar"] = tarred(t, c.semantics...)
		signed = append(signed, parts["semantics.tar"])
	}
	parts["signature"], parts["signature.v2"] = []byte(checksumText(signed...)), sign(t, signingKey(t, "dev-private-key.pem"), signed...)
	if c.md5 != "" {
		parts["signature"] = []byte(c.md5)
	}
	if c.rsa != nil {
		parts["signature.v2"] = c.rsa
	}
	entries := slices.Clone(c.extra)
	for _, name := range c.order {
		if body, ok := parts[name]; ok && name != c.leave {
			entries = append(entries, regular(name, body))
		}
	}
	return append(tarred(t, entries...), c.after...)
}

func (c craft) bytes(t testing.TB) []byte {
	t.Helper()
	return gzipped(t, c.tar(t))
}

func link(name string, kind byte) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Linkname: "/etc/passwd"}, nil}
}

func TestRefusesHostileFiles(t *testing.T) {
	good := crafted(t)
	a := good.software[0].body
	damaged := bytes.Clone(a)
	damaged[len(damaged)-1] ^= 1
	source := bytes.Clone(a)
	source[7] = 1
	with := func(change func(*craft)) func(t testing.TB) []byte {
		return func(t testing.TB) []byte {
			c := crafted(t)
			change(&c)
			return c.bytes(t)
		}
	}
	software := func(e ...entry) func(t testing.TB) []byte { return with(func(c *craft) { c.software = e }) }
	metadata := func(e ...entry) func(t testing.TB) []byte { return with(func(c *craft) { c.metadata = e }) }
	semantics := func(e ...entry) func(t testing.TB) []byte { return with(func(c *craft) { c.semantics = e }) }
	outer := func(e ...entry) func(t testing.TB) []byte { return with(func(c *craft) { c.extra = e }) }
	plain := func(b []byte) func(testing.TB) []byte { return func(testing.TB) []byte { return b } }
	const extraction, checksum, signature = "Failed during patch extraction: ", "Patch failed verification: ", "Signature check failed: "
	limits := patchfile.Limits{Members: 8, Size: 1 << 20}

	for name, c := range map[string]struct {
		file   func(t testing.TB) []byte
		limits patchfile.Limits
		want   string
	}{
		// the stream
		"an empty file":                   {plain(nil), limits, extraction + "the file is cut off after 0 bytes"},
		"text":                            {plain([]byte("hello, this is no patch")), limits, extraction + "it is not a gzip file"},
		"a tar without gzip":              {func(t testing.TB) []byte { return good.tar(t) }, limits, extraction + "it is not a gzip file"},
		"a gzip of text":                  {func(t testing.TB) []byte { return gzipped(t, bytes.Repeat([]byte("text "), 400)) }, limits, extraction + "the container is not a tar, or damaged"},
		"a gzip of nothing":               {func(t testing.TB) []byte { return gzipped(t, nil) }, limits, extraction + "there is no metadata.tar in it"},
		"a gzip header alone":             {func(t testing.TB) []byte { return good.bytes(t)[:10] }, limits, extraction + "the file is cut off after 10 bytes"},
		"half a file":                     {func(t testing.TB) []byte { b := good.bytes(t); return b[:len(b)/2] }, limits, extraction + "the file is cut off after"},
		"without the gzip checksum":       {func(t testing.TB) []byte { b := good.bytes(t); return b[:len(b)-8] }, limits, extraction + "the file is cut off after"},
		"another gzip checksum":           {func(t testing.TB) []byte { b := good.bytes(t); b[len(b)-8] ^= 1; return b }, limits, extraction + "the gzip stream is damaged: gzip: invalid checksum"},
		"bytes behind the gzip stream":    {func(t testing.TB) []byte { return append(good.bytes(t), "tail"...) }, limits, extraction},
		"a second gzip of text behind it": {func(t testing.TB) []byte { return append(good.bytes(t), gzipped(t, []byte("more"))...) }, limits, extraction + "the container has data behind the end of its archive"},
		"data behind the container's end": {with(func(c *craft) { c.after = []byte("hidden") }), limits, extraction + "the container has data behind the end of its archive"},
		"a bomb of zeros": {func(t testing.TB) []byte { return gzipped(t, make([]byte, 32<<20)) }, patchfile.Limits{},
			extraction + "it unpacks to more than 200 times its size"},
		"more than the size limit": {outer(regular("zeros", make([]byte, 2<<20))), limits, extraction + "it unpacks to more than 1048576 bytes"},

		// the container
		"no metadata.tar":             {with(func(c *craft) { c.leave = "metadata.tar" }), limits, extraction + "there is no metadata.tar in it"},
		"no software.tar":             {with(func(c *craft) { c.leave = "software.tar" }), limits, extraction + "there is no software.tar in it"},
		"no signature":                {with(func(c *craft) { c.leave = "signature" }), limits, extraction + "there is no signature in it"},
		"no signature.v2":             {with(func(c *craft) { c.leave = "signature.v2" }), limits, "Patch has not been signed: there is no signature.v2 in it"},
		"two metadata.tar":            {outer(regular("metadata.tar", tarred(t, good.metadata...))), limits, extraction + `the container: "metadata.tar" is there twice`},
		"an extra member twice":       {outer(regular("x", nil), regular("x", nil)), limits, extraction + `the container: "x" is there twice`},
		"a symbolic link":             {outer(link("x", tar.TypeSymlink)), limits, extraction + `the container: "x" is a symbolic link`},
		"software.tar as a link":      {with(func(c *craft) { c.leave, c.extra = "software.tar", []entry{link("software.tar", tar.TypeSymlink)} }), limits, extraction + `the container: "software.tar" is a symbolic link`},
		"a hard link":                 {outer(link("x", tar.TypeLink)), limits, extraction + `the container: "x" is a hard link`},
		"a device":                    {outer(link("x", tar.TypeChar)), limits, extraction + `the container: "x" is a device`},
		"a pipe":                      {outer(link("x", tar.TypeFifo)), limits, extraction + `the container: "x" is a pipe`},
		"a folder":                    {outer(link("x/", tar.TypeDir)), limits, extraction + `the container: "x/" is a folder`},
		"a type of the future":        {outer(link("x", 'Z')), limits, extraction + `the container: "x" is of type 'Z'`},
		"a name that climbs":          {outer(regular("../../etc/cron.d/x", nil)), limits, extraction + `the container: the member name "../../etc/cron.d/x" has more than two parts`},
		"a name that climbs once":     {outer(regular("../x", nil)), limits, extraction + `the container: "../x" is not an acceptable member name`},
		"an absolute name":            {outer(regular("/x", nil)), limits, extraction + `the container: "/x" is not an acceptable member name`},
		"a name with a dot slash":     {outer(regular("./x", nil)), limits, extraction + `the container: "./x" is not an acceptable member name`},
		"a name with a newline":       {outer(regular("a\nb", nil)), limits, extraction + `the container: the member name "a\nb" contains '\n'`},
		"a name with a terminal code": {outer(regular("a\x1b[31m", nil)), limits, extraction},
		"a very long name":            {outer(regular(strings.Repeat("n", 300), nil)), limits, extraction},
		"a global header that renames": {outer(entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "software.tar"}}, nil}), limits,
			extraction},
		"too many members": {func(t testing.TB) []byte {
			c := crafted(t)
			for i := range 8 {
				c.extra = append(c.extra, regular(fmt.Sprint("x", i), nil))
			}
			return c.bytes(t)
		}, limits, extraction + "it has too many members"},
		"too many members in a tar inside": {func(t testing.TB) []byte {
			c := crafted(t)
			for i := range 8 {
				c.metadata = append(c.metadata, regular(fmt.Sprint("x", i), nil))
			}
			return c.bytes(t)
		}, limits, extraction},

		// the signatures
		"an empty signature":              {with(func(c *craft) { c.md5 = " " }), limits, checksum},
		"a signature that is no number":   {with(func(c *craft) { c.md5 = "not hexadecimal" }), limits, checksum + `signature is "not hexadecimal"; expected a number`},
		"a negative signature":            {with(func(c *craft) { c.md5 = "-1" }), limits, checksum},
		"a signature of 129 bits":         {with(func(c *craft) { c.md5 = "1" + strings.Repeat("0", 32) }), limits, checksum},
		"a very large signature":          {with(func(c *craft) { c.md5 = strings.Repeat("1", 1000) }), limits, extraction + "signature has 1000 bytes; at most 256 are accepted"},
		"a very large signature.v2":       {with(func(c *craft) { c.rsa = make([]byte, 4096) }), limits, extraction + "signature.v2 has 4096 bytes"},
		"an empty signature.v2":           {with(func(c *craft) { c.rsa = []byte{} }), limits, signature},
		"a signature.v2 of noise":         {with(func(c *craft) { c.rsa = bytes.Repeat([]byte{7}, 256) }), limits, signature},
		"a signature.v2 of another patch": {with(func(c *craft) { c.rsa = sign(t, signingKey(t, "dev-private-key.pem"), []byte("another")) }), limits, signature},
		"PSS with a salt of 20 bytes":     {with(func(c *craft) { c.rsa = good.signed(t, func(d []byte) ([]byte, error) { return pss(t, d, 20) }) }), limits, signature},
		"the older padding": {with(func(c *craft) {
			c.rsa = good.signed(t, func(d []byte) ([]byte, error) {
				return rsa.SignPKCS1v15(nil, signingKey(t, "dev-private-key.pem"), crypto.SHA256, d)
			})
		}), limits, signature},
		"members swapped, which the checksum does not see": {with(func(c *craft) {
			m, s := tarred(t, good.metadata...), tarred(t, good.software...)
			c.md5, c.rsa = checksumText(s, m), sign(t, signingKey(t, "dev-private-key.pem"), s, m)
		}), limits, signature},

		// metadata.tar
		"no metadata.xml":                  {metadata(), limits, extraction + "there is no metadata.xml in metadata.tar"},
		"another file beside metadata.xml": {metadata(good.metadata[0], regular("x", nil)), limits, extraction + `metadata.tar has a member "x"`},
		"metadata.xml as a link":           {metadata(link("metadata.xml", tar.TypeSymlink)), limits, extraction + `metadata.tar: "metadata.xml" is a symbolic link`},
		"metadata.xml twice":               {metadata(good.metadata[0], good.metadata[0]), limits, extraction + `metadata.tar: "metadata.xml" is there twice`},
		"metadata.xml larger than 4 MiB":   {metadata(regular("metadata.xml", make([]byte, 4<<20+1))), patchfile.Limits{}, extraction + "metadata.xml has 4194305 bytes"},
		"metadata.xml with an entity":      {metadata(regular("metadata.xml", []byte(`<!DOCTYPE a [<!ENTITY b "c">]><patch><id>&b;</id></patch>`))), limits, extraction + "metadata.xml: it has a <!...> directive"},
		"metadata.xml without an id":       {metadata(regular("metadata.xml", []byte("<patch/>"))), limits, extraction + "metadata.xml: it has no <id> element"},
		"an id that is a path":             {metadata(regular("metadata.xml", []byte("<patch><id>../P1</id></patch>"))), limits, extraction + `metadata.xml: <id>: "../P1" is not a patch ID`},

		// software.tar
		"a software.tar of text": {with(func(c *craft) { c.rawSoftware = bytes.Repeat([]byte("text "), 300) }), limits, extraction + "software.tar is not a tar, or damaged"},
		"an empty software.tar":  {with(func(c *craft) { c.rawSoftware = []byte{} }), limits, extraction + "there is no package in software.tar"},
		"a software.tar cut off": {with(func(c *craft) { c.rawSoftware = tarred(t, good.software...)[:700] }), limits, extraction},
		"data behind software.tar's end": {with(func(c *craft) { c.rawSoftware = append(tarred(t, good.software...), "hidden"...) }), limits,
			extraction + "software.tar has data behind the end of its archive"},
		"no package":                    {software(), limits, extraction + "there is no package in software.tar"},
		"a package as a link":           {software(link("a-1-1.noarch.rpm", tar.TypeSymlink)), limits, extraction + `software.tar: "a-1-1.noarch.rpm" is a symbolic link`},
		"a package in a folder":         {software(regular("x/a-1-1.noarch.rpm", a)), limits, extraction + `software.tar: "x/a-1-1.noarch.rpm" is not an RPM file name`},
		"a file that is no package":     {software(good.software[0], regular("README", nil)), limits, extraction + `software.tar: "README" is not an RPM file name`},
		"a package of text":             {software(regular("a-1-1.noarch.rpm", bytes.Repeat([]byte("text "), 50))), limits, extraction + "package a-1-1.noarch.rpm: it is not an RPM package"},
		"an empty package":              {software(regular("a-1-1.noarch.rpm", nil)), limits, extraction + "package a-1-1.noarch.rpm: it is not a whole RPM package: it ends within its lead"},
		"half a package":                {software(regular("a-1-1.noarch.rpm", a[:300])), limits, extraction + "package a-1-1.noarch.rpm: it is not a whole RPM package"},
		"a package with a damaged body": {software(regular("a-1-1.noarch.rpm", damaged)), limits, extraction + "package a-1-1.noarch.rpm: its payload is damaged"},
		"a source package":              {software(regular("a-1-1.noarch.rpm", source)), limits, extraction + "package a-1-1.noarch.rpm is a source package"},
		"a package under another name":  {software(regular("a-1-2.noarch.rpm", a)), limits, extraction + "package a-1-2.noarch.rpm says in its header that it is a-1-1.noarch"},
		"a package with another epoch":  {software(regular("3:a-1-1.noarch.rpm", a)), limits, extraction + "package 3:a-1-1.noarch.rpm says in its header that it is a-1-1.noarch"},
		"a package that is not in the contents": {func(t testing.TB) []byte {
			c := crafted(t)
			b, err := rpmmake.Spec{Name: "b", EVR: rpmmake.EVR("1-1")}.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			c.software = append(c.software, regular("b-1-1.noarch.rpm", b))
			return c.bytes(t)
		}, limits, extraction + "b-1-1.noarch.rpm is in software.tar and not in the contents of metadata.xml"},
		"contents that are not there": {metadata(regular("metadata.xml", []byte(strings.Replace(craftedXML, "</contents>", "<rpm>b-1-1.noarch.rpm</rpm></contents>", 1)))), limits,
			extraction + "metadata.xml lists b-1-1.noarch.rpm, which is not in software.tar"},
		"no contents": {metadata(regular("metadata.xml", []byte("<patch><id>P1</id></patch>"))), limits,
			extraction + "a-1-1.noarch.rpm is in software.tar and not in the contents of metadata.xml"},

		// semantics.tar
		"a check at the root":             {semantics(regular("pre-apply", nil)), limits, extraction + `semantics.tar has a member "pre-apply"; expected pre-apply/<patch ID>`},
		"a check of an unknown action":    {semantics(regular("post-apply/P1", nil)), limits, extraction + `semantics.tar has a member "post-apply/P1"`},
		"a check of another patch":        {semantics(regular("pre-apply/P2", nil)), limits, extraction + "the pre-apply check is for patch P2, not for P1"},
		"two checks of one action":        {semantics(regular("pre-apply/P1", nil), regular("pre-apply/P2", nil)), patchfile.Limits{}, extraction + "semantics.tar has two checks for pre-apply"},
		"a folder in semantics.tar":       {semantics(link("pre-apply/", tar.TypeDir)), limits, extraction + `semantics.tar: "pre-apply/" is a folder`},
		"a check that is a link":          {semantics(link("pre-apply/P1", tar.TypeSymlink)), limits, extraction + `semantics.tar: "pre-apply/P1" is a symbolic link`},
		"a check with a name that climbs": {semantics(regular("pre-apply/../x", nil)), limits, extraction},
	} {
		t.Run(name, func(t *testing.T) {
			spool := &patchfiletest.Spool{}
			_, err := patchfile.Open(bytes.NewReader(c.file(t)), spool, patchfile.Options{Trust: trust(t), Limits: c.limits, Fanout: fanout.New})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
			if k := problem.KindOf(err); err != nil && k != problem.Invalid && k != problem.TooLarge {
				t.Errorf("%v has kind %q", err, k)
			}
			if !spool.Discarded() || len(spool.Names()) > 0 {
				t.Errorf("left in the spool: %q", spool.Names())
			}
		})
	}
}

// signed is a signature over the crafted members, made by f from their digest.
func (c craft) signed(t testing.TB, f func(digest []byte) ([]byte, error)) []byte {
	t.Helper()
	sum := sha256.Sum256(append(tarred(t, c.metadata...), tarred(t, c.software...)...))
	sig, err := f(sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func pss(t testing.TB, digest []byte, salt int) ([]byte, error) {
	t.Helper()
	return rsa.SignPSS(rand.Reader, signingKey(t, "dev-private-key.pem"), crypto.SHA256, digest, &rsa.PSSOptions{SaltLength: salt})
}

func TestAcceptsEveryOrdinaryShape(t *testing.T) {
	permutations := [][]string{}
	var permute func(done, rest []string)
	permute = func(done, rest []string) {
		if len(rest) == 0 {
			permutations = append(permutations, slices.Clone(done))
		}
		for i := range rest {
			permute(append(slices.Clone(done), rest[i]), slices.Concat(rest[:i], rest[i+1:]))
		}
	}
	permute(nil, []string{"metadata.tar", "software.tar", "semantics.tar", "signature", "signature.v2"})
	try := func(name string, c craft) {
		t.Run(name, func(t *testing.T) {
			spool := &patchfiletest.Spool{}
			f, err := patchfile.Open(iotest.HalfReader(bytes.NewReader(c.bytes(t))), spool, patchfile.Options{Stem: "P1", Trust: trust(t), Fanout: fanout.New})
			if err != nil {
				t.Fatal(err)
			}
			if f.Packages[0].File != "a-1-1.noarch.rpm" || spool.Discarded() {
				t.Errorf("packages %v, discarded %v", f.Packages, spool.Discarded())
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	for _, order := range permutations {
		c := crafted(t)
		c.semantics = []entry{regular("pre-remove/P1", []byte("exit 0\n"))}
		c.order = order
		try(strings.Join(order, " "), c)
	}
	for name, change := range map[string]func(*craft){
		"extra members": func(c *craft) { c.extra = []entry{regular("README", []byte("hello")), regular("notes/x", nil)} },
		"blanks around the signature": func(c *craft) {
			c.md5 = "\n 0X000" + strings.ToUpper(checksumText(tarred(t, c.metadata...), tarred(t, c.software...))) + "\r\n"
		},
		"no check in semantics.tar": func(c *craft) { c.semantics = []entry{} },
		"zeros behind the end":      func(c *craft) { c.after = make([]byte, 20480) },
		"a comment for all members": func(c *craft) {
			c.extra = []entry{{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, nil}}
		},
		"pax headers with long names": func(c *craft) {
			c.extra = []entry{{tar.Header{Name: strings.Repeat("n", 200), Format: tar.FormatPAX, PAXRecords: map[string]string{"X.y": "z"}}, nil}}
		},
		"ustar": func(c *craft) { c.software[0].Format = tar.FormatUSTAR },
	} {
		c := crafted(t)
		change(&c)
		try(name, c)
	}
	c := crafted(t)
	raw := c.tar(t)
	two := append(gzipped(t, raw[:5000]), gzipped(t, raw[5000:])...)
	if _, err := patchfile.Open(bytes.NewReader(two), &patchfiletest.Spool{}, patchfile.Options{Trust: trust(t)}); err != nil {
		t.Errorf("a gzip file of two streams: %v", err)
	}
}

func TestTheOlderPaddingIsAChoice(t *testing.T) {
	c := crafted(t)
	c.rsa = c.signed(t, func(d []byte) ([]byte, error) {
		return rsa.SignPKCS1v15(nil, signingKey(t, "formal-private-key.pem"), crypto.SHA256, d)
	})
	keys := trust(t)
	keys.AcceptPKCS1v15 = true
	f, err := patchfile.Open(bytes.NewReader(c.bytes(t)), &patchfiletest.Spool{}, patchfile.Options{Trust: keys})
	if err != nil || f.Signer.Class != patchfile.Formal {
		t.Errorf("got %+v, %v", f, err)
	}
}

func TestAnErrorOfTheReaderIsNotTheFiles(t *testing.T) {
	b := crafted(t).bytes(t)
	lost := errors.New("connection reset")
	for _, n := range []int{0, 5, 50, len(b) / 2, len(b) - 1} {
		spool := &patchfiletest.Spool{}
		_, err := patchfile.Open(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(lost)), spool, patchfile.Options{Trust: trust(t)})
		if !errors.Is(err, lost) || problem.KindOf(err) != problem.Internal || !spool.Discarded() {
			t.Errorf("after %d bytes: %v (%s)", n, err, problem.KindOf(err))
		}
	}
}

func TestAnErrorOfTheSpoolIsNotTheFiles(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(vectors, "patches", "PEER_19.09_PATCH_0005.patch"))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for fail := range 40 {
		calls := 0
		spool := &patchfiletest.Spool{Fail: func(string, string) error {
			if calls++; calls > fail {
				return errDiskFull
			}
			return nil
		}}
		_, err := patchfile.Open(bytes.NewReader(b), spool, patchfile.Options{Trust: trust(t), KeepTars: true})
		if err == nil {
			continue
		}
		count++
		if !errors.Is(err, errDiskFull) || problem.KindOf(err) != problem.Internal || errors.Is(err, patchfile.ErrExtraction) || !spool.Discarded() {
			t.Errorf("after %d operations: %v", fail, err)
		}
	}
	if count < 10 {
		t.Errorf("only %d operations on the spool", count)
	}
}

func TestTheDevMarker(t *testing.T) {
	marker, err := os.ReadFile(filepath.Join(vectors, "keys", "dev_certificate_enable.bin"))
	if err != nil {
		t.Fatal(err)
	}
	keys := trust(t)
	if err := keys.CheckMarker(marker); err != nil {
		t.Error(err)
	}
	marker[0] ^= 1
	if err := keys.CheckMarker(marker); err == nil {
		t.Error("a damaged marker is accepted")
	}
	marker[0] ^= 1
	swapped := patchfile.Trust{Formal: keys.Dev, Dev: keys.Formal}
	if err := swapped.CheckMarker(marker); err == nil {
		t.Error("a marker by another than a formal key is accepted")
	}
	if err := (patchfile.Trust{}).CheckMarker(marker); err == nil {
		t.Error("a marker is accepted without any key")
	}
}

func TestKeys(t *testing.T) {
	for _, name := range []string{"dev", "formal", "other"} {
		if cert, public := key(t, name+"-cert.pem"), key(t, name+"-public-key.pem"); cert.ID() != public.ID() || len(cert.ID()) != 64 {
			t.Errorf("%s: certificate %s, public key %s", name, cert.ID(), public.ID())
		}
	}
	private, err := os.ReadFile(filepath.Join(vectors, "keys", "dev-private-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ pem, want string }{
		"nothing":              {"", "it has no PEM block"},
		"a private key":        {string(private), "it is a private key, which must stay with who signs"},
		"another PEM block":    {"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n", "it is a PEM DH PARAMETERS; expected PUBLIC KEY or CERTIFICATE"},
		"a broken key":         {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot read the public key"},
		"a broken certificate": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot read the certificate"},
		"an elliptic key":      {"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n", "it is not an RSA key"},
	} {
		_, err := patchfile.ParseKey([]byte(c.pem))
		if c.want == "it is not an RSA key" {
			c.want = "the key is not an RSA key"
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want %q", name, err, c.want)
		}
	}
	for name, c := range map[string]struct{ pem, want string }{
		"nothing":                       {"", "it has no PEM block"},
		"a public key":                  {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "expected PRIVATE KEY"},
		"a broken key":                  {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "cannot read the private key"},
		"one with a pass phrase":        {"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "protected by a pass phrase"},
		"an old one with a pass phrase": {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "protected by a pass phrase"},
		"an elliptic key":               {"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n", "the key is not an RSA key"},
	} {
		if _, err := patchfile.ParseSigningKey([]byte(c.pem)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("signing key, %s: got %v; want %q", name, err, c.want)
		}
	}
}

// FuzzOpen demands that whatever is accepted can be written again with every signed member byte for byte, and is read back the
// same. Mutations are
// signed again, or nothing that is changed would ever be accepted.
func FuzzOpen(f *testing.F) {
	for _, id := range vectorIDs(f) {
		b, err := os.ReadFile(filepath.Join(vectors, "patches", id+".patch"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(gunzip(f, b))
	}
	c := crafted(f)
	f.Add(c.tar(f))
	c.order = []string{"software.tar", "signature.v2", "metadata.tar", "signature"}
	f.Add(c.tar(f))
	keys, signing := trust(f), signingKey(f, "dev-private-key.pem")
	f.Fuzz(func(t *testing.T, container []byte) {
		b := gzipped(t, resign(t, signing, container))
		spool := &patchfiletest.Spool{}
		p, err := patchfile.Open(bytes.NewReader(b), spool, patchfile.Options{Trust: keys, KeepTars: true, Limits: patchfile.Limits{Members: 100, Size: 1 << 22}})
		if err != nil {
			if k := problem.KindOf(err); k != problem.Invalid && k != problem.TooLarge {
				t.Fatalf("%v has kind %q", err, k)
			}
			if !spool.Discarded() {
				t.Fatal("the spool was not discarded")
			}
			return
		}
		var again bytes.Buffer
		if err := p.Copy(&again, patchfile.BuildOptions{}); err != nil {
			t.Fatal(err)
		}
		was, is := untar(t, gunzip(t, b)), untar(t, gunzip(t, again.Bytes()))
		for _, name := range []string{"metadata.tar", "software.tar", "semantics.tar", "signature", "signature.v2"} {
			if !bytes.Equal(was[name], is[name]) {
				t.Fatalf("%s changed: %d bytes and %d bytes", name, len(was[name]), len(is[name]))
			}
		}
		q := open(t, again.Bytes(), patchfile.Options{Stem: string(p.Metadata.ID), Trust: keys})
		if fmt.Sprint(q.Metadata, q.Packages, q.Signer) != fmt.Sprint(p.Metadata, p.Packages, p.Signer) {
			t.Fatalf("read back differently: %+v and %+v", p, q)
		}
	})
}

// resign makes the signatures of a container fit its members, as far as it can be read.
func resign(t testing.TB, key *rsa.PrivateKey, container []byte) []byte {
	r := tar.NewReader(bytes.NewReader(container))
	parts := map[string][]byte{}
	var entries []entry
	for {
		h, err := r.Next()
		if err != nil {
			break
		}
		body, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil || h.Typeflag != tar.TypeReg || len(entries) > 50 {
			return container
		}
		parts[h.Name] = body
		entries = append(entries, regular(h.Name, body))
	}
	var signed [][]byte
	for _, name := range []string{"metadata.tar", "software.tar", "semantics.tar"} {
		if body, ok := parts[name]; ok {
			signed = append(signed, body)
		}
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		switch e.Name {
		case "signature":
			e.body = []byte(checksumText(signed...))
		case "signature.v2":
			e.body = sign(t, key, signed...)
		}
		if w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.Name, Size: int64(len(e.body)), Mode: 0o644}) != nil {
			return container
		}
		if _, err := w.Write(e.body); err != nil {
			return container
		}
	}
	if err := w.Close(); err != nil {
		return container
	}
	return out.Bytes()
}
