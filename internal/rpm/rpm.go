// Package rpm knows RPM packages as far as patching needs them: names and versions, their order, and the identity that
// a package's header states. It reads from an io.Reader and touches nothing else.
package rpm

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/problem"
)

// EVR is epoch, version and release. The zero Epoch is the same as no epoch.
type EVR struct {
	Epoch   int    `json:"epoch,omitempty"`
	Version string `json:"version"`
	Release string `json:"release"`
}

// String is [epoch:]version-release; epoch 0 is left out.
func (e EVR) String() string {
	if e.Epoch != 0 {
		return strconv.Itoa(e.Epoch) + ":" + e.Version + "-" + e.Release
	}
	return e.Version + "-" + e.Release
}

// VersionRelease is version-release without epoch, as upstream's messages show it.
func (e EVR) VersionRelease() string { return e.Version + "-" + e.Release }

// Compare orders as rpm does: epoch as numbers, then version, then release.
func (e EVR) Compare(o EVR) int {
	return cmp.Or(cmp.Compare(e.Epoch, o.Epoch), CompareVersion(e.Version, o.Version), CompareVersion(e.Release, o.Release))
}

// Key is what identifies "the same package" across versions: two architectures of one name are two packages.
type Key struct {
	Name string `json:"name"`
	Arch string `json:"arch"`
}

func (k Key) String() string { return k.Name + "." + k.Arch }

// NEVRA names one build of a package.
type NEVRA struct {
	Name string `json:"name"`
	EVR
	Arch string `json:"arch"`
}

// Key returns the name and architecture.
func (n NEVRA) Key() Key { return Key{n.Name, n.Arch} }

// String is name-[epoch:]version-release.arch, the spelling that dnf takes.
func (n NEVRA) String() string { return n.Name + "-" + n.EVR.String() + "." + n.Arch }

// FileName is name-version-release.arch.rpm; the epoch is not part of a file name.
func (n NEVRA) FileName() string { return n.Name + "-" + n.VersionRelease() + "." + n.Arch + ".rpm" }

// Compare orders by name, then architecture, then version.
func (n NEVRA) Compare(o NEVRA) int {
	return cmp.Or(strings.Compare(n.Name, o.Name), strings.Compare(n.Arch, o.Arch), n.EVR.Compare(o.EVR))
}

// ParseFileName reads [E:]name-version-release.arch.rpm: name greedy, version and release without dash, arch without dot.
func ParseFileName(s string) (NEVRA, error) {
	bad := func(why string) (NEVRA, error) {
		return NEVRA{}, problem.Errorf(problem.Invalid, "%q is not an RPM file name: %s; expected name-version-release.arch.rpm", s, why)
	}
	rest, ok := strings.CutSuffix(s, ".rpm")
	if !ok {
		return bad("it does not end in .rpm")
	}
	var n NEVRA
	if e, r, ok := strings.Cut(rest, ":"); ok {
		v, err := strconv.ParseInt(e, 10, 32)
		if err != nil || v < 0 {
			return bad("the epoch before the colon is not a number")
		}
		n.Epoch, rest = int(v), r
	}
	i := strings.LastIndexByte(rest, '.')
	if i < 0 {
		return bad("it has no architecture")
	}
	n.Arch, rest = rest[i+1:], rest[:i]
	if i = strings.LastIndexByte(rest, '-'); i < 0 {
		return bad("it has no release")
	}
	n.Release, rest = rest[i+1:], rest[:i]
	if i = strings.LastIndexByte(rest, '-'); i < 0 {
		return bad("it has no version")
	}
	n.Version, n.Name = rest[i+1:], rest[:i]
	if err := n.check(); err != nil {
		return bad(err.Error())
	}
	return n, nil
}

// check refuses identities that could not be a package's, or that would be unsafe in a path or an argument.
func (n NEVRA) check() error {
	for _, f := range [...]struct{ what, s, extra string }{
		{"name", n.Name, "._+-"}, {"version", n.Version, "._+~^"}, {"release", n.Release, "._+~^"}, {"architecture", n.Arch, "_"},
	} {
		if f.s == "" {
			return fmt.Errorf("its %s is empty", f.what)
		}
		if len(f.s) > 256 {
			return fmt.Errorf("its %s is longer than 256 bytes", f.what)
		}
		if c := f.s[0]; f.what == "name" && (c == '-' || c == '.') {
			return fmt.Errorf("its name starts with %q", c)
		}
		for _, c := range []byte(f.s) {
			if !isAlnum(c) && strings.IndexByte(f.extra, c) < 0 {
				return fmt.Errorf("its %s contains %q", f.what, c)
			}
		}
	}
	return nil
}

// CheckName refuses what cannot be the name of a package.
func CheckName(s string) error {
	if err := (NEVRA{Name: s, EVR: EVR{Version: "0", Release: "0"}, Arch: "noarch"}).check(); err != nil {
		return problem.Errorf(problem.Invalid, "%q is not a package name: %v", s, err)
	}
	return nil
}

// CompareVersion orders two version (or release) strings as rpm does: runs of digits as numbers, runs of letters as
// text, digits newer than letters, a tilde older than everything (end included), a caret newer than the end and older
// than anything else; all other characters only separate.
// Source: rpm.org, "Version comparison" of the packager documentation.
func CompareVersion(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, isSeparator), strings.TrimLeftFunc(b, isSeparator)
		if at, bt := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); at || bt {
			if !at {
				return 1
			}
			if !bt {
				return -1
			}
			a, b = a[1:], b[1:]
			continue
		}
		if ac, bc := strings.HasPrefix(a, "^"), strings.HasPrefix(b, "^"); ac || bc {
			switch {
			case ac && bc:
				a, b = a[1:], b[1:]
				continue
			case ac:
				if b == "" {
					return 1
				}
				return -1
			default:
				if a == "" {
					return -1
				}
				return 1
			}
		}
		if a == "" || b == "" {
			return cmp.Compare(min(len(a), 1), min(len(b), 1))
		}
		numeric := isDigit(a[0])
		in := isLetter
		if numeric {
			in = isDigit
		}
		x, y := leading(a, in), leading(b, in)
		a, b = a[len(x):], b[len(y):]
		if y == "" { // of different kinds: digits are newer
			if numeric {
				return 1
			}
			return -1
		}
		if numeric {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
}

func leading(s string, in func(byte) bool) string {
	i := 0
	for i < len(s) && in(s[i]) {
		i++
	}
	return s[:i]
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isAlnum(c byte) bool  { return isDigit(c) || isLetter(c) }

func isSeparator(r rune) bool {
	return r != '~' && r != '^' && (r >= 0x80 || !isAlnum(byte(r)))
}
