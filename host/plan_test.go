package host_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
)

// packages reads "a-1-1.noarch b-2:1-1.x86_64".
func packages(t testing.TB, s string) []rpm.NEVRA {
	t.Helper()
	var out []rpm.NEVRA
	for f := range strings.FieldsSeq(s) {
		out = append(out, pkg(t, f))
	}
	return out
}

// pkg reads name-[epoch:]version-release.arch, the inverse of NEVRA.String.
func pkg(t testing.TB, s string) rpm.NEVRA {
	t.Helper()
	if i := strings.IndexByte(s, ':'); i >= 0 { // epoch first is what the parser takes
		j := strings.LastIndexByte(s[:i], '-')
		s = s[j+1:i+1] + s[:j+1] + s[i+1:]
	}
	n, err := rpm.ParseFileName(s + ".rpm")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMakePlan(t *testing.T) {
	for _, c := range []struct {
		name                              string
		installed, base, updates, brought string
		group                             string
		steps                             string // action package ...
		differ, remove, missing, none     string
	}{
		{name: "a host that has what base has needs nothing", installed: "a-1-1.noarch", base: "a-1-1.noarch"},
		{name: "update repository decides over base", installed: "a-1-1.noarch", base: "a-1-1.noarch a-3-1.noarch", updates: "a-2-1.noarch",
			steps: "upgrade a-2-1.noarch", differ: "a-1-1.noarch>2-1"},
		{name: "the highest of the update repository counts", installed: "a-1-1.noarch", updates: "a-2-1.noarch a-10-1.noarch a-9-1.noarch",
			steps: "upgrade a-10-1.noarch", differ: "a-1-1.noarch>10-1"},
		{name: "a removed patch is a downgrade to base", installed: "a-2-1.noarch", base: "a-1-1.noarch", brought: "a-2-1.noarch",
			steps: "downgrade a-1-1.noarch", differ: "a-2-1.noarch>1-1"},
		{name: "epoch counts before version", installed: "a-1:1-1.noarch", base: "a-2-1.noarch",
			steps: "downgrade a-2-1.noarch", differ: "a-1:1-1.noarch>2-1"},
		{name: "what a patch brought and nobody has goes", installed: "a-1-1.noarch n-1-1.noarch", base: "a-1-1.noarch", brought: "n-1-1.noarch",
			steps: "remove n-1-1.noarch", remove: "n-1-1.noarch"},
		{name: "what an administrator installed stays", installed: "own-1-1.noarch n-2-1.noarch", brought: "n-1-1.noarch"},
		{name: "a package of the group that is not installed is missing", installed: "a-1-1.noarch", base: "a-1-1.noarch", updates: "n-1-1.noarch n-2-1.noarch", group: "n a",
			steps: "install n-2-1.noarch", missing: "n"},
		{name: "missing goes by name, whatever the architecture", installed: "n-1-1.x86_64", updates: "n-1-1.noarch", brought: "n-1-1.noarch", group: "n"},
		{name: "the machine's architecture is installed", updates: "n-1-1.i686 n-1-1.noarch n-1-1.x86_64", group: "n",
			steps: "install n-1-1.x86_64", missing: "n"},
		{name: "a name of the group that no repository has is said", group: "n", missing: "n", none: "n"},
		{name: "architectures are packages of their own", installed: "a-1-1.i686 a-2-1.x86_64", base: "a-2-1.i686 a-2-1.x86_64",
			steps: "upgrade a-2-1.i686", differ: "a-1-1.i686>2-1"},
		{name: "two versions of one package are repaired", installed: "a-1-1.noarch a-2-1.noarch", base: "a-2-1.noarch",
			steps: "repair a-2-1.noarch", differ: "a-1-1.noarch>2-1"},
		{name: "one build twice is repaired", installed: "a-1-1.noarch a-1-1.noarch", base: "a-1-1.noarch",
			steps: "repair a-1-1.noarch", differ: "a-1-1.noarch>1-1"},
		{name: "only the build that a patch brought goes", installed: "n-1-1.noarch n-2-1.noarch", brought: "n-1-1.noarch",
			steps: "remove n-1-1.noarch", remove: "n-1-1.noarch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := host.MakePlan(host.Want{
				Installed: packages(t, c.installed), Base: packages(t, c.base), Updates: packages(t, c.updates),
				Brought: packages(t, c.brought), Group: strings.Fields(c.group), Arch: "x86_64",
			})
			var steps, differ, remove []string
			for _, s := range p.Steps {
				steps = append(steps, string(s.Action), s.Package.String())
				if s.Reason == "" {
					t.Errorf("%s %s has no reason", s.Action, s.Package)
				}
			}
			r := p.Differences(host.Report{Revision: 1})
			for _, d := range r.Installed {
				differ = append(differ, d.Have.String()+">"+d.Wanted.String())
			}
			for _, n := range r.ToRemove {
				remove = append(remove, n.String())
			}
			for _, x := range []struct {
				what string
				got  []string
				want string
			}{{"steps", steps, c.steps}, {"differences", differ, c.differ}, {"to remove", remove, c.remove}, {"missing", r.Missing, c.missing}, {"unavailable", p.Unavailable, c.none}} {
				if diff := cmp.Diff(x.got, strings.Fields(x.want), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s (-got +want):\n%s", x.what, diff)
				}
			}
			if got, want := r.Current(), p.Empty(); got != want {
				t.Errorf("report says current %v, the plan %v", got, want)
			}
		})
	}
}

func drawPackages(rt *rapid.T, label string, unique bool) []rpm.NEVRA {
	g := rapid.Custom(func(rt *rapid.T) rpm.NEVRA {
		return rpm.NEVRA{
			Name: rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "name"),
			Arch: rapid.SampledFrom([]string{"noarch", "x86_64"}).Draw(rt, "arch"),
			EVR: rpm.EVR{Epoch: rapid.IntRange(0, 1).Draw(rt, "epoch"), Version: rapid.SampledFrom([]string{"1", "1.0", "2~rc", "2"}).Draw(rt, "version"),
				Release: rapid.SampledFrom([]string{"1", "10"}).Draw(rt, "release")},
		}
	})
	if unique {
		return rapid.SliceOfNDistinct(g, 0, 8, rpm.NEVRA.Key).Draw(rt, label)
	}
	return rapid.SliceOfN(g, 0, 8).Draw(rt, label)
}

// applied is what the package tools would leave behind.
func applied(have []rpm.NEVRA, p host.Plan) []rpm.NEVRA {
	for _, s := range p.Steps {
		have = slices.DeleteFunc(slices.Clone(have), func(n rpm.NEVRA) bool {
			if s.Action == host.Remove {
				return n == s.Package
			}
			return n.Key() == s.Package.Key()
		})
		if s.Action != host.Remove {
			have = append(have, s.Package)
		}
	}
	return have
}

func TestAnAppliedPlanLeavesNothingToDo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := host.Want{
			Installed: drawPackages(rt, "installed", false), Base: drawPackages(rt, "base", false), Updates: drawPackages(rt, "updates", false),
			Brought: drawPackages(rt, "brought", false), Group: rapid.SliceOf(rapid.SampledFrom([]string{"a", "b", "c", "e"})).Draw(rt, "group"), Arch: "x86_64",
		}
		p := host.MakePlan(w)
		after := w
		after.Installed = applied(w.Installed, p)
		if q := host.MakePlan(after); len(q.Steps) > 0 {
			rt.Fatalf("after %+v still %+v", p.Steps, q.Steps)
		}
		brought := map[rpm.NEVRA]bool{}
		for _, n := range w.Brought {
			brought[n] = true
		}
		for _, n := range p.Packages(host.Remove) {
			if !brought[n] || slices.ContainsFunc(slices.Concat(w.Base, w.Updates), func(m rpm.NEVRA) bool { return m.Key() == n.Key() }) {
				rt.Fatalf("removes %s, which no patch brought or a repository has", n)
			}
		}
		if got, want := p.Differences(host.Report{Revision: 1}).Current(), p.Empty(); got != want {
			rt.Fatalf("report current %v, plan empty %v", got, want)
		}
	})
}

func TestPlanDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := host.Want{Installed: drawPackages(rt, "installed", true), Base: drawPackages(rt, "base", false), Updates: drawPackages(rt, "updates", false), Group: []string{"a", "b"}}
		v := host.Want{Installed: rapid.Permutation(w.Installed).Draw(rt, "i"), Base: rapid.Permutation(w.Base).Draw(rt, "b"), Updates: rapid.Permutation(w.Updates).Draw(rt, "u"), Group: []string{"b", "a"}}
		a, b := host.MakePlan(w), host.MakePlan(v)
		if diff := cmp.Diff(a, b, cmpopts.IgnoreUnexported(host.Plan{})); diff != "" {
			rt.Fatalf("plans differ:\n%s", diff)
		}
	})
}

func TestApplyThenRemoveRestores(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		base := drawPackages(rt, "base", true)
		patch := drawPackages(rt, "patch", true)
		var group []string
		for _, n := range patch {
			group = append(group, n.Name)
		}
		up := host.MakePlan(host.Want{Installed: base, Base: base, Updates: patch, Group: group, Brought: patch})
		patched := applied(base, up)
		down := host.MakePlan(host.Want{Installed: patched, Base: base, Brought: patch})
		got := applied(patched, down)
		slices.SortFunc(got, rpm.NEVRA.Compare)
		want := slices.SortedFunc(slices.Values(base), rpm.NEVRA.Compare)
		if diff := cmp.Diff(got, want, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("after apply and remove (-got +want):\n%s", diff)
		}
	})
}
