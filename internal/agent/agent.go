// Package agent owns one host: it compares what is installed with what the controllers want, installs when an operator
// asked for it, runs in-service scripts, and reports what is true.
//
// One goroutine, [Agent.Run], owns the state; package tools run beside it, one piece of work at a time. What the agent
// should do is made durable before it is acknowledged, what it is about to do is in its journal before it is done, and
// how it ended is durable before it is told. So an agent, a package tool or a machine that dies at any moment is followed
// by one that knows what to finish. See journal and recovery for how.
package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/version"
	"github.com/starpatch/starpatch/problem"
)

// Link is what the agent needs of the connection to the controllers; agentlink.Client is one. It sends again until the
// controllers have what it was given.
type Link interface {
	FactsChanged()
	SendReport(host.Report) error
	SendProgress(agentlink.Progress) error
}

// Identity is the host's certificate, for requests to the package repository; agentlink.Client is one.
type Identity interface {
	TLSConfig() *tls.Config
	Files() (cert, key, ca string)
}

// Config says which host. Everything but the limits is required.
type Config struct {
	Root        string // the host's root folder; "/" for this machine
	StateDir    string // what must survive: small files
	CacheDir    string // what need not: metadata and packages
	Personality string // empty: from platform.conf below Root
	Release     string // empty: from build.info below Root
	BootIDFile  string // one line that is another one after every boot
	Dial        agentlink.Dialer
	Log         *slog.Logger

	ScriptLimit time.Duration // for one in-service script; 0: 10 minutes
	OrphanLimit time.Duration // for package tools that an agent before this one left running; 0: 2 hours
	Patience    time.Duration // for a package repository that an operation cannot reach; 0: 10 minutes
}

const (
	defaultScriptLimit = 10 * time.Minute
	defaultOrphanLimit = 2 * time.Hour
	defaultPatience    = 10 * time.Minute
	// rejectedFor is how long a rejected install shows.
	// Source: starlingx/update cgcs-patch patch_agent.py (2019).
	rejectedFor = 60 * time.Second
	// The pause before a comparison that failed is tried again doubles from the first to the second.
	retryFirst, retryLast = time.Second, time.Minute
)

// mustBeLocked is what an operator reads when an unlocked host refuses.
// Source: starlingx/update cgcs-patch patch_agent.py (2019).
const mustBeLocked = "Node must be locked."

// Agent owns one host. Its Handler methods are called by the link; everything else happens in Run.
type Agent struct {
	cfg     Config
	tree    tree
	tools   installer.Tools
	link    Link
	id      Identity
	fetch   *fetcher
	watch   *watch
	log     *slog.Logger
	arch    string
	desired chan desiredRequest
	told    chan func()   // other news from the link
	online  chan struct{} // closed when a controller has accepted the first stream
	back    chan struct{} // holds one when a controller has accepted a stream since it was last taken
	done    chan struct{}

	mu    sync.Mutex
	hello agentlink.Hello

	// Owned by Run.
	state      state
	connected  bool
	sent       *host.Report      // last one that the link was given
	working    bool              // a job is in progress
	jobDone    chan func() error // what the owner does when the job has ended; room for one
	compare    bool              // a comparison is due
	retry      <-chan time.Time
	retryPause time.Duration
	rejected   <-chan time.Time // when a rejection stops showing
	unfinished *journal         // found at start
}

type desiredRequest struct {
	d     agentlink.Desired
	reply chan error
}

// New reads the agent's state and looks at the host. It starts nothing and tells nobody.
func New(cfg Config, tools installer.Tools, link Link, id Identity) (*Agent, error) {
	cfg.ScriptLimit, cfg.OrphanLimit = cmp.Or(cfg.ScriptLimit, defaultScriptLimit), cmp.Or(cfg.OrphanLimit, defaultOrphanLimit)
	cfg.Patience = cmp.Or(cfg.Patience, defaultPatience)
	t, err := openTree(cfg.Root)
	if err != nil {
		return nil, err
	}
	personality, release, err := t.platform(cfg.Personality, cfg.Release)
	if err != nil {
		return nil, err
	}
	boot, err := bootID(cfg.BootIDFile)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.Sweep(cfg.StateDir); err != nil {
		return nil, err
	}
	fetch, err := newFetcher(filepath.Join(cfg.CacheDir, "metadata"), id.TLSConfig(), cfg.Dial)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, tree: t, tools: tools, link: link, id: id, fetch: fetch, log: cfg.Log, arch: machine(),
		desired: make(chan desiredRequest), told: make(chan func()), online: make(chan struct{}), back: make(chan struct{}, 1), done: make(chan struct{}), jobDone: make(chan func() error, 1),
	}
	if _, err := load(a.stateFile(), &a.state, func() int { return a.state.Format }); err != nil {
		return nil, err
	}
	var j journal
	found, err := load(a.journalFile(), &j, func() int { return j.Format })
	if err != nil {
		return nil, err
	}
	if found {
		a.unfinished = &j
	}
	locked, err := t.has(flagLocked)
	if err != nil {
		return nil, err
	}
	a.hello = agentlink.Hello{Facts: host.Facts{Personality: personality, Release: release, BootID: boot, Locked: locked, Agent: version.Version, Protocol: agentlink.ProtocolMax}}
	return a, a.begin(boot)
}

// machine is the architecture of this machine as rpm spells it.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "386":
		return "i686"
	}
	return runtime.GOARCH
}

func (a *Agent) stateFile() string   { return filepath.Join(a.cfg.StateDir, "state.json") }
func (a *Agent) journalFile() string { return filepath.Join(a.cfg.StateDir, "journal.json") }
func (a *Agent) pendingDir() string  { return filepath.Join(a.cfg.StateDir, "pending-scripts") }

// begin brings state, journal and the host's flags together after a start.
func (a *Agent) begin(boot string) error {
	s := &a.state
	if s.Boot != boot {
		// Processes, flags and in-service scripts of an earlier boot are gone, and what needed a reboot has had it.
		if err := os.RemoveAll(a.pendingDir()); err != nil {
			return err
		}
		if a.unfinished != nil && a.unfinished.Boot != boot {
			a.unfinished.Tool = nil
		}
		s.RebootBoot = ""
	}
	s.Format, s.Boot = format, boot
	if j := a.unfinished; j != nil && s.Result != nil && s.Result.Operation == j.Operation {
		a.unfinished = nil // it had ended; only what follows that had not been done
		if err := errors.Join(a.tools.Clean(), a.fetch.clean(), a.tree.removeScriptDirs(), durable.Remove(a.journalFile())); err != nil {
			return err
		}
	}
	switch {
	case a.unfinished != nil:
		s.Report.State = host.Installing
	case s.Report.PatchFailed:
		s.Report.State = host.InstallFailed
	default:
		s.Report.State = host.Idle
	}
	s.Report.Release, s.Report.RejectReason = cmp.Or(s.Report.Release, a.hello.Facts.Release), ""
	if err := a.reboot(&s.Report); err != nil {
		return err
	}
	if err := errors.Join(
		a.tree.set(flagInstalling, a.unfinished != nil, pid()),
		a.tree.set(flagFailed, s.Report.PatchFailed, ""),
		a.tree.writeShellFiles(),
	); err != nil {
		return err
	}
	a.remember()
	return a.save()
}

// reboot fills in whether a reboot is needed, from the flags and from what is remembered of this boot.
func (a *Agent) reboot(r *host.Report) error {
	patched, err := a.tree.has(flagPatched)
	if err != nil {
		return err
	}
	rr, err := a.tree.has(flagReboot)
	if err != nil {
		return err
	}
	if rr {
		a.state.RebootBoot = a.state.Boot
	}
	r.RequiresReboot = patched || rr || a.state.RebootBoot != "" && a.state.RebootBoot == a.state.Boot
	return nil
}

func (a *Agent) save() error { return save(a.stateFile(), a.state) }

// remember makes what Hello tells fit the state.
func (a *Agent) remember() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d := a.state.Desired; d != nil {
		a.hello.Epoch = d.Epoch
		if d.Operation != nil {
			a.hello.LastOperation = d.Operation.ID
		}
	}
}

// Run owns the host until ctx ends. It returns after a package transaction that has begun is over; an operation that is
// not over then goes on at the next start.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.done)
	w, err := openWatch(a.tree)
	if err != nil {
		return err
	}
	a.watch = w
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.read(ctx) })
	group.Go(func() error { return a.own(ctx, group) })
	return group.Wait()
}

func (a *Agent) own(ctx context.Context, group *errgroup.Group) error {
	if err := a.resend(); err != nil {
		return err
	}
	a.compare = true
	for {
		if err := a.next(ctx, group); err != nil {
			return err
		}
		var err error
		select {
		case <-ctx.Done():
			if a.working {
				err = (<-a.jobDone)()
			}
			return errors.Join(context.Cause(ctx), err)
		case r := <-a.desired:
			r.reply <- a.take(r.d) // the link tries again later
		case f := <-a.told:
			f()
			err = a.report()
		case c := <-a.watch.seen:
			err = a.changed(c)
		case f := <-a.jobDone:
			a.working = false
			err = f()
		case <-a.retry:
			a.retry, a.compare = nil, true
		case <-a.rejected:
			err = a.unreject()
		}
		if err != nil {
			// The state folder cannot be written or the host cannot be read: nothing that is done now could be remembered.
			return err
		}
	}
}

// resend gives the link what an earlier agent may not have got through.
func (a *Agent) resend() error {
	if a.state.Report.Revision > 0 {
		if err := a.report(); err != nil {
			return err
		}
	}
	if r := a.state.Result; r != nil && !r.Acked {
		return a.link.SendProgress(r.progress())
	}
	return nil
}

// report sends the report of the state unless the link has it.
func (a *Agent) report() error {
	r := a.state.Report
	if r.Revision == 0 || a.sent != nil && equalReports(*a.sent, r) {
		return nil
	}
	a.sent = &r
	return a.link.SendReport(r)
}

// next starts the next piece of work if none is in progress: what was left unfinished, then what was asked for, then a
// comparison.
func (a *Agent) next(ctx context.Context, group *errgroup.Group) error {
	for !a.working && ctx.Err() == nil {
		var work func() func() error
		var err error
		switch op := a.due(); {
		case a.unfinished != nil:
			j := a.unfinished
			a.unfinished = nil
			work, err = a.startInstall(ctx, *j, true)
		case op != nil:
			work, err = a.startOperation(ctx, *a.state.Desired)
		case a.compare && a.connected && a.state.Desired != nil:
			a.compare, a.retry = false, nil
			work = a.startCompare(ctx, *a.state.Desired)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		if work == nil {
			continue // it was over at once
		}
		a.working = true
		group.Go(func() error {
			a.jobDone <- work()
			settle()
			return nil
		})
	}
	return nil
}

// due is the operation that was asked for and has not ended.
func (a *Agent) due() *agentlink.Operation {
	d := a.state.Desired
	if d == nil || d.Operation == nil || a.state.Result != nil && a.state.Result.Operation == d.Operation.ID || !a.connected {
		return nil
	}
	return d.Operation
}

// take makes a desired state durable.
func (a *Agent) take(d agentlink.Desired) error {
	if have := a.state.Desired; have != nil {
		switch {
		case d.Epoch < have.Epoch:
			return problem.Errorf(problem.Conflict, "the desired state has epoch %d and this host has made %d durable", d.Epoch, have.Epoch)
		case reflect.DeepEqual(d, *have):
			a.compare = a.compare || a.state.Report.Revision != d.Revision
			return nil
		case d.Epoch == have.Epoch:
			// One controller never says two things with one epoch: this one was restored from an older copy of its store and
			// has come as far by another way. What it wants now is what counts.
			a.log.Warn("the desired state has changed without a new epoch; was the controller's state restored?", "epoch", d.Epoch)
		}
	}
	if d.Release != a.hello.Facts.Release {
		// The report then says which release the host has, and the controller which patches concern it.
		a.log.Warn("desired state is for another release", "release", d.Release, "have", a.hello.Facts.Release)
	}
	before := a.state.Desired
	a.state.Desired = &d
	if err := a.save(); err != nil {
		a.state.Desired = before
		return err
	}
	a.remember()
	a.compare = true
	if op := a.due(); op != nil {
		a.log.Info("operation accepted", "operation", op.ID, "kind", op.Kind, "revision", d.Revision)
		return a.link.SendProgress(agentlink.Progress{Operation: op.ID, State: api.OperationAccepted})
	}
	return nil
}

// changed looks at what somebody changed on the host.
func (a *Agent) changed(c changed) error {
	a.compare = a.compare || c.packages && !a.working
	if !c.flags {
		return nil
	}
	locked, err := a.tree.has(flagLocked)
	if err != nil {
		return err
	}
	a.mu.Lock()
	was := a.hello.Facts.Locked
	a.hello.Facts.Locked = locked
	a.mu.Unlock()
	if locked != was {
		a.link.FactsChanged()
		if locked && a.state.Report.State == host.InstallRejected {
			if err := a.unreject(); err != nil {
				return err
			}
		}
	}
	if a.working {
		return nil // the job looks at the flags when it has ended
	}
	before := a.state.Report.RequiresReboot
	if err := a.reboot(&a.state.Report); err != nil {
		return err
	}
	if a.state.Report.RequiresReboot == before {
		return nil
	}
	return errors.Join(a.save(), a.report())
}

// unreject ends the showing of a rejected install.
func (a *Agent) unreject() error {
	a.rejected = nil
	r := &a.state.Report
	if r.State != host.InstallRejected {
		return nil
	}
	r.State, r.RejectReason = host.Idle, ""
	if r.PatchFailed {
		r.State = host.InstallFailed
	}
	return errors.Join(a.save(), a.report())
}

// groupID is the name of this host's group in update repositories.
func (a *Agent) groupID() string { return repodata.GroupID(a.Hello().Facts.Personality) }

// settle gives memory back after work: an agent is idle nearly always.
func settle() { debug.FreeOSMemory() }

// Hello implements [agentlink.Handler].
func (a *Agent) Hello() agentlink.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hello
}

// Welcome implements [agentlink.Handler].
func (a *Agent) Welcome(w agentlink.Welcome) {
	a.tell(func() {
		if !a.connected {
			a.connected = true
			close(a.online)
		}
		a.state.Repository = w.Repository
		select {
		case a.back <- struct{}{}:
		default:
		}
		// Changes of the host are watched and changes of the repository are told, so only a comparison that failed is
		// due: a thousand agents that come back at once do not all ask for metadata.
		a.compare = a.compare || a.retry != nil
		a.retry, a.retryPause = nil, 0
		// A controller that was restarted holds this host's facts for stale, and one that dropped the host knows none.
		a.sent = nil
	})
}

// ProgressAcked implements [agentlink.Handler].
func (a *Agent) ProgressAcked(operation, end string) {
	a.tell(func() {
		r := a.state.Result
		if r == nil || r.Operation != operation || r.State != end {
			return
		}
		r.Acked = true
		if err := a.save(); err != nil {
			a.log.Error("cannot save that the end of an operation was acknowledged", "operation", operation, "err", err)
		}
	})
}

func (a *Agent) tell(f func()) {
	select {
	case a.told <- f:
	case <-a.done:
	}
}

// Desired implements [agentlink.Handler].
func (a *Agent) Desired(ctx context.Context, d agentlink.Desired) error {
	r := desiredRequest{d, make(chan error, 1)}
	select {
	case a.desired <- r:
		return <-r.reply
	case <-a.done:
		return problem.Errorf(problem.Unavailable, "the agent is stopping")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
