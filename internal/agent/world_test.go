package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agent"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/installer/dnf"
	"github.com/starpatch/starpatch/internal/installer/installertest"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

var pkg = installertest.Package

// world is one host, the repositories of its controller, and a link that remembers what the agent told.
type world struct {
	t       testing.TB
	root    string
	state   string
	boot    string // file
	files   string // what the repository server serves
	url     string
	ca      string // file
	trust   *x509.CertPool
	epoch   uint64
	rev     int64
	brought []rpm.NEVRA
	tools   func(installer.Tools) installer.Tools    // wraps the real driver
	refuse  atomic.Pointer[func(*http.Request) bool] // requests to which the repository server does not answer
	patient time.Duration                            // Patience of the agent
	log     *bytes.Buffer

	agent  *agent.Agent
	link   *link
	cancel context.CancelFunc
	ended  chan error
	child  *child // the agent in a process of its own, which can be killed
}

// link is an agent.Link: events in order, nothing lost.
type link struct {
	events chan event
}

type event struct {
	Facts    bool
	Report   *host.Report
	Progress *agentlink.Progress
}

func (l *link) FactsChanged() { l.events <- event{Facts: true} }
func (l *link) SendReport(r host.Report) error {
	l.events <- event{Report: &r}
	return nil
}
func (l *link) SendProgress(p agentlink.Progress) error {
	l.events <- event{Progress: &p}
	return nil
}

type identity struct{ w *world }

func (i identity) TLSConfig() *tls.Config        { return &tls.Config{RootCAs: i.w.trust} }
func (i identity) Files() (cert, key, ca string) { return "", "", i.w.ca }

// newWorld makes a host with the base packages given; they are its base repository, too.
func newWorld(t testing.TB, base ...rpmmake.Spec) *world {
	t.Helper()
	w := &world{t: t, root: installertest.Root(t, base...), state: t.TempDir(), files: t.TempDir(), log: new(bytes.Buffer), trust: x509.NewCertPool()}
	feed := filepath.Join(w.files, "feed/rel-19.09")
	w.must(os.MkdirAll(feed, 0o755))
	all, err := rpmmake.Base(installertest.Release)
	w.must(err)
	installertest.FillRepository(t, feed, append(all, base...)...)
	served := http.FileServer(http.Dir(w.files))
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if refuse := w.refuse.Load(); refuse != nil && (*refuse)(r) {
			panic(http.ErrAbortHandler)
		}
		served.ServeHTTP(rw, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // killed clients leave half a handshake
	s.StartTLS()
	t.Cleanup(s.Close)
	w.url, w.ca = s.URL, filepath.Join(w.state, "ca.pem")
	w.trust.AddCert(s.Certificate())
	w.must(os.WriteFile(w.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	w.write("etc/build.info", "SW_VERSION=\"19.09\"\n")
	w.write("etc/platform/platform.conf", "nodetype=controller\nsubfunction=controller,worker\n")
	w.boot = filepath.Join(w.root, "run/boot-id")
	w.write("run/boot-id", "boot-1\n")
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("log of the agent:\n%s", w.log)
		}
	})
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.root, name)
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	w.must(os.WriteFile(path, []byte(text), 0o644))
}

func (w *world) read(name string) string { return installertest.Read(w.t, w.root, name) }

func (w *world) exists(name string) bool {
	w.t.Helper()
	_, err := os.Lstat(filepath.Join(w.root, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	return err == nil
}

func (w *world) remove(name string) { w.t.Helper(); w.must(os.Remove(filepath.Join(w.root, name))) }

// start starts the agent, connected.
func (w *world) start() {
	w.t.Helper()
	var tools installer.Tools
	tools, err := dnf.New(dnf.Config{Root: w.root, Dir: filepath.Join(w.state, "cache/packages")})
	w.must(err)
	if w.tools != nil {
		tools = w.tools(tools)
	}
	w.link = &link{make(chan event, 1000)}
	w.agent, err = agent.New(agent.Config{
		Root: w.root, StateDir: filepath.Join(w.state, "state"), CacheDir: filepath.Join(w.state, "cache"), BootIDFile: w.boot,
		Log: slog.New(slog.NewTextHandler(w.log, nil)), ScriptLimit: scriptLimit, Patience: w.patient,
	}, tools, w.link, identity{w})
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- w.agent.Run(ctx) }()
	w.agent.Welcome(agentlink.Welcome{Protocol: 1, Repository: w.url})
}

// stop ends the agent in an orderly way.
func (w *world) stop() {
	w.t.Helper()
	if w.child != nil {
		w.child.kill(w.t)
		w.child = nil
	}
	if w.cancel == nil {
		return
	}
	w.cancel()
	if err := <-w.ended; !errors.Is(err, context.Canceled) {
		w.t.Errorf("the agent ended with %v", err)
	}
	w.cancel = nil
}

// publish makes the next generation of the update repository and returns the desired state that names it.
func (w *world) publish(group []string, specs ...rpmmake.Spec) agentlink.Desired {
	w.t.Helper()
	w.rev++
	dir := filepath.Join(w.files, "updates/rel-19.09", strconv.FormatInt(w.rev, 10))
	w.must(os.MkdirAll(dir, 0o755))
	for _, s := range specs {
		_, err := s.WriteTo(dir)
		w.must(err)
		w.brought = append(w.brought, s.NEVRA())
	}
	var comps strings.Builder
	comps.WriteString(`<comps><group><id>updates-controller-worker</id><packagelist>`)
	for _, n := range group {
		fmt.Fprintf(&comps, `<packagereq type="mandatory">%s</packagereq>`, n)
	}
	comps.WriteString(`</packagelist></group></comps>`)
	file := filepath.Join(w.t.TempDir(), "comps.xml")
	w.must(os.WriteFile(file, []byte(comps.String()), 0o600))
	w.must(repodata.Create(w.t.Context(), dir, w.rev, file))
	brought, err := repodata.EncodeBrought(w.brought)
	w.must(err)
	w.must(repodata.Add(dir, repodata.TypeBrought, "brought.json", brought, w.rev))
	b, err := os.ReadFile(filepath.Join(dir, repodata.RepomdPath))
	w.must(err)
	sum := sha256.Sum256(b)
	w.epoch++
	return agentlink.Desired{Epoch: w.epoch, Release: "19.09", Revision: w.rev, RepomdSHA256: hex.EncodeToString(sum[:])}
}

// give tells the agent what a controller wants.
func (w *world) give(d agentlink.Desired) {
	w.t.Helper()
	if w.child != nil {
		w.child.send(w.t, message{Desired: &d})
		return
	}
	w.must(w.agent.Desired(w.t.Context(), d))
}

// desire gives the agent a desired state, with an operation if there is one.
func (w *world) desire(d agentlink.Desired, op *agentlink.Operation) {
	w.t.Helper()
	if op != nil {
		w.epoch++
		d.Epoch, d.Operation = w.epoch, op
	}
	w.give(d)
}

// install has the agent install and returns how that ended and the last report before it.
func (w *world) install(d agentlink.Desired, op agentlink.Operation) (agentlink.Progress, host.Report) {
	w.t.Helper()
	op.Kind = "install"
	w.desire(d, &op)
	return w.end(op.ID)
}

// end waits for the end of an operation and returns it with the last report before it.
func (w *world) end(operation string) (agentlink.Progress, host.Report) {
	w.t.Helper()
	var last host.Report
	for {
		e := w.next()
		if e.Report != nil {
			last = *e.Report
		}
		if p := e.Progress; p != nil && p.Operation == operation && p.Final() {
			return *p, last
		}
	}
}

// reported waits for a report that satisfies a condition.
func (w *world) reported(cond func(host.Report) bool) host.Report {
	w.t.Helper()
	for {
		if e := w.next(); e.Report != nil && cond(*e.Report) {
			return *e.Report
		}
	}
}

func (w *world) next() event {
	w.t.Helper()
	select {
	case e := <-w.link.events:
		return e
	case err := <-w.ended:
		w.ended <- err
		w.t.Fatalf("the agent ended: %v", err)
	}
	panic("unreachable")
}

// packages lists what is installed beside the base of every root.
func (w *world) packages() string {
	w.t.Helper()
	var out []string
	for f := range strings.FieldsSeq(installertest.RPM(w.t, w.root, "-qa", "--qf", "%{NAME}-%{VERSION}-%{RELEASE}\n")) {
		if !strings.HasPrefix(f, "lab-") {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
