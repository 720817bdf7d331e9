package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// fill gives every field that can be set a value of its own.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field, n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8:
		v.SetUint(uint64(*n % 256))
	case reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		panic("internal error: fill does not know " + v.Type().String())
	}
}

func TestWhatIsSavedIsLoaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saved.json")
	n := 0
	for _, c := range []struct {
		saved, loaded any
		format        func(any) *int
	}{
		{new(state), new(state), func(v any) *int { return &v.(*state).Format }},
		{new(journal), new(journal), func(v any) *int { return &v.(*journal).Format }},
		{new(generation), new(generation), func(v any) *int { return &v.(*generation).Format }},
	} {
		fill(reflect.ValueOf(c.saved).Elem(), &n)
		*c.format(c.saved) = format
		if err := save(path, c.saved); err != nil {
			t.Fatal(err)
		}
		ok, err := load(path, c.loaded, func() int { return *c.format(c.loaded) })
		if !ok || err != nil {
			t.Fatalf("%T: %v, %v", c.saved, ok, err)
		}
		if diff := cmp.Diff(c.loaded, c.saved); diff != "" {
			t.Errorf("%T (-loaded +saved):\n%s", c.saved, diff)
		}
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
		}
	}
}

func TestFilesThatAreNotOursAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, text, says string
		kind             problem.Kind
	}{
		{"a newer format", `{"format":2,"epoch":7}`, "format 2 and this agent knows 1", problem.NotSupported},
		{"an unknown field", `{"format":1,"surprise":true}`, "surprise", problem.Invalid},
		{"half a file", `{"format":1,"boot":"x`, "unexpected EOF", problem.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.json")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var s state
			_, err := load(path, &s, func() int { return s.Format })
			if err == nil || problem.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s with %q", err, c.kind, c.says)
			}
		})
	}
}

func TestPlatformFiles(t *testing.T) {
	for _, c := range []struct {
		name, build, platform string
		personality, release  string // configured
		want                  host.Personality
		wantRelease, refuses  string
	}{
		{name: "both files", build: "### \nSW_VERSION=\"19.09\"\nX=1\n", platform: "nodetype=controller\nsubfunction=controller,worker,lowlatency\n", want: host.ControllerWorkerLowLatency, wantRelease: "19.09"},
		{name: "order and quotes do not matter", build: "SW_VERSION='20.01'\n", platform: "subfunction = \"worker,controller\"\n", want: host.ControllerWorker, wantRelease: "20.01"},
		{name: "the configuration wins", build: "SW_VERSION=1\n", platform: "subfunction=worker\n", personality: "storage", release: "19.09", want: host.Storage, wantRelease: "19.09"},
		{name: "no files, all configured", personality: "storage", release: "19.09", want: host.Storage, wantRelease: "19.09"},
		{name: "no build.info", platform: "subfunction=worker\n", refuses: "set release in the configuration"},
		{name: "no subfunction", build: "SW_VERSION=1\n", platform: "nodetype=worker\n", refuses: "set personality in the configuration"},
		{name: "an unknown subfunction", build: "SW_VERSION=1\n", platform: "subfunction=dancer\n", refuses: "dancer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range map[string]string{"etc/build.info": c.build, "etc/platform/platform.conf": c.platform} {
				if text == "" {
					continue
				}
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			tr, err := openTree(root)
			if err != nil {
				t.Fatal(err)
			}
			p, r, err := tr.platform(c.personality, c.release)
			if c.refuses != "" {
				if err == nil || !strings.Contains(err.Error(), c.refuses) {
					t.Errorf("got %v, want a refusal with %q", err, c.refuses)
				}
				return
			}
			if err != nil || p != c.want || r != c.wantRelease {
				t.Errorf("got %s, %s, %v; want %s, %s", p, r, err, c.want, c.wantRelease)
			}
		})
	}
}

func TestRunFolderOfAHostWithAnAbsoluteLink(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	tr, err := openTree(root)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tr.flag(flagLocked), filepath.Join(root, "run/.node_locked"); got != want {
		t.Errorf("got %s, want %s: the link must not lead to the machine's own /run", got, want)
	}
}
