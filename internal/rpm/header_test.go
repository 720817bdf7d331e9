package rpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/problem"
)

const vectorRPMs = "../../patch/patchfile/testdata/vectors/rpms"

func TestReadsWhatRPMReads(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(vectorRPMs, "*.rpm"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no packages: %v", err)
	}
	dir := t.TempDir()
	for _, s := range []rpmmake.Spec{
		{Name: "with-epoch", EVR: rpmmake.EVR("12:1.0~rc1-2^x"), Arch: "x86_64", Summary: "An epoch"},
		{Name: "old", EVR: rpmmake.EVR("1-1"), BuildTime: time.Unix(1, 0)},
	} {
		path, err := s.WriteTo(dir)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(b)
		h, err := rpm.ReadHeader(iotest.OneByteReader(r))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		epoch := "(none)"
		if h.Epoch != 0 {
			epoch = strings.Split(h.EVR.String(), ":")[0]
		}
		payload, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join([]string{h.Name, epoch, h.Version, h.Release, h.Arch, h.Summary, time.Unix(h.Built, 0).UTC().Format(time.RFC3339), h.PayloadSHA256}, "|")
		out, err := exec.Command("rpm", "-qp", "--qf", "%{NAME}|%{EPOCH}|%{VERSION}|%{RELEASE}|%{ARCH}|%{SUMMARY}|%{BUILDTIME:date}|%{PAYLOADDIGEST}", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(string(out), "|")
		when, err := exec.Command("rpm", "-qp", "--qf", "%{BUILDTIME}", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		secs, err := time.ParseDuration(string(when) + "s")
		if err != nil {
			t.Fatal(err)
		}
		want[6] = time.Unix(0, 0).Add(secs).UTC().Format(time.RFC3339)
		if want[7] == "(none)" {
			want[7] = ""
		}
		if got != strings.Join(want, "|") {
			t.Errorf("%s: got %s\nrpm says %s", file, got, strings.Join(want, "|"))
		}
		if h.Source {
			t.Errorf("%s is taken for a source package", file)
		}
		if magic := payload[:2]; !bytes.Equal(magic, []byte{0x1f, 0x8b}) && !bytes.Equal(magic, []byte{0x28, 0xb5}) {
			t.Errorf("%s: the reader is left at %x, which starts no payload", file, magic)
		}
	}
}

// sample is a small package; its headers start at fixed places.
func sample(t testing.TB) []byte {
	t.Helper()
	b, err := rpmmake.Spec{Name: "sample", EVR: rpmmake.EVR("1:2-3")}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const signatureAt = 96

func TestRefusesHostileHeaders(t *testing.T) {
	good := sample(t)
	entries := binary.BigEndian.Uint32(good[signatureAt+8:])
	store := binary.BigEndian.Uint32(good[signatureAt+12:])
	headerAt := (signatureAt + 16 + int(entries)*16 + int(store) + 7) / 8 * 8
	change := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	firstEntry := headerAt + 16
	for name, c := range map[string]struct {
		in   []byte
		kind problem.Kind
		want string
	}{
		"nothing":                             {nil, problem.Invalid, "ends within its lead"},
		"half a lead":                         {good[:50], problem.Invalid, "ends within its lead"},
		"another kind of file":                {[]byte(strings.Repeat("not a package ", 20)), problem.Invalid, "the first four bytes"},
		"a format of the future":              {change(4, 9), problem.Invalid, "format 9"},
		"no signature header":                 {change(signatureAt, 0), problem.Invalid, "its signature header starts with"},
		"a signature header of 4 GiB":         {change(signatureAt+8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff), problem.TooLarge, "claims"},
		"a header with 2^32-1 entries":        {change(headerAt+8, 0xff, 0xff, 0xff, 0xff), problem.TooLarge, "claims"},
		"a header larger than the file":       {change(headerAt+12, 1, 0, 0, 0), problem.Invalid, "ends within its header"},
		"a header cut off":                    {good[:headerAt+40], problem.Invalid, "ends within its header"},
		"cut off between the headers":         {good[:headerAt-1], problem.Invalid, "ends within its"},
		"a changed header":                    {change(len(good[:headerAt])+16+16*20, 'X'), problem.Invalid, ""},
		"an entry that points outside":        {change(firstEntry+16+8, 0x7f, 0xff, 0xff, 0xff), problem.Invalid, ""},
		"a lead that says source":             {change(6, 0, 1), "", ""},
		"the real thing with more behind it ": {append(bytes.Clone(good), "more"...), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := rpm.ReadHeader(bytes.NewReader(c.in))
			if c.kind == "" {
				if err != nil {
					t.Fatal(err)
				}
				if source := strings.Contains(name, "source"); h.Source != source {
					t.Errorf("source: %v", h.Source)
				}
				return
			}
			if err == nil || problem.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v (%s); want %q (%s)", err, problem.KindOf(err), c.want, c.kind)
			}
		})
	}
}

// undigested is the sample without digests in its signature header, so that changes reach the reader of entries.
func undigested(t testing.TB) []byte {
	t.Helper()
	good := sample(t)
	entries, store := binary.BigEndian.Uint32(good[signatureAt+8:]), binary.BigEndian.Uint32(good[signatureAt+12:])
	headerAt := (signatureAt + 16 + int(entries)*16 + int(store) + 7) / 8 * 8
	b := append(bytes.Clone(good[:signatureAt+8]), make([]byte, 8)...)
	return append(b, good[headerAt:]...)
}

func TestRefusesHostileEntries(t *testing.T) {
	const headerAt = signatureAt + 16
	tagAt := func(b []byte, tag uint32) int {
		for at := headerAt + 16; at < len(b); at += 16 {
			if binary.BigEndian.Uint32(b[at:]) == tag {
				return at
			}
		}
		t.Fatalf("no tag %d", tag)
		return 0
	}
	const name, version, epoch, arch, summary = 1000, 1001, 1003, 1022, 1004
	for why, c := range map[string]struct {
		change func(b []byte)
		want   string
	}{
		"nothing changed":          {func([]byte) {}, ""},
		"a name outside the store": {func(b []byte) { b[tagAt(b, name)+8] = 0x7f }, "points outside"},
		"a name of no values":      {func(b []byte) { copy(b[tagAt(b, name)+12:], []byte{0, 0, 0, 0}) }, "points outside"},
		"a name that is a number":  {func(b []byte) { b[tagAt(b, name)+7] = 4 }, "is not text"},
		"an epoch that is text":    {func(b []byte) { b[tagAt(b, epoch)+7] = 6 }, "is not a number"},
		"two names":                {func(b []byte) { binary.BigEndian.PutUint32(b[tagAt(b, version):], name) }, "twice"},
		"no name":                  {func(b []byte) { binary.BigEndian.PutUint32(b[tagAt(b, name):], 999) }, "name is empty"},
		"no architecture":          {func(b []byte) { binary.BigEndian.PutUint32(b[tagAt(b, arch):], 999) }, "architecture is empty"},
		"a name that is a path":    {func(b []byte) { copy(b[bytes.LastIndex(b[:len(b)-200], []byte("sample\x00")):], "sam/le") }, ""},
		"a source package's tag":   {func(b []byte) { binary.BigEndian.PutUint32(b[tagAt(b, summary):], 1106); b[tagAt(b, 1106)+7] = 4 }, ""},
		"an epoch beyond 31 bits":  {func(b []byte) { at := tagAt(b, epoch); setNumber(b, at, headerAt, 1<<31) }, "larger than"},
		"a build time before 1970": {func(b []byte) { setNumber(b, tagAt(b, 1006), headerAt, 1<<32-1) }, ""},
		"text without an end": {func(b []byte) {
			at := tagAt(b, name)
			binary.BigEndian.PutUint32(b[at+8:], storeSize(b, headerAt)-1)
			b[headerAt+16+entriesSize(b, headerAt)+int(storeSize(b, headerAt))-1] = 'x'
		}, "does not end"},
		"a number cut by the store": {func(b []byte) { binary.BigEndian.PutUint32(b[tagAt(b, epoch)+8:], storeSize(b, headerAt)-2) }, "is not a number"},
	} {
		t.Run(why, func(t *testing.T) {
			b := undigested(t)
			c.change(b)
			_, err := rpm.ReadHeader(bytes.NewReader(b))
			if err == nil && c.want == "" {
				return
			}
			if err == nil || problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
}

func entriesSize(b []byte, headerAt int) int {
	return int(binary.BigEndian.Uint32(b[headerAt+8:])) * 16
}

func storeSize(b []byte, headerAt int) uint32 { return binary.BigEndian.Uint32(b[headerAt+12:]) }

// setNumber sets the value of the number whose entry is at at.
func setNumber(b []byte, at, headerAt int, n uint32) {
	off := int(binary.BigEndian.Uint32(b[at+8:]))
	binary.BigEndian.PutUint32(b[headerAt+16+entriesSize(b, headerAt)+off:], n)
}

func TestTheHeaderDigestIsChecked(t *testing.T) {
	good := sample(t)
	at := bytes.Index(good, []byte("sample\x00"))
	at = at + bytes.Index(good[at+1:], []byte("sample\x00")) + 1 // the one in the header, not the lead
	good[at] = 'z'
	_, err := rpm.ReadHeader(bytes.NewReader(good))
	if err == nil || !strings.Contains(err.Error(), "its header is damaged") {
		t.Errorf("got %v", err)
	}
}

func TestAnErrorOfTheReaderStaysItsCause(t *testing.T) {
	broken := errors.New("cable pulled")
	for _, after := range []int{0, 10, 100, 200, 600} {
		_, err := rpm.ReadHeader(io.MultiReader(bytes.NewReader(sample(t)[:after]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || problem.KindOf(err) != problem.Internal {
			t.Errorf("after %d bytes: got %v", after, err)
		}
	}
}

func FuzzReadHeader(f *testing.F) {
	good := sample(f)
	f.Add(good)
	f.Add(good[:200])
	f.Add(undigested(f))
	f.Add([]byte{})
	real, err := os.ReadFile(filepath.Join(vectorRPMs, "peer-svc-1.0-2.noarch.rpm"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := rpm.ReadHeader(bytes.NewReader(b))
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Fatalf("%v has no kind", err)
			}
			return
		}
		if _, err := rpm.ParseFileName(h.FileName()); err != nil {
			t.Fatalf("%+v was accepted and its file name is not: %v", h, err)
		}
	})
}
