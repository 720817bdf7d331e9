package patch_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

func read(t testing.TB, s string) patch.Metadata {
	t.Helper()
	m, err := patch.ReadMetadata(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAbsentAndEmptyElementsDiffer(t *testing.T) {
	got := read(t, `<patch><id>P1</id><summary/><warnings></warnings><status> REL </status></patch>`)
	want := patch.Metadata{ID: "P1", Release: "unknown", Summary: patch.Some(""), Warnings: patch.Some(""), Status: patch.Some(" REL ")}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("(-got +want):\n%s", d)
	}
}

func TestListsOfOneKindAreMerged(t *testing.T) {
	got := read(t, `<patch><id>P3</id><sw_version>19.09</sw_version>
		<contents><rpm>b-1-1.noarch.rpm</rpm></contents><contents><rpm>a-1-1.noarch.rpm</rpm><rpm>b-1-1.noarch.rpm</rpm></contents>
		<requires><req_patch_id>P2</req_patch_id></requires><requires><req_patch_id>P1</req_patch_id></requires>
		<semantics><action>pre-remove</action></semantics><semantics><action>pre-apply</action></semantics>
		<personality type="worker"><package>b</package></personality><personality type="worker"><package>a</package></personality>
		<personality type="storage"/></patch>`)
	want := patch.Metadata{
		ID: "P3", Release: "19.09", Contents: []string{"a-1-1.noarch.rpm", "b-1-1.noarch.rpm"}, Requires: []patch.ID{"P1", "P2"},
		Semantics: []patch.Action{patch.PreApply, patch.PreRemove}, Personalities: map[host.Personality][]string{host.Worker: {"a", "b"}},
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("(-got +want):\n%s", d)
	}
}

func TestIgnoresWhatItDoesNotKnow(t *testing.T) {
	got := read(t, "\ufeff<?xml version='1.0' encoding='UTF-8'?><!-- a note --><patch version=\"2\"><id>P<!-- x -->1</id><future><id>P2</id></future>"+
		"<contents kind=\"x\"><note/><rpm><![CDATA[a-1-1.noarch.rpm]]></rpm></contents></patch>\n")
	want := patch.Metadata{ID: "P1", Release: "unknown", Contents: []string{"a-1-1.noarch.rpm"}}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("(-got +want):\n%s", d)
	}
}

func TestRefusesHostileMetadata(t *testing.T) {
	in := func(body string) string { return "<patch><id>P1</id>" + body + "</patch>" }
	for name, c := range map[string]struct {
		xml  string
		kind problem.Kind
		want string
	}{
		"nothing":                         {"", problem.Invalid, "it has no element"},
		"no XML":                          {"hello", problem.Invalid, "text outside"},
		"an open element":                 {"<patch><id>P1</id>", problem.Invalid, "not well-formed"},
		"another root":                    {"<update/>", problem.Invalid, "expected <patch>"},
		"two roots":                       {in("") + in(""), problem.Invalid, "two root elements"},
		"a root in a name space":          {`<patch xmlns="urn:x"><id>P1</id></patch>`, problem.Invalid, "expected <patch>"},
		"a document type":                 {`<!DOCTYPE patch [<!ENTITY a "aaaa">]>` + in("<summary>&a;</summary>"), problem.Invalid, "directive"},
		"an entity":                       {in("<summary>&lol;</summary>"), problem.Invalid, "not well-formed"},
		"an external entity":              {`<!DOCTYPE x SYSTEM "file:///etc/passwd">` + in(""), problem.Invalid, "directive"},
		"another encoding":                {`<?xml version="1.0" encoding="utf-16"?>` + in(""), problem.Invalid, "not well-formed"},
		"bytes that are not UTF-8":        {in("<summary>\xff</summary>"), problem.Invalid, "not well-formed"},
		"no id":                           {"<patch><sw_version>1</sw_version></patch>", problem.Invalid, "no <id> element"},
		"an empty id":                     {"<patch><id/></patch>", problem.Invalid, "is not a patch ID"},
		"two ids":                         {in("<id>P2</id>"), problem.Invalid, "two <id> elements"},
		"an id with elements":             {"<patch><id>P<b/>1</id></patch>", problem.Invalid, "expected text only"},
		"an id that climbs":               {"<patch><id>../../etc/passwd</id></patch>", problem.Invalid, "is not a patch ID"},
		"an id like an option":            {"<patch><id>--all</id></patch>", problem.Invalid, "is not a patch ID"},
		"an id in blanks":                 {"<patch><id> P1 </id></patch>", problem.Invalid, "is not a patch ID"},
		"a release that climbs":           {in("<sw_version>../x</sw_version>"), problem.Invalid, "is not a release"},
		"an empty release":                {in("<sw_version/>"), problem.Invalid, "is not a release"},
		"a package that climbs":           {in("<contents><rpm>../a-1-1.noarch.rpm</rpm></contents>"), problem.Invalid, "is not an RPM file name"},
		"a package without a version":     {in("<contents><rpm>a.rpm</rpm></contents>"), problem.Invalid, "is not an RPM file name"},
		"an empty package":                {in("<contents><rpm/></contents>"), problem.Invalid, "is not an RPM file name"},
		"a requirement that is a path":    {in("<requires><req_patch_id>/P2</req_patch_id></requires>"), problem.Invalid, "is not a patch ID"},
		"a patch that requires itself":    {in("<requires><req_patch_id>P1</req_patch_id></requires>"), problem.Invalid, "requires itself"},
		"an unknown action":               {in("<semantics><action>post-apply</action></semantics>"), problem.Invalid, "is not a semantic action"},
		"an unknown personality":          {in(`<personality type="compute"><package>a</package></personality>`), problem.Invalid, "is not a personality"},
		"a personality without a type":    {in(`<personality><package>a</package></personality>`), problem.Invalid, "is not a personality"},
		"a type twice":                    {in(`<personality type="worker" type="storage"/>`), problem.Invalid, "type twice"},
		"a package name with a blank":     {in(`<personality type="worker"><package>a b</package></personality>`), problem.Invalid, "is not a package name"},
		"a package name like an option":   {in(`<personality type="worker"><package>-y</package></personality>`), problem.Invalid, "is not a package name"},
		"elements nested deeper than 32":  {in(strings.Repeat("<a>", 32) + strings.Repeat("</a>", 32)), problem.TooLarge, "deeper than 32"},
		"more elements than make sense":   {in(strings.Repeat("<a/>", 100_001)), problem.TooLarge, "more than 100000 elements"},
		"more bytes than make sense":      {in("<summary>" + strings.Repeat("x", patch.MaxMetadata) + "</summary>"), problem.TooLarge, "larger than 4194304 bytes"},
		"text in half a million pieces":   {in("<summary>" + strings.Repeat("<!---->x", 500_000) + "</summary>"), "", ""},
		"elements nested as deep as 32":   {in(strings.Repeat("<a>", 31) + strings.Repeat("</a>", 31)), "", ""},
		"a processing instruction inside": {in("<?php exit ?>"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := patch.ReadMetadata(strings.NewReader(c.xml))
			if c.kind == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || problem.KindOf(err) != c.kind || !strings.HasPrefix(err.Error(), "metadata.xml") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v (%s); want %q (%s)", err, problem.KindOf(err), c.want, c.kind)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := patch.ReadMetadata(iotest.ErrReader(broken)); !errors.Is(err, broken) || problem.KindOf(err) != problem.Internal {
		t.Errorf("an error of the reader: %v", err)
	}
}

func drawMetadata(t *rapid.T) patch.Metadata {
	id := rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9._-]{0,20}`)
	name := rapid.StringMatching(`[a-z][a-z0-9+]{0,5}`)
	text := rapid.Custom(func(t *rapid.T) patch.Text {
		return patch.Some(rapid.StringOf(rapid.RuneFrom([]rune("aZ ü☃<>&\"'\n\t\r]]>;#13"))).Draw(t, "text"))
	})
	m := patch.Metadata{
		ID: "ID_" + patch.ID(id.Draw(t, "id")), Release: rapid.StringMatching(`[0-9]{2}\.[0-9]{2}`).Draw(t, "release"),
		Summary: text.Draw(t, "summary"), Description: text.Draw(t, "description"), InstallInstructions: text.Draw(t, "instructions"),
		Warnings: text.Draw(t, "warnings"), Status: text.Draw(t, "status"), Unremovable: text.Draw(t, "unremovable"),
		RebootRequired: text.Draw(t, "reboot"), ApplyActiveReleaseOnly: text.Draw(t, "active"),
	}
	for _, n := range rapid.SliceOfNDistinct(name, 1, 5, rapid.ID).Draw(t, "packages") {
		m.Contents = append(m.Contents, n+"-1.0-1.noarch.rpm")
		for _, hp := range host.Personalities() {
			if rapid.Bool().Draw(t, "new") {
				if m.Personalities == nil {
					m.Personalities = map[host.Personality][]string{}
				}
				m.Personalities[hp] = append(m.Personalities[hp], n)
			}
		}
	}
	for _, r := range rapid.SliceOfDistinct(id, rapid.ID).Draw(t, "requires") {
		m.Requires = append(m.Requires, patch.ID(r))
	}
	if rapid.Bool().Draw(t, "semantics") {
		m.Semantics = []patch.Action{patch.PreRemove, patch.PreApply}
	}
	return m
}

func write(t interface {
	Helper()
	Fatal(...any)
}, m patch.Metadata) string {
	t.Helper()
	var b bytes.Buffer
	if err := patch.WriteMetadata(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := write(t, drawMetadata(t))
		m, err := patch.ReadMetadata(strings.NewReader(first))
		if err != nil {
			t.Fatalf("%v in\n%s", err, first)
		}
		if again := write(t, m); again != first {
			t.Fatalf("written again (-got +want):\n%s", cmp.Diff(again, first))
		}
	})
}

func TestRefusesToWriteWhatXMLCannotCarry(t *testing.T) {
	for _, s := range []string{"a\x00b", "\x1b[31m", "\xff", "\ufffe"} {
		if err := patch.WriteMetadata(io.Discard, patch.Metadata{ID: "P1", Release: "1", Summary: patch.Some(s)}); problem.KindOf(err) != problem.Invalid {
			t.Errorf("%q: got %v", s, err)
		}
	}
	if err := patch.WriteMetadata(io.Discard, patch.Metadata{ID: "P1", Summary: patch.Some(strings.Repeat("x", patch.MaxMetadata))}); problem.KindOf(err) != problem.TooLarge {
		t.Errorf("a text of 4 MiB: got %v", err)
	}
}

func FuzzReadMetadata(f *testing.F) {
	for _, s := range []string{
		`<patch><id>P1</id></patch>`,
		"<?xml version=\"1.0\" ?>\n<patch>\n  <id>P2</id>\n  <sw_version>19.09</sw_version>\n  <summary>a &lt; b</summary>\n  <personality type=\"controller\">\n    <package>x</package>\n  </personality>\n  <contents>\n    <rpm>x-1-1.noarch.rpm</rpm>\n  </contents>\n  <requires>\n    <req_patch_id>P1</req_patch_id>\n  </requires>\n  <semantics>\n    <action>pre-apply</action>\n  </semantics>\n</patch>\n",
		`<!DOCTYPE x [<!ENTITY a "b">]><patch><id>&a;</id></patch>`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := patch.ReadMetadata(bytes.NewReader(b))
		if err != nil {
			if k := problem.KindOf(err); k != problem.Invalid && k != problem.TooLarge {
				t.Fatalf("%v has kind %q", err, k)
			}
			return
		}
		first := write(t, m)
		again, err := patch.ReadMetadata(strings.NewReader(first))
		if err != nil {
			if m.Release == patch.UnknownRelease {
				return
			}
			t.Fatalf("%v in\n%s", err, first)
		}
		if second := write(t, again); second != first {
			t.Fatalf("written again (-got +want):\n%s", cmp.Diff(second, first))
		}
	})
}
