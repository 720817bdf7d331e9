package controller

import (
	"context"
	"errors"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/problem"
)

// InstallHost asks for an installation on a host, given by name or IP address. The request is saved when it returns;
// the agent does it as soon as it hears of it. What is refused is refused at once, with the reason.
func (c *Controller) InstallHost(ctx context.Context, actor, arg string, force bool) (api.Operation, error) {
	id := c.cfg.NewID()
	var op api.Operation
	err := c.commit(ctx, func(s *snapshot) (*change, error) {
		e, err := s.hostNamed(arg)
		if err != nil {
			return nil, err
		}
		name := e.host.Name
		if o := e.desired.Operation; o != nil {
			return nil, problem.Errorf(problem.Conflict, "host %s is installing already, by operation %s; wait for it to end", name, o.ID)
		}
		if p := c.sessions.of(name); !p.connected {
			return nil, problem.Errorf(problem.Unavailable, "host %s is offline: its agent was last seen %s; start the agent or the host, then ask again", name, lastSeen(p, e))
		}
		rel, ok := s.releases[e.desired.Release]
		if !ok || rel.Revision == 0 {
			return nil, problem.Errorf(problem.Conflict, "host %s runs release %s, which is not installed here; bring its base packages in with sw-patch-controller feed add", name, e.desired.Release)
		}
		now := time.Now().UTC()
		op = api.Operation{ID: id, Host: name, Kind: api.OperationInstall, State: api.OperationRequested, Force: force,
			Release: rel.Release, Revision: rel.Revision, By: actor, Created: now, Updated: now}
		d := e.desired
		d.Operation = &operation{ID: id, Kind: op.Kind, Force: force, InServiceOnly: s.evaluation().Hosts[name].AllowInService}
		ch := &change{wake: []string{name}}
		if err := ch.put(desiredPrefix+name, e.drev, d, func(s *snapshot, rev int64) { s.setDesired(d, rev) }); err != nil {
			return nil, err
		}
		saved := op
		if err := ch.put(operationPrefix+id, 0, operationRecord{recordFormat, saved}, func(s *snapshot, rev int64) { s.setOperation(saved, rev) }); err != nil {
			return nil, err
		}
		c.dropOld(ch, s, e)
		// The decision rests on the generation: a commit that makes a new one meanwhile must be seen first.
		ch.unchanged(releasePrefix+rel.Release, rel.rev)
		ch.tell(Fact{Actor: actor, Action: "host-install", Subject: name, Operation: id, Outcome: "requested", Detail: map[string]any{
			"force": force, "in_service": d.Operation.InServiceOnly, "release": rel.Release, "revision": rel.Revision}})
		return ch, nil
	})
	if err != nil {
		c.refused(ctx, actor, "host-install", arg, err)
		return api.Operation{}, err
	}
	if saved, ok := c.snap.Load().ops.get(id); ok {
		op = saved.op
	}
	c.log.Info("install requested", "host", op.Host, "operation", op.ID, "by", actor, "force", force)
	return op, nil
}

func lastSeen(p presence, e hostEntry) string {
	t := p.heard
	if t.IsZero() {
		t = e.host.Reported
	}
	if t.IsZero() {
		return "never"
	}
	return "at " + t.UTC().Format(time.RFC3339)
}

// dropOld forgets the oldest operations of a host, so that a bounded number is kept.
func (c *Controller) dropOld(ch *change, s *snapshot, e hostEntry) {
	for i, id := range e.ops {
		if i > len(e.ops)-c.cfg.Operations {
			break
		}
		o, ok := s.ops.get(id)
		if !ok || !o.op.Final() {
			continue
		}
		ch.remove(operationPrefix+id, o.rev, func(s *snapshot) { s.dropOperation(id) })
		ch.blind(outputPrefix+id, nil)
	}
}

// Progress saves how far the operation of a host is. Whoever sees the end sees the host as it is after it: the link
// gives us the report that the agent made before a final state first.
func (ses *session) Progress(ctx context.Context, p agentlink.Progress) error {
	ses.c.sessions.hear(ses.host, false)
	return ses.c.commit(ctx, func(s *snapshot) (*change, error) { return ses.c.decideProgress(s, ses.host, p) })
}

func (c *Controller) decideProgress(s *snapshot, name string, p agentlink.Progress) (*change, error) {
	e, ok := s.hosts.get(name)
	if !ok || e.rev == 0 {
		return nil, errDropped
	}
	o := e.desired.Operation
	if o == nil || o.ID != p.Operation {
		return nil, nil // of an operation that ended or was dropped: heard twice
	}
	ch := &change{}
	if !p.Final() {
		op, ok := s.ops.get(o.ID)
		if !ok || stage(p.State) <= stage(op.op.State) {
			return nil, nil
		}
		next := op.op
		next.State, next.Detail, next.Updated = p.State, p.Detail, time.Now().UTC()
		if err := ch.putOperation(next, op.rev); err != nil {
			return nil, err
		}
		ch.tell(Fact{Actor: name, Action: "host-install", Subject: name, Operation: o.ID, Outcome: p.State})
		return ch, nil
	}
	if len(p.Output) > 0 {
		value, err := encodeRecord(outputPrefix+o.ID, outputRecord{recordFormat, name, string(p.Output)})
		if err != nil {
			return nil, err
		}
		ch.blind(outputPrefix+o.ID, value)
	}
	return ch, c.finish(ch, s, e, p)
}

// stage orders the states of an operation.
func stage(state string) int {
	switch state {
	case api.OperationRequested:
		return 0
	case api.OperationAccepted:
		return 1
	case api.OperationRunning:
		return 2
	}
	return 3
}

func (ch *change) putOperation(o api.Operation, rev int64) error {
	saved := o
	saved.Version = 0
	return ch.put(operationPrefix+o.ID, rev, operationRecord{recordFormat, saved}, func(s *snapshot, rev int64) { s.setOperation(o, rev) })
}

// finish ends the operation of a host: the host has nothing more to do, and the operation says how it went.
func (c *Controller) finish(ch *change, s *snapshot, e hostEntry, end agentlink.Progress) error {
	d := e.desired
	d.Operation = nil
	if err := ch.put(desiredPrefix+d.Host, e.drev, d, func(s *snapshot, rev int64) { s.setDesired(d, rev) }); err != nil {
		return err
	}
	ch.wake = append(ch.wake, d.Host)
	return ch.endOperation(s, d.Host, end)
}

// endOperation says in the record of an operation, and in the journal, how it ended.
func (ch *change) endOperation(s *snapshot, name string, end agentlink.Progress) error {
	op, ok := s.ops.get(end.Operation)
	if !ok {
		return nil
	}
	next := op.op
	next.State, next.Detail, next.Updated = end.State, end.Detail, time.Now().UTC()
	if err := ch.putOperation(next, op.rev); err != nil {
		return err
	}
	ch.tell(Fact{Actor: name, Action: "host-install", Subject: name, Operation: end.Operation, Outcome: end.State, Detail: map[string]any{"detail": end.Detail}})
	return nil
}

// DropHost forgets a host, given by name or IP address, until its agent connects again. Its certificate stays valid.
func (c *Controller) DropHost(ctx context.Context, actor, arg string) (api.Messages, error) {
	var name string
	err := c.commit(ctx, func(s *snapshot) (*change, error) {
		e, err := s.hostNamed(arg)
		if err != nil {
			return nil, err
		}
		name = e.host.Name
		o := e.desired.Operation
		if o != nil && c.sessions.of(name).connected {
			return nil, problem.Errorf(problem.Conflict, "cannot drop %s: it is installing, by operation %s; wait for it to end", name, o.ID)
		}
		ch := &change{}
		ch.remove(hostPrefix+name, e.rev, func(*snapshot) {})
		if e.drev > 0 {
			ch.remove(desiredPrefix+name, e.drev, func(*snapshot) {})
		}
		for _, id := range e.ops {
			if op, ok := s.ops.get(id); ok {
				ch.remove(operationPrefix+id, op.rev, func(s *snapshot) { s.dropOperation(id) })
				ch.blind(outputPrefix+id, nil)
			}
		}
		ch.apply = append(ch.apply, func(s *snapshot, _ int64) { s.dropHost(name) })
		ch.tell(Fact{Actor: actor, Action: "drop-host", Subject: name, Outcome: "done"})
		return ch, nil
	})
	if err != nil {
		c.refused(ctx, actor, "drop-host", arg, err)
		return api.Messages{}, err
	}
	c.sessions.forget(name)
	c.log.Info("host dropped", "host", name, "by", actor)
	return api.Messages{}, nil
}

// Operation returns the present state of an operation.
func (c *Controller) Operation(_ context.Context, id string) (api.Operation, error) {
	o, ok := c.snap.Load().ops.get(id)
	if !ok {
		return api.Operation{}, problem.Errorf(problem.NotFound, "there is no operation %s; the last %d of each host are kept", id, c.cfg.Operations)
	}
	return o.op, nil
}

// FollowOperation calls each with the present state of an operation and with every later one until it is final, ctx
// ends, the controller stops, or each fails. States that follow each other at once may be seen as one.
func (c *Controller) FollowOperation(ctx context.Context, id string, each func(api.Operation) error) error {
	var seen int64
	for {
		changed := c.news.wait()
		o, err := c.Operation(ctx, id)
		if err != nil {
			return err
		}
		if o.Version > seen {
			seen = o.Version
			if err := each(o); err != nil {
				return err
			}
			if o.Final() {
				return nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.stopped:
			return errStopped
		}
	}
}

// OperationLog returns the end of what the tools of an operation printed.
func (c *Controller) OperationLog(ctx context.Context, id string) (api.OperationLog, error) {
	if _, err := c.Operation(ctx, id); err != nil {
		return api.OperationLog{}, err
	}
	it, err := c.parts.Store.Get(ctx, outputPrefix+id)
	if errors.Is(err, store.ErrNotFound) {
		return api.OperationLog{ID: id}, nil
	}
	if err != nil {
		return api.OperationLog{}, err
	}
	var r outputRecord
	if err := decodeRecord(it.Key, it.Value, &r); err != nil {
		return api.OperationLog{}, err
	}
	return api.OperationLog{ID: id, Output: r.Output}, nil
}

// refused journals a request that an operator made and that was refused. The refusal stands whatever becomes of its record.
func (c *Controller) refused(ctx context.Context, actor, action, subject string, why error) {
	if problem.KindOf(why) == problem.Internal {
		return
	}
	c.note(ctx, Fact{Actor: actor, Action: action, Subject: subject, Outcome: "refused", Detail: map[string]any{"why": why.Error()}})
}

// note journals a fact that comes with no change of state.
func (c *Controller) note(ctx context.Context, f Fact) {
	err := c.commit(ctx, func(*snapshot) (*change, error) { return &change{facts: []Fact{f}}, nil })
	if err != nil && ctx.Err() == nil {
		c.log.Error("cannot journal", "action", f.Action, "subject", f.Subject, "err", err)
	}
}
