package controller

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
)

// Query lists patches by repo state (show is available, applied or committed; anything else means all) and release.
func (c *Controller) Query(_ context.Context, show, release string) (api.Query, error) {
	s := c.snap.Load()
	ev := s.evaluation()
	out := api.Query{Patches: make(map[string]api.PatchInfo, len(s.patches))}
	for id, p := range s.patches {
		if release != "" && p.Release != release || !shown(show, p.RepoState) {
			continue
		}
		out.Patches[string(id)] = patchInfo(p, ev.State(id))
	}
	return out, nil
}

func shown(show string, state patch.RepoState) bool {
	switch show {
	case "available":
		return state == patch.RepoAvailable
	case "applied":
		return state == patch.RepoApplied
	case "committed":
		return state == patch.RepoCommitted
	}
	return true
}

func patchInfo(p patch.Patch, state patch.State) api.PatchInfo {
	out := api.PatchInfo{
		RepoState: string(p.RepoState), PatchState: string(state), Release: p.Release,
		Status: text(p.Status), Unremovable: text(p.Unremovable), Summary: text(p.Summary), Description: text(p.Description),
		InstallInstructions: text(p.InstallInstructions), Warnings: text(p.Warnings), ApplyActiveReleaseOnly: text(p.ApplyActiveReleaseOnly),
		RebootRequired: "Y",
		Controller:     p.Personalities[host.Controller], ControllerWorker: p.Personalities[host.ControllerWorker],
		ControllerWorkerLowLat: p.Personalities[host.ControllerWorkerLowLatency], Storage: p.Personalities[host.Storage],
		Worker: p.Personalities[host.Worker], WorkerLowLatency: p.Personalities[host.WorkerLowLatency],
		Requires: []string{},
	}
	if p.RebootRequired.Present {
		out.RebootRequired = p.RebootRequired.Value
	}
	for _, id := range p.Requires {
		out.Requires = append(out.Requires, string(id))
	}
	return out
}

// text is nil for an absent element.
func text(t patch.Text) *string {
	if !t.Present {
		return nil
	}
	return &t.Value
}

// Show returns the metadata and contents of patches; unknown ones only add to its error.
func (c *Controller) Show(_ context.Context, ids []string) (api.Show, error) {
	s := c.snap.Load()
	ev := s.evaluation()
	out := api.Show{Metadata: map[string]api.PatchInfo{}, Contents: map[string][]string{}}
	for _, id := range sorted(ids) {
		p, ok := s.patches[patch.ID(id)]
		if !ok {
			out.Error += id + " is unrecognized\n"
			continue
		}
		out.Metadata[id] = patchInfo(p, ev.State(p.ID))
		out.Contents[id] = append([]string{}, p.Contents...)
	}
	return out, nil
}

func sorted(ids []string) []string { return slices.Compact(slices.Sorted(slices.Values(ids))) }

// QueryHosts lists every known host with what it last reported, by name.
func (c *Controller) QueryHosts(context.Context) (api.QueryHosts, error) {
	s := c.snap.Load()
	ev := s.evaluation()
	live := c.sessions.all()
	now := time.Now()
	out := api.QueryHosts{Hosts: make([]api.HostInfo, 0, s.hosts.n)}
	for _, name := range s.hostNames() {
		e, _ := s.hosts.get(name)
		out.Hosts = append(out.Hosts, hostInfo(e, ev.Hosts[name], live[name], now, c.started))
	}
	return out, nil
}

func hostInfo(e hostEntry, v patch.HostView, p presence, now, started time.Time) api.HostInfo {
	h := e.host
	out := api.HostInfo{
		IP: h.IP, Hostname: h.Name,
		PatchCurrent: v.PatchCurrent, PatchFailed: v.PatchFailed, RequiresReboot: v.RequiresReboot,
		AllowInsvcPatching: v.AllowInService, InterimState: v.Interim,
		StaleDetails: v.Stale || !p.reported,
		Installed:    make(map[string]string, len(h.Report.Installed)),
		ToRemove:     names(h.Report.ToRemove), MissingPkgs: append([]string{}, h.Report.Missing...),
		Subfunctions: []string{}, Release: cmp.Or(h.Facts.Release, "unknown"), State: string(cmp.Or(h.Report.State, host.Idle)),
		SecsSinceAck: sinceHeard(h, p, now, started),
	}
	for _, d := range h.Report.Installed {
		out.Installed[d.Have.Name] = d.Have.VersionRelease() + "@" + d.Have.Arch
	}
	if hp := h.Facts.Personality; hp != "" {
		node := hp.NodeType()
		out.NodeType, out.Subfunctions = &node, hp.Subfunctions()
	}
	if e.desired.Operation != nil {
		out.State = string(host.Installing) // from the moment it was asked for until its end is known
	}
	return out
}

// sinceHeard is how long ago the host gave a sign of life, in seconds. An open connection is one: it is probed all the
// time, and closed when there is no answer.
func sinceHeard(h host.Host, p presence, now, started time.Time) int64 {
	if p.connected {
		return 0
	}
	t := p.heard
	if t.IsZero() {
		if t = h.Reported; t.IsZero() {
			t = started
		}
	}
	return max(0, int64(now.Sub(t)/time.Second))
}

func names(list []rpm.NEVRA) []string {
	out := make([]string, 0, len(list))
	for _, n := range list {
		out = append(out, n.Name)
	}
	return slices.Compact(out)
}

// WhatRequires says which patches require each of the given ones.
func (c *Controller) WhatRequires(_ context.Context, ids []string) (api.Messages, error) {
	s := c.snap.Load()
	var out api.Messages
	for _, id := range sorted(ids) {
		if _, ok := s.patches[patch.ID(id)]; !ok {
			out.Error += "Patch " + id + " does not exist\n"
			continue
		}
		if by := patch.RequiredBy(s.patches, patch.ID(id)); len(by) > 0 {
			list := make([]string, 0, len(by))
			for _, b := range by {
				list = append(list, string(b))
			}
			out.Info += id + " is required by: " + strings.Join(list, ", ") + "\n"
		} else {
			out.Info += id + " is not required by any patches.\n"
		}
	}
	if out.Error != "" {
		out.Info = "" // one unknown patch rejects the request
	}
	return out, nil
}

// QueryDependencies returns the patches with what they require, directly or all the way down, sorted.
func (c *Controller) QueryDependencies(_ context.Context, ids []string, recursive bool) (api.Dependencies, error) {
	s := c.snap.Load()
	out := api.Dependencies{Patches: []string{}}
	seen := map[patch.ID]bool{}
	var visit func(id patch.ID, deep int)
	visit = func(id patch.ID, deep int) {
		if seen[id] && deep > 0 {
			return
		}
		seen[id] = true
		if deep > 0 && !recursive {
			return
		}
		for _, r := range s.patches[id].Requires {
			visit(r, deep+1)
		}
	}
	for _, id := range sorted(ids) {
		if _, ok := s.patches[patch.ID(id)]; !ok {
			out.Error += id + " is unrecognized\n"
			continue
		}
		visit(patch.ID(id), 0)
	}
	if out.Error != "" {
		return out, nil
	}
	for id := range seen {
		out.Patches = append(out.Patches, string(id))
	}
	slices.Sort(out.Patches)
	return out, nil
}

// IsApplied says whether every one of the patches is known and has patch state Applied.
func (c *Controller) IsApplied(_ context.Context, ids []string) (bool, error) {
	return c.allIn(ids, patch.Applied), nil
}

// IsAvailable says whether every one of the patches is known and has patch state Available.
func (c *Controller) IsAvailable(_ context.Context, ids []string) (bool, error) {
	return c.allIn(ids, patch.Available), nil
}

func (c *Controller) allIn(ids []string, state patch.State) bool {
	s := c.snap.Load()
	for _, id := range ids {
		if _, ok := s.patches[patch.ID(id)]; !ok || s.evaluation().State(patch.ID(id)) != state {
			return false
		}
	}
	return true
}

// Revision is the current generation of a release's update repository; 0: there is none.
func (c *Controller) Revision(release string) int64 { return c.snap.Load().releases[release].Revision }
