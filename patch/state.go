package patch

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
)

// MaxReasons is how many reasons a [Verdict] keeps; [Why] returns all of them.
const MaxReasons = 16

// Evaluation is what all known hosts together say, computed from saved facts alone: the same patches and hosts give the
// same Evaluation, on any controller and after any restart.
type Evaluation struct {
	Patches map[ID]Verdict
	Hosts   map[string]HostView
}

// State returns the patch state of id, and n/a for an unknown one.
func (e Evaluation) State(id ID) State {
	if v, ok := e.Patches[id]; ok {
		return v.State
	}
	return NotApplicable
}

// Verdict is the state of one patch and what holds it there.
type Verdict struct {
	State   State
	Hosts   int      // how many hosts keep the patch Partial
	Reasons []Reason // the first [MaxReasons], in order of host
}

// Rule is why one host keeps a patch Partial.
type Rule string

// The rules. Their text is shown to operators.
const (
	Unreported Rule = "has not reported yet"                   // the host has never reported for its release
	Interim    Rule = "has not reported since the patch set"   // its report is older than the last apply or remove
	CutReport  Rule = "reported more differences than it sent" // what was cut may concern the patch
	Outdated   Rule = "has an older version of"                // the patch brings a newer one
	Leftover   Rule = "still has the version that it brought"  // of a package that goes back to an older version
	Unremoved  Rule = "still has the package that it brought"  // of a package that nothing else has
	Missing    Rule = "does not have the package yet"          // that the patch brings to its personality
)

// Reason is one host, and where there is one the package, that keeps a patch Partial.
type Reason struct {
	Host    string
	Rule    Rule
	Package rpm.NEVRA // as installed; for Missing only the name is set; zero for the first three rules
	Brings  rpm.EVR   // what the patch brings instead; only for Outdated
}

// String is one clause for an operator: compute-0 has an older version of foo (1.0-2 instead of 1.0-3).
func (r Reason) String() string {
	switch r.Rule {
	case Interim:
		return r.Host + " has not reported since the patch was applied or removed"
	case Outdated:
		return fmt.Sprintf("%s has an older version of %s (%s instead of %s)", r.Host, r.Package.Name, r.Package.EVR, r.Brings)
	case Leftover:
		return fmt.Sprintf("%s still has %s", r.Host, r.Package)
	case Unremoved:
		return fmt.Sprintf("%s still has %s, which only this patch brought", r.Host, r.Package)
	case Missing:
		return fmt.Sprintf("%s does not have %s yet", r.Host, r.Package.Name)
	}
	return r.Host + " " + string(r.Rule)
}

// Evaluate computes the state of every patch and the patch view of every host. The order of the arguments does not
// matter. With no hosts every patch is n/a.
//
// A patch is interim on a host of its release until that host has reported against the generation of the patch's last
// apply or remove, or a later one; hosts of other releases do not hold it. Differences from the original are in
// docs/compat.md ("Patch state").
func Evaluate(set Set, hosts []host.Host) Evaluation {
	ev := Evaluation{Patches: make(map[ID]Verdict, len(set)), Hosts: make(map[string]HostView, len(hosts))}
	ix := newIndex(set)
	verdicts := make([]Verdict, len(ix.patches))
	last := make([]int, len(ix.patches)) // 1 + the last host that each patch was held by
	for i, h := range byName(hosts) {
		ev.Hosts[h.Name] = ix.examine(h, func(p *indexed, r Reason) {
			v := &verdicts[p.n]
			v.State = p.partial()
			if last[p.n] != i+1 {
				last[p.n] = i + 1
				v.Hosts++
			}
			if len(v.Reasons) < MaxReasons {
				v.Reasons = append(v.Reasons, r)
			}
		})
	}
	for i, p := range ix.patches {
		v := verdicts[i]
		switch {
		case len(hosts) == 0:
			v = Verdict{State: NotApplicable}
		case v.State == "":
			v.State = p.settled()
		}
		ev.Patches[p.ID] = v
	}
	return ev
}

// Why returns everything that keeps one patch Partial, in order of host and package. It is empty for a patch whose state
// is its repo state.
func Why(set Set, id ID, hosts []host.Host) []Reason {
	p, ok := set[id]
	if !ok {
		return nil
	}
	var out []Reason
	ix := newIndex(Set{id: p})
	for _, h := range byName(hosts) {
		ix.examine(h, func(_ *indexed, r Reason) { out = append(out, r) })
	}
	return out
}

// byName returns the hosts in order of name, without touching the caller's slice.
func byName(hosts []host.Host) []host.Host {
	order := func(a, b host.Host) int { return strings.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(hosts, order) {
		return hosts
	}
	return slices.SortedFunc(slices.Values(hosts), order)
}

// indexed is a patch with its place in the index.
type indexed struct {
	*Patch
	n int
}

// partial is the state of a patch that some host holds back.
func (p *indexed) partial() State {
	if p.RepoState == RepoApplied {
		return PartialApply
	}
	return PartialRemove
}

// settled is the state of a patch that no host holds back.
func (p *indexed) settled() State { return State(p.RepoState) }

// index finds the patches that a difference of a host concerns without looking at the others.
type index struct {
	patches  []*indexed // in order of ID
	names    []string   // of the releases, sorted
	releases map[string]*releaseIndex
}

type releaseIndex struct {
	changed   []*indexed // applied or removed at least once and not committed, latest first
	ids       []ID       // of changed; views share its beginning
	reboot    []ID       // those of changed that need a reboot; views share its beginning
	reboots   []int      // how many of the first n of changed need a reboot, n from 0 to all
	providers map[rpm.Key][]provider
	groups    map[groupKey][]*indexed // patches that contain the package and bring it to the personality
}

type provider struct {
	patch *indexed
	evr   rpm.EVR
}

type groupKey struct {
	personality host.Personality
	name        string
}

func newIndex(set Set) *index {
	ix := &index{names: set.Releases(), releases: map[string]*releaseIndex{}}
	for i, id := range set.IDs() {
		p := set[id]
		in := &indexed{Patch: &p, n: i}
		ix.patches = append(ix.patches, in)
		rel := ix.releases[p.Release]
		if rel == nil {
			rel = &releaseIndex{providers: map[rpm.Key][]provider{}, groups: map[groupKey][]*indexed{}}
			ix.releases[p.Release] = rel
		}
		if p.Changed > 0 && p.RepoState != RepoCommitted {
			rel.changed = append(rel.changed, in)
		}
		names := make(map[string]bool, len(p.Packages))
		for _, pkg := range p.Packages {
			k := pkg.NEVRA.Key()
			rel.providers[k] = append(rel.providers[k], provider{in, pkg.NEVRA.EVR})
			names[pkg.NEVRA.Name] = true
		}
		for hp, group := range p.Personalities {
			for _, name := range group {
				if names[name] {
					k := groupKey{hp, name}
					rel.groups[k] = append(rel.groups[k], in)
				}
			}
		}
	}
	for _, rel := range ix.releases {
		slices.SortStableFunc(rel.changed, func(a, b *indexed) int { return cmp.Compare(b.Changed, a.Changed) })
		rel.reboots = append(rel.reboots, 0)
		for _, p := range rel.changed {
			rel.ids = append(rel.ids, p.ID)
			if !p.InService() {
				rel.reboot = append(rel.reboot, p.ID)
			}
			rel.reboots = append(rel.reboots, len(rel.reboot))
		}
	}
	return ix
}

// examine applies every rule to one host: it calls hold for each reason to keep a patch Partial and returns the view.
func (ix *index) examine(h host.Host, hold func(*indexed, Reason)) (v HostView) {
	v = newHostView(h)
	defer v.settle()
	release := cmp.Or(h.Facts.Release, h.Report.Release)
	for _, name := range ix.names {
		rel := ix.releases[name]
		switch {
		case release != "" && release != name:
		case !v.Reported: // and without a release it may be of any
			v.wait(rel, len(rel.changed))
			rel.hold(h.Name, Unreported, rel.changed, hold)
		case h.Report.Cut:
			v.wait(rel, len(rel.changed))
			rel.hold(h.Name, CutReport, rel.changed, hold)
			rel.compare(h, &v, hold)
		default:
			n, _ := slices.BinarySearchFunc(rel.changed, h.Report.Revision, func(p *indexed, revision int64) int {
				if p.Changed > revision {
					return -1
				}
				return 1
			})
			v.wait(rel, n)
			rel.hold(h.Name, Interim, rel.changed[:n], hold)
			rel.compare(h, &v, hold)
		}
	}
	return v
}

func (rel *releaseIndex) hold(hostName string, rule Rule, patches []*indexed, hold func(*indexed, Reason)) {
	for _, p := range patches {
		hold(p, Reason{Host: hostName, Rule: rule})
	}
}

// compare applies the version, removal and missing rules to the differences that the host reported. A patch may be
// pending on the host without holding its state: a committed one on a host that lags behind, or a removed one whose
// version was already superseded there. Such a patch counts for whether the host must be locked.
func (rel *releaseIndex) compare(h host.Host, v *HostView, hold func(*indexed, Reason)) {
	for _, d := range h.Report.Installed {
		for _, pv := range rel.providers[d.Have.Key()] {
			p, c := pv.patch, d.Have.EVR.Compare(pv.evr)
			switch {
			case p.RepoState == RepoAvailable && c == 0:
				v.pending(p)
				hold(p, Reason{Host: h.Name, Rule: Leftover, Package: d.Have})
			case p.RepoState == RepoAvailable && p.Changed > 0 && c > 0 && pv.evr.Compare(d.Wanted) > 0:
				v.pending(p)
			case p.RepoState == RepoApplied && c < 0:
				v.pending(p)
				hold(p, Reason{Host: h.Name, Rule: Outdated, Package: d.Have, Brings: pv.evr})
			case p.RepoState == RepoCommitted && c < 0:
				v.pending(p)
			}
		}
	}
	for _, n := range h.Report.ToRemove {
		for _, pv := range rel.providers[n.Key()] {
			p, c := pv.patch, n.EVR.Compare(pv.evr)
			switch {
			case p.RepoState != RepoAvailable || c < 0 || c > 0 && p.Changed == 0:
			case c == 0 && p.Group(h.Facts.Personality, n.Name):
				v.pending(p)
				hold(p, Reason{Host: h.Name, Rule: Unremoved, Package: n})
			default:
				v.pending(p)
			}
		}
	}
	for _, name := range h.Report.Missing {
		for _, p := range rel.groups[groupKey{h.Facts.Personality, name}] {
			switch p.RepoState {
			case RepoApplied:
				v.pending(p)
				hold(p, Reason{Host: h.Name, Rule: Missing, Package: rpm.NEVRA{Name: name}})
			case RepoCommitted:
				v.pending(p)
			}
		}
	}
}
