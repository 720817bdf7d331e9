// Package buildtool is what stands behind patch_build, query_patch and modify_patch: options, texts and exit codes of the
// original tools around package patchfile. It opens files, signs and prints; what a patch file is, patchfile knows.
package buildtool

import (
	"cmp"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

// Env is the world as a tool sees it. Relative paths are those of the process.
type Env struct {
	Args      []string // without the tool's name
	Stdout    io.Writer
	Stderr    io.Writer
	Getenv    func(string) string
	Now       func() time.Time
	LoadTrust func(dir string) (patchfile.Trust, error) // reads a folder with formal/ and dev/
}

// exitCode is an error with an exit code other than 1.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string { return e.err.Error() }
func (e exitCode) Unwrap() error { return e.err }

// usageError makes the tool print its usage as well.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return usageError{problem.Errorf(problem.Invalid, format, args...)}
}

// errHelp asks for the usage, without complaint.
var errHelp = errors.New("help")

// tool is one of the three.
type tool struct {
	usage  string
	failed string // what the original prints on standard output when the tool fails; may be empty
	run    func(context.Context, Env) error
}

// main runs the tool and returns its exit code.
func (t tool) main(ctx context.Context, env Env) int {
	err := t.run(ctx, env)
	if err == nil {
		return 0
	}
	var text string
	if errors.Is(err, errHelp) {
		_, werr := io.WriteString(env.Stdout, t.usage)
		return boolCode(werr != nil)
	}
	if _, ok := errors.AsType[usageError](err); ok {
		text = t.usage
	} else if t.failed != "" {
		text = t.failed + "\n"
	}
	_, werr := io.WriteString(env.Stdout, text)
	_, eerr := fmt.Fprintln(env.Stderr, visible(err.Error()))
	if e, ok := errors.AsType[exitCode](err); ok && werr == nil && eerr == nil {
		return e.code
	}
	return 1
}

func boolCode(failed bool) int {
	if failed {
		return 1
	}
	return 0
}

// visible keeps text from a patch file from commanding the terminal. Newlines and tabs stay.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return '\ufffd'
		}
		return r
	}, s)
}

// newFlags makes a set of long options as getopt reads them: values apart or after =, and parsing stops at the first
// word that is no option.
func newFlags() *pflag.FlagSet {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.SetInterspersed(false)
	f.SortFlags = false
	f.Usage = func() {}
	return f
}

// parse reads args, with every unique abbreviation of an option meaning that option.
func parse(f *pflag.FlagSet, args []string) error {
	var help switched
	onOff(f, &help, "help", "h")
	var names []string
	f.VisitAll(func(g *pflag.Flag) { names = append(names, g.Name) })
	var ambiguous error
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if slices.Contains(names, name) {
			return pflag.NormalizedName(name)
		}
		var matches []string
		for _, n := range names {
			if strings.HasPrefix(n, name) {
				matches = append(matches, "--"+n)
			}
		}
		switch len(matches) {
		case 0:
			return pflag.NormalizedName(name)
		case 1:
			return pflag.NormalizedName(matches[0][2:])
		}
		ambiguous = problem.Errorf(problem.Invalid, "--%s is short for more than one option: %s", name, strings.Join(matches, ", "))
		return pflag.NormalizedName(name)
	})
	if err := f.Parse(args); err != nil {
		return usageError{cmp.Or(ambiguous, err)}
	}
	if help {
		return errHelp
	}
	return nil
}

// switched is the value of an option that is given or not: it takes no argument, not even after =.
type switched bool

// given is what pflag hands to Set for an option without an argument; no argument can be this.
const given = "\x00"

func (s *switched) Set(arg string) error {
	if arg != given {
		return problem.Errorf(problem.Invalid, "the option takes no argument")
	}
	*s = true
	return nil
}

func (s *switched) String() string { return strconv.FormatBool(bool(*s)) }
func (s *switched) Type() string   { return "bool" }

// onOff defines an option without an argument, with a one-letter form if short is not empty.
func onOff(f *pflag.FlagSet, p *switched, name, short string) {
	f.VarPF(p, name, short, "").NoOptDefVal = given
}

// defaultKey is where a developer's build tree has its signing key, below $MY_REPO.
const defaultKey = "build-tools/signing/dev-private-key.pem"

// maxKeyFile is the largest key file that is read, in bytes.
const maxKeyFile = 64 << 10

// signingKey reads the named key, else that of the build tree. There is no other default: which key signs is a decision.
func signingKey(path string, env Env) (*rsa.PrivateKey, string, error) {
	if path == "" {
		repo := env.Getenv("MY_REPO")
		if repo == "" {
			return nil, "", problem.Errorf(problem.Invalid, "no signing key: give one with --key FILE, or set MY_REPO to a build tree that has %s", defaultKey)
		}
		path = filepath.Join(repo, defaultKey)
	}
	text, err := readSmall(path)
	if err != nil {
		return nil, "", fmt.Errorf("cannot read the signing key: %w", err)
	}
	k, err := patchfile.ParseSigningKey(text)
	if err != nil {
		return nil, "", problem.Errorf(problem.Invalid, "cannot read the signing key %s: %v", path, err)
	}
	return k, path, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(b) > maxKeyFile {
		return nil, problem.Errorf(problem.TooLarge, "%s has more than %d bytes", path, maxKeyFile)
	}
	return b, nil
}

// classOf is the class of a key that stands alone: development, unless its file is named as formal keys are.
func classOf(path string) string {
	if strings.HasPrefix(filepath.Base(path), patchfile.Formal) {
		return patchfile.Formal
	}
	return patchfile.Dev
}

// trustOf is a trust of one key.
func trustOf(k patchfile.Key, class string) patchfile.Trust {
	if class == patchfile.Formal {
		return patchfile.Trust{Formal: []patchfile.Key{k}}
	}
	return patchfile.Trust{Dev: []patchfile.Key{k}}
}

// ctxWriter fails once its context has ended, which ends a build that is under way.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w ctxWriter) Write(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// ctxReader is the same for reading.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
