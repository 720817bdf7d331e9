package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/mem"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/patch/patchfile/patchfiletest"
	"github.com/starpatch/starpatch/problem"
)

// memJournal writes facts beside the state, without a chain: the real journal has its own tests.
type memJournal struct {
	store store.Store
	mu    sync.Mutex
	facts []Fact
}

func (j *memJournal) Commit(ctx context.Context, txn store.Txn, facts []Fact) (int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(txn.Then) == 0 {
		txn.Then = append(txn.Then, store.Change{Key: "journal-only", Value: []byte("x")})
	}
	rev, err := j.store.Commit(ctx, txn)
	if err == nil {
		j.facts = append(j.facts, facts...)
	}
	return rev, err
}

func (j *memJournal) Head() api.JournalHead { return api.JournalHead{} }
func (j *memJournal) Page(context.Context, int64) (api.JournalPage, error) {
	return api.JournalPage{Records: []json.RawMessage{}}, nil
}
func (j *memJournal) Verify(context.Context) (api.JournalCheck, error) {
	return api.JournalCheck{}, nil
}

// told lists the facts as "actor action subject outcome".
func (j *memJournal) told() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, f := range j.facts {
		out = append(out, strings.Join([]string{f.Actor, f.Action, f.Subject, f.Outcome}, " "))
	}
	return out
}

// memBlobs keeps hashes only.
type memBlobs struct {
	mu     sync.Mutex
	have   map[string]bool
	spools []*patchfiletest.Spool
	free   int64
}

func (b *memBlobs) Spool() (patchfile.Spool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &patchfiletest.Spool{}
	b.spools = append(b.spools, s)
	return s, nil
}

func (b *memBlobs) Keep(spool patchfile.Spool, files []patchfile.Member) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range files {
		b.have[f.SHA256] = true
	}
	return spool.Discard()
}

func (b *memBlobs) Put(content []byte) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := hexSum(content)
	b.have[d] = true
	return d, nil
}

func (b *memBlobs) Sweep(keep func(string) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for d := range b.have {
		if !keep(d) {
			delete(b.have, d)
		}
	}
	return nil
}

func (b *memBlobs) Free() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free, nil
}

// left lists the files of spools that were not discarded.
func (b *memBlobs) left() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, s := range b.spools {
		out = append(out, s.Names()...)
	}
	return out
}

func (b *memBlobs) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.have)
}

// memRepository remembers what was built.
type memRepository struct {
	mu    sync.Mutex
	built map[string]Generation // "19.09/3"
	fail  error
	// during, if set, is called while a generation is built.
	during func()
}

func generationName(release string, revision int64) string {
	return fmt.Sprintf("%s/%d", release, revision)
}

func (r *memRepository) Build(_ context.Context, g Generation) (Built, error) {
	r.mu.Lock()
	during := r.during
	r.during = nil
	r.mu.Unlock()
	if during != nil {
		during()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return Built{}, r.fail
	}
	text, err := json.Marshal(g)
	if err != nil {
		return Built{}, err
	}
	r.built[generationName(g.Release, g.Revision)] = g
	return Built{Repomd: hexSum(text)}, nil
}

func (r *memRepository) Sweep(keep func(string, int64) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, g := range r.built {
		if !keep(g.Release, g.Revision) {
			delete(r.built, name)
		}
	}
	return nil
}

func (r *memRepository) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for n := range r.built {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// memRoom says how full the store is.
type memRoom struct {
	mu        sync.Mutex
	used      float64
	reclaimed int
}

func (m *memRoom) Used(context.Context) (float64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, nil
}

func (m *memRoom) Reclaim(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used, m.reclaimed = 0.1, m.reclaimed+1
	return nil
}

func (m *memRoom) set(used float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used = used
}

// memFeeds has one release with given packages.
type memFeeds map[string]map[rpm.Key]rpm.NEVRA

func (f memFeeds) Releases() ([]string, error) {
	var out []string
	for r := range f {
		out = append(out, r)
	}
	slices.Sort(out)
	return out, nil
}
func (f memFeeds) Base(_ context.Context, release string) (map[rpm.Key]rpm.NEVRA, error) {
	return f[release], nil
}
func (f memFeeds) Add(context.Context, string, string) error {
	return problem.Errorf(problem.NotSupported, "not in tests")
}

func (f memFeeds) Sweep() error { return nil }

// memTrust has given keys.
type memTrust struct {
	mu   sync.Mutex
	keys patchfile.Trust
}

func (t *memTrust) Now() (patchfile.Trust, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keys, nil
}
func (t *memTrust) List() ([]api.TrustKey, error)            { return nil, nil }
func (t *memTrust) Add(_, _, _ string) (api.TrustKey, error) { return api.TrustKey{}, nil }
func (t *memTrust) Remove(_, _ string) error                 { return nil }
func (t *memTrust) set(keys patchfile.Trust)                 { t.mu.Lock(); t.keys = keys; t.mu.Unlock() }

// rig is a running controller over fakes, whose state survives restarts.
type rig struct {
	*Controller
	t       testing.TB
	state   store.Store
	wrap    func(store.Store) store.Store
	journal *memJournal
	blobs   *memBlobs
	repo    *memRepository
	feeds   memFeeds
	trust   *memTrust
	room    *memRoom
	ids     int
	signer  patch.Signer
	stop    func() error
}

func newRig(t testing.TB) *rig {
	t.Helper()
	state := mem.New()
	r := &rig{t: t, state: state,
		blobs: &memBlobs{have: map[string]bool{}, free: 1 << 40},
		repo:  &memRepository{built: map[string]Generation{}},
		feeds: memFeeds{"19.09": {}}, trust: &memTrust{}, room: &memRoom{}}
	r.start()
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if err := state.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// start runs a controller over the rig's state; a former one must have been stopped.
func (r *rig) start() {
	r.t.Helper()
	st := r.state
	if r.wrap != nil {
		st = r.wrap(st)
	}
	r.journal = &memJournal{store: st}
	r.Controller = New(Config{Name: "controller-0", Release: "19.09", Log: slog.New(slog.DiscardHandler), Version: "test",
		NewID: func() string { r.ids++; return fmt.Sprintf("op-%d", r.ids) }},
		Parts{Store: st, Journal: r.journal, Blobs: r.blobs, Repository: r.repo, Feeds: r.feeds, Trust: r.trust, Room: r.room})
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	c := r.Controller
	go func() { ended <- c.Run(ctx, func() { close(ready) }) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	select {
	case <-ready:
	case err := <-ended:
		r.stop = func() error { return nil }
		r.t.Fatalf("the controller did not start: %v", err)
	}
}

func (r *rig) restart() {
	r.t.Helper()
	if err := r.stop(); err != nil {
		r.t.Fatal(err)
	}
	r.start()
}

// have puts a patch into the store as if it had been uploaded.
func (r *rig) have(list ...patch.Patch) {
	r.t.Helper()
	for _, p := range list {
		rec := patchRecord{Format: recordFormat, Patch: p}
		err := r.commit(context.Background(), func(*snapshot) (*change, error) {
			ch := &change{}
			return ch, ch.put(patchPrefix+string(p.ID), 0, rec, func(s *snapshot, rev int64) { s.setPatch(rec, rev) })
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// simple is a patch with one package of version 1.0-2, signed by a key that the rig trusts once trustSigner was called.
func simple(id string, reboot bool, requires ...patch.ID) patch.Patch {
	name := "pkg-" + strings.ToLower(id)
	n := rpm.NEVRA{Name: name, EVR: rpm.EVR{Version: "1.0", Release: "2"}, Arch: "noarch"}
	rr := "N"
	if reboot {
		rr = "Y"
	}
	return patch.Patch{
		Metadata: patch.Metadata{ID: patch.ID(id), Release: "19.09", RebootRequired: patch.Some(rr), Contents: []string{n.FileName()}, Requires: requires,
			Summary: patch.Some("one"), Status: patch.Some("DEV"), Unremovable: patch.Some("")},
		RepoState: patch.RepoAvailable,
		Packages:  []patch.Package{{File: n.FileName(), NEVRA: n, SHA256: hexSum([]byte(name)), Size: 1}},
		XML:       hexSum([]byte(id)),
		Signer:    patch.Signer{Class: "formal"},
	}
}

// agent is the other end of a session.
type agent struct {
	t testing.TB
	agentlink.Session
	name string
}

func facts() host.Facts {
	return host.Facts{Personality: host.Worker, Release: "19.09", BootID: "boot-1", Agent: "test", Protocol: 1}
}

func (r *rig) attach(name string) *agent {
	r.t.Helper()
	s, err := r.Attach(context.Background(), agentlink.Peer{Host: name, IP: netip.MustParseAddr("127.0.0.2")}, agentlink.Hello{Facts: facts()})
	if err != nil {
		r.t.Fatal(err)
	}
	return &agent{r.t, s, name}
}

// desired takes what the controller sent last.
func (a *agent) desired() agentlink.Desired {
	a.t.Helper()
	select {
	case d, ok := <-a.Desired():
		if !ok {
			a.t.Fatalf("%s: the stream has ended", a.name)
		}
		return d
	case <-time.After(10 * time.Second):
		a.t.Fatalf("%s was sent nothing", a.name)
		return agentlink.Desired{}
	}
}

func (a *agent) report(r host.Report) {
	a.t.Helper()
	if err := a.Report(context.Background(), r); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) progress(op, state, detail string) {
	a.t.Helper()
	if err := a.Progress(context.Background(), agentlink.Progress{Operation: op, State: state, Detail: detail}); err != nil {
		a.t.Fatal(err)
	}
}

// current is a report of a host that has all that a generation wants.
func current(revision int64) host.Report {
	return host.Report{Release: "19.09", Revision: revision, State: host.Idle}
}

func (r *rig) host(name string) api.HostInfo {
	r.t.Helper()
	q, err := r.QueryHosts(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, h := range q.Hosts {
		if h.Hostname == name {
			return h
		}
	}
	r.t.Fatalf("host %s is not known", name)
	return api.HostInfo{}
}

func (r *rig) patchState(id string) string {
	r.t.Helper()
	q, err := r.Query(context.Background(), "", "")
	if err != nil {
		r.t.Fatal(err)
	}
	return q.Patches[id].PatchState
}

func (r *rig) mustApply(ids ...string) {
	r.t.Helper()
	m, err := r.Apply(context.Background(), "uid 0", ids, api.ApplyOptions{})
	if err != nil || m.Error != "" {
		r.t.Fatalf("apply %v: %v %s", ids, err, m.Error)
	}
}
