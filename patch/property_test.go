package patch

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
)

// firstOrder tries every order of ids, the alphabetically first one first, and returns the first in which each comes after
// those of them that it requires.
func firstOrder(set Set, ids []ID) []ID {
	var try func(taken, left []ID) []ID
	try = func(taken, left []ID) []ID {
		if len(left) == 0 {
			for i, id := range taken {
				for _, req := range set[id].Requires {
					if j := slices.Index(taken, req); j > i {
						return nil
					}
				}
			}
			return taken
		}
		for i, id := range left {
			rest := slices.Concat(left[:i], left[i+1:])
			if found := try(append(slices.Clone(taken), id), rest); found != nil {
				return found
			}
		}
		return nil
	}
	return try(nil, slices.Sorted(slices.Values(ids)))
}

func TestOrderAgreesWithTryingEveryOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 6).Draw(t, "patches")
		set := Set{}
		var ids []ID
		names := rapid.Permutation([]ID{"A", "B", "C", "D", "E", "F"}).Draw(t, "names")[:n]
		for i, id := range names {
			p := Patch{Metadata: Metadata{ID: id}}
			if i > 0 { // only earlier ones, so that there is no circle
				p.Requires = rapid.SliceOfDistinct(rapid.SampledFrom(append([]ID{"elsewhere"}, names[:i]...)), rapid.ID).Draw(t, "requires")
			}
			set[id] = p
			ids = append(ids, id)
		}
		if got, want := Order(set, ids), firstOrder(set, ids); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestOrderOfACircleHasEveryPatchOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []ID{"A", "B", "C", "D", "E"}
		set := Set{}
		for _, id := range names {
			set[id] = Patch{Metadata: Metadata{ID: id, Requires: rapid.SliceOf(rapid.SampledFrom(names)).Draw(t, "requires")}}
		}
		if got := slices.Sorted(slices.Values(Order(set, names))); !slices.Equal(got, names) {
			t.Fatalf("got %v", got)
		}
	})
}

// drawSet draws up to six patches of one or two releases with random states, requirements, packages and personalities.
// Their packages differ, as check 11 of the upload demands, but are versions of few names.
func drawSet(t *rapid.T) Set {
	set := Set{}
	names := []ID{"A", "B", "C", "D", "E", "F"}
	version := 0
	for _, id := range names[:rapid.IntRange(0, 6).Draw(t, "patches")] {
		p := Patch{Metadata: Metadata{ID: id, Release: rapid.SampledFrom([]string{"19.09", "19.09", "20.01"}).Draw(t, "release"),
			RebootRequired: Some(rapid.SampledFrom([]string{"Y", "N"}).Draw(t, "reboot")), Personalities: map[host.Personality][]string{}}}
		p.RepoState = rapid.SampledFrom([]RepoState{RepoAvailable, RepoAvailable, RepoApplied, RepoCommitted}).Draw(t, "state")
		if p.RepoState != RepoAvailable || rapid.Bool().Draw(t, "was applied") {
			p.Changed = rapid.Int64Range(1, 4).Draw(t, "changed")
		}
		p.Requires = rapid.SliceOfNDistinct(rapid.SampledFrom(append(names, "LOST")), 0, 2, rapid.ID).Draw(t, "requires")
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y", "z"}), 1, 3, rapid.ID).Draw(t, "packages") {
			version++
			n := rpm.NEVRA{Name: name, EVR: rpm.EVR{Version: fmt.Sprint(rapid.IntRange(1, 3).Draw(t, "version")), Release: fmt.Sprint(version)}, Arch: "noarch"}
			p.Packages = append(p.Packages, Package{File: n.FileName(), NEVRA: n})
			if rapid.Bool().Draw(t, "new") {
				hp := rapid.SampledFrom([]host.Personality{host.Controller, host.Worker}).Draw(t, "personality")
				p.Personalities[hp] = append(p.Personalities[hp], name)
			}
		}
		set[id] = p
	}
	return set
}

// drawHosts draws hosts with reports that name real packages of the set among others.
func drawHosts(t *rapid.T, set Set) []host.Host {
	known := []rpm.NEVRA{{Name: "x", EVR: rpm.EVR{Version: "2", Release: "0"}, Arch: "noarch"}}
	for _, p := range set.Sorted() {
		for _, pkg := range p.Packages {
			known = append(known, pkg.NEVRA)
		}
	}
	var out []host.Host
	for i := range rapid.IntRange(0, 4).Draw(t, "hosts") {
		h := host.Host{Name: fmt.Sprintf("h%d", i)}
		if rapid.IntRange(0, 9).Draw(t, "unknown") > 0 {
			h.Facts.Release = rapid.SampledFrom([]string{"19.09", "19.09", "20.01"}).Draw(t, "runs")
			h.Facts.Personality = rapid.SampledFrom([]host.Personality{host.Controller, host.Worker}).Draw(t, "is")
			h.Report = host.Report{Release: h.Facts.Release, Revision: rapid.Int64Range(0, 4).Draw(t, "revision"), Cut: rapid.IntRange(0, 9).Draw(t, "cut") == 0}
			for _, n := range rapid.SliceOfN(rapid.SampledFrom(known), 0, 3).Draw(t, "installed") {
				h.Report.Installed = append(h.Report.Installed, host.Difference{Have: n, Wanted: rapid.SampledFrom(known).Draw(t, "wanted").EVR})
			}
			h.Report.ToRemove = rapid.SliceOfN(rapid.SampledFrom(known), 0, 2).Draw(t, "to remove")
			h.Report.Missing = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y", "z"}), 0, 2, rapid.ID).Draw(t, "missing")
		}
		out = append(out, h)
	}
	return out
}

// obvious is the table of the specification said once more, patch by patch and host by host, with the deliberate
// differences.
func obvious(p Patch, hosts []host.Host) State {
	if len(hosts) == 0 {
		return NotApplicable
	}
	if p.RepoState == RepoCommitted {
		return Committed
	}
	partial, whole := PartialRemove, Available
	if p.RepoState == RepoApplied {
		partial, whole = PartialApply, Applied
	}
	for _, h := range hosts {
		if h.Facts.Release != "" && h.Facts.Release != p.Release {
			continue
		}
		if p.Changed > h.Report.Revision || p.Changed > 0 && h.Report.Cut {
			return partial
		}
		if h.Report.Revision == 0 {
			continue
		}
		for _, pkg := range p.Packages {
			for _, d := range h.Report.Installed {
				if d.Have.Key() == pkg.NEVRA.Key() {
					c := d.Have.EVR.Compare(pkg.NEVRA.EVR)
					if p.RepoState == RepoAvailable && c == 0 || p.RepoState == RepoApplied && c < 0 {
						return partial
					}
				}
			}
			lists := p.Group(h.Facts.Personality, pkg.NEVRA.Name)
			if p.RepoState == RepoAvailable && lists && slices.Contains(h.Report.ToRemove, pkg.NEVRA) {
				return partial
			}
			if p.RepoState == RepoApplied && lists && slices.Contains(h.Report.Missing, pkg.NEVRA.Name) {
				return partial
			}
		}
	}
	return whole
}

func TestStatesAgreeWithTheObviousRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawSet(t)
		hosts := drawHosts(t, set)
		ev := Evaluate(set, hosts)
		for id, p := range set {
			v := ev.Patches[id]
			if want := obvious(p, hosts); v.State != want {
				t.Errorf("%s: got %s, want %s", id, v.State, want)
			}
			why := Why(set, id, hosts)
			if partial := v.State == PartialApply || v.State == PartialRemove; partial != (len(why) > 0) || partial != (v.Hosts > 0) {
				t.Errorf("%s is %s, with %d hosts and reasons %v", id, v.State, v.Hosts, why)
			}
		}
		for name, v := range ev.Hosts {
			for _, id := range slices.Concat(v.Pending, v.Waiting) {
				if v.AllowInService && !set[id].InService() {
					t.Errorf("%s may install in service although %s needs a reboot", name, id)
				}
			}
			if v.Interim && v.Reported && len(v.Waiting) == 0 {
				t.Errorf("%s is interim for no patch", name)
			}
		}
	})
}

func TestWhenEveryHostHasReportedNothingIsPartial(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawSet(t)
		hosts := drawHosts(t, set)
		for i := range hosts {
			hosts[i].Facts.Release = "19.09"
			hosts[i].Report = host.Report{Release: "19.09", Revision: 4}
		}
		for id, v := range Evaluate(set, hosts).Patches {
			if len(hosts) > 0 && v.State != State(set[id].RepoState) {
				t.Errorf("%s is %s, its repo state is %s", id, v.State, set[id].RepoState)
			}
		}
	})
}

// TestRequirementsHoldAfterAnySequence: whatever is applied and removed in whatever order, an applied patch never
// requires one that is not, unless it did so at the start; doing anything twice changes nothing the second time; and a
// refusal changes nothing.
func TestRequirementsHoldAfterAnySequence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawSet(t)
		for id, p := range set {
			p.RepoState, p.Changed = RepoAvailable, 0
			set[id] = p
		}
		now := Situation{Release: "19.09", Trusts: func(Signer) bool { return true }}
		for range rapid.IntRange(1, 8).Draw(t, "requests") {
			ids := rapid.SliceOfN(rapid.SampledFrom([]string{"A", "B", "C", "D", "E", "F"}), 1, 4).Draw(t, "ids")
			apply := rapid.Bool().Draw(t, "apply")
			decide := func(s Set) Decision {
				var d Decision
				var err error
				if apply {
					d, err = DecideApply(s, ApplyRequest{IDs: ids}, now)
				} else {
					d, err = DecideRemove(s, RemoveRequest{IDs: ids}, now)
				}
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			d := decide(set)
			if d.Refused() && (len(d.Changes) > 0 || len(d.Info) > 0 || len(d.Warning) > 0) {
				t.Fatalf("a refusal does something: %s", reply(d))
			}
			next := d.After(set, func(string) int64 { return 7 })
			if again := decide(next); !d.Refused() && len(again.Changes) > 0 {
				t.Fatalf("the same again: %s", reply(again))
			}
			set = next
			for id, p := range set {
				for _, req := range p.Requires {
					if p.RepoState == RepoApplied && set[req].RepoState != RepoApplied {
						t.Fatalf("%s is applied without %s", id, req)
					}
				}
			}
		}
	})
}

func TestEvaluateIsTheSameTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawSet(t)
		hosts := drawHosts(t, set)
		if d := cmp.Diff(Evaluate(set, hosts), Evaluate(set, hosts)); d != "" {
			t.Fatal(d)
		}
	})
}
