package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/controllerd"
)

// release is the one that every host of the scripts runs.
const release = "19.09"

// basePackages are the base feed that the test vectors were made for.
var basePackages = []string{
	"peer-app-1.0-1.noarch", "peer-arch-1.0-1.x86_64", "peer-base-1.0-1.noarch", "peer-common-1.0-1.noarch",
	"peer-kernel-1.0-1.noarch", "peer-lib-1.0-1.noarch", "peer-order-1.0-9.noarch", "peer-svc-1.0-1.noarch",
}

// system is the controller of one script, with an address of its own, and its hosts.
type system struct {
	ctx     context.Context // ends with the script
	cancel  context.CancelFunc
	t       testscript.T
	dir     string
	vectors string
	socket  string
	compat  string // host:port
	address string
	config  controllerd.Config
	hosts   map[string]*hostModel

	running func() error // ends the controller; nil: it does not run
}

// systems counts them, so that each gets another address.
var systems atomic.Int32

func newSystem(t testscript.T, vectors string) (*system, error) {
	dir, err := os.MkdirTemp("", "swp") // short: socket paths are limited
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()/250%128, os.Getpid()%250, systems.Add(1))
	s := &system{
		t: t, dir: dir, vectors: vectors, address: address, hosts: map[string]*hostModel{},
		socket: filepath.Join(dir, "controller.sock"), compat: net.JoinHostPort(address, "5487"),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	path := filepath.Join(dir, "controller.yaml")
	text := fmt.Sprintf(`name: controller-0
release: "%s"
data-dir: %s
socket: %s
address: %s
compat-loopback: true
compat-address: %s
accept-dev-signed: true
log-level: warn
`, release, filepath.Join(dir, "data"), s.socket, address, s.compat)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := controllerd.Init(path, io.Discard); err != nil {
		return nil, err
	}
	if s.config, err = controllerd.LoadConfig(path); err != nil {
		return nil, err
	}
	for _, class := range []string{"formal", "dev"} {
		key, err := os.ReadFile(filepath.Join(vectors, "keys", class+"-public-key.pem"))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(s.config.TrustDir, class, "vectors.pem"), key, 0o644); err != nil {
			return nil, err
		}
	}
	return s, s.first()
}

// first starts the controller for the first time and gives it the base feed.
func (s *system) first() error {
	if err := s.start(); err != nil {
		return err
	}
	feed := filepath.Join(s.dir, "base")
	if err := os.Mkdir(feed, 0o755); err != nil {
		return err
	}
	for _, p := range basePackages {
		text, err := os.ReadFile(filepath.Join(s.vectors, "rpms", p+".rpm"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(feed, p+".rpm"), text, 0o644); err != nil {
			return err
		}
	}
	_, err := client.Unix(s.socket).AddFeed(s.ctx, release, feed)
	return err
}

// start returns when the controller is ready.
func (s *system) start() error {
	log := slog.New(slog.DiscardHandler)
	if s.t.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	ctx, cancel := context.WithCancel(s.ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	d := &controllerd.Daemon{Config: s.config, Log: log, Ready: func() { close(ready) }}
	go func() { ended <- d.Run(ctx) }()
	s.running = func() error {
		cancel()
		err := <-ended
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	select {
	case <-ready:
		return nil
	case err := <-ended:
		cancel()
		s.running = nil
		return fmt.Errorf("the controller ended at its start: %w", err)
	}
}

// stop ends the controller, if it runs.
func (s *system) stop() {
	if s.running == nil {
		return
	}
	err := s.running()
	// A program that another script is starting just now has our files open until its exec.
	syscall.ForkLock.RLock()
	s.running = nil
	syscall.ForkLock.RUnlock()
	if err != nil {
		s.t.Fatal(err)
	}
}

// join lets a host join with a token that the controller made for it.
func (s *system) join(ctx context.Context, name string, personality host.Personality) (*hostModel, error) {
	token, err := client.Unix(s.socket).CreateToken(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	return joinHost(s.ctx, name, personality, net.JoinHostPort(s.address, "5489"), token.Secret, filepath.Join(s.dir, name))
}

func (s *system) close() {
	for _, h := range s.hosts {
		h.stop()
	}
	s.stop()
	s.cancel()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
}
