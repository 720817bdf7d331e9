package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/internal/rpm"
)

// Action is what a plan does with one package.
type Action string

// The actions. Repair puts a package right that the package database holds more than once.
const (
	Upgrade   Action = "upgrade"
	Downgrade Action = "downgrade"
	Install   Action = "install"
	Remove    Action = "remove"
	Repair    Action = "repair"
)

// Want is everything that decides what a host should have. No slice is changed.
type Want struct {
	Installed []rpm.NEVRA // what the package database lists; one package may occur more than once
	Base      []rpm.NEVRA // base repository
	Updates   []rpm.NEVRA // generation of the update repository
	Group     []string    // names that every host of this personality must have
	Brought   []rpm.NEVRA // all that patches applied so far in the release ever brought
	Arch      string      // of the machine, as rpm spells it; picks among several architectures of a missing package
}

// Step is one package of a plan, with the reason that an operator is shown.
type Step struct {
	Action  Action      `json:"action"`
	Package rpm.NEVRA   `json:"package"`        // what will be there afterwards; for Remove what goes
	Have    []rpm.NEVRA `json:"have,omitempty"` // builds of the same name and architecture that are installed now
	Reason  string      `json:"reason"`
}

// Plan turns what a host has into what it should have. Its steps are sorted by package; one name and architecture occurs
// in at most one step that is not Remove.
type Plan struct {
	Steps []Step `json:"steps"`
	// Unavailable are names of the group that are neither installed nor in a repository.
	Unavailable []string `json:"unavailable,omitempty"`

	installed []Difference
	remove    []rpm.NEVRA
	missing   []string
}

// MakePlan compares per name and architecture, by epoch, version and release:
//   - what the update repository has decides; what only the base repository has decides next; a lower or a higher
//     installed version is changed to it;
//   - what neither has goes if a patch brought exactly this build, and stays otherwise: an administrator put it there;
//   - a name of the group that would not be there in any architecture is installed;
//   - a package that is installed more than once is repaired, because a package tool was interrupted.
func MakePlan(w Want) Plan {
	updates, base := highest(w.Updates), highest(w.Base)
	brought := make(map[rpm.NEVRA]bool, len(w.Brought))
	for _, n := range w.Brought {
		brought[n] = true
	}
	have := map[rpm.Key][]rpm.NEVRA{}
	for _, n := range w.Installed {
		have[n.Key()] = append(have[n.Key()], n)
	}
	stays := map[string]bool{} // names that are there afterwards
	var p Plan
	for key, builds := range have {
		slices.SortFunc(builds, rpm.NEVRA.Compare)
		wanted, from, ok := updates[key], "update", true
		if wanted.Name == "" {
			wanted, from = base[key], "base"
			ok = wanted.Name != ""
		}
		if !ok {
			for _, n := range slices.Compact(slices.Clone(builds)) {
				if !brought[n] {
					stays[n.Name] = true
					continue
				}
				p.remove = append(p.remove, n)
				p.Steps = append(p.Steps, Step{Remove, n, builds, "a patch brought it and no applied patch has it any more"})
			}
			continue
		}
		stays[key.Name] = true
		for _, n := range builds {
			if n.EVR.Compare(wanted.EVR) != 0 {
				p.installed = append(p.installed, Difference{Have: n, Wanted: wanted.EVR})
			}
		}
		switch first := builds[0]; {
		case len(builds) > 1:
			if !slices.ContainsFunc(builds, func(n rpm.NEVRA) bool { return n.EVR.Compare(wanted.EVR) != 0 }) {
				p.installed = append(p.installed, Difference{Have: wanted, Wanted: wanted.EVR}) // the same build twice
			}
			p.Steps = append(p.Steps, Step{Repair, wanted, builds, fmt.Sprintf("it is installed %d times", len(builds))})
		case first.EVR.Compare(wanted.EVR) == 0:
		case first.EVR.Compare(wanted.EVR) < 0:
			p.Steps = append(p.Steps, Step{Upgrade, wanted, builds, "the " + from + " repository has a higher version than " + first.EVR.String()})
		default:
			p.Steps = append(p.Steps, Step{Downgrade, wanted, builds, "the " + from + " repository has a lower version than " + first.EVR.String()})
		}
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(w.Group))) {
		if stays[name] {
			continue
		}
		p.missing = append(p.missing, name)
		n, ok := choose(name, w.Arch, updates)
		if !ok {
			n, ok = choose(name, w.Arch, base)
		}
		if !ok {
			p.Unavailable = append(p.Unavailable, name)
			continue
		}
		p.Steps = append(p.Steps, Step{Install, n, nil, "hosts of this personality must have it"})
	}
	slices.SortFunc(p.Steps, func(a, b Step) int { return a.Package.Compare(b.Package) })
	slices.SortFunc(p.installed, func(a, b Difference) int { return a.Have.Compare(b.Have) })
	slices.SortFunc(p.remove, rpm.NEVRA.Compare)
	return p
}

// highest indexes packages by name and architecture and keeps the highest version of each; of two spellings of one
// version, always the same.
func highest(list []rpm.NEVRA) map[rpm.Key]rpm.NEVRA {
	m := make(map[rpm.Key]rpm.NEVRA, len(list))
	for _, n := range list {
		h, ok := m[n.Key()]
		if !ok || cmp.Or(n.EVR.Compare(h.EVR), strings.Compare(n.String(), h.String())) > 0 {
			m[n.Key()] = n
		}
	}
	return m
}

// choose picks the build of a name for a machine: its own architecture, then noarch, then the first by name.
func choose(name, arch string, from map[rpm.Key]rpm.NEVRA) (rpm.NEVRA, bool) {
	for _, a := range []string{arch, "noarch"} {
		if n, ok := from[rpm.Key{Name: name, Arch: a}]; ok {
			return n, true
		}
	}
	var found []rpm.NEVRA
	for k, n := range from {
		if k.Name == name {
			found = append(found, n)
		}
	}
	if len(found) == 0 {
		return rpm.NEVRA{}, false
	}
	return slices.MinFunc(found, func(a, b rpm.NEVRA) int { return strings.Compare(a.Arch, b.Arch) }), true
}

// Empty says that the host has what it should have.
func (p Plan) Empty() bool { return len(p.Steps) == 0 && len(p.Unavailable) == 0 }

// Packages lists, sorted, the packages that the steps of these actions name.
func (p Plan) Packages(actions ...Action) []rpm.NEVRA {
	var out []rpm.NEVRA
	for _, s := range p.Steps {
		if slices.Contains(actions, s.Action) {
			out = append(out, s.Package)
		}
	}
	return out
}

// Differences returns r with its three lists as this plan sees them, complete.
func (p Plan) Differences(r Report) Report {
	r.Installed, r.ToRemove, r.Missing, r.Cut = p.installed, p.remove, p.missing, false
	return r
}

// Summary is the plan in one line: "2 upgraded, 1 removed"; "nothing to do" when it is empty.
func (p Plan) Summary() string {
	var parts []string
	for _, a := range []struct {
		action Action
		done   string
	}{{Upgrade, "upgraded"}, {Downgrade, "downgraded"}, {Install, "installed"}, {Remove, "removed"}, {Repair, "repaired"}} {
		if n := len(p.Packages(a.action)); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, a.done))
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "nothing to do")
}
