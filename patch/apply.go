package patch

import (
	"fmt"
	"slices"
)

// AllPatches is the word that stands for every Available patch in a request.
const AllPatches = "--all"

// ApplyRequest asks that patches be put into the repository.
type ApplyRequest struct {
	IDs          []string // in any order; [AllPatches] among them is the same as All
	All          bool     // every Available patch
	Release      string   // with All: only patches of this release; empty: of every release
	SkipSemantic bool     // the operator takes the place of the semantic checks
}

// DecideApply decides an apply. Everything is checked before anything changes, and one bad ID refuses the whole request.
// It returns [ErrInstalling] while a host is installing.
func DecideApply(set Set, req ApplyRequest, now Situation) (Decision, error) {
	if now.installing() {
		return Decision{}, ErrInstalling
	}
	var d Decision
	ids := unique(req.IDs)
	if i := slices.Index(ids, AllPatches); i >= 0 || req.All {
		if i >= 0 {
			ids = slices.Delete(ids, i, i+1)
		}
		if len(ids) > 0 {
			d.fail("--all cannot be combined with patch IDs")
			return d, nil
		}
		for _, p := range set.Sorted() {
			if p.RepoState == RepoAvailable && (req.Release == "" || p.Release == req.Release) {
				ids = append(ids, p.ID)
			}
		}
		if len(ids) == 0 {
			d.info("There are no available patches to be applied.")
			return d, nil
		}
	}
	if !d.known(set, ids) || !d.activeReleaseOnly(set, ids, now.Release) || !d.required(unmet(set, ids)) {
		return d, nil
	}
	var wanted []ID
	for _, id := range ids {
		p := set[id]
		if p.RepoState != RepoAvailable {
			d.info(string(id) + " is already in the repo")
			continue
		}
		d.info(string(id) + " is now in the repo")
		wanted = append(wanted, id)
		d.signer(p, now)
		if !req.SkipSemantic && (len(p.Checks) > 0 || len(p.Semantics) > 0) {
			d.fail(fmt.Sprintf("cannot apply %s: it carries a semantic check, which this version cannot run yet", id))
		}
	}
	if d.Refused() {
		return d.refusal(), nil
	}
	for _, id := range Order(set, wanted) {
		d.change(set[id], RepoApplied)
	}
	return d, nil
}

// activeReleaseOnly refuses patches that may be applied only while their own release is running.
func (d *Decision) activeReleaseOnly(set Set, ids []ID, running string) bool {
	for _, id := range ids {
		if p := set[id]; p.ApplyActiveReleaseOnly.Value == "Y" && p.Release != running {
			d.fail(string(id) + " cannot be applied in an upgrade")
		}
	}
	return !d.Refused()
}

// signer refuses a patch whose key has been withdrawn since it was uploaded.
func (d *Decision) signer(p Patch, now Situation) {
	if now.Trusts == nil || !now.Trusts(p.Signer) {
		key := p.Signer.Key
		if len(key) > 16 {
			key = key[:16]
		}
		d.fail(fmt.Sprintf("cannot apply %s: its signer, %s key %s, is not trusted any more; trust the key again, or delete the patch and upload it signed by a trusted key", p.ID, p.Signer.Class, key))
	}
}
