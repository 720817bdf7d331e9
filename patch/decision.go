package patch

import (
	"maps"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// ErrInstalling refuses apply and remove while a host is installing. Unlike other refusals it replaces the whole reply.
var ErrInstalling = &problem.Error{Kind: problem.Conflict, Msg: "Rejected: One or more nodes are installing patches."}

// Situation is what a decision may look at besides the patch set and its own request.
type Situation struct {
	Release      string            // the running release
	Hosts        []host.Host       // all known hosts
	Installing   []string          // hosts with an install under way that their last report may not show yet
	Trusts       func(Signer) bool // says whether a signer's key counts now; nil trusts nobody
	Applications map[string][]ID   // patches that each application depends on
}

// installing says that apply and remove must wait for a host.
func (s Situation) installing() bool {
	return len(s.Installing) > 0 || slices.ContainsFunc(s.Hosts, func(h host.Host) bool { return h.Report.State == host.Installing })
}

// Decision is the answer to a request that would change the patch set: the lines of the reply and the changes. A decision
// with errors changes nothing.
type Decision struct {
	Info    []string // lines for the reply, each without its newline
	Warning []string
	Error   []string
	Changes []Change // in an order that respects requirements: apply after, remove and delete before what is required
}

// Change moves one patch between repo states.
type Change struct {
	ID      ID
	Release string
	From    RepoState
	To      RepoState // empty: the patch is gone
}

// Refused says that the request was refused and nothing changes.
func (d Decision) Refused() bool { return len(d.Error) > 0 }

// Releases returns the releases whose repository changes, sorted: each needs a new generation.
func (d Decision) Releases() []string {
	var out []string
	for _, c := range d.Changes {
		if c.To != "" {
			out = append(out, c.Release)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// After returns the set as it will be, with the generation of each changed release from revision noted in the patches
// that were applied or removed. The given set stays as it is.
func (d Decision) After(set Set, revision func(release string) int64) Set {
	next := maps.Clone(set)
	for _, c := range d.Changes {
		if c.To == "" {
			delete(next, c.ID)
			continue
		}
		p := next[c.ID]
		p.RepoState, p.Changed = c.To, revision(c.Release)
		next[c.ID] = p
	}
	return next
}

// Lines joins the lines of a reply as the original does: each ends with a newline.
func Lines(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	return b.String()
}

func (d *Decision) info(line string) { d.Info = append(d.Info, line) }
func (d *Decision) warn(line string) { d.Warning = append(d.Warning, line) }
func (d *Decision) fail(line string) { d.Error = append(d.Error, line) }
func (d *Decision) change(p Patch, to RepoState) {
	d.Changes = append(d.Changes, Change{ID: p.ID, Release: p.Release, From: p.RepoState, To: to})
}

// refusal keeps the errors alone: what the other lines promise does not happen.
func (d Decision) refusal() Decision { return Decision{Error: d.Error} }

// unique sorts the IDs of a request and drops repeated ones.
func unique(ids []string) []ID {
	out := make([]ID, 0, len(ids))
	for _, id := range ids {
		out = append(out, ID(id))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// known says that every id is in the set, and fails the decision with a line for each that is not.
func (d *Decision) known(set Set, ids []ID) bool {
	for _, id := range ids {
		if _, ok := set[id]; !ok {
			d.fail("Patch " + string(id) + " does not exist")
		}
	}
	return !d.Refused()
}

// join lists IDs as replies do.
func join(ids []ID) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(id))
	}
	return b.String()
}
