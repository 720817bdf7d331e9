// Package config reads the YAML configuration files of the daemons: one document, every key known, nothing guessed.
package config

import (
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/starpatch/starpatch/problem"
)

// maxSize is the largest configuration file that is read, in bytes.
const maxSize = 1 << 20

// Decode fills into, which holds the defaults, from one YAML document. An unknown key is refused with its line, because
// a mistyped setting that is silently ignored is worse than a daemon that does not start. An empty document changes nothing.
func Decode(name string, text []byte, into any) error {
	if len(text) > maxSize {
		return problem.Errorf(problem.TooLarge, "cannot read configuration %s: it has more than %d bytes", name, maxSize)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return problem.Errorf(problem.Invalid, "cannot read configuration %s: %s", name, reasons(err))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return problem.Errorf(problem.Invalid, "cannot read configuration %s: it holds more than one YAML document; keep one", name)
	}
	return nil
}

// ofType is what the library adds about our own types, which an operator cannot know.
var ofType = regexp.MustCompile(` in type \S+| into \S+\.\S+`)

// reasons is the library's error on one line.
func reasons(err error) string {
	if e, ok := errors.AsType[*yaml.TypeError](err); ok {
		return ofType.ReplaceAllString(strings.Join(e.Errors, "; "), "")
	}
	return err.Error()
}

// Load reads the file at path as [Decode] does.
func Load(path string, into any) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return problem.Errorf(problem.NotFound, "configuration %s does not exist", path)
	}
	if err != nil {
		return problem.Errorf(problem.Invalid, "cannot read configuration: %w", err)
	}
	return Decode(path, text, into)
}

// Print returns the YAML of v, as --print-config shows it.
func Print(v any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}
