package blob

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/patch/patchfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func hashOf(content string) string {
	h := sha256.Sum256([]byte(content))
	return hex.EncodeToString(h[:])
}

// tree lists every file below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// upload fills a spool with one file per content.
func upload(t *testing.T, s *Store, contents ...string) (patchfile.Spool, []patchfile.Member) {
	t.Helper()
	sp, err := s.Spool()
	if err != nil {
		t.Fatal(err)
	}
	var members []patchfile.Member
	for i, c := range contents {
		name := fmt.Sprintf("file-%d.rpm", i)
		f, err := sp.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, c); err != nil {
			t.Fatal(err)
		}
		members = append(members, patchfile.Member{Name: name, SHA256: hashOf(c), Size: int64(len(c)), File: f})
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return sp, members
}

func TestSpooledFilesBecomeBlobs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	sp, members := upload(t, s, "one", "two", "one", "left out")
	if err := s.Keep(sp, members[:3]); err != nil {
		t.Fatal(err)
	}
	one, two := hashOf("one"), hashOf("two")
	want := []string{"sha256/" + one[:2] + "/" + one, "sha256/" + two[:2] + "/" + two}
	slices.Sort(want)
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("files %v, want only the blobs %v", got, want)
	}
	f, err := s.Open(two)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || string(got) != "two" {
		t.Errorf("read %q, %v; want two", got, err)
	}
	if fi, err := f.Stat(); err != nil || fi.Mode().Perm() != 0o444 {
		t.Errorf("mode %v, %v; want that nobody can write it", fi.Mode(), err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for digest, want := range map[string]bool{one: true, two: true, hashOf("left out"): false} {
		if _, err := s.stat(digest); (err == nil) != want {
			t.Errorf("%s: %v; want that it is there: %v", digest[:8], err, want)
		}
	}
}

func TestADiscardedSpoolLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	sp, _ := upload(t, s, "one")
	for range 2 {
		if err := sp.Discard(); err != nil {
			t.Error(err)
		}
	}
	if got := tree(t, dir); len(got) != 0 {
		t.Errorf("files %v, want none", got)
	}
}

func TestAFailedKeepUsesTheSpoolUp(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(m *patchfile.Member)
	}{
		{"a malformed hash", func(m *patchfile.Member) { m.SHA256 = strings.ToUpper(m.SHA256) }},
		{"a hash that leads elsewhere", func(m *patchfile.Member) { m.SHA256 = "../../../../etc/passwd" }},
		{"a wrong size", func(m *patchfile.Member) { m.Size++ }},
		{"an unknown name", func(m *patchfile.Member) { m.Name = "other" }},
	} {
		dir := t.TempDir()
		s := open(t, dir)
		sp, members := upload(t, s, "one", "two")
		c.harm(&members[1])
		if err := s.Keep(sp, members); err == nil {
			t.Errorf("%s: kept", c.name)
		}
		if got := tree(t, dir); len(got) != 0 {
			t.Errorf("%s: files %v, want none", c.name, got)
		}
	}
}

func TestABlobThatIsThereStays(t *testing.T) {
	s := open(t, t.TempDir())
	digest, err := s.Put([]byte("one"))
	if err != nil || digest != hashOf("one") {
		t.Fatal(digest, err)
	}
	before, err := s.stat(digest)
	if err != nil {
		t.Fatal(err)
	}
	sp, members := upload(t, s, "one")
	if err := s.Keep(sp, members); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Put([]byte("one")); err != nil || again != digest {
		t.Fatal(again, err)
	}
	after, err := s.stat(digest)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced (%v): repositories link it", err)
	}
}

// read returns the content of a blob.
func read(t *testing.T, s *Store, digest string) string {
	t.Helper()
	f, err := s.Open(digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestABlobOfTheWrongSizeIsRepaired(t *testing.T) {
	s := open(t, t.TempDir())
	digest, err := s.Put([]byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.path(digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("cut"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put([]byte("content")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, digest); got != "content" {
		t.Errorf("the blob holds %q", got)
	}
}

func TestOnlyHashesAreLookedUp(t *testing.T) {
	s := open(t, t.TempDir())
	for _, digest := range []string{"", "ab", strings.Repeat("g", 64), strings.Repeat("A", 64), "../" + strings.Repeat("a", 61)} {
		if _, err := s.Open(digest); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("open %q: %v, want a refusal of the hash", digest, err)
		}
		if err := s.Link(digest, filepath.Join(t.TempDir(), "x")); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("link %q: %v, want a refusal of the hash", digest, err)
		}
	}
	if _, err := s.Open(hashOf("nothing")); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want %v", err, ErrNotFound)
	}
}

func TestASpoolTakesOnlyPlainNames(t *testing.T) {
	s := open(t, t.TempDir())
	sp, err := s.Spool()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/etc/passwd", ".hidden", "a\x00b"} {
		if f, err := sp.Create(name); err == nil {
			t.Errorf("%q was created", name)
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	f, err := sp.Create("twice")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sp.Create("twice"); err == nil {
		t.Error("one name was created twice")
	}
}

func TestALinkIsAnotherNameOfTheBlob(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	digest, err := s.Put([]byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(dir, "linked.rpm")
	if err := s.Link(digest, dst); err != nil {
		t.Fatal(err)
	}
	a, err := os.Stat(dst)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.stat(digest)
	if err != nil || !os.SameFile(a, b) {
		t.Errorf("%s is not the blob (%v)", dst, err)
	}
	if err := s.Link(digest, dst); !errors.Is(err, os.ErrExist) {
		t.Errorf("linked over an existing file: %v", err)
	}
	copied := filepath.Join(dir, "copied.rpm")
	if err := copyTo(dst, copied); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(copied); err != nil || string(got) != "one" {
		t.Errorf("copied %q, %v", got, err)
	}
}

func TestSweepKeepsWhatIsNeeded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var digests []string
	for _, c := range []string{"one", "two", "three"} {
		d, err := s.Put([]byte(c))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	if err := s.Sweep(func(d string) bool { return d == digests[1] }); err != nil {
		t.Fatal(err)
	}
	if got, want := tree(t, dir), []string{"sha256/" + digests[1][:2] + "/" + digests[1]}; !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	upload(t, s, "one", "two") // and the process dies
	if _, err := s.Put([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if got := tree(t, dir); len(got) != 1 {
		t.Errorf("files %v, want only the blob", got)
	}
}

func TestFreeIsTheSpaceOfTheDisk(t *testing.T) {
	if free, err := open(t, t.TempDir()).Free(); err != nil || free <= 0 {
		t.Errorf("%d bytes free, %v", free, err)
	}
}

// BenchmarkKeep is what an upload of 50 packages of 4 MiB waits for after the last byte has arrived, and before.
func BenchmarkKeep(b *testing.B) {
	s := open(b, b.TempDir())
	const files = 50
	content := make([]byte, 4<<20)
	rand.Read(content)
	b.SetBytes(files * int64(len(content)))
	for i := 0; b.Loop(); i++ {
		sp, err := s.Spool()
		if err != nil {
			b.Fatal(err)
		}
		var members []patchfile.Member
		for n := range files {
			content[0], content[1], content[2] = byte(i), byte(i>>8), byte(n)
			f, err := sp.Create(fmt.Sprint(n))
			if err != nil {
				b.Fatal(err)
			}
			for part := range slices.Chunk(content, 256<<10) {
				if _, err := f.Write(part); err != nil {
					b.Fatal(err)
				}
			}
			h := sha256.Sum256(fmt.Append(nil, i, n))
			members = append(members, patchfile.Member{Name: fmt.Sprint(n), SHA256: hex.EncodeToString(h[:]), Size: int64(len(content)), File: f})
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Keep(sp, members); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Sweep(func(string) bool { return false }); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
