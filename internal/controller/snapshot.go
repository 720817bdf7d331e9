package controller

import (
	"maps"
	"slices"
	"sync"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/patch"
)

// snapshot is everything that the controller keeps in the store, as of one revision. Once published it is never changed:
// readers use it without locks, and the owner makes the next one from it.
type snapshot struct {
	rev      int64     // of the store
	patches  patch.Set // with the repo state that their releases' records say
	kept     map[patch.ID]patchEntry
	releases map[string]releaseEntry
	hosts    *table[hostEntry]
	ops      *table[opEntry]
	tokens   map[string]tokenEntry
	certs    *table[certEntry]

	evalOnce, nameOnce sync.Once
	eval               patch.Evaluation
	names              []string
}

// patchEntry is what the store keeps of a patch besides the patch itself.
type patchEntry struct {
	rev    int64
	former []string
}

type releaseEntry struct {
	releaseRecord
	rev int64
}

type hostEntry struct {
	host    host.Host
	rev     int64 // 0: only its desired record is there
	desired desiredRecord
	drev    int64
	ops     []string // ids of its operations, oldest first
}

type opEntry struct {
	op  api.Operation
	rev int64
}

type tokenEntry struct {
	agentlink.TokenRecord
	rev int64
}

type certEntry struct {
	certificateRecord
	rev int64
}

func newSnapshot() *snapshot {
	return &snapshot{patches: patch.Set{}, kept: map[patch.ID]patchEntry{}, releases: map[string]releaseEntry{},
		hosts: &table[hostEntry]{}, ops: &table[opEntry]{}, tokens: map[string]tokenEntry{}, certs: &table[certEntry]{}}
}

// next returns a snapshot to be changed, which shares everything with s until then.
func (s *snapshot) next() *snapshot {
	return &snapshot{rev: s.rev, patches: s.patches, kept: s.kept, releases: s.releases, hosts: s.hosts, ops: s.ops, tokens: s.tokens, certs: s.certs}
}

// evaluation is what all hosts say, computed at its first use.
func (s *snapshot) evaluation() patch.Evaluation {
	s.evalOnce.Do(func() { s.eval = patch.Evaluate(s.patches, s.hostList()) })
	return s.eval
}

// hostNames returns the names of the known hosts, sorted, computed at its first use. Do not change it.
func (s *snapshot) hostNames() []string {
	s.nameOnce.Do(func() {
		for name, e := range s.hosts.all {
			if e.rev > 0 {
				s.names = append(s.names, name)
			}
		}
		slices.Sort(s.names)
	})
	return s.names
}

// hostList returns the known hosts in order of name.
func (s *snapshot) hostList() []host.Host {
	names := s.hostNames()
	out := make([]host.Host, 0, len(names))
	for _, name := range names {
		e, _ := s.hosts.get(name)
		out = append(out, e.host)
	}
	return out
}

// installing returns the hosts that have an operation which is not final, sorted.
func (s *snapshot) installing() []string {
	var out []string
	for name, e := range s.hosts.all {
		if e.rev > 0 && e.desired.Operation != nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// The setters change a snapshot under construction.

func (s *snapshot) setPatch(r patchRecord, rev int64) {
	s.patches, s.kept = maps.Clone(s.patches), maps.Clone(s.kept)
	s.patches[r.Patch.ID] = s.releases[r.Patch.Release].placed(r.Patch)
	s.kept[r.Patch.ID] = patchEntry{rev, r.Former}
}

func (s *snapshot) dropPatch(id patch.ID) {
	s.patches, s.kept = maps.Clone(s.patches), maps.Clone(s.kept)
	delete(s.patches, id)
	delete(s.kept, id)
}

func (s *snapshot) setRelease(r releaseRecord, rev int64) {
	s.releases = maps.Clone(s.releases)
	s.releases[r.Release] = releaseEntry{r, rev}
	s.patches = maps.Clone(s.patches)
	for id, p := range s.patches {
		if p.Release == r.Release {
			s.patches[id] = s.releases[r.Release].placed(p)
		}
	}
}

// placed returns p as its release's repository holds it.
func (r releaseEntry) placed(p patch.Patch) patch.Patch {
	p.RepoState, p.Changed = patch.RepoAvailable, 0
	if at, ok := r.Placed[p.ID]; ok {
		p.RepoState, p.Changed = at.State, at.Changed
	}
	return p
}

func (s *snapshot) setHost(h host.Host, rev int64) {
	e, _ := s.hosts.get(h.Name)
	e.host, e.rev = h, rev
	s.hosts = s.hosts.with(h.Name, e)
}

func (s *snapshot) setDesired(d desiredRecord, rev int64) {
	e, _ := s.hosts.get(d.Host)
	e.desired, e.drev = d, rev
	s.hosts = s.hosts.with(d.Host, e)
}

func (s *snapshot) dropHost(name string) { s.hosts = s.hosts.without(name) }

func (s *snapshot) setOperation(o api.Operation, rev int64) {
	o.Version = rev
	s.ops = s.ops.with(o.ID, opEntry{o, rev})
	e, _ := s.hosts.get(o.Host)
	if !slices.Contains(e.ops, o.ID) {
		at := func(id string) api.Operation { o, _ := s.ops.get(id); return o.op }
		e.ops = append(slices.Clone(e.ops), o.ID)
		slices.SortFunc(e.ops, func(a, b string) int { return at(a).Created.Compare(at(b).Created) })
		s.hosts = s.hosts.with(o.Host, e)
	}
}

func (s *snapshot) dropOperation(id string) {
	o, ok := s.ops.get(id)
	if !ok {
		return
	}
	s.ops = s.ops.without(id)
	if e, ok := s.hosts.get(o.op.Host); ok {
		e.ops = slices.DeleteFunc(slices.Clone(e.ops), func(x string) bool { return x == id })
		s.hosts = s.hosts.with(o.op.Host, e)
	}
}

func (s *snapshot) setToken(t agentlink.TokenRecord, rev int64) {
	s.tokens = maps.Clone(s.tokens)
	s.tokens[t.ID] = tokenEntry{t, rev}
}

func (s *snapshot) dropToken(id string) {
	s.tokens = maps.Clone(s.tokens)
	delete(s.tokens, id)
}

func (s *snapshot) setCertificate(c certificateRecord, rev int64) {
	s.certs = s.certs.with(c.Host, certEntry{c, rev})
}
