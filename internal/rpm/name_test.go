package rpm_test

import (
	"strings"
	"testing"

	"github.com/starpatch/starpatch/internal/rpm"
)

func TestParseFileName(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // NEVRA, or a part of the refusal after "!"
	}{
		{"inventory-2.4-7.tis.x86_64.rpm", "inventory-2.4-7.tis.x86_64"},
		{"a-b-c-1-2.noarch.rpm", "a-b-c-1-2.noarch"},
		{"12:foo-1-2.x86_64.rpm", "foo-12:1-2.x86_64"},
		{"0:foo-1-2.x86_64.rpm", "foo-1-2.x86_64"},
		{"libstdc++-1~rc1-2^git.x86_64.rpm", "libstdc++-1~rc1-2^git.x86_64"},
		{"foo-1-2.x86_64", "!does not end in .rpm"},
		{"foo-1-2", "!does not end in .rpm"},
		{"foo.rpm", "!no architecture"},
		{"foo-1.x86_64.rpm", "!no version"},
		{"foo.x86_64.rpm", "!no release"},
		{"x:foo-1-2.x86_64.rpm", "!epoch"},
		{"-1:foo-1-2.x86_64.rpm", "!epoch"},
		{"3000000000:foo-1-2.x86_64.rpm", "!epoch"},
		{"../foo-1-2.x86_64.rpm", "!starts with"},
		{"a/b-1-2.x86_64.rpm", "!contains"},
		{"a b-1-2.x86_64.rpm", "!contains"},
		{"-a-1-2.x86_64.rpm", "!starts with"},
		{"--1.x86_64.rpm", "!name is empty"},
		{"foo--2.x86_64.rpm", "!version is empty"},
		{"foo-1-.x86_64.rpm", "!release is empty"},
		{"foo-1-2..rpm", "!architecture is empty"},
		{strings.Repeat("a", 300) + "-1-2.x86_64.rpm", "!longer than 256"},
		{"", "!does not end in .rpm"},
	} {
		n, err := rpm.ParseFileName(c.in)
		got := n.String()
		if err != nil {
			got = "!" + err.Error()
		}
		if why, refused := strings.CutPrefix(c.want, "!"); refused != (err != nil) || !strings.Contains(got, why) {
			t.Errorf("%q: got %s; want %s", c.in, got, c.want)
		}
	}
}

func FuzzParseFileName(f *testing.F) {
	for _, s := range []string{"inventory-2.4-7.tis.x86_64.rpm", "1:foo-1-2.noarch.rpm", "foo.rpm", "../a-1-1.x.rpm"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := rpm.ParseFileName(s)
		if err != nil {
			return
		}
		again, err := rpm.ParseFileName(n.FileName())
		if err != nil {
			t.Fatalf("%q gives %v, whose file name %q is refused: %v", s, n, n.FileName(), err)
		}
		again.Epoch = n.Epoch
		if again != n {
			t.Fatalf("%q gives %+v and then %+v", s, n, again)
		}
		if strings.ContainsAny(n.FileName(), "/\x00 ") || strings.HasPrefix(n.FileName(), ".") {
			t.Fatalf("%q is unsafe as a file name", n.FileName())
		}
	})
}
