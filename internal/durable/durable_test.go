package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAFileAppearsWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Create(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "old" {
		t.Errorf("before Commit the file holds %q, want the old content", got)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "new" {
		t.Errorf("after Commit the file holds %q, want %q", got, "new")
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fi.Mode().Perm(), fs.FileMode(0o640); got != want {
		t.Errorf("mode %v, want %v", got, want)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit: %v, want %v", err, fs.ErrClosed)
	}
	if err := f.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v, want nothing to happen", err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"state"}) {
		t.Errorf("folder holds %v, want only the file", got)
	}
}

func TestAbortLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	f, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if err := f.Abort(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("folder holds %v, want nothing", got)
	}
}

func TestSweepRemovesOnlyWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFile(filepath.Join(dir, "kept.tmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Create(filepath.Join(dir, "state"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.f.Close(); err != nil { // the process died here
		t.Fatal(err)
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"kept.tmp"}) {
		t.Errorf("folder holds %v, want only kept.tmp", got)
	}
}

func TestFoldersAreFilledAsideAndMoved(t *testing.T) {
	dir := t.TempDir()
	aside := filepath.Join(dir, "aside", "deep")
	if err := MkdirAll(aside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(aside, "a"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(aside, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "aside"), filepath.Join(dir, "live")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(dir, "live", "deep", "a")); got != "1" {
		t.Errorf("moved file holds %q, want 1", got)
	}
	if err := MkdirAll(filepath.Join(dir, "live", "deep"), 0o755); err != nil {
		t.Errorf("MkdirAll of an existing folder: %v", err)
	}
}

func TestAReplacedFolderLiesAside(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := WriteFile(filepath.Join(dir, n, "name"), []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := Replace(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[string]string{"a": "b", "b": "a"} {
		if got := content(t, filepath.Join(dir, n, "name")); got != want {
			t.Errorf("%s holds %q, want %q", n, got, want)
		}
	}
}

func TestRemoveOfAMissingFileIsNoError(t *testing.T) {
	if err := Remove(filepath.Join(t.TempDir(), "missing")); err != nil {
		t.Error(err)
	}
}

func TestProbeSyncMeasuresAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	p99, err := ProbeSync(dir)
	if err != nil {
		t.Fatal(err)
	}
	if p99 <= 0 {
		t.Errorf("p99 %v, want more than nothing", p99)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("folder holds %v, want nothing", got)
	}
}

func BenchmarkWriteFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state")
	data := make([]byte, 4<<10)
	for b.Loop() {
		if err := WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
}
