package patch

import (
	"slices"

	"github.com/starpatch/starpatch/host"
)

// HostView is what the patch set means for one host, decided from that host alone. What only the controller knows
// (connected, addresses, seconds since the last sign of life) is not in it.
//
// The slices may be shared with other views: do not change them.
type HostView struct {
	Reported       bool // the host has reported for the release that it runs; until then it counts as Interim
	PatchCurrent   bool // its last report found nothing to do
	Interim        bool // a patch of its release was applied or removed since that report
	Stale          bool // the report is incomplete: its lists were cut
	PatchFailed    bool // the last install failed and nothing has mended it
	RequiresReboot bool // it waits for a reboot, or what is pending needs one
	AllowInService bool // what is pending may be installed while the host is unlocked; never so before the first report
	Pending        []ID // patches that it still has to install or to take back, as of its report, sorted
	Waiting        []ID // patches applied or removed since its report, latest first
	NeedLock       []ID // of both, those that need a reboot: why AllowInService is false
}

// newHostView takes from the host's own record what depends on no patch.
func newHostView(h host.Host) HostView {
	reported := h.Report.Revision > 0 && (h.Facts.Release == "" || h.Report.Release == "" || h.Facts.Release == h.Report.Release)
	return HostView{
		Reported:       reported,
		PatchCurrent:   reported && h.Report.Current(),
		Interim:        !reported,
		Stale:          h.Report.Cut,
		PatchFailed:    h.Report.PatchFailed,
		RequiresReboot: h.Report.RequiresReboot,
	}
}

// wait notes the n latest changes of a release as made since the host's report.
func (v *HostView) wait(rel *releaseIndex, n int) {
	if n == 0 {
		return
	}
	v.Interim = true
	v.Waiting = share(v.Waiting, rel.ids[:n])
	v.NeedLock = share(v.NeedLock, rel.reboot[:rel.reboots[n]])
}

// pending notes a patch that the host still has to install or to take back.
func (v *HostView) pending(p *indexed) {
	if slices.Contains(v.Pending, p.ID) {
		return
	}
	v.Pending = append(v.Pending, p.ID)
	if !p.InService() && !slices.Contains(v.NeedLock, p.ID) {
		v.NeedLock = append(v.NeedLock, p.ID)
	}
}

// settle draws the conclusions once every rule has been applied.
func (v *HostView) settle() {
	slices.Sort(v.Pending)
	v.AllowInService = v.Reported && len(v.NeedLock) == 0
	v.RequiresReboot = v.RequiresReboot || v.Reported && !v.PatchCurrent && !v.AllowInService
}

// share appends without copying when there is nothing before; the result has no spare capacity, so that a later append
// copies and what is shared stays as it is.
func share(have, more []ID) []ID {
	if len(have) == 0 {
		return slices.Clip(more)
	}
	return slices.Clip(slices.Concat(have, more))
}
