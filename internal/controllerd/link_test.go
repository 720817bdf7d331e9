package controllerd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/problem"
)

func worker() agentlink.Hello {
	return agentlink.Hello{Facts: host.Facts{Personality: host.Worker, Release: "19.09", BootID: "1", Agent: "test"}}
}

func next[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came in 20 seconds")
		panic("unreachable")
	}
}

// say sends and fails the test when that is refused.
func say(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// behind is a report of a host that has the version before patch 0001.
func behind(revision int64) host.Report {
	return host.Report{Release: "19.09", Revision: revision, State: host.Idle, Installed: []host.Difference{{
		Have: rpm.NEVRA{Name: "peer-svc", EVR: rpm.EVR{Version: "1.0", Release: "1"}, Arch: "noarch"}, Wanted: rpm.EVR{Version: "1.0", Release: "2"}}}}
}

// TestAnOperationIsWatchedOverARestart follows an installation with the client while the controller goes away and comes
// back: nothing is asked twice, and the end is the agent's.
func TestAnOperationIsWatchedOverARestart(t *testing.T) {
	s := newSite(t)
	s.must("0001")
	f := s.join("compute-0", worker())
	d := next(t, f.desired)
	say(t, f.SendReport(host.Report{Release: "19.09", Revision: d.Revision, State: host.Idle}))
	if _, err := s.client.Apply(t.Context(), []string{"PEER_19.09_PATCH_0001"}, client.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	d = next(t, f.desired)
	say(t, f.SendReport(behind(d.Revision)))
	op, err := s.client.InstallHost(t.Context(), "compute-0", false)
	if err != nil {
		t.Fatal(err)
	}
	if d = next(t, f.desired); d.Operation == nil || d.Operation.ID != op.ID || !d.Operation.InServiceOnly {
		t.Fatalf("desired: %+v", d)
	}
	states := make(chan string, 16)
	type end struct {
		op  api.Operation
		err error
	}
	ended := make(chan end, 1)
	go func() {
		o, err := s.client.WatchOperation(t.Context(), op.ID, func(o api.Operation) { states <- o.State })
		ended <- end{o, err}
	}()
	if got := next(t, states); got != api.OperationRequested {
		t.Errorf("first state: %s", got)
	}
	say(t, f.SendProgress(agentlink.Progress{Operation: op.ID, State: api.OperationAccepted}))
	if got := next(t, states); got != api.OperationAccepted {
		t.Errorf("second state: %s", got)
	}
	s.halt()
	s.start()
	say(t, f.SendProgress(agentlink.Progress{Operation: op.ID, State: api.OperationRunning}))
	say(t, f.SendReport(host.Report{Release: "19.09", Revision: d.Revision, State: host.Idle}))
	say(t, f.SendProgress(agentlink.Progress{Operation: op.ID, State: api.OperationDone, Output: []byte("all went well")}))
	e := next(t, ended)
	if e.err != nil || e.op.State != api.OperationDone || !e.op.Final() {
		t.Errorf("end: %+v %v", e.op, e.err)
	}
	log, err := s.client.OperationLog(t.Context(), op.ID)
	if err != nil || log.Output != "all went well" {
		t.Errorf("log: %+v %v", log, err)
	}
	q, err := s.client.QueryHosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node := "worker"
	want := []api.HostInfo{{IP: "127.0.0.1", Hostname: "compute-0", PatchCurrent: true, Installed: map[string]string{}, ToRemove: []string{}, MissingPkgs: []string{},
		NodeType: &node, Subfunctions: []string{"worker"}, Release: "19.09", State: "idle", AllowInsvcPatching: true}}
	if diff := cmp.Diff(want, q.Hosts); diff != "" {
		t.Errorf("the host after it (-want +got):\n%s", diff)
	}
	p, err := s.client.Query(t.Context(), "all", "")
	if err != nil || p.Patches["PEER_19.09_PATCH_0001"].PatchState != "Applied" {
		t.Errorf("patch: %+v %v", p, err)
	}
	if _, err := s.client.WatchOperation(t.Context(), "nope", nil); problem.KindOf(err) != problem.NotFound {
		t.Errorf("an operation that is not known: %v", err)
	}
}

func TestAClientTellsWhatIsWrong(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	if _, err := s.client.InstallHost(ctx, "nope", false); problem.KindOf(err) != problem.NotFound || err.Error() != "Unknown host specified: nope" {
		t.Errorf("unknown host: %v", err)
	}
	if _, err := s.client.CreateToken(ctx, "Not a host", 0); problem.KindOf(err) != problem.Invalid {
		t.Errorf("a token for no host: %v", err)
	}
	m, err := s.client.UploadDir(ctx, "/tmp")
	if err != nil || !strings.HasPrefix(m.Error, "upload_dir is not offered") {
		t.Errorf("upload_dir: %+v %v", m, err)
	}
	broken := problem.Errorf(problem.Invalid, "the file went away")
	if _, err := s.client.Upload(ctx, "x.patch", io.MultiReader(strings.NewReader("x"), failing{broken}), nil); !errors.Is(err, broken) {
		t.Errorf("a file that cannot be read: %v", err)
	}
	var sent int64
	if _, err := s.client.Upload(ctx, "x.patch", strings.NewReader(strings.Repeat("x", 100_000)), func(n int64) { sent = n }); err != nil || sent != 100_000 {
		t.Errorf("progress: %d bytes, %v", sent, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.client.Query(ended, "", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up: %v", err)
	}
	s.halt()
	s.client.CloseIdle()
	if _, err := s.client.Query(ctx, "", ""); problem.KindOf(err) != problem.Unavailable {
		t.Errorf("no controller: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestTheRepositoryServesAgentsOnly(t *testing.T) {
	s := newSite(t)
	s.must("0001")
	f := s.join("compute-0", worker())
	w := next(t, f.welcome)
	if _, err := s.client.Apply(t.Context(), []string{"PEER_19.09_PATCH_0001"}, client.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: f.TLSConfig()}
	defer transport.CloseIdleConnections()
	agent := &http.Client{Transport: transport}
	fetch := func(c *http.Client, method, path, ranged string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, w.Repository+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ranged != "" {
			r.Header.Set("Range", ranged)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() // read to its end
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	const rpmPath = "/Packages/noarch/peer-svc-1.0-2.noarch.rpm"
	for _, tt := range []struct {
		name, path string
		status     int
		cache      string
	}{
		{"a file of a generation", "/updates/rel-19.09/2/repodata/repomd.xml", 200, "max-age=31536000, immutable"},
		{"the same of the current one", "/updates/rel-19.09/repodata/repomd.xml", 200, "no-cache"},
		{"a package of a generation", "/updates/rel-19.09/2" + rpmPath, 200, "max-age=31536000, immutable"},
		{"the base feed", "/feed/rel-19.09/repodata/repomd.xml", 200, "no-cache"},
		{"a generation that is not there", "/updates/rel-19.09/99/repodata/repomd.xml", 404, ""},
		{"a release that is not there", "/feed/rel-20.01/repodata/repomd.xml", 404, ""},
		{"a folder", "/updates/rel-19.09/2/repodata", 404, ""},
		{"a list of folders", "/updates/rel-19.09/2/repodata/", 404, ""},
		{"what lies above, spelled plainly", "/updates/rel-19.09/../../pki/ca-key.pem", 404, ""},
		{"what lies above, spelled darkly", "/updates/rel-19.09/2/%2e%2e/%2e%2e/%2e%2e/pki/ca-key.pem", 404, ""},
		{"what lies above, behind a slash", "/updates/rel-19.09/2/..%2f..%2f..%2fpki%2fca-key.pem", 404, ""},
		{"something below a file", "/updates/rel-19.09/2/repodata/repomd.xml/x", 404, ""},
		{"a name that no file can have", "/updates/rel-19.09/2/" + strings.Repeat("a", 300), 404, ""},
		{"what is being built", "/updates/rel-19.09/.aside-1/repodata/repomd.xml", 404, ""},
		{"the administration", "/api/v1/status", 403, ""},
		{"upstream's API", "/v1/query", 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := fetch(agent, "GET", tt.path, "")
			if resp.StatusCode != tt.status || resp.Header.Get("Cache-Control") != tt.cache {
				t.Errorf("got %d %q, want %d %q: %.200s", resp.StatusCode, resp.Header.Get("Cache-Control"), tt.status, tt.cache, body)
			}
			if strings.Contains(body, "PRIVATE KEY") {
				t.Error("a private key was served")
			}
		})
	}
	_, whole := fetch(agent, "GET", "/updates/rel-19.09"+rpmPath, "")
	resp, part := fetch(agent, "GET", "/updates/rel-19.09/2"+rpmPath, "bytes=10-19")
	if resp.StatusCode != http.StatusPartialContent || part != whole[10:20] {
		t.Errorf("a range: got %d, %d bytes", resp.StatusCode, len(part))
	}
	if resp, _ := fetch(agent, "PUT", "/updates/rel-19.09/2"+rpmPath, ""); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("PUT: got %d", resp.StatusCode)
	}
	nobodys := f.TLSConfig()
	nobodys.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	nobodysTransport := &http.Transport{TLSClientConfig: nobodys}
	defer nobodysTransport.CloseIdleConnections()
	nobody := &http.Client{Transport: nobodysTransport}
	for path, want := range map[string]int{"/updates/rel-19.09/2/repodata/repomd.xml": 401, "/feed/rel-19.09/repodata/repomd.xml": 401, "/api/v1/status": 401, "/healthz": 200, "/readyz": 200} {
		if resp, _ := fetch(nobody, "GET", path, ""); resp.StatusCode != want {
			t.Errorf("%s without a certificate: got %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestAControllerEndsWithItsStateStore(t *testing.T) {
	var state store.Store
	s := prepare(t)
	s.wrap = func(st store.Store) store.Store { state = st; return st }
	s.start()
	if err := state.Close(); err != nil {
		t.Fatal(err)
	}
	err := s.wait()
	s.stop = nil
	if err == nil || !strings.Contains(err.Error(), "the state store has stopped by itself") {
		t.Errorf("got %v", err)
	}
}

func TestTwoControllersDoNotShareAFolder(t *testing.T) {
	s := newSite(t)
	p := s.spawn(0, "never") // the lock is per process
	if p != nil {
		p.kill(t)
		t.Error("a second controller started on the same folder")
	}
}
