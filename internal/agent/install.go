package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/process"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

func pid() string { return strconv.Itoa(os.Getpid()) + "\n" }

// startOperation begins what an operator asked for, or rejects it at once; then there is no job.
func (a *Agent) startOperation(ctx context.Context, d agentlink.Desired) (func() func() error, error) {
	op := d.Operation
	if op.Kind != api.OperationInstall {
		return nil, a.reject(op.ID, fmt.Sprintf("This agent cannot do an operation of kind %q; it knows %q.", op.Kind, api.OperationInstall))
	}
	locked, err := a.tree.has(flagLocked)
	if err != nil {
		return nil, err
	}
	if !locked && !op.Force && !op.InServiceOnly {
		return nil, a.reject(op.ID, mustBeLocked)
	}
	return a.startInstall(ctx, journal{Format: format, Boot: a.state.Boot, Operation: op.ID, Desired: d, Phase: phaseCompare}, false)
}

// reject ends an operation that was not begun.
func (a *Agent) reject(operation, reason string) error {
	a.log.Warn("operation rejected", "operation", operation, "reason", reason)
	a.state.Report.State, a.state.Report.RejectReason = host.InstallRejected, reason
	a.state.Result = &result{Operation: operation, State: api.OperationRejected, Detail: reason}
	a.rejected = time.After(rejectedFor)
	return errors.Join(a.save(), a.report(), a.link.SendProgress(a.state.Result.progress()))
}

// install is one run of an operation: all of it, or what a crash left of it.
type install struct {
	a       *Agent
	j       journal
	resumed bool
	at      urls
	group   string
	source  installer.Source

	began   time.Time
	gen     generation
	plan    host.Plan // how the host differs now
	known   bool      // plan was made
	changed bool      // the installed set is not what it was before the operation
	output  []byte
	tools   time.Duration // spent in package tools
	scripts time.Duration // spent in in-service scripts

	repairFailed error // repeating an interrupted transaction did not work

	redo      []rpm.NEVRA // left unsettled by an earlier operation, until they have been tried again
	unsettled []rpm.NEVRA // by this one
}

// startInstall makes the intent durable and returns the job.
func (a *Agent) startInstall(ctx context.Context, j journal, resumed bool) (func() func() error, error) {
	a.log.Info("installing", "operation", j.Operation, "revision", j.Desired.Revision, "resumed", resumed)
	j.Boot = a.state.Boot
	in := &install{a: a, j: j, resumed: resumed, began: time.Now(), group: a.groupID(), redo: a.state.Unsettled}
	a.state.Report.State, a.state.Report.RejectReason, a.rejected = host.Installing, "", nil
	return func() func() error {
			err := in.run(ctx)
			return func() error { return a.ended(ctx, in, err) }
		}, errors.Join(
			in.save(),
			a.tree.set(flagInstalling, true, pid()),
			a.report(),
			a.link.SendProgress(agentlink.Progress{Operation: j.Operation, State: api.OperationRunning}),
		)
}

// save makes the journal durable.
func (in *install) save() error { return save(in.a.journalFile(), in.j) }

// enter makes durable what the next phase is going to do, before it does it.
func (in *install) enter(p phase, before []rpm.NEVRA, packages []rpm.NEVRA) error {
	in.j.Phase, in.j.Before, in.j.Tool = p, digest(before), nil
	in.j.Packages = nil
	for _, n := range packages {
		i := intended{NEVRA: n}
		if p != phaseRemove {
			if r, _, ok := in.gen.find(n, in.at); ok {
				i.SHA256 = r.SHA256
			}
		}
		in.j.Packages = append(in.j.Packages, i)
	}
	return in.save()
}

// started makes the identity of a tool durable before it runs, so that a successor waits for it.
func (in *install) started(id process.ID) error {
	in.j.Tool = &id
	return in.save()
}

// digest is a fingerprint of an installed set.
func digest(list []rpm.NEVRA) string {
	h := sha256.New()
	for _, n := range list {
		fmt.Fprintln(h, n)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// run does the operation. Its error is why the operation failed; when ctx has ended, that it is not over.
func (in *install) run(ctx context.Context) error {
	if err := in.prepare(ctx); err != nil {
		return err
	}
	err := in.packages(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = in.repairFailed // a scriptlet that failed does so whatever the package database says
	}
	if in.known { // whatever happened: what is true now
		if list, qerr := in.installed(ctx); qerr != nil {
			in.known, err = false, errors.Join(err, qerr)
		} else {
			in.replan(list)
		}
	}
	return in.activate(ctx, err)
}

// prepare makes the folders ready, and repairs first what a crash left.
func (in *install) prepare(ctx context.Context) error {
	a := in.a
	if in.resumed {
		if err := in.recover(ctx); err != nil {
			return err
		}
	} else {
		if err := a.tree.emptyScriptDirs(); err != nil {
			return err
		}
		if err := copyScripts(a.pendingDir(), a.tree.path(scriptDir)); err != nil {
			return err
		}
		if err := errors.Join(a.tools.Clean(), a.fetch.clean()); err != nil {
			return err
		}
	}
	select {
	case <-a.online: // a controller says where the repository is
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return in.locate(ctx)
}

// locate asks where the repository is now.
func (in *install) locate(ctx context.Context) error {
	a := in.a
	where := make(chan string, 1)
	select {
	case a.told <- func() { where <- a.state.Repository }:
	case <-ctx.Done(): // the owner waits for this job and hears nothing else
		return context.Cause(ctx)
	}
	d := in.j.Desired
	in.at = urlsOf(<-where, d.Release, d.Revision)
	cert, key, ca := a.id.Files()
	in.source = installer.Source{Release: in.j.Desired.Release, Base: in.at.base, Updates: in.at.updates, CA: ca, Cert: cert, Key: key}
	return nil
}

// maxAttempts is how often a transaction that somebody keeps killing is begun.
const maxAttempts = 5

// packages brings the installed set to the plan and proves it. A transaction that was killed is mended and repeated, and a
// repository that cannot be reached is waited for: a controller that is restarted must not fail an installation.
func (in *install) packages(ctx context.Context) error {
	var lost time.Time // since when the repository cannot be reached
	pause := retryFirst
	for killed := 0; ; {
		err := in.attempt(ctx)
		switch {
		case ctx.Err() != nil:
			return err
		case errors.Is(err, installer.ErrInterrupted):
			if killed++; killed == maxAttempts {
				return err
			}
			in.a.log.Warn("a package tool was interrupted", "operation", in.j.Operation, "phase", in.j.Phase, "err", err)
			if err := in.mend(ctx); err != nil {
				return err
			}
		case errors.Is(err, installer.ErrUnreachable):
			if lost.IsZero() {
				lost = time.Now()
			}
			if time.Since(lost) > in.a.cfg.Patience {
				return fmt.Errorf("gave up after %s: %w", time.Since(lost).Round(time.Second), err)
			}
			in.a.log.Warn("waiting for the package repository", "operation", in.j.Operation, "since", lost, "err", err)
			in.say("%v; trying again\n", err)
			if err := in.wait(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, retryLast)
		default:
			return err
		}
	}
}

// wait returns after the pause, or earlier when a controller is back, which may be another one with its own repository.
func (in *install) wait(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-in.a.back:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return in.locate(ctx)
}

// attempt is one way from what is installed to the plan.
func (in *install) attempt(ctx context.Context) error {
	a := in.a
	if in.gen.Revision == 0 {
		g, err := a.fetch.load(ctx, in.j.Desired, in.at, in.group)
		if err != nil {
			return err
		}
		in.gen = g
	}
	list, err := in.installed(ctx)
	if err != nil {
		return err
	}
	if in.j.First == "" {
		in.j.First = digest(list)
	}
	in.replan(list)
	in.say("plan: %s\n", in.plan.Summary())
	for _, s := range in.plan.Steps {
		in.say("  %s %s: %s\n", s.Action, s.Package, s.Reason)
	}
	if missing := in.plan.Unavailable; len(missing) > 0 {
		return problem.Errorf(problem.Unavailable, "cannot install %s: this host must have it and no repository does", strings.Join(missing, ", "))
	}
	if bad := append(in.plan.Packages(host.Repair), in.again(list)...); len(bad) > 0 {
		if list, err = in.repair(ctx, list, bad); err != nil {
			return err
		}
	}
	if bring := in.plan.Packages(host.Upgrade, host.Downgrade, host.Install); len(bring) > 0 {
		if err := in.enter(phaseInstall, list, bring); err != nil {
			return err
		}
		res, err := a.tools.Install(ctx, in.source, bring, in.started)
		if list, err = in.after(ctx, res, err); err != nil {
			return err
		}
		if left := in.plan.Packages(host.Upgrade, host.Downgrade, host.Install, host.Repair); len(left) > 0 {
			return problem.Errorf(problem.Unavailable, "the package tools ended well, but these packages are not as planned: %s", join(left))
		}
	}
	if gone := in.plan.Packages(host.Remove); len(gone) > 0 {
		if err := in.enter(phaseRemove, list, gone); err != nil {
			return err
		}
		res, err := a.tools.Remove(ctx, gone, in.started)
		if _, err = in.after(ctx, res, err); err != nil {
			return err
		}
		if !in.plan.Empty() {
			return problem.Errorf(problem.Unavailable, "the package tools ended well, but the host still differs: %s", in.plan.Summary())
		}
	}
	return nil
}

// after notes what a tool said and looks at what it did. Of a transaction that failed half-way it tells the half that
// was done.
func (in *install) after(ctx context.Context, res installer.Result, failure error) ([]rpm.NEVRA, error) {
	in.tools += res.Took
	in.output = append(in.output, res.Output...)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	list, err := in.installed(ctx)
	if err != nil {
		return nil, errors.Join(failure, err)
	}
	before := in.plan
	in.replan(list)
	if failure == nil {
		return list, nil
	}
	var done, left []rpm.NEVRA
	for _, p := range in.j.Packages {
		if slices.ContainsFunc(in.plan.Steps, func(s host.Step) bool { return s.Package.Key() == p.Key() }) {
			left = append(left, p.NEVRA)
		} else {
			done = append(done, p.NEVRA)
		}
	}
	if !errors.Is(failure, installer.ErrInterrupted) && !errors.Is(failure, installer.ErrUnreachable) {
		in.unsettle(list, done)
	}
	if len(done) > 0 && len(left) > 0 && len(in.plan.Steps) != len(before.Steps) {
		return nil, &problem.Error{Kind: problem.KindOf(failure), Err: failure,
			Msg: fmt.Sprintf("%v; the transaction was done in part: done %s, not done %s", failure, join(done), join(left))}
	}
	return nil, failure
}

// unsettle notes those of the packages that are installed now though their transaction failed.
func (in *install) unsettle(list, packages []rpm.NEVRA) {
	for _, p := range packages {
		if slices.Contains(list, p) {
			in.unsettled = append(in.unsettled, p)
		}
	}
}

// again returns the packages that an earlier operation left unsettled and that are to stay as they are.
func (in *install) again(list []rpm.NEVRA) []rpm.NEVRA {
	var out []rpm.NEVRA
	for _, p := range in.redo {
		planned := slices.ContainsFunc(in.plan.Steps, func(s host.Step) bool { return s.Package.Key() == p.Key() })
		if _, _, ok := in.gen.find(p, in.at); ok && !planned && slices.Contains(list, p) {
			in.say("  %s %s: a scriptlet failed when it was installed\n", host.Repair, p)
			out = append(out, p)
		}
	}
	return out
}

// repair puts packages right that are in the database more than once, or unsettled: their files are installed again over
// whatever is there, because which of the builds is on the disk nobody knows.
func (in *install) repair(ctx context.Context, list, bad []rpm.NEVRA) ([]rpm.NEVRA, error) {
	a := in.a
	var files []string
	for _, n := range bad {
		p, url, ok := in.gen.find(n, in.at)
		if !ok {
			return nil, problem.Errorf(problem.Unavailable, "cannot repair %s: no repository has it", n)
		}
		path, err := a.fetch.fetchPackage(ctx, p, url)
		if err != nil {
			return nil, err
		}
		files = append(files, path)
	}
	in.j.Repaired = true
	if err := in.enter(phaseRepair, list, bad); err != nil {
		return nil, err
	}
	res, err := a.tools.Repair(ctx, files, in.started)
	if !errors.Is(err, installer.ErrInterrupted) {
		in.redo = nil
	}
	return in.after(ctx, res, err)
}

// installed asks the package database, and notes whether the operation has changed it.
func (in *install) installed(ctx context.Context) ([]rpm.NEVRA, error) {
	began := time.Now()
	list, err := in.a.tools.Installed(ctx)
	in.tools += time.Since(began)
	if err == nil {
		in.changed = in.j.Repaired || in.j.First != "" && digest(list) != in.j.First
	}
	return list, err
}

func (in *install) replan(list []rpm.NEVRA) {
	in.plan, in.known = host.MakePlan(in.gen.want(list, in.a.arch)), true
}

func (in *install) say(format string, args ...any) {
	in.output = fmt.Appendf(in.output, format, args...)
}

func join(list []rpm.NEVRA) string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = n.String()
	}
	return strings.Join(out, ", ")
}

// ended takes the end of an operation: durable first, then the flags, then the news.
func (a *Agent) ended(ctx context.Context, in *install, failure error) error {
	if ctx.Err() != nil {
		a.log.Info("stopping in the middle of an operation; it goes on at the next start", "operation", in.j.Operation, "phase", in.j.Phase)
		return nil
	}
	total := time.Since(in.began)
	in.say("time: %d ms in all, %d ms in package tools, %d ms in scripts\n", total.Milliseconds(), in.tools.Milliseconds(), in.scripts.Milliseconds())
	r, res := a.state.Report, &result{Operation: in.j.Operation, State: api.OperationDone}
	r.State, r.PatchFailed, r.Failure = host.Idle, false, ""
	if failure != nil {
		r.State, r.PatchFailed, r.Failure = host.InstallFailed, true, failure.Error()
		res.State, res.Detail = api.OperationFailed, failure.Error()
	}
	if in.known {
		r = in.plan.Differences(r)
		r.Revision, r.Release = in.j.Desired.Revision, a.hello.Facts.Release
	}
	res.Output = in.output[max(0, len(in.output)-installer.MaxOutput):]
	if err := a.reboot(&r); err != nil {
		return err
	}
	a.state.Report, a.state.Result, a.state.Unsettled = r, res, nil
	if failure != nil {
		a.state.Unsettled = slices.Compact(slices.SortedFunc(slices.Values(slices.Concat(in.redo, in.unsettled)), rpm.NEVRA.Compare))
	}
	if err := a.save(); err != nil {
		return err
	}
	a.log.Info("installed", "operation", in.j.Operation, "state", res.State, "changed", in.changed, "requires_reboot", r.RequiresReboot,
		"total", total, "tools", in.tools, "scripts", in.scripts, "err", failure)
	if d := a.state.Desired; d != nil && d.Epoch != in.j.Desired.Epoch {
		a.compare = true
	}
	return errors.Join(
		a.tools.Clean(), a.fetch.clean(),
		a.tree.removeScriptDirs(),
		durable.Remove(a.journalFile()), // last: while it is there, the next start cleans up too
		a.tree.set(flagFailed, failure != nil, ""),
		a.tree.set(flagInstalling, false, ""),
		a.report(),
		a.link.SendProgress(res.progress()),
	)
}

// recover waits until nothing of a predecessor runs any more, and mends what it left. This needs no controller.
func (in *install) recover(ctx context.Context) error {
	a := in.a
	if t := in.j.Tool; t != nil {
		a.log.Info("waiting for a program that may have been left running", "operation", in.j.Operation, "pid", t.PID)
		if err := t.Outlive(ctx, a.cfg.OrphanLimit, toolGrace); err != nil {
			return fmt.Errorf("cannot wait for process %d of the interrupted operation: %w", t.PID, err)
		}
	}
	if err := a.tree.makeScriptDirs(); err != nil {
		return err
	}
	in.say("resumed after an interruption\n")
	return in.mend(ctx)
}

// mend brings a transaction that had begun to its end with the files that it used: packages that are in the database
// twice get one version again, and scriptlets that were cut short run again. Whatever is still to be done after that is
// found by the plan.
func (in *install) mend(ctx context.Context) error {
	a := in.a
	var files []string
	var err error
	switch in.j.Phase {
	case phaseRepair:
		files, err = filepath.Glob(filepath.Join(a.fetch.dir, "*.rpm"))
	case phaseInstall:
		files, err = a.tools.Kept()
	default: // a removal is simply done again
		return nil
	}
	if err != nil {
		return err
	}
	swept, err := a.tools.Sweep(ctx, files)
	if err != nil {
		return err
	}
	if swept > 0 {
		in.say("removed %d files that unpacking had left\n", swept)
	}
	list, err := in.installed(ctx)
	if err != nil {
		return err
	}
	if in.j.Phase == phaseInstall && digest(list) == in.j.Before {
		return nil // nothing had been changed
	}
	in.j.Repaired = true
	if err := in.save(); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		a.log.Info("repeating an interrupted transaction", "operation", in.j.Operation, "packages", len(files))
		res, err := a.tools.Repair(ctx, files, in.started)
		in.tools += res.Took
		in.output = append(in.output, res.Output...)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		in.repairFailed = err
		if !errors.Is(err, installer.ErrInterrupted) || attempt == maxAttempts {
			break
		}
	}
	if in.repairFailed != nil {
		// The rest is tried all the same, so that as little as possible is left half-done.
		in.say("the interrupted transaction could not be repeated: %v\n", in.repairFailed)
		if list, err = in.installed(ctx); err != nil {
			return err
		}
		for _, p := range in.j.Packages {
			in.unsettle(list, []rpm.NEVRA{p.NEVRA})
		}
	}
	return nil
}
