package repodata

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

const primary = `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="3">
<package type="rpm"><name>svc</name><arch>noarch</arch><version epoch="0" ver="1.0" rel="2"/>
<checksum type="sha256" pkgid="YES">aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa</checksum>
<summary>s</summary><description>d</description><packager></packager><url></url><time file="1" build="1"/>
<size package="123" installed="4" archive="5"/><location href="Packages/noarch/svc-1.0-2.noarch.rpm"/>
<format><rpm:license>x</rpm:license><rpm:provides><rpm:entry name="name"/></rpm:provides><file>/name</file></format></package>
<package type="rpm"><name>svc</name><arch>noarch</arch><version epoch="0" ver="1.0" rel="10"/>
<checksum type="sha1" pkgid="YES">aa</checksum><location href="Packages/svc-1.0-10.noarch.rpm"/><format/></package>
<package type="rpm"><name>lib</name><arch>x86_64</arch><version epoch="2" ver="1.0" rel="1"/><location href="lib.rpm"/></package>
<package type="rpm"><name>lib</name><arch>src</arch><version epoch="2" ver="1.0" rel="1"/><location href="lib.src.rpm"/></package>
</metadata>`

const groups = `<comps><group><id>updates-worker</id><packagelist><packagereq type="mandatory">b</packagereq><packagereq type="optional">z</packagereq><packagereq type="mandatory">a</packagereq></packagelist></group>
<group><id>updates-storage</id><packagelist/></group><group><id>updates-worker</id><packagelist><packagereq>c</packagereq></packagelist></group></comps>`

func gz(s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	return b.Bytes()
}

func zst(s string) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll([]byte(s), nil)
}

// repository is a repository in memory, by location.
type repository map[string][]byte

func (r repository) fetch(_ context.Context, location string) (io.ReadCloser, error) {
	b, ok := r[location]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// describe makes repomd.xml name the files: type=location.
func (r repository) describe(records ...string) repository {
	var b strings.Builder
	b.WriteString(`<repomd xmlns="http://linux.duke.edu/metadata/repo"><revision>7</revision>`)
	for _, rec := range records {
		typ, location, _ := strings.Cut(rec, "=")
		fmt.Fprintf(&b, `<data type="%s"><checksum type="sha256">%s</checksum><location href="%s"/><size>%d</size></data>`, typ, sum(r[location]), location, len(r[location]))
	}
	b.WriteString(`</repomd>`)
	r[RepomdPath] = []byte(b.String())
	return r
}

func whole() repository {
	return repository{
		"repodata/primary.xml.gz": gz(primary),
		"repodata/comps.xml":      []byte(groups),
		"repodata/brought.json":   []byte(`{"format":1,"packages":[{"name":"svc","version":"1.0","release":"2","arch":"noarch"},{"name":"lib","epoch":2,"version":"1.0","release":"1","arch":"x86_64"}]}`),
		"repodata/other.sqlite":   []byte("nobody reads this"),
	}.describe("other_db=repodata/other.sqlite", "primary=repodata/primary.xml.gz", "group=repodata/comps.xml", "brought=repodata/brought.json")
}

func TestLoadReadsWhatPatchingNeeds(t *testing.T) {
	r := whole()
	md, err := Load(t.Context(), r.fetch, sum(r[RepomdPath]))
	if err != nil {
		t.Fatal(err)
	}
	lib := rpm.NEVRA{Name: "lib", EVR: rpm.EVR{Epoch: 2, Version: "1.0", Release: "1"}, Arch: "x86_64"}
	svc2 := rpm.NEVRA{Name: "svc", EVR: rpm.EVR{Version: "1.0", Release: "2"}, Arch: "noarch"}
	svc10 := rpm.NEVRA{Name: "svc", EVR: rpm.EVR{Version: "1.0", Release: "10"}, Arch: "noarch"}
	want := Metadata{
		Revision: 7,
		SHA256:   sum(r[RepomdPath]),
		Packages: []Package{
			{NEVRA: lib, Location: "lib.rpm"},
			{NEVRA: svc2, Location: "Packages/noarch/svc-1.0-2.noarch.rpm", SHA256: strings.Repeat("a", 64), Size: 123},
			{NEVRA: svc10, Location: "Packages/svc-1.0-10.noarch.rpm"},
		},
		Groups:  map[string][]string{"updates-worker": {"a", "b", "c"}, "updates-storage": {}},
		Brought: []rpm.NEVRA{lib, svc2},
	}
	if d := cmp.Diff(md, want); d != "" {
		t.Errorf("metadata (-got +want): %s", d)
	}
}

func TestLoadTakesEveryCompressionThatCreaterepoWrites(t *testing.T) {
	for location, content := range map[string][]byte{
		"repodata/primary.xml": []byte(primary), "repodata/primary.xml.gz": gz(primary), "repodata/primary.xml.zst": zst(primary),
	} {
		r := repository{location: content}.describe("primary=" + location)
		if md, err := Load(t.Context(), r.fetch, ""); err != nil || len(md.Packages) != 3 {
			t.Errorf("%s: %d packages, %v", location, len(md.Packages), err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	bomb := strings.Repeat(" ", MaxBrought)
	for _, tc := range []struct {
		name string
		edit func(repository) repository
		pin  string
		want string
		is   error
		kind problem.Kind
	}{
		{"another repomd.xml", nil, sum([]byte("x")), "cannot use repodata/repomd.xml: its SHA-256 is", ErrChecksum, problem.Unavailable},
		{"no repomd.xml", func(r repository) repository { delete(r, RepomdPath); return r }, "", "cannot fetch repodata/repomd.xml", fs.ErrNotExist, problem.Internal},
		{"a file that is not there", func(r repository) repository { delete(r, "repodata/comps.xml"); return r }, "", "cannot fetch repodata/comps.xml", fs.ErrNotExist, problem.Internal},
		{"a file that was replaced", func(r repository) repository { r["repodata/primary.xml.gz"] = gz("<metadata/>"); return r }, "", "cannot use repodata/primary.xml.gz: its SHA-256 is", ErrChecksum, problem.Unavailable},
		{"a file that was cut", func(r repository) repository {
			r["repodata/primary.xml.gz"] = r["repodata/primary.xml.gz"][:40]
			return r
		}, "", "its SHA-256 is", ErrChecksum, problem.Unavailable},
		{"a file that grew", func(r repository) repository {
			r["repodata/comps.xml"] = append(r["repodata/comps.xml"], ' ')
			return r
		}, "", "larger than", nil, problem.TooLarge},
		{"a file that grows beyond the cap when it is unpacked", func(r repository) repository {
			r["b.json.gz"] = gz(bomb + "{}")
			return r.describe("primary=repodata/primary.xml.gz", "brought=b.json.gz")
		}, "", "larger than 8388608 bytes", nil, problem.TooLarge},
		{"no primary metadata", func(r repository) repository { return r.describe("group=repodata/comps.xml") }, "", "names no primary metadata", nil, problem.Invalid},
		{"a location outside", func(r repository) repository {
			r["../x.xml"] = []byte(primary)
			return r.describe("primary=../x.xml")
		}, "", "leads out of it", nil, problem.Invalid},
		{"a package outside", func(r repository) repository {
			r["p.xml"] = []byte(strings.Replace(primary, `href="lib.rpm"`, `href="/lib.rpm"`, 1))
			return r.describe("primary=p.xml")
		}, "", "leads out of it", nil, problem.Invalid},
		{"a package elsewhere", func(r repository) repository {
			r["p.xml"] = []byte(strings.Replace(primary, `href="lib.rpm"`, `xml:base="http://example.org/" href="lib.rpm"`, 1))
			return r.describe("primary=p.xml")
		}, "", "has a base of its own", nil, problem.Invalid},
		{"a package without a version", func(r repository) repository {
			r["p.xml"] = []byte(strings.Replace(primary, `rel="10"`, ``, 1))
			return r.describe("primary=p.xml")
		}, "", "its release is empty", nil, problem.Invalid},
		{"a package whose name is an option", func(r repository) repository {
			r["p.xml"] = []byte(strings.Replace(primary, `<name>lib`, `<name>--root`, 1))
			return r.describe("primary=p.xml")
		}, "", "starts with '-'", nil, problem.Invalid},
		{"primary that ends too early", func(r repository) repository {
			r["p.xml"] = []byte(primary[:500])
			return r.describe("primary=p.xml")
		}, "", "unexpected EOF", nil, problem.Invalid},
		{"a compression that nobody knows", func(r repository) repository {
			r["p.xml.lz"] = []byte(primary)
			return r.describe("primary=p.xml.lz")
		}, "", "metadata may be plain, .gz or .zst, not .lz", nil, problem.NotSupported},
		{"brought packages of a later format", func(r repository) repository {
			r["b.json"] = []byte(`{"format":2,"packages":[]}`)
			return r.describe("primary=repodata/primary.xml.gz", "brought=b.json")
		}, "", "its format is 2", nil, problem.NotSupported},
		{"a brought package that is none", func(r repository) repository {
			r["b.json"] = []byte(`{"format":1,"packages":[{"name":"../x","version":"1","release":"1","arch":"noarch"}]}`)
			return r.describe("primary=repodata/primary.xml.gz", "brought=b.json")
		}, "", "is no package", nil, problem.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := whole()
			if tc.edit != nil {
				r = tc.edit(r)
			}
			md, err := Load(t.Context(), r.fetch, tc.pin)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if got := problem.KindOf(err); got != tc.kind {
				t.Errorf("kind %q, want %q", got, tc.kind)
			}
			if d := cmp.Diff(md, Metadata{}); d != "" {
				t.Errorf("something was returned beside the error: %s", d)
			}
		})
	}
}

func TestParseRepomdWantsSHA256(t *testing.T) {
	const text = `<repomd><data type="primary"><checksum type="md5">aa</checksum><location href="p.xml"/></data></repomd>`
	if _, err := ParseRepomd(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "no SHA-256 checksum") {
		t.Errorf("got %v", err)
	}
}

func TestBroughtReadsBack(t *testing.T) {
	a := rpm.NEVRA{Name: "a", EVR: rpm.EVR{Epoch: 1, Version: "1", Release: "1"}, Arch: "noarch"}
	b := rpm.NEVRA{Name: "b", EVR: rpm.EVR{Version: "1~rc1", Release: "1"}, Arch: "x86_64"}
	for _, list := range [][]rpm.NEVRA{nil, {a, b}, {b, a, a}} {
		raw, err := EncodeBrought(list)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseBrought(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		again, err := EncodeBrought(got)
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%v: %s, then %s", list, raw, again)
		}
	}
}

func FuzzParse(f *testing.F) {
	r := whole()
	f.Add(string(r[RepomdPath]))
	f.Add(primary)
	f.Add(groups)
	f.Add(string(r["repodata/brought.json"]))
	f.Add(`<metadata><package><name>a</name><version epoch="-1" ver="1" rel="1"/><arch>x</arch><location href="a"/></package></metadata>`)
	f.Fuzz(func(t *testing.T, text string) {
		if md, err := ParseRepomd(strings.NewReader(text)); err == nil {
			for _, rec := range md.Records {
				if !isSHA256(rec.SHA256) || !fs.ValidPath(rec.Location) {
					t.Errorf("record %+v", rec)
				}
			}
		}
		if packages, err := ParsePrimary(strings.NewReader(text)); err == nil {
			for i, p := range packages {
				if _, err := rpm.ParseFileName(p.FileName()); err != nil || !fs.ValidPath(p.Location) || p.Epoch < 0 {
					t.Errorf("package %+v: %v", p, err)
				}
				if i > 0 && packages[i-1].NEVRA.Compare(p.NEVRA) > 0 {
					t.Errorf("%s after %s", p.NEVRA, packages[i-1].NEVRA)
				}
			}
		}
		if groups, err := ParseGroups(strings.NewReader(text)); err == nil {
			if _, ok := groups[""]; ok {
				t.Error("a group without an id")
			}
		}
		if list, err := ParseBrought(strings.NewReader(text)); err == nil {
			raw, err := EncodeBrought(list)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ParseBrought(bytes.NewReader(raw)); err != nil || len(again) != len(list) {
				t.Errorf("%s reads back as %v, %v", raw, again, err)
			}
		}
	})
}

func BenchmarkParsePrimary(b *testing.B) {
	one := primary[strings.Index(primary, "<package "):strings.Index(primary, "</package>")] + "</package>"
	text := "<metadata>" + strings.Repeat(one, 5000) + "</metadata>"
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if p, err := ParsePrimary(strings.NewReader(text)); err != nil || len(p) != 5000 {
			b.Fatal(len(p), err)
		}
	}
}
