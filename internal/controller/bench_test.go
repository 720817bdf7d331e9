package controller

import (
	"context"
	"fmt"
	"testing"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
)

// crowd is a snapshot with n hosts, of which every tenth lags behind, and patches of which half are applied.
func crowd(hosts, patches int) *snapshot {
	s := newSnapshot()
	placed := map[patch.ID]place{}
	for i := range patches {
		p := simple(fmt.Sprintf("DEMO_19.09_PATCH_%04d", i), i%3 == 0)
		if i%2 == 0 {
			placed[p.ID] = place{patch.RepoApplied, int64(i + 2)}
		}
		s.setPatch(patchRecord{Format: 1, Patch: p}, int64(i+2))
	}
	s.setRelease(releaseRecord{Format: 1, Release: "19.09", Revision: int64(patches + 2), Placed: placed}, 2)
	for i := range hosts {
		h := host.Host{Name: fmt.Sprintf("compute-%d", i), IP: fmt.Sprintf("10.0.%d.%d", i/250, i%250), Facts: facts(), Report: current(int64(patches + 2))}
		if i%10 == 0 {
			h.Report.Installed = []host.Difference{{Have: rpm.NEVRA{Name: "pkg-demo_19.09_patch_0002", EVR: rpm.EVR{Version: "1.0", Release: "1"}, Arch: "noarch"}, Wanted: rpm.EVR{Version: "1.0", Release: "2"}}}
		}
		s.setHost(h, int64(i+2))
		s.setDesired(desiredRecord{Format: 1, Host: h.Name, Release: "19.09"}, int64(i+2))
	}
	return s
}

// fresh returns a snapshot of the same state whose evaluation has not been computed.
func fresh(s *snapshot) *snapshot { return s.next() }

func BenchmarkQuery500Patches(b *testing.B) {
	r := newRig(b)
	s := crowd(1000, 500)
	for b.Loop() {
		r.snap.Store(fresh(s)) // as after a report: nothing is computed yet
		if _, err := r.Query(context.Background(), "all", ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkQueryHosts10000(b *testing.B) {
	r := newRig(b)
	s := crowd(10_000, 500)
	for b.Loop() {
		r.snap.Store(fresh(s))
		if _, err := r.QueryHosts(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReport is one host's report to a controller that knows 10,000, without the disk.
func BenchmarkReport(b *testing.B) {
	r := newRig(b)
	a := r.attach("compute-0")
	s := crowd(10_000, 500)
	s.rev = r.snap.Load().rev
	e, _ := r.snap.Load().hosts.get("compute-0")
	s.hosts = s.hosts.with("compute-0", e)
	r.snap.Store(s)
	rev := int64(10)
	for b.Loop() {
		rev++
		a.report(current(rev))
	}
}
