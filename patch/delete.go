package patch

import "slices"

// DecideDelete decides a delete: only patches go that are Available, or n/a while no host is known. What other patches
// require is not consulted, as in the original: a later apply of those says what is missing.
func DecideDelete(set Set, ids []string, now Situation) Decision {
	var d Decision
	list := unique(ids)
	if !d.known(set, list) {
		return d
	}
	ev := Evaluate(set, now.Hosts)
	for _, id := range list {
		state := ev.State(id)
		if set[id].RepoState != RepoAvailable || state != Available && state != NotApplicable {
			d.fail("Patch " + string(id) + " not in Available state")
		}
	}
	if d.Refused() {
		return d
	}
	for _, id := range list {
		d.info(string(id) + " has been deleted")
	}
	order := Order(set, list)
	slices.Reverse(order)
	for _, id := range order {
		d.change(set[id], "")
	}
	return d
}
