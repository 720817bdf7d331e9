package controller

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/problem"
)

// sessions knows which agents are connected. It is kept in memory only: after a restart every host counts as
// disconnected, and what it last reported as stale, until its agent is back.
type sessions struct {
	mu       sync.Mutex
	byHost   map[string]*session
	heard    map[string]time.Time // last sign of life, of those that are not connected too
	reported map[string]bool      // those that have reported since the start
}

// session is the controller's end of one agent's stream.
type session struct {
	c    *Controller
	host string
	ip   string

	mu     sync.Mutex
	out    agentlink.Latest[agentlink.Desired]
	sent   uint64 // greatest epoch that was put
	acked  uint64 // greatest epoch that the agent has made durable
	closed bool
}

// presence is what is known of a host's agent now.
type presence struct {
	connected bool
	heard     time.Time // zero: not since the start
	reported  bool      // since the start
}

func (s *sessions) of(name string) presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, connected := s.byHost[name]
	return presence{connected, s.heard[name], s.reported[name]}
}

// all is the presence of every host at one moment.
func (s *sessions) all() map[string]presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]presence, len(s.heard))
	for name, t := range s.heard {
		_, connected := s.byHost[name]
		out[name] = presence{connected, t, s.reported[name]}
	}
	return out
}

func (s *sessions) connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byHost)
}

func (s *sessions) hear(name string, report bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard[name] = time.Now()
	if report {
		s.reported[name] = true
	}
}

// forget drops a host and ends its stream, if there is one.
func (s *sessions) forget(name string) {
	s.mu.Lock()
	ses := s.byHost[name]
	delete(s.byHost, name)
	delete(s.heard, name)
	delete(s.reported, name)
	s.mu.Unlock()
	if ses != nil {
		ses.end()
	}
}

// wake sends the named hosts their desired state, if it is newer than what they were sent.
func (s *sessions) wake(snap *snapshot, names []string) {
	for _, name := range names {
		s.mu.Lock()
		ses := s.byHost[name]
		s.mu.Unlock()
		if ses != nil {
			ses.send(snap)
		}
	}
}

func (s *sessions) wakeAll(snap *snapshot) {
	s.mu.Lock()
	list := slices.Collect(maps.Values(s.byHost))
	s.mu.Unlock()
	for _, ses := range list {
		ses.send(snap)
	}
}

// send puts the host's desired state into the stream if it is newer than the last one.
func (ses *session) send(snap *snapshot) {
	d, ok := snap.desired(ses.host)
	if !ok {
		return
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.closed || d.Epoch <= ses.sent {
		return
	}
	ses.sent = d.Epoch
	ses.out.Put(d)
}

// end closes the stream from our side.
func (ses *session) end() {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if !ses.closed {
		ses.closed = true
		close(ses.out)
	}
}

// desired is what a host should have and do; false if its release has no repository here. Its epoch is made of store
// revisions, so it grows with every change of either record.
func (s *snapshot) desired(name string) (agentlink.Desired, bool) {
	e, ok := s.hosts.get(name)
	if !ok || e.drev == 0 {
		return agentlink.Desired{}, false
	}
	rel, ok := s.releases[e.desired.Release]
	if !ok || rel.Revision == 0 {
		return agentlink.Desired{}, false
	}
	d := agentlink.Desired{
		Epoch:        e.desired.Base + uint64(max(e.drev, rel.rev)),
		Release:      rel.Release,
		Revision:     rel.Revision,
		RepomdSHA256: rel.Repomd,
	}
	if o := e.desired.Operation; o != nil {
		d.Operation = &agentlink.Operation{ID: o.ID, Kind: o.Kind, Force: o.Force, InServiceOnly: o.InServiceOnly}
	}
	return d, true
}

// Attach accepts the stream of a host that has proven its name. An unknown host becomes known by it.
func (c *Controller) Attach(ctx context.Context, peer agentlink.Peer, hello agentlink.Hello) (agentlink.Session, error) {
	if err := host.CheckName(peer.Host); err != nil {
		return nil, err
	}
	ses := &session{c: c, host: peer.Host, ip: address(peer.IP), out: agentlink.NewLatest[agentlink.Desired]()}
	if err := c.greet(ctx, ses, hello); err != nil {
		return nil, err
	}
	c.sessions.mu.Lock()
	old := c.sessions.byHost[ses.host]
	c.sessions.byHost[ses.host] = ses
	c.sessions.heard[ses.host] = time.Now()
	c.sessions.mu.Unlock()
	if old != nil {
		old.end()
	}
	ses.send(c.snap.Load())
	c.log.Info("agent connected", "host", ses.host, "release", hello.Facts.Release, "locked", hello.Facts.Locked)
	c.news.tell()
	return ses, nil
}

func address(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.Unmap().String()
}

// greet saves what a hello tells, if it is new.
func (c *Controller) greet(ctx context.Context, ses *session, hello agentlink.Hello) error {
	if _, err := host.ParsePersonality(string(hello.Facts.Personality)); err != nil {
		return err
	}
	return c.commit(ctx, func(s *snapshot) (*change, error) {
		ch := &change{}
		e, _ := s.hosts.get(ses.host)
		h := e.host
		known := e.rev > 0
		if !known {
			h = host.Host{Name: ses.host, Since: time.Now().UTC(), Report: host.Report{State: host.Idle}}
		}
		if !known || h.Facts != hello.Facts || h.IP != ses.ip {
			h.Facts, h.IP = hello.Facts, ses.ip
			if err := ch.put(hostPrefix+h.Name, e.rev, hostRecord{recordFormat, h}, func(s *snapshot, rev int64) { s.setHost(h, rev) }); err != nil {
				return nil, err
			}
			action := "hello"
			if !known {
				action = "join"
			}
			ch.tell(Fact{Actor: h.Name, Action: action, Subject: h.Name, Outcome: "done", Detail: map[string]any{"facts": h.Facts, "ip": h.IP}})
		}
		d := e.desired
		d.Format, d.Host, d.Release = recordFormat, ses.host, hello.Facts.Release
		if o := d.Operation; o != nil && e.desired.Release != d.Release {
			// Nothing would ever end it: what it was to install belongs to a release that the host has left.
			d.Operation = nil
			end := agentlink.Progress{Operation: o.ID, State: api.OperationFailed, Detail: fmt.Sprintf("%s was to install for release %s and runs release %s now", ses.host, e.desired.Release, d.Release)}
			if err := ch.endOperation(s, ses.host, end); err != nil {
				return nil, err
			}
		}
		if now := s.epochOf(ses.host); hello.Epoch > now {
			// The agent followed a state that is lost: a controller installed anew, or restored from an older backup.
			d.Base += hello.Epoch - now
			ch.tell(Fact{Actor: ses.host, Action: "epoch", Subject: ses.host, Outcome: "raised", Detail: map[string]any{"agent": hello.Epoch, "controller": now}})
		}
		if e.drev == 0 || d != e.desired {
			if err := ch.put(desiredPrefix+d.Host, e.drev, d, func(s *snapshot, rev int64) { s.setDesired(d, rev) }); err != nil {
				return nil, err
			}
			ch.wake = append(ch.wake, d.Host)
			if len(ch.facts) == 0 {
				ch.tell(Fact{Actor: ses.host, Action: "release", Subject: ses.host, Outcome: d.Release})
			}
		}
		return ch, nil
	})
}

// epochOf is the epoch that a host would be sent now; 0: none.
func (s *snapshot) epochOf(name string) uint64 {
	d, _ := s.desired(name)
	return d.Epoch
}

// Hello takes a changed fact.
func (ses *session) Hello(ctx context.Context, hello agentlink.Hello) error {
	ses.c.sessions.hear(ses.host, false)
	if err := ses.c.greet(ctx, ses, hello); err != nil {
		return err
	}
	ses.send(ses.c.snap.Load())
	return nil
}

// Ack notes what the agent has made durable.
func (ses *session) Ack(_ context.Context, epoch uint64) error {
	ses.c.sessions.hear(ses.host, false)
	ses.mu.Lock()
	defer ses.mu.Unlock()
	ses.acked = max(ses.acked, epoch)
	return nil
}

// Desired is what the link sends.
func (ses *session) Desired() <-chan agentlink.Desired { return ses.out }

// Detach notes that the stream has ended.
func (ses *session) Detach(cause error) {
	c := ses.c
	c.sessions.mu.Lock()
	if c.sessions.byHost[ses.host] == ses {
		delete(c.sessions.byHost, ses.host)
		c.sessions.heard[ses.host] = time.Now()
	}
	c.sessions.mu.Unlock()
	ses.end()
	c.log.Info("agent disconnected", "host", ses.host, "cause", cause)
	c.news.tell()
}

// Report saves a report, if it says something new.
func (ses *session) Report(ctx context.Context, r host.Report) error {
	if err := checkReport(r); err != nil {
		return err
	}
	err := ses.c.commit(ctx, func(s *snapshot) (*change, error) { return ses.c.decideReport(s, ses.host, r) })
	if err == nil {
		ses.c.sessions.hear(ses.host, true)
	}
	return err
}

// errDropped ends the stream of a host that was dropped meanwhile; its agent comes back and is new.
var errDropped = problem.Errorf(problem.Conflict, "the host was dropped; connect again")

func (c *Controller) decideReport(s *snapshot, name string, r host.Report) (*change, error) {
	e, ok := s.hosts.get(name)
	if !ok || e.rev == 0 {
		return nil, errDropped
	}
	if r.Revision > s.releases[r.Release].Revision {
		// Of a generation that a lost or restored controller had made. Another one will get its number, and what the host
		// said of the one must not pass for the other: it has not reported yet.
		r.Revision = 0
	}
	ch := &change{}
	if !sameReport(e.host.Report, r) || e.host.Reported.IsZero() {
		h := e.host
		h.Report, h.Reported = r, time.Now().UTC()
		if err := ch.put(hostPrefix+name, e.rev, hostRecord{recordFormat, h}, func(s *snapshot, rev int64) { s.setHost(h, rev) }); err != nil {
			return nil, err
		}
		ch.tell(Fact{Actor: name, Action: "report", Subject: name, Outcome: string(r.State), Detail: map[string]any{
			"release": r.Release, "revision": r.Revision, "current": r.Current(), "installed": len(r.Installed), "to_remove": len(r.ToRemove),
			"missing": len(r.Missing), "patch_failed": r.PatchFailed, "requires_reboot": r.RequiresReboot}})
	}
	return ch, nil
}
