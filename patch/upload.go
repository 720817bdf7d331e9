package patch

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
)

// Upload is the answer to one uploaded file.
type Upload struct {
	Info     []string // lines for the reply, each without its newline
	Error    []string
	Save     *Patch // what to store; nil: nothing changes
	Reimport bool   // Save replaces the metadata of a known patch; its packages stay as they are
}

// Stem splits the name of an uploaded file, which may be a path as typed, into what should be the patch ID and the
// extension with its dot.
func Stem(file string) (stem, ext string) {
	base := path.Base(file)
	ext = path.Ext(base)
	if ext == base { // a leading dot starts no extension
		return base, ""
	}
	return strings.TrimSuffix(base, ext), ext
}

// ValidationFailed is the reply's text when the content of an uploaded file was refused.
func ValidationFailed(stem, why string) string {
	return "Patch validation failed for " + stem + ":\n" + why
}

// DecideUploadByName decides what the file name alone decides, before anything is read: a committed patch stays as it is,
// and an unknown one must be a .patch file. The second result is false if the file has to be read.
func DecideUploadByName(set Set, file string) (Upload, bool) {
	stem, ext := Stem(file)
	p, known := set[ID(stem)]
	switch {
	case known && p.RepoState == RepoCommitted:
		return Upload{Info: []string{stem + " is committed. Metadata not updated"}}, true
	case !known && ext != ".patch":
		return Upload{Error: []string{"File must end in .patch extension: " + path.Base(file)}}, true
	}
	return Upload{}, false
}

// DecideUpload decides about a file whose signature and structure have been verified. It takes what was read from it (the
// repo state and Changed of p do not matter) and the base feed of the patch's release: the highest version of each
// package, or nil if that release is not installed.
func DecideUpload(set Set, file string, p Patch, base map[rpm.Key]rpm.NEVRA) Upload {
	if u, done := DecideUploadByName(set, file); done {
		return u
	}
	stem, _ := Stem(file)
	if string(p.ID) != stem {
		return invalid(stem, fmt.Sprintf("the file is named %s, but its metadata name %s; rename it to %s.patch", path.Base(file), p.ID, p.ID))
	}
	if old, ok := set[p.ID]; ok {
		return reimport(old, p)
	}
	if base == nil {
		return invalid(stem, fmt.Sprintf("Patch %s software release (%s) is not installed", p.ID, p.Release))
	}
	var why []string
	for _, check := range []func(Set, Patch, map[rpm.Key]rpm.NEVRA) []string{twice, newer, provided} {
		if why = check(set, p, base); len(why) > 0 {
			return invalid(stem, strings.Join(why, "\n"))
		}
	}
	p.RepoState, p.Changed = RepoAvailable, 0
	return Upload{Info: []string{stem + " is now available"}, Save: &p}
}

func invalid(stem, why string) Upload {
	return Upload{Error: []string{ValidationFailed(stem, why)}}
}

// twice refuses two builds of one package in one patch: no host could have both.
func twice(_ Set, p Patch, _ map[rpm.Key]rpm.NEVRA) []string {
	var why []string
	first := map[rpm.Key]string{}
	for _, pkg := range p.Packages {
		k := pkg.NEVRA.Key()
		if other, ok := first[k]; ok {
			why = append(why, fmt.Sprintf("Patch %s contains %s twice, as %s and as %s; keep one of them", p.ID, k, other, pkg.File))
		}
		first[k] = pkg.File
	}
	return why
}

// newer refuses packages that are not newer than the base feed's: hosts would never take them.
func newer(_ Set, p Patch, base map[rpm.Key]rpm.NEVRA) []string {
	var why []string
	for _, pkg := range p.Packages {
		if b, ok := base[pkg.NEVRA.Key()]; ok && pkg.NEVRA.EVR.Compare(b.EVR) <= 0 {
			why = append(why, fmt.Sprintf("RPM %s in patch %s must be higher version than original (%s)", pkg.File, p.ID, b.EVR))
		}
	}
	return why
}

// provided refuses packages that another known patch of the release brings already: which of the two a host has could not
// be told. Two builds that differ in epoch alone share a file name and cannot be in one repository either.
func provided(set Set, p Patch, _ map[rpm.Key]rpm.NEVRA) []string {
	others := map[string]ID{}
	for _, other := range set.Sorted() {
		if other.Release == p.Release && other.ID != p.ID {
			for _, pkg := range other.Packages {
				others[pkg.NEVRA.FileName()] = other.ID
			}
		}
	}
	var why []string
	for _, pkg := range p.Packages {
		if id, ok := others[pkg.NEVRA.FileName()]; ok {
			why = append(why, fmt.Sprintf("Patch %s contains rpm %s, which is already provided by patch %s", p.ID, pkg.File, id))
		}
	}
	return why
}

// reimport takes status and texts from a known patch that was uploaded again, and refuses any other change: hosts may
// have installed the patch as it is.
func reimport(old, p Patch) Upload {
	if diff := differences(old, p); len(diff) > 0 {
		return Upload{Error: []string{fmt.Sprintf("Contents of %s do not match re-imported patch: %s; only status and texts may change", p.ID, strings.Join(diff, ", "))}}
	}
	p.RepoState, p.Changed, p.Packages, p.Checks = old.RepoState, old.Changed, old.Packages, old.Checks
	return Upload{Info: []string{string(p.ID) + " is already imported. Updated metadata only"}, Save: &p, Reimport: true}
}

// differences names what differs between two versions of a patch besides status and texts.
func differences(old, p Patch) []string {
	var out []string
	differ := func(what string, equal bool) {
		if !equal {
			out = append(out, what+" differ")
		}
	}
	differs := func(what string, equal bool) {
		if !equal {
			out = append(out, what+" differs")
		}
	}
	differ("contents", sameSet(old.Contents, p.Contents))
	if len(out) == 0 {
		was := map[string]string{}
		for _, pkg := range old.Packages {
			was[pkg.File] = pkg.SHA256
		}
		for _, pkg := range p.Packages {
			differs("the content of "+pkg.File, was[pkg.File] == pkg.SHA256)
		}
	}
	differs("release", old.Release == p.Release)
	differs("reboot-required", old.InService() == p.InService())
	differs("unremovable", old.Removable() == p.Removable())
	differs("apply-active-release-only", (old.ApplyActiveReleaseOnly.Value == "Y") == (p.ApplyActiveReleaseOnly.Value == "Y"))
	differ("requirements", sameSet(old.Requires, p.Requires))
	for _, hp := range host.Personalities() {
		differ("packages for "+string(hp), sameSet(old.Personalities[hp], p.Personalities[hp]))
	}
	differ("semantic checks", sameSet(old.Semantics, p.Semantics) && maps.Equal(old.Checks, p.Checks))
	return out
}

func sameSet[E ~string](a, b []E) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
