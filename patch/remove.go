package patch

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// RemoveRequest asks that patches be taken out of the repository.
type RemoveRequest struct {
	IDs               []string
	RemoveUnremovable bool // take unremovable patches too
	SkipApplications  bool // do not look at what applications depend on
	SkipSemantic      bool // the operator takes the place of the semantic checks
}

// DecideRemove decides a remove. Everything is checked before anything changes, and one bad ID refuses the whole
// request. It returns [ErrInstalling] while a host is installing.
func DecideRemove(set Set, req RemoveRequest, now Situation) (Decision, error) {
	if now.installing() {
		return Decision{}, ErrInstalling
	}
	var d Decision
	ids := unique(req.IDs)
	if !d.known(set, ids) || !d.removable(set, ids, req.RemoveUnremovable) || !d.required(stillNeeded(set, ids)) ||
		!req.SkipApplications && !d.applications(ids, now.Applications) {
		return d.refusal(), nil
	}
	var wanted []ID
	for _, id := range ids {
		p := set[id]
		if p.RepoState == RepoAvailable {
			d.info(string(id) + " is not in the repo")
			continue
		}
		d.info(string(id) + " has been removed from the repo")
		wanted = append(wanted, id)
		if _, ok := p.Checks[PreRemove]; !req.SkipSemantic && (ok || slices.Contains(p.Semantics, PreRemove)) {
			d.fail(fmt.Sprintf("cannot remove %s: it carries a semantic check, which this version cannot run yet", id))
		}
	}
	if d.Refused() {
		return d.refusal(), nil
	}
	order := Order(set, wanted)
	slices.Reverse(order)
	for _, id := range order {
		d.change(set[id], RepoAvailable)
	}
	return d, nil
}

// removable refuses committed patches always, and unremovable ones unless the operator insists.
func (d *Decision) removable(set Set, ids []ID, insist bool) bool {
	for _, id := range ids {
		switch p := set[id]; {
		case !p.Removable() && !insist:
			d.fail("Patch " + string(id) + " is not removable")
		case p.RepoState == RepoCommitted:
			d.fail("Patch " + string(id) + " is committed and cannot be removed")
		case !p.Removable():
			d.warn("Unremovable patch " + string(id) + " being removed")
		}
	}
	return !d.Refused()
}

// stillNeeded maps each of ids to the applied and committed patches outside them that require it.
func stillNeeded(set Set, ids []ID) map[ID][]ID {
	out := map[ID][]ID{}
	for _, p := range set.Sorted() {
		if p.RepoState == RepoAvailable || slices.Contains(ids, p.ID) {
			continue
		}
		for _, req := range p.Requires {
			if slices.Contains(ids, req) {
				out[req] = append(out[req], p.ID)
			}
		}
	}
	return out
}

// applications refuses patches that an application depends on.
func (d *Decision) applications(ids []ID, applications map[string][]ID) bool {
	for _, id := range ids {
		var needing []string
		for _, app := range slices.Sorted(maps.Keys(applications)) {
			if slices.Contains(applications[app], id) {
				needing = append(needing, app)
			}
		}
		if len(needing) > 0 {
			d.fail(string(id) + " is required by application(s): " + strings.Join(needing, ", "))
		}
	}
	return !d.Refused()
}
