package patch

import (
	"maps"
	"slices"
)

// Order returns the IDs so that each comes after those of them that it requires, and otherwise in order of ID: of all
// orders that respect the requirements it is the first one alphabetically. Requirements outside the IDs do not count.
// Patches that require each other in a circle have no such order; they are taken in order of ID where the circle opens.
func Order(set Set, ids []ID) []ID {
	left := map[ID]bool{}
	for _, id := range ids {
		left[id] = true
	}
	var out []ID
	for len(left) > 0 {
		next := slices.Sorted(maps.Keys(left))
		ready := slices.IndexFunc(next, func(id ID) bool {
			return !slices.ContainsFunc(set[id].Requires, func(r ID) bool { return r != id && left[r] })
		})
		id := next[max(ready, 0)]
		delete(left, id)
		out = append(out, id)
	}
	return out
}

// RequiredBy returns the patches that name id among their requirements, sorted, whatever their state.
func RequiredBy(set Set, id ID) []ID {
	var out []ID
	for _, p := range set.Sorted() {
		if slices.Contains(p.Requires, id) {
			out = append(out, p.ID)
		}
	}
	return out
}

// unmet maps each patch that is required by one of ids, but neither among them nor applied, to those that require it.
func unmet(set Set, ids []ID) map[ID][]ID {
	out := map[ID][]ID{}
	for _, id := range ids {
		for _, req := range set[id].Requires {
			if slices.Contains(ids, req) {
				continue
			}
			if p, ok := set[req]; !ok || p.RepoState == RepoAvailable {
				out[req] = append(out[req], id)
			}
		}
	}
	return out
}

// required adds a line for every requirement that stands in the way.
func (d *Decision) required(needed map[ID][]ID) bool {
	for _, req := range slices.Sorted(maps.Keys(needed)) {
		slices.Sort(needed[req])
		d.fail(string(req) + " is required by: " + join(slices.Compact(needed[req])))
	}
	return !d.Refused()
}
