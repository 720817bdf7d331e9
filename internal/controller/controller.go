// Package controller owns the patch set and the table of hosts. Every change is one decision on the newest state, saved
// with the journal record that explains it in one transaction, and visible to readers when it is saved. Readers use
// immutable snapshots and never wait for a writer.
//
// One goroutine, the owner, commits. What takes long (reading an upload, building a repository generation) happens
// before, one operator request at a time; the owner checks again that what it rests on has not changed.
package controller

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

// What a configuration that does not say means.
const (
	DefaultOperations = 5         // kept per host
	DefaultSpareSpace = 256 << 20 // bytes of the disk that uploads leave free
)

// Config are the settings of a controller.
type Config struct {
	Name       string           // host name of this controller
	Release    string           // running software release
	Limits     patchfile.Limits // of uploaded files
	Version    string           // of the program, for the status
	Operations int              // how many operations are kept per host; 0: 5
	SpareSpace int64            // bytes that an upload leaves free on the disk; 0: 256 MiB
	CAHash     string           // SHA-256 of the CA certificate that join tokens pin
	Log        *slog.Logger     //
	NewID      func() string    // of operations
	Listeners  func() []api.Listener
	FsyncP99   time.Duration // measured at start
}

// Parts are what a controller works with.
type Parts struct {
	Store      store.Store
	Journal    Journal
	Blobs      Blobs
	Repository Repository
	Feeds      Feeds
	Trust      Trust
	Room       Room // of the state store; nil: it has no limit
}

// Fact is what a journal record says: who did or reported what, on what, and with which outcome.
type Fact struct {
	Actor     string         // "uid 0", "loopback ...", a host's name, or "controller"
	Action    string         // upload, apply, ..., report
	Subject   string         // patch IDs or the host
	Operation string         // id, where there is one
	Outcome   string         // done, refused, or what was observed
	Detail    map[string]any // what a later reader needs; nil: nothing
}

// Journal commits state together with the records that explain it.
type Journal interface {
	// Commit appends the facts, one at least, to the journal and applies txn, in one transaction. Its errors are those
	// of [store.Store.Commit].
	Commit(ctx context.Context, txn store.Txn, facts []Fact) (int64, error)
	// Head is the last record.
	Head() api.JournalHead
	// Page returns records with numbers above after, as they are stored.
	Page(ctx context.Context, after int64) (api.JournalPage, error)
	// Verify reads all records and checks the chain of hashes.
	Verify(ctx context.Context) (api.JournalCheck, error)
}

// Room is how much space the state store has left.
type Room interface {
	// Used is the share of its limit that the store's data fills, from 0 to 1.
	Used(ctx context.Context) (float64, error)
	// Reclaim gives the space of forgotten history back, after the store ran out of it. It may take seconds.
	Reclaim(ctx context.Context) error
}

// Blobs keeps files by the SHA-256 of their content.
type Blobs interface {
	// Spool returns a place for the files of one upload.
	Spool() (patchfile.Spool, error)
	// Keep makes spooled files durable under their hashes and discards the rest of the spool. Files that are there
	// already stay.
	Keep(spool patchfile.Spool, files []patchfile.Member) error
	// Put stores a small content and returns its hash.
	Put(content []byte) (string, error)
	// Sweep removes every blob whose hash keep does not know, and whatever spools were left behind.
	Sweep(keep func(sha256 string) bool) error
	// Free is the space left on the disk, in bytes.
	Free() (int64, error)
}

// Generation is what the repository of a release is made of.
type Generation struct {
	Release  string
	Revision int64
	Patches  []patch.Patch // applied and committed, in order of ID
	Ever     []rpm.NEVRA   // every package that any patch applied so far brought, sorted
}

// Built is a finished generation.
type Built struct {
	Repomd   string            // SHA-256 of repomd.xml
	Repodata map[string]string // file name to the SHA-256 of its blob; kept as long as the generation is current
}

// Repository builds and keeps the generations of the update repositories.
type Repository interface {
	// Build makes a generation durable. Doing it twice is harmless: the same input gives the same bytes.
	Build(ctx context.Context, g Generation) (Built, error)
	// Sweep removes every generation that keep does not know, and what interrupted builds left. It does not run beside
	// Build.
	Sweep(keep func(release string, revision int64) bool) error
}

// Feeds are the base packages of the releases.
type Feeds interface {
	// Releases lists the installed releases, sorted.
	Releases() ([]string, error)
	// Base returns the highest version of each package, or nil if the release is not installed.
	Base(ctx context.Context, release string) (map[rpm.Key]rpm.NEVRA, error)
	// Add brings a release in from a folder.
	Add(ctx context.Context, release, dir string) error
	// Sweep removes what interrupted calls of Add left. It does not run beside Add.
	Sweep() error
}

// Trust says whose signatures count.
type Trust interface {
	// Now reads the keys that count at this moment.
	Now() (patchfile.Trust, error)
	List() ([]api.TrustKey, error)
	Add(class, name, pem string) (api.TrustKey, error)
	Remove(class, name string) error
}

// Controller owns the patch set and the table of hosts. Make it with New and run it with Run; every other method is safe
// for concurrent use and may be called while Run is running.
type Controller struct {
	cfg   Config
	parts Parts
	log   *slog.Logger

	snap     atomic.Pointer[snapshot]
	requests chan request
	stopped  chan struct{} // closed when the owner has ended
	lane     chan struct{} // holds a token while an operator's change of the patch set is under way
	prune    chan struct{} // room for one wish to remove old generations
	news     news
	sessions sessions
	started  time.Time
}

// New returns a controller of these parts; it starts nothing.
func New(cfg Config, parts Parts) *Controller {
	if cfg.Operations == 0 {
		cfg.Operations = DefaultOperations
	}
	if cfg.SpareSpace == 0 {
		cfg.SpareSpace = DefaultSpareSpace
	}
	return &Controller{
		cfg: cfg, parts: parts, log: cfg.Log,
		requests: make(chan request, 256),
		stopped:  make(chan struct{}),
		lane:     make(chan struct{}, 1),
		prune:    make(chan struct{}, 1),
		sessions: sessions{byHost: map[string]*session{}, heard: map[string]time.Time{}, reported: map[string]bool{}},
	}
}

// Run loads the state, makes it whole, calls ready and then serves until ctx ends. It returns when everything that it
// started has ended.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	s, err := load(ctx, c.parts.Store)
	if err != nil {
		return err
	}
	c.snap.Store(s)
	c.started = time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.own(ctx) })
	g.Go(func() error {
		if err := c.start(ctx); err != nil {
			return err
		}
		ready()
		return c.clean(ctx)
	})
	return g.Wait()
}

// enter waits for its turn to change the patch set; call the result to leave.
func (c *Controller) enter(ctx context.Context) (leave func(), err error) {
	select {
	case c.lane <- struct{}{}:
		return func() { <-c.lane }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.stopped:
		return nil, errStopped
	}
}

// hostNamed finds a host by name or IP address. An address that several hosts had, one after the other or behind one
// gateway, names none of them: the wrong one must not be installed or dropped.
func (s *snapshot) hostNamed(arg string) (hostEntry, error) {
	if e, ok := s.hosts.get(arg); ok && e.rev > 0 {
		return e, nil
	}
	var found hostEntry
	var names []string
	for _, e := range s.hosts.all {
		if e.rev > 0 && e.host.IP == arg && arg != "" {
			found, names = e, append(names, e.host.Name)
		}
	}
	switch len(names) {
	case 0:
		return hostEntry{}, problem.Errorf(problem.NotFound, "Unknown host specified: %s", arg)
	case 1:
		return found, nil
	}
	slices.Sort(names)
	return hostEntry{}, problem.Errorf(problem.Conflict, "%s is the address of several hosts: %s; give the name of one, and drop those that are gone", arg, strings.Join(names, ", "))
}
