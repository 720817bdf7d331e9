package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/starpatch/starpatch/internal/durable/durabletest"
)

func TestWhatIsDoneSurvivesAPowerCut(t *testing.T) {
	d := durabletest.NewDisk(t)
	at := func(parts ...string) string { return filepath.Join(append([]string{d.Dir}, parts...)...) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(WriteFile(at("state"), []byte("old"), 0o600))
	for i := range 10 {
		must(WriteFile(at("state"), fmt.Appendf(nil, "new %d", i), 0o600))
	}
	must(MkdirAll(at("a", "b", "c"), 0o755))
	must(os.WriteFile(at("a", "b", "c", "file"), []byte("tree"), 0o600))
	must(Replace(at("a"), at("live")))
	must(MkdirAll(at("other"), 0o755))
	must(WriteFile(at("other", "name"), []byte("other"), 0o600))
	must(Replace(at("live"), at("other")))
	must(WriteFile(at("removed"), nil, 0o600))
	must(Remove(at("removed")))
	half, err := Create(at("half"), 0o600)
	must(err)
	_, err = half.Write([]byte("not committed"))
	must(err)
	must(half.f.Close())

	d.Cut(t)
	d.Restore(t)
	for path, want := range map[string]string{at("state"): "new 9", at("other", "b", "c", "file"): "tree", at("live", "name"): "other"} {
		if got := content(t, path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	for _, gone := range []string{"removed", "half", "a"} {
		if _, err := os.Stat(at(gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", gone, err)
		}
	}
	must(Sweep(d.Dir))
}
