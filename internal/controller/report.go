package controller

import (
	"slices"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// checkReport refuses what no agent of ours sends: the report becomes part of the state that everybody reads.
func checkReport(r host.Report) error {
	if _, err := host.ParseAgentState(string(r.State)); err != nil {
		return err
	}
	if _, err := patch.ParseRelease(r.Release); err != nil && r.Release != "" {
		return err
	}
	if r.Revision < 0 {
		return problem.Errorf(problem.Invalid, "a report cannot be of generation %d", r.Revision)
	}
	if n := len(r.Failure) + len(r.RejectReason); n > agentlink.MaxReport {
		return problem.Errorf(problem.TooLarge, "the texts of a report have %d bytes; at most %d are taken", n, agentlink.MaxReport)
	}
	return nil
}

// sameReport says that b tells nothing that a has not told.
func sameReport(a, b host.Report) bool {
	return a.Release == b.Release && a.Revision == b.Revision && a.State == b.State && a.Cut == b.Cut && a.PatchFailed == b.PatchFailed &&
		a.RequiresReboot == b.RequiresReboot && a.Failure == b.Failure && a.RejectReason == b.RejectReason &&
		slices.Equal(a.Installed, b.Installed) && slices.Equal(a.ToRemove, b.ToRemove) && slices.Equal(a.Missing, b.Missing)
}
