// Package controllerd puts the parts of a controller together and runs them: state store, journal, blobs, repositories,
// the controller itself, its listeners and the agent link. It holds no rule; configuration decides what is opened.
package controllerd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/internal/controller"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/server"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/version"
	"github.com/starpatch/starpatch/problem"
)

const (
	headerTimeout = 10 * time.Second // for the head of a request
	idleTimeout   = 2 * time.Minute  // of a connection between requests
	stopTimeout   = 5 * time.Second  // for requests under way when the daemon stops
)

// Daemon is one controller. Config and Log have to be set. Run it once.
type Daemon struct {
	Config Config
	Log    *slog.Logger
	// Ready, if set, is called once when everything is open.
	Ready func()
	// Wrap, if set, stands between the controller and its state store: crash tests count and cut saves with it.
	Wrap func(store.Store) store.Store

	listeners []listener
	ready     atomic.Bool
	lost      <-chan struct{} // closed when the state store has stopped
	closers   []func() error  // in order of opening
}

// listener is an open port or socket with what it serves.
type listener struct {
	net.Listener
	info api.Listener
	run  func(ctx context.Context, l net.Listener) error
}

// Run serves until ctx ends and returns when all has been closed.
func (d *Daemon) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, d.close()) }()
	g, ctx := errgroup.WithContext(ctx)
	c, files, err := d.open(ctx)
	if err != nil {
		return errors.Join(err, g.Wait())
	}
	srv := server.New(server.Config{
		Patching: c, Administration: c, Files: files, Log: d.Log, NewID: newID, MaxUpload: d.Config.maxUpload(),
		Ready: func() error {
			if !d.ready.Load() {
				return errors.New("starting")
			}
			return nil
		},
	})
	// Everything listens before anything is promised; connections wait until the controller is ready to answer.
	if err := d.listen(c, srv); err != nil {
		return errors.Join(err, g.Wait())
	}
	opened := make(chan struct{})
	g.Go(func() error { return c.Run(ctx, func() { close(opened) }) })
	g.Go(func() error {
		select {
		case <-d.lost:
			if ctx.Err() == nil {
				return problem.Errorf(problem.Unavailable, "the state store has stopped by itself; the log says why")
			}
		case <-ctx.Done():
		}
		return nil
	})
	for _, l := range d.listeners {
		g.Go(func() error {
			select {
			case <-opened:
			case <-ctx.Done():
				return l.Close()
			}
			return l.run(ctx, l.Listener)
		})
	}
	g.Go(func() error {
		select {
		case <-opened:
		case <-ctx.Done():
			return nil
		}
		d.ready.Store(true)
		d.Log.Info("ready", "controller", d.Config.Name, "release", d.Config.Release)
		if d.Ready != nil {
			d.Ready()
		}
		return nil
	})
	return g.Wait()
}

// defers registers what is to be closed at the end; the last one opened is the first one closed.
func (d *Daemon) defers(close func() error) { d.closers = append(d.closers, close) }

func (d *Daemon) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

// lock makes sure that no other controller works on the same folder.
func (d *Daemon) lock() error {
	if err := durable.MkdirAll(d.Config.DataDir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.Config.DataDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(problem.Errorf(problem.Conflict, "another controller is working on %s; stop it first", d.Config.DataDir), f.Close())
	}
	d.defers(func() error {
		// Closing alone would leave the lock to a child that is between fork and exec.
		return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
	})
	return nil
}

// listen opens every port and socket that the configuration asks for.
func (d *Daemon) listen(c *controller.Controller, srv *server.Server) error {
	cfg := d.Config
	socket, err := listenSocket(cfg.Socket)
	if err != nil {
		return err
	}
	d.add(socket, api.Listener{Address: cfg.Socket, Services: services(server.PatchingService, server.OwnService)},
		d.http(srv.Handler(server.Peer, server.PatchingService, server.OwnService), server.ConnContext))
	if cfg.CompatLoopback {
		l, err := net.Listen("tcp", cfg.CompatAddress)
		if err != nil {
			return cannotListen(err)
		}
		d.Log.Warn("the token-less compatibility port is open: every user of this machine may do everything", "address", cfg.CompatAddress)
		d.add(l, api.Listener{Address: l.Addr().String(), Services: services(server.PatchingService)},
			d.http(srv.Handler(server.Loopback, server.PatchingService), nil))
	}
	ca, err := pki.LoadCA(cfg.pkiDir())
	if err != nil {
		return err
	}
	names, ips, err := d.names()
	if err != nil {
		return err
	}
	cert, err := ca.Server(names, ips, time.Now())
	if err != nil {
		return err
	}
	repository, err := net.Listen("tcp", cfg.port(repositoryPort))
	if err != nil {
		return cannotListen(err)
	}
	tc := cert.ServerTLS(tls.VerifyClientCertIfGiven, c.Revoked)
	tc.NextProtos = []string{"h2", "http/1.1"}
	d.add(tls.NewListener(repository, tc), api.Listener{Address: repository.Addr().String(), Services: services(server.RepositoryService, server.OwnService), TLS: true},
		d.http(srv.Handler(server.Certificate(pki.Agent), server.RepositoryService, server.OwnService), nil))
	link, err := net.Listen("tcp", cfg.port(linkPort))
	if err != nil {
		return cannotListen(err)
	}
	agents := &agentlink.Server{CA: ca, Certificate: cert, Controller: c, Registrar: c, Log: d.Log,
		Repository: "https://" + net.JoinHostPort(cfg.Address, fmt.Sprint(repositoryPort+cfg.PortOffset))}
	d.add(link, api.Listener{Address: link.Addr().String(), Services: []string{"agents"}, TLS: true}, agents.Serve)
	return nil
}

func (d *Daemon) add(l net.Listener, info api.Listener, run func(context.Context, net.Listener) error) {
	d.listeners = append(d.listeners, listener{l, info, run})
	d.defers(func() error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
}

func services(list ...server.Service) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}

func cannotListen(err error) error {
	return problem.Errorf(problem.Unavailable, "cannot open a port: %w", err)
}

// http serves requests on a listener until ctx ends, then gives those under way a moment to finish.
func (d *Daemon) http(h http.Handler, conn func(context.Context, net.Conn) context.Context) func(context.Context, net.Listener) error {
	return func(ctx context.Context, l net.Listener) error {
		s := &http.Server{Handler: h, ConnContext: conn, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
			BaseContext: func(net.Listener) context.Context { return ctx },
			ErrorLog:    log.New(logWriter{d.Log}, "", 0)}
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := s.Shutdown(stop)
		if err != nil {
			err = s.Close()
		}
		<-ended // http.ErrServerClosed
		return err
	}
}

// logWriter takes what net/http has to say about connections.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("http", "msg", string(p))
	return len(p), nil
}

// names are what the controller's certificate is for.
func (d *Daemon) names() ([]string, []netip.Addr, error) {
	names := []string{d.Config.Name, "localhost"}
	if d.Config.Address != "" {
		a, err := netip.ParseAddr(d.Config.Address)
		if err != nil {
			return nil, nil, err
		}
		return names, []netip.Addr{a}, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, nil, err
	}
	var ips []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			ips = append(ips, p.Addr().Unmap().WithZone(""))
		}
	}
	return names, ips, nil
}

// newID names an operation or a request.
func newID() string {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic("internal error: no randomness: " + err.Error())
	}
	return hex.EncodeToString(b[:])
}

// open opens everything that the controller works with, and makes the controller.
func (d *Daemon) open(ctx context.Context) (*controller.Controller, *files, error) {
	cfg := d.Config
	if err := d.lock(); err != nil {
		return nil, nil, err
	}
	ca, err := pki.LoadCA(cfg.pkiDir())
	if err != nil {
		return nil, nil, err
	}
	parts, fsync, err := d.parts(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := controller.New(controller.Config{
		Name: cfg.Name, Release: cfg.Release, Limits: cfg.Limits.patchfile(), Version: version.Version,
		Operations: cfg.Limits.Operations, SpareSpace: cfg.Limits.SpareSpace, CAHash: ca.Hash(), Log: d.Log, NewID: newID,
		FsyncP99: fsync,
		Listeners: func() []api.Listener {
			out := []api.Listener{}
			for _, l := range d.listeners {
				out = append(out, l.info)
			}
			return out
		},
	}, parts)
	files, err := openFiles(cfg.FeedDir, cfg.updatesDir(), c.Revision)
	if err != nil {
		return nil, nil, err
	}
	d.defers(files.Close)
	return c, files, nil
}
