package controllerd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/starpatch/starpatch/internal/blob"
	"github.com/starpatch/starpatch/internal/controller"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/feed"
	"github.com/starpatch/starpatch/internal/journal"
	"github.com/starpatch/starpatch/internal/repo"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/etcd"
	"github.com/starpatch/starpatch/internal/trust"
	"github.com/starpatch/starpatch/problem"
)

// parts opens what the controller works with and says how long a durable write takes.
func (d *Daemon) parts(ctx context.Context) (controller.Parts, time.Duration, error) {
	cfg := d.Config
	var none controller.Parts
	st, err := etcd.Open(ctx, etcd.Config{Dir: cfg.stateDir(), Name: cfg.Name, Log: d.Log})
	if err != nil {
		return none, 0, err
	}
	d.defers(st.Close)
	d.lost = st.Stopped()
	fsync, err := durable.ProbeSync(cfg.stateDir())
	if err != nil {
		return none, 0, err
	}
	if fsync > durable.SlowSync {
		d.Log.Warn("the disk of the state store is slow", "durable_write_p99", fsync)
	}
	var state store.Store = st
	if d.Wrap != nil {
		state = d.Wrap(st)
	}
	blobs, err := blob.Open(cfg.blobDir())
	if err != nil {
		return none, 0, err
	}
	j, err := journal.Open(ctx, state, journal.Config{Controller: cfg.Name, Dir: cfg.journalDir(), Log: d.Log})
	if err != nil {
		return none, 0, err
	}
	d.defers(j.Close)
	return controller.Parts{
		Store:      state,
		Journal:    chain{j},
		Blobs:      blobs,
		Repository: repository{repo.NewBuilder(cfg.updatesDir(), blobs), blobs, d.Log},
		Feeds:      feeds{feed.New(cfg.FeedDir)},
		Room:       room{st},
		Trust:      trust.Store{Dir: cfg.TrustDir, AcceptDev: cfg.AcceptDevSigned, Marker: cfg.DevMarker, AcceptPKCS1v15: cfg.AcceptPKCS1v15},
	}, fsync, nil
}

// room is the state store's own account of its space.
type room struct{ *etcd.Store }

// Used implements [controller.Room].
func (r room) Used(ctx context.Context) (float64, error) {
	s, err := r.Space(ctx)
	if err != nil || s.Quota == 0 {
		return 0, err
	}
	if s.Refused {
		return 1, nil
	}
	return float64(s.InUse) / float64(s.Quota), nil
}

// feeds adds to the base feeds as the controller asks it.
type feeds struct{ *feed.Feeds }

// Add implements [controller.Feeds].
func (f feeds) Add(ctx context.Context, release, dir string) error {
	if info, err := os.Stat(dir); !filepath.IsAbs(dir) || err != nil || !info.IsDir() {
		return problem.Errorf(problem.Invalid, "cannot bring in base packages from %q: it is not a folder of this machine; give the absolute path of one", dir)
	}
	_, err := f.Feeds.Add(ctx, release, dir)
	return err
}

// repository keeps the metadata of each generation as blobs beside it.
type repository struct {
	*repo.Builder
	blobs blobKeeper
	log   *slog.Logger
}

// blobKeeper takes small contents.
type blobKeeper interface {
	Put(content []byte) (string, error)
}

// Build implements [controller.Repository].
func (r repository) Build(ctx context.Context, g controller.Generation) (controller.Built, error) {
	start := time.Now()
	b, err := r.Builder.Build(ctx, repo.GenerationOf(g.Release, g.Revision, g.Patches, g.Ever))
	if err != nil {
		return controller.Built{}, err
	}
	out := controller.Built{Repomd: b.RepomdSHA256, Repodata: map[string]string{}}
	for _, f := range b.Metadata {
		content, err := readBelow(r.Path(g.Release, g.Revision), f.Path)
		if err != nil {
			return controller.Built{}, err
		}
		digest, err := r.blobs.Put(content)
		if err != nil {
			return controller.Built{}, err
		}
		if digest != f.SHA256 {
			return controller.Built{}, errors.New("the metadata of a generation changed while it was kept")
		}
		out.Repodata[f.Path] = digest
	}
	r.log.Info("generation built", "release", g.Release, "revision", g.Revision, "patches", len(g.Patches), "took", time.Since(start).Round(time.Millisecond))
	return out, nil
}

// readBelow reads a file below dir without leaving it.
func readBelow(dir, path string) (_ []byte, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return root.ReadFile(filepath.FromSlash(path))
}
