package controllerd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/controllerd"
	"github.com/starpatch/starpatch/internal/store"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim())
	}
	goleak.VerifyTestMain(m)
}

const vectors = "../../patch/patchfile/testdata/vectors"

// base are the packages of release 19.09 that the vectors were made for.
var base = []string{"peer-app-1.0-1.noarch", "peer-arch-1.0-1.x86_64", "peer-base-1.0-1.noarch", "peer-common-1.0-1.noarch",
	"peer-kernel-1.0-1.noarch", "peer-lib-1.0-1.noarch", "peer-order-1.0-9.noarch", "peer-svc-1.0-1.noarch"}

// addresses gives every controller of every test process one of its own.
var addresses atomic.Int32

// site is the files of one controller, whether it runs or not.
type site struct {
	t       testing.TB
	dir     string
	config  string // path
	address string
	socket  string
	client  *client.Client
	wrap    func(store.Store) store.Store

	stop func() error
	wait func() error // until the controller ends by itself
}

// newSite prepares a controller that knows release 19.09 and trusts the vectors' keys, and starts it.
func newSite(t testing.TB, settings ...string) *site {
	t.Helper()
	s := prepare(t, settings...)
	s.start()
	if _, err := s.client.AddFeed(t.Context(), "19.09", s.baseDir()); err != nil {
		t.Fatal(err)
	}
	return s
}

// prepare makes the files of a site.
func prepare(t testing.TB, settings ...string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "swc") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	pid := os.Getpid()
	s := &site{t: t, dir: dir, config: filepath.Join(dir, "controller.yaml"), socket: filepath.Join(dir, "s"),
		address: fmt.Sprintf("127.%d.%d.%d", 192+pid/250%60, pid%250, addresses.Add(1))}
	s.client = client.Unix(s.socket)
	text := fmt.Sprintf("name: controller-0\nrelease: \"19.09\"\ndata-dir: %s\nsocket: %s\naddress: %s\ncompat-address: %s:5487\naccept-dev-signed: true\n",
		filepath.Join(dir, "data"), s.socket, s.address, s.address) + strings.Join(settings, "\n") + "\n"
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := controllerd.Init(s.config, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, class := range []string{"formal", "dev"} {
		s.copy(filepath.Join(vectors, "keys", class+"-cert.pem"), filepath.Join(s.data("trust"), class, "vectors.pem"))
	}
	if err := os.Mkdir(s.baseDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range base {
		s.copy(filepath.Join(vectors, "rpms", p+".rpm"), filepath.Join(s.baseDir(), p+".rpm"))
	}
	t.Cleanup(func() {
		s.client.CloseIdle()
		s.halt()
	})
	return s
}

func (s *site) baseDir() string { return filepath.Join(s.dir, "base") }

func (s *site) data(name string) string { return filepath.Join(s.dir, "data", name) }

func (s *site) copy(from, to string) {
	s.t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// start runs the controller in this process.
func (s *site) start() {
	s.t.Helper()
	cfg, err := controllerd.LoadConfig(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	d := &controllerd.Daemon{Config: cfg, Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) }, Wrap: s.wrap}
	go func() { ended <- d.Run(ctx) }()
	s.wait = sync.OnceValue(func() error { defer cancel(); return <-ended })
	s.stop = func() error { cancel(); return s.wait() }
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		s.stop = nil
		s.t.Fatalf("the controller did not start: %v", err)
	}
}

// halt stops the controller, if it runs.
func (s *site) halt() {
	if s.stop == nil {
		return
	}
	if err := s.stop(); err != nil {
		s.t.Error(err)
	}
	s.stop = nil
}

// upload sends a file under a name and returns the reply's lines.
func (s *site) upload(name string, content []byte) (info, refusal string) {
	s.t.Helper()
	m, err := s.client.Upload(s.t.Context(), name, bytes.NewReader(content), nil)
	if err != nil {
		return "", err.Error()
	}
	return m.Info, m.Error
}

func (s *site) uploadFile(path string) (info, refusal string) {
	s.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.upload(filepath.Base(path), b)
}

// must uploads vectors by number.
func (s *site) must(numbers ...string) {
	s.t.Helper()
	for _, n := range numbers {
		id := "PEER_19.09_PATCH_" + n
		if info, refusal := s.uploadFile(filepath.Join(vectors, "patches", id+".patch")); info != id+" is now available\n" {
			s.t.Fatalf("upload of %s: %q %q", id, info, refusal)
		}
	}
}

// tree lists the files below a folder of the site's data, sorted, with what they are in brackets where it matters.
func (s *site) tree(name string) []string {
	s.t.Helper()
	var out []string
	err := fs.WalkDir(os.DirFS(s.data(name)), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() || strings.HasPrefix(d.Name(), "spool-") || strings.HasPrefix(d.Name(), ".aside") {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// fake is a host without packages, on the real link: it says what the test has it say.
type fake struct {
	*agentlink.Client
	name    string
	dir     string
	desired chan agentlink.Desired
	welcome chan agentlink.Welcome
	acked   chan string // operation and state of each progress that is durable
	stop    func()
}

// join lets a host join and connect.
func (s *site) join(name string, hello agentlink.Hello) *fake {
	s.t.Helper()
	tok, err := s.client.CreateToken(s.t.Context(), name, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	f := &fake{name: name, dir: filepath.Join(s.dir, "agent-"+name)}
	if _, err := agentlink.Join(s.t.Context(), agentlink.JoinConfig{Controllers: []string{s.link()}, Token: tok.Secret, Host: name, Dir: f.dir}); err != nil {
		s.t.Fatal(err)
	}
	s.connect(f, hello)
	return f
}

func (s *site) link() string { return net.JoinHostPort(s.address, "5489") }

// connect runs the agent's end of the link of a host that has joined.
func (s *site) connect(f *fake, hello agentlink.Hello) {
	s.t.Helper()
	f.desired, f.welcome, f.acked = make(chan agentlink.Desired, 16), make(chan agentlink.Welcome, 16), make(chan string, 16)
	c, err := agentlink.NewClient(agentlink.ClientConfig{Dir: f.dir, Controllers: []string{s.link()}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	f.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, &handler{f, hello}) }()
	f.stop = sync.OnceFunc(func() { cancel(); <-ended })
	s.t.Cleanup(f.stop)
}

type handler struct {
	f     *fake
	hello agentlink.Hello
}

func (h *handler) Hello() agentlink.Hello      { return h.hello }
func (h *handler) Welcome(w agentlink.Welcome) { h.f.welcome <- w }
func (h *handler) Desired(_ context.Context, d agentlink.Desired) error {
	h.f.desired <- d
	return nil
}
func (h *handler) ProgressAcked(op, state string) { h.f.acked <- op + " " + state }
