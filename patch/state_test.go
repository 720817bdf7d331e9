package patch

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
)

// nevra reads name-[epoch:]version-release.arch.
func nevra(t testing.TB, s string) rpm.NEVRA {
	t.Helper()
	i, e := strings.IndexByte(s, ':'), ""
	if i >= 0 {
		j := strings.LastIndexByte(s[:i], '-')
		e, s = s[j+1:i+1], s[:j+1]+s[i+1:]
	}
	n, err := rpm.ParseFileName(e + s + ".rpm")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// pkg is a package whose digest is made up from its name.
func pkg(t testing.TB, s string) Package {
	n := nevra(t, s)
	return Package{File: n.FileName(), NEVRA: n, SHA256: fmt.Sprintf("%064x", s)[:64], Size: 100, Built: 1571234567}
}

// one is a patch of release 19.09 with the given packages, Available.
func one(t testing.TB, id ID, packages ...string) Patch {
	p := Patch{Metadata: Metadata{ID: id, Release: "19.09", RebootRequired: Some("Y")}, RepoState: RepoAvailable}
	for _, s := range packages {
		p.Packages = append(p.Packages, pkg(t, s))
		p.Contents = append(p.Contents, nevra(t, s).FileName())
	}
	return p
}

func setOf(patches ...Patch) Set {
	s := Set{}
	for _, p := range patches {
		s[p.ID] = p
	}
	return s
}

// reported is a controller that runs 19.09 and has reported against generation 5, with nothing to do.
func reported(name string) host.Host {
	return host.Host{
		Name:   name,
		Facts:  host.Facts{Personality: host.Controller, Release: "19.09"},
		Report: host.Report{Release: "19.09", Revision: 5, State: host.Idle},
	}
}

func with(h host.Host, edit func(*host.Host)) host.Host {
	edit(&h)
	return h
}

func has(t testing.TB, have, wanted string) func(*host.Host) {
	return func(h *host.Host) {
		h.Report.Installed = append(h.Report.Installed, host.Difference{Have: nevra(t, have), Wanted: nevra(t, wanted).EVR})
	}
}

// TestTruthTable is the table of the specification, one patch that needs a reboot and brings pkg 1.0-3 to controllers,
// one host; rows where the original errs are marked and have a line in docs/compat.md.
func TestTruthTable(t *testing.T) {
	const installed = "pkg-%s.x86_64"
	have := func(version string) func(*host.Host) {
		return has(t, fmt.Sprintf(installed, version), "pkg-9-9.x86_64")
	}
	toRemove := func(h *host.Host) { h.Report.ToRemove = []rpm.NEVRA{nevra(t, "pkg-1.0-3.x86_64")} }
	missing := func(h *host.Host) { h.Report.Missing = []string{"pkg"} }
	storage := func(edit func(*host.Host)) func(*host.Host) {
		return func(h *host.Host) { edit(h); h.Facts.Personality = host.Storage }
	}
	type want struct {
		state     State
		inService bool
	}
	for _, row := range []struct {
		name                          string
		host                          func(*host.Host) // nil: no host at all
		interim                       bool
		available, applied, committed want
	}{
		{"no hosts", nil, false, want{NotApplicable, false}, want{NotApplicable, false}, want{NotApplicable, false}},
		{"current", func(*host.Host) {}, false, want{Available, true}, want{Applied, true}, want{Committed, true}},
		// The original keeps allow_insvc here, and installs on unlocked hosts what needs a reboot (W33).
		{"current, patch interim", func(*host.Host) {}, true, want{PartialRemove, false}, want{PartialApply, false}, want{Committed, true}},
		// A committed patch on a host that lags behind holds no state, but the host does need the reboot (A17).
		{"installed pkg 1.0-2", have("1.0-2"), false, want{Available, true}, want{PartialApply, false}, want{Committed, false}},
		{"installed pkg 1.0-3", have("1.0-3"), false, want{PartialRemove, false}, want{Applied, true}, want{Committed, true}},
		// Original: Partial-Remove. Ours only with exactly the version that the patch brings.
		{"installed pkg 1.0-4", have("1.0-4"), false, want{Available, true}, want{Applied, true}, want{Committed, true}},
		// Original: Available, Partial-Apply: it ignores the epoch (W47). With it, 2:1.0-2 is higher than 1.0-3.
		{"installed pkg 2:1.0-2", have("2:1.0-2"), false, want{Available, true}, want{Applied, true}, want{Committed, true}},
		{"to_remove pkg, personality lists it", toRemove, false, want{PartialRemove, false}, want{Applied, true}, want{Committed, true}},
		// Holds no state, as in the original, but removing it may need the reboot.
		{"to_remove pkg, personality does not", storage(toRemove), false, want{Available, false}, want{Applied, true}, want{Committed, true}},
		{"missing_pkgs pkg, personality lists it", missing, false, want{Available, true}, want{PartialApply, false}, want{Committed, false}},
		{"missing_pkgs pkg, other personality", storage(missing), false, want{Available, true}, want{Applied, true}, want{Committed, true}},
		{"host on another release, installed pkg 1.0-2", func(h *host.Host) {
			have("1.0-2")(h)
			h.Facts.Release, h.Report.Release = "20.01", "20.01"
		}, false, want{Available, true}, want{Applied, true}, want{Committed, true}},
	} {
		for _, col := range []struct {
			repo RepoState
			want want
		}{{RepoAvailable, row.available}, {RepoApplied, row.applied}, {RepoCommitted, row.committed}} {
			t.Run(row.name+"/"+string(col.repo), func(t *testing.T) {
				p := one(t, "P", "pkg-1.0-3.x86_64")
				p.Personalities = map[host.Personality][]string{host.Controller: {"pkg"}}
				p.RepoState = col.repo
				if row.interim {
					p.Changed = 6
				}
				var hosts []host.Host
				if row.host != nil {
					hosts = append(hosts, with(reported("controller-0"), row.host))
				}
				ev := Evaluate(setOf(p), hosts)
				got := want{ev.State("P"), ev.Hosts["controller-0"].AllowInService}
				if got != col.want {
					t.Errorf("got %v, want %v", got, col.want)
				}
				partial := got.state == PartialApply || got.state == PartialRemove
				if v := ev.Patches["P"]; partial != (len(v.Reasons) > 0) || partial != (v.Hosts == 1) {
					t.Errorf("state %s with %d hosts and reasons %v", v.State, v.Hosts, v.Reasons)
				}
				if d := cmp.Diff(Why(setOf(p), "P", hosts), ev.Patches["P"].Reasons); d != "" {
					t.Errorf("why and the verdict differ: %s", d)
				}
				p.RebootRequired = Some("N")
				if v, ok := Evaluate(setOf(p), hosts).Hosts["controller-0"]; ok && !v.AllowInService {
					t.Errorf("in-service patch does not allow in-service: %+v", v)
				}
			})
		}
	}
}

func TestPatchStateFollowsReportsAndNothingElse(t *testing.T) {
	applied := one(t, "P", "pkg-1.0-3.x86_64")
	applied.RepoState, applied.Changed = RepoApplied, 5
	older := func(h *host.Host) { h.Report.Revision = 4 }
	never := func(h *host.Host) { h.Report = host.Report{} }
	for _, tc := range []struct {
		name  string
		patch Patch
		hosts []host.Host
		want  State
		why   []string
	}{
		{"a report of the generation itself counts", applied, []host.Host{reported("a")}, Applied, nil},
		{"one older report keeps it partial", applied, []host.Host{reported("b"), with(reported("a"), older)}, PartialApply,
			[]string{"a has not reported since the patch was applied or removed"}},
		{"a host that never reported keeps it partial", applied, []host.Host{with(reported("a"), never)}, PartialApply,
			[]string{"a has not reported yet"}},
		{"so does one of which nothing is known", applied, []host.Host{{Name: "a"}}, PartialApply, []string{"a has not reported yet"}},
		{"a host that never reported is nothing to a patch that was never applied", one(t, "P", "pkg-1.0-3.x86_64"), []host.Host{{Name: "a"}}, Available, nil},
		{"a report for the former release is none for the present one", applied, []host.Host{with(reported("a"), func(h *host.Host) { h.Report.Release = "18.03" })}, PartialApply,
			[]string{"a has not reported yet"}},
		{"a host of another release does not hold it", applied, []host.Host{{Name: "a", Facts: host.Facts{Release: "20.01"}}}, Applied, nil},
		{"another architecture of the package is another package", applied, []host.Host{with(reported("a"), has(t, "pkg-1.0-2.i686", "pkg-1.0-3.i686"))}, Applied, nil},
		{"a cut report cannot vouch for it", applied, []host.Host{with(reported("a"), func(h *host.Host) { h.Report.Cut = true })}, PartialApply,
			[]string{"a reported more differences than it sent"}},
		{"reasons name host and versions", applied, []host.Host{with(reported("a"), has(t, "pkg-1.0-2.x86_64", "pkg-1.0-3.x86_64"))}, PartialApply,
			[]string{"a has an older version of pkg (1.0-2 instead of 1.0-3)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := setOf(tc.patch)
			if got := Evaluate(set, tc.hosts).State("P"); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			var why []string
			for _, r := range Why(set, "P", tc.hosts) {
				why = append(why, r.String())
			}
			if d := cmp.Diff(why, tc.why); d != "" {
				t.Errorf("reasons (-got +want): %s", d)
			}
			reversed := slices.Clone(tc.hosts)
			slices.Reverse(reversed)
			if d := cmp.Diff(Evaluate(set, reversed), Evaluate(set, tc.hosts)); d != "" {
				t.Errorf("the order of hosts matters: %s", d)
			}
		})
	}
}

func TestHostView(t *testing.T) {
	reboot, service := one(t, "RR", "kernel-2-1.x86_64"), one(t, "SV", "svc-2-1.x86_64")
	service.RebootRequired = Some("N")
	at := func(p Patch, state RepoState, changed int64) Patch {
		p.RepoState, p.Changed = state, changed
		return p
	}
	kernel, svc := has(t, "kernel-1-1.x86_64", "kernel-2-1.x86_64"), has(t, "svc-1-1.x86_64", "svc-2-1.x86_64")
	for _, tc := range []struct {
		name string
		set  Set
		host host.Host
		want HostView
	}{
		{"current", setOf(at(reboot, RepoApplied, 5)), reported("h"),
			HostView{Reported: true, PatchCurrent: true, AllowInService: true}},
		{"right after a reboot-required apply nothing is in-service", setOf(at(reboot, RepoApplied, 6)), reported("h"),
			HostView{Reported: true, PatchCurrent: true, Interim: true, Waiting: []ID{"RR"}, NeedLock: []ID{"RR"}}},
		{"right after an in-service apply it is", setOf(at(service, RepoApplied, 6)), reported("h"),
			HostView{Reported: true, PatchCurrent: true, Interim: true, AllowInService: true, Waiting: []ID{"SV"}}},
		{"a reboot-required patch elsewhere does not matter here", setOf(at(service, RepoApplied, 5), at(reboot, RepoApplied, 4)), with(reported("h"), svc),
			HostView{Reported: true, AllowInService: true, Pending: []ID{"SV"}}},
		{"pending reboot-required", setOf(at(service, RepoApplied, 6), at(reboot, RepoApplied, 4)), with(reported("h"), kernel),
			HostView{Reported: true, Interim: true, RequiresReboot: true, Waiting: []ID{"SV"}, Pending: []ID{"RR"}, NeedLock: []ID{"RR"}}},
		{"never reported", setOf(at(reboot, RepoApplied, 4)), host.Host{Name: "h"},
			HostView{Interim: true, Waiting: []ID{"RR"}, NeedLock: []ID{"RR"}}},
		{"never reported, no patches", Set{}, host.Host{Name: "h"}, HostView{Interim: true}},
		{"a removed patch under a higher removed one needs its reboot too",
			setOf(at(reboot, RepoAvailable, 5), at(inServiceK3(t, "kernel-3-1.x86_64"), RepoAvailable, 5)),
			with(reported("h"), has(t, "kernel-3-1.x86_64", "kernel-1-1.x86_64")),
			HostView{Reported: true, RequiresReboot: true, Pending: []ID{"K3", "RR"}, NeedLock: []ID{"RR"}}},
		{"a patch that was never applied does not",
			setOf(reboot, at(inServiceK3(t, "kernel-3-1.x86_64"), RepoAvailable, 5)),
			with(reported("h"), has(t, "kernel-3-1.x86_64", "kernel-1-1.x86_64")),
			HostView{Reported: true, AllowInService: true, Pending: []ID{"K3"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(Evaluate(tc.set, []host.Host{tc.host}).Hosts["h"], tc.want); d != "" {
				t.Errorf("view (-got +want): %s", d)
			}
		})
	}
}

func inServiceK3(t *testing.T, pkgs ...string) Patch {
	p := one(t, "K3", pkgs...)
	p.RebootRequired = Some("N")
	return p
}

func TestViewsDoNotShareWhatTheyAppend(t *testing.T) {
	a, b := one(t, "A", "a-2-1.x86_64"), one(t, "B", "b-2-1.x86_64")
	a.RepoState, a.Changed = RepoApplied, 6
	b.RepoState, b.Changed = RepoApplied, 4
	h1 := with(reported("h1"), has(t, "b-1-1.x86_64", "b-2-1.x86_64"))
	ev := Evaluate(setOf(a, b), []host.Host{h1, reported("h2")})
	if d := cmp.Diff(ev.Hosts["h2"].NeedLock, []ID{"A"}); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(ev.Hosts["h1"].NeedLock, []ID{"A", "B"}); d != "" {
		t.Error(d)
	}
}
