package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/features"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

// Config is what [Open] needs.
type Config struct {
	Dir  string       // of the member's files; made with mode 0700 when missing
	Name string       // of the member: the host's name; "" is "controller"
	Log  *slog.Logger // warnings and errors of the engine

	// Socket, when set, is the path of a unix socket on which the member listens for other clients of this host
	// (etcdctl, for a look inside). Its folder is made with mode 0700, since the engine itself asks for no password.
	// Without it nothing listens anywhere.
	Socket string

	// Quota is the size in bytes that the database may reach before commits fail with store.ErrNoSpace; 0 is 2 GiB.
	Quota int64
}

const (
	defaultQuota = 2 << 30
	readyTime    = time.Minute // for a log of ten thousand commits to be replayed from a bad disk

	snapshotEvery = 1000 // commits

	// history is how far back a watch can begin. An event stream that was away longer reads the state anew.
	history = "1h"
)

// member is the engine inside this process.
type member struct {
	etcd    *embed.Etcd
	lock    *os.File
	closing atomic.Bool
}

// Open starts a member alone in this process and returns when it serves. It refuses a folder that another process uses,
// and data that a newer version wrote. There is no peer listener: growing to three members begins with making one.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder of the state store: %w", err)
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil { // it holds everything, and may have been made by somebody else
		return nil, err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	m := &member{lock: lock}
	if err := m.start(ctx, cfg); err != nil {
		return nil, errors.Join(err, m.close())
	}
	s := newStore(v3client.New(m.etcd.Server), "", cfg.Log)
	s.embed = m
	s.close = sync.OnceValue(func() error {
		// A client without a connection answers with the end of its own context, which Close itself brought about.
		if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			return errors.Join(err, m.close())
		}
		return m.close()
	})
	return s, nil
}

// lockDir holds the folder for this process as long as the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = problem.Errorf(problem.Conflict, "cannot use the state store in %s: another process has it open; stop that first", dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (m *member) start(ctx context.Context, cfg Config) error {
	if err := durable.Sweep(cfg.Dir); err != nil {
		return err
	}
	if err := claimDir(cfg.Dir); err != nil {
		return err
	}
	ec, err := cfg.engine(logBridge{log: cfg.Log, closing: &m.closing})
	if err != nil {
		return err
	}
	if m.etcd, err = embed.StartEtcd(ec); err != nil {
		return fmt.Errorf("cannot start the state store in %s: %w", cfg.Dir, err)
	}
	ready, cancel := context.WithTimeoutCause(ctx, readyTime, problem.Errorf(problem.Unavailable, "cannot start the state store in %s: it was not ready within %s", cfg.Dir, readyTime))
	defer cancel()
	select {
	case <-m.etcd.Server.ReadyNotify():
		return nil
	case <-m.etcd.Server.StopNotify():
		return fmt.Errorf("cannot start the state store in %s: it stopped by itself; the log says why", cfg.Dir)
	case <-ready.Done():
		return context.Cause(ready)
	}
}

// engine is the configuration of the engine: every difference from its defaults, with the reason.
func (cfg Config) engine(log logBridge) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Dir = cfg.Dir
	ec.Name = cfg.Name
	if ec.Name == "" {
		ec.Name = "controller"
	}
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)

	// Alone there is nobody to talk to. A unix URL for peers would be no way out: the engine binds it as an abstract
	// socket, which every user of the host can reach.
	ec.ListenPeerUrls = nil
	ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil
	ec.EnableGRPCGateway = false
	if cfg.Socket != "" {
		if err := durable.MkdirAll(filepath.Dir(cfg.Socket), 0o700); err != nil {
			return nil, err
		}
		if fi, err := os.Stat(filepath.Dir(cfg.Socket)); err != nil || fi.Mode().Perm()&0o077 != 0 {
			return nil, errors.Join(err, problem.Errorf(problem.Invalid, "cannot use %s for the store's socket: other users can reach its folder; make it mode 0700", cfg.Socket))
		}
		u := url.URL{Scheme: "unix", Path: cfg.Socket}
		ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{u}, []url.URL{u}
	}

	// Silent disk corruption is found before serving and at every compaction, not by an operator.
	if err := ec.ServerFeatureGate.(featureSetter).SetFromMap(map[string]bool{
		string(features.InitialCorruptCheck): true,
		string(features.CompactHashCheck):    true,
	}); err != nil {
		return nil, err
	}
	// A start reads the log since the last snapshot again, so more of these make restarts faster: a tenth of the default
	// spares a quarter of the work. One costs a small file.
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotEvery, snapshotEvery
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, history
	ec.QuotaBackendBytes = cfg.Quota
	if ec.QuotaBackendBytes == 0 {
		ec.QuotaBackendBytes = defaultQuota
	}

	ec.LogLevel = logutil.DefaultLogLevel
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(log))
	return ec, nil
}

type featureSetter interface {
	SetFromMap(m map[string]bool) error
}

func (m *member) close() error {
	m.closing.Store(true)
	if m.etcd != nil {
		m.etcd.Close()
	}
	return m.lock.Close()
}

// Stopped is closed when the member inside this process has stopped, by Close or because it cannot go on. It is nil for
// a site's own etcd.
func (s *Store) Stopped() <-chan struct{} {
	if s.embed == nil {
		return nil
	}
	return s.embed.etcd.Server.StopNotify()
}
