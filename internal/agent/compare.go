package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
)

// startCompare makes a job that finds out how the host differs from the generation that d names.
func (a *Agent) startCompare(ctx context.Context, d agentlink.Desired) func() func() error {
	at, group := urlsOf(a.state.Repository, d.Release, d.Revision), a.groupID()
	return func() func() error {
		var plan host.Plan
		g, err := a.fetch.load(ctx, d, at, group)
		if err == nil {
			plan, err = a.planFor(ctx, g)
		}
		return func() error { return a.compared(ctx, d, plan, err) }
	}
}

// planFor asks the package database and makes the plan.
func (a *Agent) planFor(ctx context.Context, g generation) (host.Plan, error) {
	installed, err := a.tools.Installed(ctx)
	if err != nil {
		return host.Plan{}, err
	}
	return host.MakePlan(g.want(installed, a.arch)), nil
}

// compared takes what a comparison found. One that failed changes nothing that was found before: what is not known is
// not reported as if it were.
func (a *Agent) compared(ctx context.Context, d agentlink.Desired, plan host.Plan, failure error) error {
	r := a.state.Report
	if failure != nil {
		if ctx.Err() != nil {
			return nil
		}
		a.retryPause = min(max(2*a.retryPause, retryFirst), retryLast)
		a.retry = time.After(a.retryPause)
		if !r.PatchFailed {
			r.Failure = fmt.Sprintf("cannot compare this host with generation %d: %v", d.Revision, failure)
		}
		if r.Failure != a.state.Report.Failure {
			a.log.Warn("cannot compare this host with what it should have", "revision", d.Revision, "err", failure)
		}
	} else {
		a.retryPause = 0
		r = plan.Differences(r)
		r.Revision, r.Release = d.Revision, a.hello.Facts.Release
		if !r.PatchFailed {
			r.Failure = ""
		}
	}
	if err := a.reboot(&r); err != nil {
		return err
	}
	if equalReports(r, a.state.Report) {
		return a.report()
	}
	if failure == nil {
		a.log.Info("compared", "revision", d.Revision, "current", r.Current(), "differ", len(r.Installed), "to_remove", len(r.ToRemove), "missing", len(r.Missing))
	}
	a.state.Report = r
	return errors.Join(a.save(), a.report())
}

func equalReports(a, b host.Report) bool { return reflect.DeepEqual(a, b) }
