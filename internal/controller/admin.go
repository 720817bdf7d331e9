package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Status is what the controller says of itself.
func (c *Controller) Status(ctx context.Context) (api.Status, error) {
	s := c.snap.Load()
	releases, err := c.Feeds(ctx)
	if err != nil {
		return api.Status{}, err
	}
	out := api.Status{
		Version: c.cfg.Version, Controller: c.cfg.Name, Release: c.cfg.Release, Started: c.started.UTC(),
		Patches: len(s.patches), Hosts: len(s.hostNames()), Connected: c.sessions.connected(), Releases: releases,
		Journal: c.parts.Journal.Head(), FsyncP99: float64(c.cfg.FsyncP99) / float64(time.Millisecond), Warnings: []string{},
	}
	if c.cfg.Listeners != nil {
		out.Listeners = c.cfg.Listeners()
	}
	warn := func(format string, args ...any) { out.Warnings = append(out.Warnings, fmt.Sprintf(format, args...)) }
	if c.cfg.FsyncP99 > durable.SlowSync {
		warn("the disk of the state store needs %.1f ms for one durable write (99th percentile); more than %.0f ms makes everything slow", out.FsyncP99, float64(durable.SlowSync)/float64(time.Millisecond))
	}
	if !slices.ContainsFunc(releases, func(r api.ReleaseStatus) bool { return r.Release == c.cfg.Release }) {
		warn("the running release %q has no base packages here; bring them in with sw-patch-controller feed add", c.cfg.Release)
	}
	for _, l := range out.Listeners {
		if !l.TLS && !strings.HasPrefix(l.Address, "/") {
			warn("%s answers everybody on this machine without asking who it is (compat-loopback)", l.Address)
		}
	}
	keys, err := c.parts.Trust.Now()
	if err != nil {
		warn("the trust store cannot be read: %v", err)
	}
	if err == nil && len(keys.Formal) == 0 && len(keys.Dev) == 0 {
		warn("no key is trusted, so every patch is refused; add one with sw-patch-controller trust add")
	}
	if len(keys.Dev) > 0 {
		warn("developer patches are accepted")
	}
	for _, err := range []error{c.checkSpace(0), c.checkRoom(ctx)} {
		if err != nil {
			warn("%v", err)
		}
	}
	return out, nil
}

// Feeds lists the releases whose base packages are here.
func (c *Controller) Feeds(ctx context.Context) ([]api.ReleaseStatus, error) {
	names, err := c.parts.Feeds.Releases()
	if err != nil {
		return nil, err
	}
	s := c.snap.Load()
	out := []api.ReleaseStatus{}
	for _, name := range names {
		base, err := c.parts.Feeds.Base(ctx, name)
		if err != nil {
			return nil, err
		}
		r := s.releases[name]
		out = append(out, api.ReleaseStatus{Release: name, Revision: r.Revision, Repomd: r.Repomd, Packages: len(base)})
	}
	return out, nil
}

// AddFeed brings the base packages of a release in from a folder of this machine.
func (c *Controller) AddFeed(ctx context.Context, actor string, req api.FeedRequest) (api.ReleaseStatus, error) {
	if _, err := patch.ParseRelease(req.Release); err != nil {
		return api.ReleaseStatus{}, err
	}
	leave, err := c.enter(ctx)
	if err != nil {
		return api.ReleaseStatus{}, err
	}
	defer leave()
	if err := c.parts.Feeds.Add(ctx, req.Release, req.Dir); err != nil {
		c.refused(ctx, actor, "feed add", req.Release, err)
		return api.ReleaseStatus{}, err
	}
	if err := c.establish(ctx, req.Release); err != nil {
		return api.ReleaseStatus{}, err
	}
	c.note(ctx, Fact{Actor: actor, Action: "feed add", Subject: req.Release, Outcome: "done", Detail: map[string]any{"dir": req.Dir}})
	all, err := c.Feeds(ctx)
	if err != nil {
		return api.ReleaseStatus{}, err
	}
	i := slices.IndexFunc(all, func(r api.ReleaseStatus) bool { return r.Release == req.Release })
	if i < 0 {
		return api.ReleaseStatus{}, fmt.Errorf("release %s is not there after it was brought in", req.Release)
	}
	return all[i], nil
}

// Trust lists the keys that patches are verified with.
func (c *Controller) Trust(context.Context) ([]api.TrustKey, error) { return c.parts.Trust.List() }

// AddTrust adds a key.
func (c *Controller) AddTrust(ctx context.Context, actor string, req api.TrustRequest) (api.TrustKey, error) {
	k, err := c.parts.Trust.Add(req.Class, req.Name, req.PEM)
	if err != nil {
		c.refused(ctx, actor, "trust add", req.Class+"/"+req.Name, err)
		return api.TrustKey{}, err
	}
	c.note(ctx, Fact{Actor: actor, Action: "trust add", Subject: k.Class + "/" + k.Name, Outcome: "done", Detail: map[string]any{"key": k.Key}})
	return k, nil
}

// RemoveTrust removes a key. Patches that it signed stay; they cannot be applied any more.
func (c *Controller) RemoveTrust(ctx context.Context, actor, class, name string) error {
	if err := c.parts.Trust.Remove(class, name); err != nil {
		c.refused(ctx, actor, "trust remove", class+"/"+name, err)
		return err
	}
	c.note(ctx, Fact{Actor: actor, Action: "trust remove", Subject: class + "/" + name, Outcome: "done"})
	return nil
}

// Journal returns journal records with numbers above after.
func (c *Controller) Journal(ctx context.Context, after int64) (api.JournalPage, error) {
	return c.parts.Journal.Page(ctx, after)
}

// VerifyJournal checks the journal's chain of hashes.
func (c *Controller) VerifyJournal(ctx context.Context) (api.JournalCheck, error) {
	return c.parts.Journal.Verify(ctx)
}

// How long a join token is good for that asks for nothing, and the longest that one may ask for.
const (
	tokenTTL    = time.Hour
	maxTokenTTL = 30 * 24 * time.Hour
)

// CreateToken makes a token with which one host may join once. Its secret is in the answer and nowhere else.
func (c *Controller) CreateToken(ctx context.Context, actor string, req api.TokenRequest) (api.Token, error) {
	ttl := tokenTTL
	if req.TTL != "" {
		d, err := time.ParseDuration(req.TTL)
		if err != nil || d <= 0 || d > maxTokenTTL {
			return api.Token{}, problem.Errorf(problem.Invalid, "%q is not a time that a join token may be good for; expected something like 90m, at most %v", req.TTL, maxTokenTTL)
		}
		ttl = d
	}
	token, record, err := agentlink.NewToken(req.Host, ttl, c.cfg.CAHash, time.Now())
	if err != nil {
		return api.Token{}, err
	}
	err = c.commit(ctx, func(s *snapshot) (*change, error) {
		ch := &change{}
		if err := ch.putToken(record, 0); err != nil {
			return nil, err
		}
		now := time.Now()
		for id, old := range s.tokens {
			if now.After(old.Expires) && len(ch.txn.Then) < deleteBatch {
				ch.remove(tokenPrefix+id, old.rev, func(s *snapshot) { s.dropToken(id) })
			}
		}
		ch.tell(Fact{Actor: actor, Action: "token create", Subject: req.Host, Outcome: "done", Detail: map[string]any{"token": record.ID, "expires": record.Expires}})
		return ch, nil
	})
	if err != nil {
		return api.Token{}, err
	}
	out := tokenInfo(record)
	out.Secret = token.String()
	return out, nil
}

func (ch *change) putToken(t agentlink.TokenRecord, rev int64) error {
	return ch.put(tokenPrefix+t.ID, rev, tokenRecord{recordFormat, t}, func(s *snapshot, rev int64) { s.setToken(t, rev) })
}

func tokenInfo(t agentlink.TokenRecord) api.Token {
	return api.Token{ID: t.ID, Host: t.Host, Expires: t.Expires, Used: !t.Used.IsZero()}
}

// Tokens lists the join tokens that are not forgotten yet.
func (c *Controller) Tokens(context.Context) ([]api.Token, error) {
	out := []api.Token{}
	for _, t := range c.snap.Load().tokens {
		out = append(out, tokenInfo(t.TokenRecord))
	}
	slices.SortFunc(out, func(a, b api.Token) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Redeem lets a host join with a token.
func (c *Controller) Redeem(ctx context.Context, claim agentlink.Claim) error {
	return c.commit(ctx, func(s *snapshot) (*change, error) {
		t, ok := s.tokens[claim.Token]
		if !ok {
			return nil, agentlink.ErrToken
		}
		next, err := t.Redeem(claim, time.Now())
		if err != nil {
			return nil, err
		}
		ch := &change{}
		if err := ch.putToken(next, t.rev); err != nil {
			return nil, err
		}
		if err := ch.putCertificate(s, claim.Host, claim.Serial, claim.Expires); err != nil {
			return nil, err
		}
		ch.tell(Fact{Actor: claim.Host, Action: "certificate", Subject: claim.Host, Outcome: "issued", Detail: map[string]any{"token": claim.Token, "serial": claim.Serial, "expires": claim.Expires}})
		return ch, nil
	})
}

// Renewed records the certificate that replaces a host's present one.
func (c *Controller) Renewed(ctx context.Context, name, serial string, expires time.Time) error {
	return c.commit(ctx, func(s *snapshot) (*change, error) {
		ch := &change{}
		if err := ch.putCertificate(s, name, serial, expires); err != nil {
			return nil, err
		}
		ch.tell(Fact{Actor: name, Action: "certificate", Subject: name, Outcome: "renewed", Detail: map[string]any{"serial": serial, "expires": expires}})
		return ch, nil
	})
}

func (ch *change) putCertificate(s *snapshot, name, serial string, expires time.Time) error {
	old, _ := s.certs.get(name)
	r := certificateRecord{recordFormat, name, serial, expires.UTC()}
	return ch.put(certPrefix+name, old.rev, r, func(s *snapshot, rev int64) { s.setCertificate(r, rev) })
}

// Revoked says whether a certificate is on the deny list. Nothing puts one there yet: deleting a host will.
func (c *Controller) Revoked(string) bool { return false }
