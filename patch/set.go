package patch

import (
	"maps"
	"slices"
)

// Set is all patches that the store knows. The functions of this package never change a Set or what is in it.
type Set map[ID]Patch

// IDs returns the IDs in order.
func (s Set) IDs() []ID { return slices.Sorted(maps.Keys(s)) }

// Sorted returns the patches in order of their IDs.
func (s Set) Sorted() []Patch {
	out := make([]Patch, 0, len(s))
	for _, id := range s.IDs() {
		out = append(out, s[id])
	}
	return out
}

// Releases returns the releases that any patch is for, sorted.
func (s Set) Releases() []string {
	var out []string
	for _, p := range s {
		out = append(out, p.Release)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Digests returns the SHA-256 of every blob that the record of p names, sorted and without duplicates.
func (p Patch) Digests() []string {
	out := make([]string, 0, len(p.Packages)+len(p.Checks)+1)
	for _, pkg := range p.Packages {
		out = append(out, pkg.SHA256)
	}
	for _, digest := range p.Checks {
		out = append(out, digest)
	}
	if p.XML != "" {
		out = append(out, p.XML)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
