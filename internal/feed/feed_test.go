package feed

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

// packages fills a folder with packages named name=evr, each in a folder of its own.
func packages(t testing.TB, specs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, s := range specs {
		name, evr, _ := strings.Cut(s, "=")
		spec := rpmmake.Spec{Name: name, EVR: rpmmake.EVR(evr), Files: []rpmmake.File{{Path: "/opt/" + name, Body: []byte(s)}}}
		sub := filepath.Join(dir, string(rune('a'+i)))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := spec.WriteTo(sub); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func versions(index map[rpm.Key]rpm.NEVRA) map[string]string {
	out := map[string]string{}
	for k, n := range index {
		out[k.String()] = n.EVR.String()
	}
	return out
}

func repomd(t *testing.T, f *Feeds, release string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(f.Path(release), repodata.RepomdPath))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestAddInstallsAReleaseOnce(t *testing.T) {
	f := New(filepath.Join(t.TempDir(), "feed"))
	if got, err := f.Releases(); err != nil || len(got) > 0 {
		t.Errorf("before anything: %v, %v", got, err)
	}
	dir := packages(t, "svc=1.0-1", "lib=2:1.0-1", "svc=1.0-0")
	got, err := f.Add(t.Context(), "19.09", dir)
	if want := (Added{Packages: 3, New: 3}); err != nil || got != want {
		t.Fatalf("got %+v, %v; want %+v", got, err, want)
	}
	if got, err := f.Releases(); err != nil || !cmp.Equal(got, []string{"19.09"}) {
		t.Errorf("releases: %v, %v", got, err)
	}
	index, err := f.Base(t.Context(), "19.09")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(versions(index), map[string]string{"svc.noarch": "1.0-1", "lib.noarch": "2:1.0-1"}); d != "" {
		t.Errorf("index (-got +want): %s", d)
	}
	before := repomd(t, f, "19.09")
	got, err = f.Add(t.Context(), "19.09", dir)
	if want := (Added{Packages: 3}); err != nil || got != want {
		t.Errorf("again: got %+v, %v; want %+v", got, err, want)
	}
	if after := repomd(t, f, "19.09"); after != before {
		t.Errorf("adding the same again changed the metadata")
	}
	other := New(filepath.Join(t.TempDir(), "feed"))
	if _, err := other.Add(t.Context(), "19.09", dir); err != nil {
		t.Fatal(err)
	}
	if repomd(t, other, "19.09") != before {
		t.Errorf("the same packages give different metadata elsewhere")
	}
	t.Run("more packages join it", func(t *testing.T) {
		if err := os.Mkdir(filepath.Join(f.dir, aside+"interrupted"), 0o700); err != nil {
			t.Fatal(err)
		}
		got, err := f.Add(t.Context(), "19.09", packages(t, "svc=1.0-1", "extra=1-1"))
		if want := (Added{Packages: 4, New: 1}); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
		index, err := f.Base(t.Context(), "19.09")
		if err != nil || len(index) != 3 {
			t.Errorf("index: %v, %v", index, err)
		}
		root, err := os.OpenRoot(f.Path("19.09"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		md, err := repodata.Load(t.Context(), repodata.Folder(root), "")
		if err != nil || len(md.Packages) != 4 {
			t.Errorf("metadata: %v, %v", md.Packages, err)
		}
	})
	t.Run("a package that went is noticed", func(t *testing.T) {
		if err := os.Remove(filepath.Join(f.Path("19.09"), "Packages", "extra-1-1.noarch.rpm")); err != nil {
			t.Fatal(err)
		}
		if index, err := f.Base(t.Context(), "19.09"); err != nil || len(index) != 2 {
			t.Errorf("index: %v, %v", index, err)
		}
	})
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestAddRefusesWithoutATrace(t *testing.T) {
	cancelled, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	good := packages(t, "svc=1.0-1")
	notes := t.TempDir()
	if err := os.WriteFile(filepath.Join(notes, "bad.rpm"), []byte("not a package"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The same name with other content: another folder, another body.
	changed := t.TempDir()
	spec := rpmmake.Spec{Name: "svc", EVR: rpmmake.EVR("1.0-1"), Files: []rpmmake.File{{Path: "/opt/svc", Body: []byte("changed")}}}
	if _, err := spec.WriteTo(changed); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name         string
		ctx          context.Context
		release, dir string
		want         string
	}{
		{"a bad release", t.Context(), "../19.09", good, "is not a release"},
		{"no such folder", t.Context(), "20.01", filepath.Join(good, "nope"), "no such file"},
		{"an empty folder", t.Context(), "20.01", t.TempDir(), "no .rpm file"},
		{"what is no package", t.Context(), "20.01", notes, "cannot read bad.rpm"},
		{"another content under a known name", t.Context(), "19.09", changed, "the feed has another svc-1.0-1.noarch.rpm already"},
		{"cancelled", cancelled, "20.01", good, "enough"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := New(filepath.Join(t.TempDir(), "feed"))
			if _, err := f.Add(t.Context(), "19.09", good); err != nil {
				t.Fatal(err)
			}
			before := repomd(t, f, "19.09")
			if _, err := f.Add(tc.ctx, tc.release, tc.dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if repomd(t, f, "19.09") != before {
				t.Error("the feed changed")
			}
			entries, err := os.ReadDir(f.dir)
			if err != nil || len(entries) != 1 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

func TestBaseOfAReleaseThatIsNotInstalled(t *testing.T) {
	for _, release := range []string{"20.01", "../x", "unknown", ""} {
		if base, err := New(t.TempDir()).Base(t.Context(), release); base != nil || err != nil {
			t.Errorf("%q: got %v, %v", release, base, err)
		}
	}
}

func TestSweepRemovesInterruptedAdds(t *testing.T) {
	f := New(t.TempDir())
	if err := os.MkdirAll(filepath.Join(f.dir, aside+"1", "Packages"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, aside+"1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
