// Package trust keeps the public keys that patches are verified with: a folder with formal/ and dev/, each with PEM
// public keys or certificates. Nothing is compiled in. The folder is read anew for every decision, so that a key counts
// from the moment it is put there until the moment it is taken away.
package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

// maxKeyFile is the largest key file that is read, in bytes, and maxKeys how many of each class.
const (
	maxKeyFile = 64 << 10
	maxKeys    = 256
)

// Store is a trust folder with the settings that say what of it counts.
type Store struct {
	Dir            string
	AcceptDev      bool   // developer keys count
	Marker         string // path of the dev marker file: developer keys count if a formal key signed it; empty: none
	AcceptPKCS1v15 bool   // signatures with the older padding count too
}

// entry is one key file.
type entry struct {
	class, name string
	key         patchfile.Key
}

// Load reads both classes of keys from a trust folder, as tools off a controller use them: developer keys count.
func Load(dir string) (patchfile.Trust, error) {
	if _, err := os.Stat(dir); err != nil {
		return patchfile.Trust{}, problem.Errorf(problem.NotFound, "cannot read the trust folder: %w", err)
	}
	return Store{Dir: dir, AcceptDev: true}.Now()
}

// Now returns the keys that count at this moment.
func (s Store) Now() (patchfile.Trust, error) {
	all, err := s.read()
	if err != nil {
		return patchfile.Trust{}, err
	}
	return s.counting(all), nil
}

// counting is those of all keys that count.
func (s Store) counting(all []entry) patchfile.Trust {
	t := patchfile.Trust{AcceptPKCS1v15: s.AcceptPKCS1v15}
	var dev []patchfile.Key
	for _, e := range all {
		if e.class == patchfile.Formal {
			t.Formal = append(t.Formal, e.key)
		} else {
			dev = append(dev, e.key)
		}
	}
	if s.AcceptDev || s.marked(t) {
		t.Dev = dev
	}
	return t
}

// marked says whether the dev marker file is there and signed by a formal key. Any other file there counts as none, as in the original.
func (s Store) marked(t patchfile.Trust) bool {
	if s.Marker == "" {
		return false
	}
	text, err := readSmall(s.Marker)
	return err == nil && t.CheckMarker(text) == nil
}

// List returns every key, sorted by class and name, with whether it counts.
func (s Store) List() ([]api.TrustKey, error) {
	all, err := s.read()
	if err != nil {
		return nil, err
	}
	now := s.counting(all)
	out := []api.TrustKey{}
	for _, e := range all {
		out = append(out, api.TrustKey{Class: e.class, Name: e.name, Key: e.key.ID(), Counts: e.class == patchfile.Formal || len(now.Dev) > 0})
	}
	return out, nil
}

// nameGrammar is what the name of a key file may be.
var nameGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// path refuses what is no class or would lead out of its folder.
func (s Store) path(class, name string) (string, error) {
	if class != patchfile.Formal && class != patchfile.Dev {
		return "", problem.Errorf(problem.Invalid, "%q is not a class of keys; expected formal or dev", class)
	}
	if !nameGrammar.MatchString(name) || filepath.Ext(name) != ".pem" {
		return "", problem.Errorf(problem.Invalid, "%q is not the name of a key file; expected letters, digits, '.', '_' or '-' and the end .pem", name)
	}
	return filepath.Join(s.Dir, class, name), nil
}

// Add puts a public key or certificate into a class. A file of that name with another key is refused.
func (s Store) Add(class, name, pem string) (api.TrustKey, error) {
	path, err := s.path(class, name)
	if err != nil {
		return api.TrustKey{}, err
	}
	if len(pem) > maxKeyFile {
		return api.TrustKey{}, problem.Errorf(problem.TooLarge, "%s has more than %d bytes; expected one public key or certificate in PEM form", name, maxKeyFile)
	}
	key, err := patchfile.ParseKey([]byte(pem))
	if err != nil {
		return api.TrustKey{}, problem.Errorf(problem.Invalid, "cannot add %s: %w", name, err)
	}
	if old, err := readSmall(path); err == nil {
		if k, err := patchfile.ParseKey(old); err != nil || k.ID() != key.ID() {
			return api.TrustKey{}, problem.Errorf(problem.Conflict, "%s/%s is there already with another key; remove it first, or use another name", class, name)
		}
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return api.TrustKey{}, err
	}
	if err := durable.WriteFile(path, []byte(pem), 0o644); err != nil {
		return api.TrustKey{}, err
	}
	now, err := s.Now()
	if err != nil {
		return api.TrustKey{}, err
	}
	return api.TrustKey{Class: class, Name: name, Key: key.ID(), Counts: class == patchfile.Formal || len(now.Dev) > 0}, nil
}

// Remove takes a key file out of a class.
func (s Store) Remove(class, name string) error {
	path, err := s.path(class, name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err != nil {
		return problem.Errorf(problem.NotFound, "there is no key %s/%s; sw-patch-controller trust list shows all", class, name)
	}
	return durable.Remove(path)
}

// read returns every key file, sorted by class and name. A file that cannot be read as a key is an error: a key that is
// silently passed over would refuse good patches without saying why.
func (s Store) read() ([]entry, error) {
	var out []entry
	for _, class := range []string{patchfile.Dev, patchfile.Formal} {
		files, err := os.ReadDir(filepath.Join(s.Dir, class))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the trust folder: %w", err)
		}
		n := 0
		for _, f := range files {
			if strings.HasPrefix(f.Name(), ".") || filepath.Ext(f.Name()) != ".pem" {
				continue
			}
			if n++; n > maxKeys {
				return nil, problem.Errorf(problem.TooLarge, "the trust folder %s/%s has more than %d keys", s.Dir, class, maxKeys)
			}
			text, err := readSmall(filepath.Join(s.Dir, class, f.Name()))
			if err != nil {
				return nil, fmt.Errorf("cannot read the trust folder: %w", err)
			}
			key, err := patchfile.ParseKey(text)
			if err != nil {
				return nil, problem.Errorf(problem.Invalid, "cannot read trusted key %s/%s: %w", class, f.Name(), err)
			}
			out = append(out, entry{class, f.Name(), key})
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.class+"/"+a.name, b.class+"/"+b.name) })
	return out, nil
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile || !info.Mode().IsRegular() {
		return nil, problem.Errorf(problem.TooLarge, "%s is not a file of at most %d bytes", path, maxKeyFile)
	}
	return os.ReadFile(path)
}
