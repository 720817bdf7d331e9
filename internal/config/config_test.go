package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starpatch/starpatch/problem"
)

type settings struct {
	Name string `yaml:"name"`
	Size int    `yaml:"size"`
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       settings
		refusal    string
	}{
		{"an empty file keeps the defaults", "", settings{"default", 1}, ""},
		{"a given key replaces its default only", "size: 5\n", settings{"default", 5}, ""},
		{"an unknown key is refused with its line", "name: a\nsizes: 5\n", settings{}, "test.yaml: line 2: field sizes not found"},
		{"a second document is refused", "name: a\n---\nname: b\n", settings{}, "more than one YAML document"},
		{"a value of another type is refused", "size: big\n", settings{}, "line 1"},
		{"a file that never ends is refused", strings.Repeat("#", maxSize+1), settings{}, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := settings{"default", 1}
			err := Decode("test.yaml", []byte(tt.text), &got)
			if tt.refusal != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refusal) || problem.KindOf(err) == problem.Internal {
					t.Fatalf("got %v, want a refusal with %q", err, tt.refusal)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestLoadAndPrint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := Load(path, &settings{}); problem.KindOf(err) != problem.NotFound {
		t.Fatalf("a missing file: got %v, want not found", err)
	}
	want := settings{"a: b", 3}
	text, err := Print(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var got settings
	if err := Load(path, &got); err != nil || got != want {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
}
