package controller

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

// Apply puts patches into the update repositories. Hosts follow when they are told to install.
func (c *Controller) Apply(ctx context.Context, actor string, ids []string, o api.ApplyOptions) (api.Messages, error) {
	req := patch.ApplyRequest{IDs: ids, Release: o.Release, SkipSemantic: o.SkipSemantic}
	return c.alter(ctx, actor, "apply", ids, func(s *snapshot, now patch.Situation) (patch.Decision, error) {
		return patch.DecideApply(s.patches, req, now)
	})
}

// Remove takes patches out of the update repositories.
func (c *Controller) Remove(ctx context.Context, actor string, ids []string, o api.RemoveOptions) (api.Messages, error) {
	req := patch.RemoveRequest{IDs: ids, RemoveUnremovable: o.RemoveUnremovable, SkipApplications: o.SkipAppCheck, SkipSemantic: o.SkipSemantic}
	return c.alter(ctx, actor, "remove", ids, func(s *snapshot, now patch.Situation) (patch.Decision, error) {
		return patch.DecideRemove(s.patches, req, now)
	})
}

// situation is what decisions look at besides the patch set. keys are those that count now.
func (c *Controller) situation(s *snapshot, keys patchfile.Trust) patch.Situation {
	return patch.Situation{
		Release:    c.cfg.Release,
		Hosts:      s.hostList(),
		Installing: s.installing(),
		Trusts:     func(by patch.Signer) bool { return keys.Has(by.Key) != "" },
	}
}

// alter decides on the patch set, builds the generations that follow from it, and publishes both by one commit. When the
// state has moved on while a generation was built, everything is decided again.
func (c *Controller) alter(ctx context.Context, actor, action string, ids []string, decide func(*snapshot, patch.Situation) (patch.Decision, error)) (api.Messages, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return api.Messages{}, err
	}
	defer leave()
	subject := strings.Join(ids, " ")
	keys, err := c.parts.Trust.Now()
	if err != nil {
		return api.Messages{}, err
	}
	for range conflicts {
		s := c.snap.Load()
		d, err := decide(s, c.situation(s, keys))
		if err != nil {
			c.refused(ctx, actor, action, subject, err)
			return api.Messages{}, err
		}
		if d.Refused() {
			c.refused(ctx, actor, action, subject, problem.Errorf(problem.Conflict, "%s", strings.Join(d.Error, "; ")))
			return messages(d), nil
		}
		if len(d.Changes) == 0 {
			return messages(d), nil
		}
		err = c.publishDecision(ctx, actor, action, s, d)
		if err == errMoved {
			continue
		}
		if err != nil {
			c.refused(ctx, actor, action, subject, err)
			return api.Messages{}, err
		}
		c.log.Info(action, "patch", subject, "by", actor)
		c.wantClean()
		return messages(d), nil
	}
	return api.Messages{}, problem.Errorf(problem.Conflict, "the patches are being changed by others all the time; try again")
}

func messages(d patch.Decision) api.Messages {
	return api.Messages{Info: patch.Lines(d.Info), Warning: patch.Lines(d.Warning), Error: patch.Lines(d.Error)}
}

// errMoved says that a decision rests on a state that is no more.
var errMoved = problem.Errorf(problem.Conflict, "the state has changed meanwhile")

// publishDecision builds a generation for every release that d changes and commits the new places of the patches with it.
func (c *Controller) publishDecision(ctx context.Context, actor, action string, s *snapshot, d patch.Decision) error {
	releases := d.Releases()
	after := d.After(s.patches, func(release string) int64 { return s.releases[release].Revision + 1 })
	next := map[string]releaseRecord{}
	for _, name := range releases {
		r := s.releases[name].releaseRecord
		r.Format, r.Release, r.Placed = recordFormat, name, maps.Clone(r.Placed)
		if r.Placed == nil {
			r.Placed = map[patch.ID]place{}
		}
		r.Revision++
		for _, ch := range d.Changes {
			if ch.Release == name {
				r.Placed[ch.ID] = place{after[ch.ID].RepoState, after[ch.ID].Changed}
			}
		}
		built, err := c.build(ctx, r, after)
		if err != nil {
			return err
		}
		r.Repomd, r.Repodata = built.Repomd, built.Repodata
		next[name] = r
	}
	return c.commit(ctx, func(now *snapshot) (*change, error) {
		if len(now.installing()) > 0 {
			return nil, patch.ErrInstalling
		}
		// The places of all patches of a release are in one record, so any number of them fits into the transaction.
		ch := &change{all: true}
		for _, x := range d.Changes {
			if now.kept[x.ID].rev != s.kept[x.ID].rev {
				return nil, errMoved
			}
		}
		for _, name := range releases {
			was, r := s.releases[name], next[name]
			if now.releases[name].rev != was.rev {
				return nil, errMoved
			}
			if err := ch.put(releasePrefix+name, was.rev, r, func(s *snapshot, rev int64) { s.setRelease(r, rev) }); err != nil {
				return nil, err
			}
			ch.tell(Fact{Actor: actor, Action: action, Subject: subjects(d, name), Outcome: "done", Detail: map[string]any{
				"release": name, "revision": r.Revision, "repomd_sha256": r.Repomd, "warnings": len(d.Warning)}})
		}
		return ch, nil
	})
}

func subjects(d patch.Decision, release string) string {
	var out []string
	for _, ch := range d.Changes {
		if ch.Release == release {
			out = append(out, string(ch.ID))
		}
	}
	return strings.Join(out, " ")
}

// build makes the generation that a release's record names, with these patches.
func (c *Controller) build(ctx context.Context, r releaseRecord, patches patch.Set) (Built, error) {
	g := Generation{Release: r.Release, Revision: r.Revision}
	for _, n := range r.Gone {
		nevra, err := rpm.ParseFileName(n)
		if err != nil {
			return Built{}, err
		}
		g.Ever = append(g.Ever, nevra)
	}
	for _, p := range patches.Sorted() {
		if p.Release != r.Release {
			continue
		}
		if p.RepoState != patch.RepoAvailable {
			g.Patches = append(g.Patches, p)
		}
		if p.Changed > 0 {
			for _, pkg := range p.Packages {
				g.Ever = append(g.Ever, pkg.NEVRA)
			}
		}
	}
	slices.SortFunc(g.Ever, rpm.NEVRA.Compare)
	g.Ever = slices.Compact(g.Ever)
	return c.parts.Repository.Build(ctx, g)
}

// deleteBatch is how many patches one transaction deletes.
const deleteBatch = 40

// Delete forgets patches that are not in a repository. What they brought to hosts while they were stays known, so that
// hosts still take it back.
func (c *Controller) Delete(ctx context.Context, actor string, ids []string) (api.Messages, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return api.Messages{}, err
	}
	defer leave()
	s := c.snap.Load()
	d := patch.DecideDelete(s.patches, ids, patch.Situation{Hosts: s.hostList()})
	if d.Refused() {
		c.refused(ctx, actor, "delete", strings.Join(ids, " "), problem.Errorf(problem.Conflict, "%s", strings.Join(d.Error, "; ")))
		return messages(d), nil
	}
	// More than fit into one transaction go in several, dependants first: a crash in between leaves a set that is whole.
	for batch := range slices.Chunk(d.Changes, deleteBatch) {
		if err := c.commit(ctx, func(s *snapshot) (*change, error) { return decideForget(s, actor, batch) }); err != nil {
			return api.Messages{}, err
		}
	}
	if len(d.Changes) > 0 {
		c.log.Info("delete", "patch", strings.Join(ids, " "), "by", actor)
		c.wantClean()
	}
	return messages(d), nil
}

// decideForget deletes the records of patches.
func decideForget(s *snapshot, actor string, batch []patch.Change) (*change, error) {
	ch := &change{}
	releases := map[string]releaseRecord{}
	var names []string
	for _, x := range batch {
		p, ok := s.patches[x.ID]
		if !ok || p.RepoState != patch.RepoAvailable {
			return nil, errMoved
		}
		ch.remove(patchPrefix+string(x.ID), s.kept[x.ID].rev, func(s *snapshot) { s.dropPatch(x.ID) })
		names = append(names, string(x.ID))
		if p.Changed == 0 {
			continue
		}
		r, ok := releases[p.Release]
		if !ok {
			r = s.releases[p.Release].releaseRecord
			r.Placed, r.Gone = maps.Clone(r.Placed), slices.Clone(r.Gone)
		}
		delete(r.Placed, x.ID)
		for _, pkg := range p.Packages {
			r.Gone = append(r.Gone, goneName(pkg.NEVRA))
		}
		slices.Sort(r.Gone)
		r.Gone = slices.Compact(r.Gone)
		releases[p.Release] = r
	}
	for _, name := range slices.Sorted(maps.Keys(releases)) {
		r := releases[name]
		if err := ch.put(releasePrefix+name, s.releases[name].rev, r, func(s *snapshot, rev int64) { s.setRelease(r, rev) }); err != nil {
			return nil, err
		}
	}
	ch.tell(Fact{Actor: actor, Action: "delete", Subject: strings.Join(names, " "), Outcome: "done"})
	return ch, nil
}

// goneName spells a package so that [rpm.ParseFileName] reads it back whole.
func goneName(n rpm.NEVRA) string {
	if n.Epoch == 0 {
		return n.FileName()
	}
	epoch, _, _ := strings.Cut(n.EVR.String(), ":")
	return epoch + ":" + n.FileName()
}
