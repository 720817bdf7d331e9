package patchfile_test

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/patch/patchfile/patchfiletest"
)

func signingKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, "keys", name))
	if err != nil {
		t.Fatal(err)
	}
	k, err := patchfile.ParseSigningKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pkg(t testing.TB, s rpmmake.Spec) patchfile.Input {
	t.Helper()
	b, err := s.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return patchfile.BytesInput(s.FileName(), b)
}

// demo is a patch with something of everything.
func demo(t testing.TB) patchfile.Source {
	t.Helper()
	return patchfile.Source{
		Metadata: patch.Metadata{
			ID: "DEMO_19.09_PATCH_0002", Release: "19.09", Summary: patch.Some(`"Faster" <audit> & more`), Description: patch.Some("Line one.\nLine two."),
			InstallInstructions: patch.Some(""), Warnings: patch.Some("Ümlaut ☃"), Status: patch.Some("DEV"), Unremovable: patch.Some("Y"),
			RebootRequired: patch.Some("N"), ApplyActiveReleaseOnly: patch.Some(""),
			Personalities: map[host.Personality][]string{host.Controller: {"audit-helper"}, host.WorkerLowLatency: {"audit-helper", "inventory"}},
			Requires:      []patch.ID{"DEMO_19.09_PATCH_0001"},
		},
		Packages: []patchfile.Input{
			pkg(t, rpmmake.Spec{Name: "inventory", EVR: rpmmake.EVR("1:2.4-7.tis"), Arch: "x86_64", Files: []rpmmake.File{{Path: "/usr/bin/inventory", Body: []byte("x")}}}),
			pkg(t, rpmmake.Spec{Name: "audit-helper", EVR: rpmmake.EVR("1.0-1.tis")}),
		},
		Checks: map[patch.Action]patchfile.Input{
			patch.PreApply: patchfile.BytesInput("", []byte("#!/bin/sh\nexit 0\n")), patch.PreRemove: patchfile.BytesInput("", []byte("#!/bin/sh\nexit 1\n")),
		},
	}
}

func build(t testing.TB, src patchfile.Source, o patchfile.BuildOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := patchfile.Build(&b, src, signingKey(t, "dev-private-key.pem"), o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t testing.TB, b []byte, o patchfile.Options) *patchfile.File {
	t.Helper()
	f, err := patchfile.Open(bytes.NewReader(b), &patchfiletest.Spool{}, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReadsBackWhatItBuilds(t *testing.T) {
	src := demo(t)
	f := open(t, build(t, src, patchfile.BuildOptions{}), patchfile.Options{Stem: "DEMO_19.09_PATCH_0002", Trust: trust(t)})
	want := src.Metadata
	want.Contents = []string{"audit-helper-1.0-1.tis.noarch.rpm", "inventory-2.4-7.tis.x86_64.rpm"}
	want.Semantics = []patch.Action{patch.PreApply, patch.PreRemove}
	if d := cmp.Diff(f.Metadata, want); d != "" {
		t.Errorf("metadata (-got +want):\n%s", d)
	}
	if got := f.Packages[1].NEVRA.String(); got != "inventory-1:2.4-7.tis.x86_64" {
		t.Errorf("the epoch comes from the header: got %s", got)
	}
	for _, in := range src.Packages {
		found := false
		for _, m := range f.PackageFiles() {
			if m.Name != in.Name {
				continue
			}
			found = true
			got, err := io.ReadAll(m.Reader())
			if err != nil {
				t.Fatal(err)
			}
			r, err := in.Open()
			if err != nil {
				t.Fatal(err)
			}
			want, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: other bytes", in.Name)
			}
		}
		if !found {
			t.Errorf("%s is missing", in.Name)
		}
	}
}

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	o := patchfile.BuildOptions{Time: time.Unix(1567296000, 0)}
	a, b := gunzip(t, build(t, demo(t), o)), gunzip(t, build(t, demo(t), o))
	// Only the salted signature may differ: its 256 bytes stand in the last blocks.
	at := bytes.LastIndex(a, []byte("signature.v2"))
	if !bytes.Equal(a[:at+512], b[:at+512]) || !bytes.Equal(a[at+512+256:], b[at+512+256:]) {
		t.Error("two builds differ in more than the signature")
	}
}

func TestRefusesToBuildWhatItWouldNotRead(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*patchfile.Source)
		want   string
	}{
		"no package":                        {func(s *patchfile.Source) { s.Packages = nil }, "Cannot generate empty patch"},
		"no release":                        {func(s *patchfile.Source) { s.Metadata.Release = "" }, "The release version must be specified in the sw_version field"},
		"a bad release":                     {func(s *patchfile.Source) { s.Metadata.Release = "../19" }, "is not a release"},
		"a bad id":                          {func(s *patchfile.Source) { s.Metadata.ID = "a/b" }, "is not a patch ID"},
		"a bad requirement":                 {func(s *patchfile.Source) { s.Metadata.Requires = []patch.ID{"-x"} }, "is not a patch ID"},
		"itself required":                   {func(s *patchfile.Source) { s.Metadata.Requires = []patch.ID{s.Metadata.ID} }, "requires itself"},
		"a control character":               {func(s *patchfile.Source) { s.Metadata.Summary = patch.Some("a\x01") }, "U+0001"},
		"a personality that does not exist": {func(s *patchfile.Source) { s.Metadata.Personalities["compute"] = []string{"x"} }, "is not a personality"},
		"a package under another name":      {func(s *patchfile.Source) { s.Packages[1].Name = "audit-helper-1.0-2.tis.noarch.rpm" }, "expected the file name audit-helper-1.0-1.tis.noarch.rpm"},
		"a file that is no package":         {func(s *patchfile.Source) { s.Packages[1] = patchfile.BytesInput("x-1-1.noarch.rpm", make([]byte, 200)) }, "it is not an RPM package"},
		"two builds of a package": {func(s *patchfile.Source) {
			s.Packages = append(s.Packages, pkg(t, rpmmake.Spec{Name: "inventory", EVR: rpmmake.EVR("2.4-8"), Arch: "x86_64"}))
		}, "are two builds of inventory.x86_64"},
		"a file that shrank": {func(s *patchfile.Source) { s.Packages[0].Size += 5 }, "changed while it was read"},
		"a file that grew":   {func(s *patchfile.Source) { s.Packages[0].Size -= 5 }, "inventory"},
	} {
		t.Run(name, func(t *testing.T) {
			src := demo(t)
			c.change(&src)
			err := patchfile.Build(io.Discard, src, signingKey(t, "dev-private-key.pem"), patchfile.BuildOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
}

func TestWritesAgain(t *testing.T) {
	for _, id := range vectorIDs(t) {
		b, err := os.ReadFile(filepath.Join(vectors, "patches", id+".patch"))
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, b, patchfile.Options{Trust: trust(t), KeepTars: true})
		var same bytes.Buffer
		if err := f.Copy(&same, patchfile.BuildOptions{}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(untar(t, gunzip(t, same.Bytes())), untar(t, gunzip(t, b))); d != "" {
			t.Errorf("%s copied (-got +want):\n%s", id, d)
		}
		m := f.Metadata
		m.Status = patch.Some("OBS")
		var obsolete bytes.Buffer
		if err := f.Rewrite(&obsolete, m, signingKey(t, "formal-private-key.pem"), patchfile.BuildOptions{}); err != nil {
			t.Fatal(err)
		}
		g := open(t, obsolete.Bytes(), patchfile.Options{Stem: id, Trust: trust(t)})
		if d := cmp.Diff(g.Metadata, m); d != "" || g.Signer.Class != patchfile.Formal {
			t.Errorf("%s rewritten: signer %v, metadata (-got +want):\n%s", id, g.Signer, d)
		}
		if d := cmp.Diff(g.Packages, f.Packages); d != "" {
			t.Errorf("%s rewritten: packages (-got +want):\n%s", id, d)
		}
	}
}

func TestRefusesToSignWithASmallKey(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(nil, 1024)
	if err != nil {
		t.Fatal(err)
	}
	err = patchfile.Build(io.Discard, demo(t), small, patchfile.BuildOptions{})
	if err == nil || !strings.Contains(err.Error(), "has 1024 bits") {
		t.Errorf("got %v", err)
	}
}

func TestAFailingWriterEndsTheBuild(t *testing.T) {
	if err := patchfile.Build(failingWriter{}, demo(t), signingKey(t, "dev-private-key.pem"), patchfile.BuildOptions{}); !errors.Is(err, errDiskFull) {
		t.Errorf("got %v; want the writer's error", err)
	}
}

var errDiskFull = errors.New("disk full")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errDiskFull }
