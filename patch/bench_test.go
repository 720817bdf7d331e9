package patch

import (
	"fmt"
	"testing"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
)

// large is n applied patches of five packages each, the last of them applied in generation n, and hosts that have
// reported against generation reported; one in ten has something to do.
func large(patches, hosts int, reported int64) (Set, []host.Host) {
	set := Set{}
	for i := range patches {
		p := Patch{Metadata: Metadata{ID: ID(fmt.Sprintf("P_%04d", i)), Release: "19.09", RebootRequired: Some("Y")}, RepoState: RepoApplied, Changed: int64(i) + 1}
		for j := range 5 {
			n := rpm.NEVRA{Name: fmt.Sprintf("pkg-%d-%d", i, j), EVR: rpm.EVR{Version: "1.0", Release: "2"}, Arch: "x86_64"}
			p.Packages = append(p.Packages, Package{File: n.FileName(), NEVRA: n})
		}
		set[p.ID] = p
	}
	var all []host.Host
	for i := range hosts {
		h := host.Host{Name: fmt.Sprintf("host-%05d", i), Facts: host.Facts{Personality: host.Worker, Release: "19.09"},
			Report: host.Report{Release: "19.09", Revision: reported}}
		if i%10 == 0 {
			have := rpm.NEVRA{Name: fmt.Sprintf("pkg-%d-0", i%patches), EVR: rpm.EVR{Version: "1.0", Release: "1"}, Arch: "x86_64"}
			h.Report.Installed = []host.Difference{{Have: have, Wanted: rpm.EVR{Version: "1.0", Release: "2"}}}
		}
		all = append(all, h)
	}
	return set, all
}

func BenchmarkEvaluate(b *testing.B) {
	for _, bc := range []struct {
		name           string
		patches, hosts int
		reported       int64
	}{
		{"500 patches, 1000 hosts", 500, 1000, 500},
		{"500 patches, 10000 hosts", 500, 10_000, 500},
		{"500 patches, 10000 hosts, right after an apply", 500, 10_000, 499},
		{"500 patches, 10000 hosts that never reported", 500, 10_000, 0},
	} {
		b.Run(bc.name, func(b *testing.B) {
			set, hosts := large(bc.patches, bc.hosts, bc.reported)
			b.ReportAllocs()
			for b.Loop() {
				if ev := Evaluate(set, hosts); len(ev.Hosts) != bc.hosts {
					b.Fatal(len(ev.Hosts))
				}
			}
		})
	}
}

func BenchmarkDecideApply(b *testing.B) {
	set, hosts := large(500, 1000, 500)
	for id, p := range set {
		p.RepoState = RepoAvailable
		set[id] = p
	}
	now := Situation{Release: "19.09", Hosts: hosts, Trusts: func(Signer) bool { return true }}
	for b.Loop() {
		if d, err := DecideApply(set, ApplyRequest{All: true}, now); err != nil || len(d.Changes) != 500 {
			b.Fatal(len(d.Changes), err)
		}
	}
}
