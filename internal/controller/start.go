package controller

import (
	"context"
	"fmt"

	"github.com/starpatch/starpatch/patch"
)

// start makes the state on disk fit the records: a generation for every installed release, nothing half made, nothing
// that no record names.
func (c *Controller) start(ctx context.Context) error {
	leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := c.parts.Feeds.Sweep(); err != nil {
		return err
	}
	installed, err := c.parts.Feeds.Releases()
	if err != nil {
		return err
	}
	for _, release := range installed {
		if _, err := patch.ParseRelease(release); err != nil {
			c.log.Warn("a folder of the base feed is not a release", "err", err)
			continue
		}
		if err := c.establish(ctx, release); err != nil {
			return err
		}
	}
	for release, r := range c.snap.Load().releases {
		if r.Revision == 0 {
			continue
		}
		if err := c.restore(ctx, release); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// A damaged package of one patch must not keep everything else down: removing that patch mends the release.
			c.log.Error("cannot restore the current generation; hosts of the release cannot install until the next apply or remove", "release", release, "revision", r.Revision, "err", err)
		}
	}
	if err := c.parts.Repository.Sweep(c.needed()); err != nil {
		return err
	}
	return c.parts.Blobs.Sweep(c.snap.Load().named())
}

// establish gives an installed release its first generation, which is empty: agents always have a repository.
func (c *Controller) establish(ctx context.Context, release string) error {
	was := c.snap.Load().releases[release]
	if was.Revision > 0 {
		return nil
	}
	return c.renew(ctx, release)
}

// restore makes sure that the current generation of a release is on disk with the bytes that hosts were told. When it
// has to be built again and comes out with others (another version of the tools), a new generation takes its place.
func (c *Controller) restore(ctx context.Context, release string) error {
	s := c.snap.Load()
	r := s.releases[release]
	built, err := c.build(ctx, r.releaseRecord, s.patches)
	if err != nil {
		return err
	}
	if built.Repomd == r.Repomd {
		return nil
	}
	c.log.Warn("generation had to be built again and differs", "release", release, "revision", r.Revision)
	return c.renew(ctx, release)
}

// renew publishes a new generation of a release with the patches that it has.
func (c *Controller) renew(ctx context.Context, release string) error {
	s := c.snap.Load()
	was := s.releases[release]
	r := was.releaseRecord
	r.Format, r.Release, r.Revision = recordFormat, release, was.Revision+1
	built, err := c.build(ctx, r, s.patches)
	if err != nil {
		return fmt.Errorf("cannot make a repository for release %s: %w", release, err)
	}
	r.Repomd, r.Repodata = built.Repomd, built.Repodata
	return c.commit(ctx, func(*snapshot) (*change, error) {
		ch := &change{all: true}
		if err := ch.put(releasePrefix+release, was.rev, r, func(s *snapshot, rev int64) { s.setRelease(r, rev) }); err != nil {
			return nil, err
		}
		ch.tell(Fact{Actor: "controller", Action: "generation", Subject: release, Outcome: "done", Detail: map[string]any{"revision": r.Revision, "repomd_sha256": r.Repomd}})
		return ch, nil
	})
}

// needed says which generations some host may still read.
func (c *Controller) needed() func(release string, revision int64) bool {
	s := c.snap.Load()
	type generation struct {
		release  string
		revision int64
	}
	exact := map[generation]bool{}
	from := map[string]int64{} // connected hosts may still be on their way from here to the current one
	for name, r := range s.releases {
		exact[generation{name, r.Revision}] = true
	}
	live := c.sessions.all()
	for name, e := range s.hosts.all {
		if e.rev == 0 {
			continue
		}
		rep := e.host.Report
		exact[generation{rep.Release, rep.Revision}] = true
		if first, ok := from[e.desired.Release]; live[name].connected && rep.Revision > 0 && (!ok || rep.Revision < first) {
			from[e.desired.Release] = rep.Revision
		}
		if o := e.desired.Operation; o != nil {
			if op, ok := s.ops.get(o.ID); ok {
				exact[generation{op.op.Release, op.op.Revision}] = true
			}
		}
	}
	return func(release string, revision int64) bool {
		first, ok := from[release]
		return exact[generation{release, revision}] || ok && revision >= first && revision <= s.releases[release].Revision
	}
}

// named says which blobs some record names.
func (s *snapshot) named() func(sha256 string) bool {
	known := map[string]bool{}
	for id, p := range s.patches {
		for _, d := range p.Digests() {
			known[d] = true
		}
		for _, d := range s.kept[id].former {
			known[d] = true
		}
	}
	for _, r := range s.releases {
		for _, d := range r.Repodata {
			known[d] = true
		}
	}
	return func(d string) bool { return known[d] }
}

// wantClean asks that what no record names any more be removed soon.
func (c *Controller) wantClean() {
	select {
	case c.prune <- struct{}{}:
	default:
	}
}

// clean removes generations and blobs that nobody needs, whenever something may have become so.
func (c *Controller) clean(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.prune:
		}
		leave, err := c.enter(ctx)
		if err != nil {
			return nil // stopping: what is left over is swept at the next start
		}
		if err := c.parts.Repository.Sweep(c.needed()); err != nil {
			c.log.Warn("cannot remove old generations", "err", err)
		}
		if err := c.parts.Blobs.Sweep(c.snap.Load().named()); err != nil {
			c.log.Warn("cannot remove old files", "err", err)
		}
		leave()
	}
}
