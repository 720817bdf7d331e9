package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/problem"
)

var loopback = []netip.Addr{netip.MustParseAddr("127.0.0.1")}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantProblem(t *testing.T, err error, kind problem.Kind, text string) {
	t.Helper()
	if err == nil || problem.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("got %q: %v, want %q: ...%s...", problem.KindOf(err), err, kind, text)
	}
}

func TestCA(t *testing.T) {
	now := time.Now()
	dir := filepath.Join(t.TempDir(), "pki")
	_, err := pki.LoadCA(dir)
	wantProblem(t, err, problem.NotFound, "run sw-patch-controller init")
	ca := must[*pki.CA](t)(pki.CreateCA(dir, now))
	again := must[*pki.CA](t)(pki.LoadCA(dir))
	if ca.Hash() != again.Hash() || len(ca.Hash()) != 64 {
		t.Errorf("hash %s, then %s", ca.Hash(), again.Hash())
	}
	_, err = pki.CreateCA(dir, now)
	wantProblem(t, err, problem.Conflict, "already holds a certificate authority")
	for name, want := range map[string]os.FileMode{".": 0o700, "ca-key.pem": 0o600, "ca.pem": 0o644} {
		if got := must[os.FileInfo](t)(os.Stat(filepath.Join(dir, name))).Mode().Perm(); got != want {
			t.Errorf("mode of %s: got %o, want %o", name, got, want)
		}
	}
	other := filepath.Join(t.TempDir(), "pki")
	must[*pki.CA](t)(pki.CreateCA(other, now))
	key := must[[]byte](t)(os.ReadFile(filepath.Join(other, "ca-key.pem")))
	if err := os.WriteFile(filepath.Join(dir, "ca-key.pem"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = pki.LoadCA(dir)
	wantProblem(t, err, problem.Conflict, "do not belong together")
}

// A crash between the two files of a new CA leaves nothing that stands in the way.
func TestACAHalfMadeIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	must[*pki.CA](t)(pki.CreateCA(dir, time.Now()))
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	ca := must[*pki.CA](t)(pki.CreateCA(dir, time.Now()))
	if got := must[*pki.CA](t)(pki.LoadCA(dir)); got.Hash() != ca.Hash() {
		t.Error("another CA was loaded")
	}
}

func TestControllersCertificateIsKeptWhileItFits(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v6 := netip.MustParseAddr("fd00::2")
	names := []string{"controller-0", "controller", "patching"}
	for _, c := range []struct {
		name  string
		names []string
		ips   []netip.Addr
		at    time.Time
		kept  bool
	}{
		{"nothing changed", names, []netip.Addr{loopback[0], v6}, now.Add(time.Hour), true},
		{"another order", []string{"controller-0", "patching", "controller", "patching"}, []netip.Addr{v6, loopback[0], v6}, now.Add(time.Hour), true},
		{"a name more", append(names, "oam"), []netip.Addr{loopback[0], v6}, now.Add(time.Hour), false},
		{"an address less", names, loopback, now.Add(time.Hour), false},
		{"another host", []string{"controller-1", "controller", "patching"}, []netip.Addr{loopback[0], v6}, now.Add(time.Hour), false},
		{"just before two thirds", names, []netip.Addr{loopback[0], v6}, now.Add(pki.Lifetime*2/3 - time.Hour), true},
		{"after two thirds", names, []netip.Addr{loopback[0], v6}, now.Add(pki.Lifetime*2/3 + time.Hour), false},
		{"a clock set back", names, []netip.Addr{loopback[0], v6}, now.Add(-2 * time.Hour), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			ca := must[*pki.CA](t)(pki.CreateCA(dir, now))
			first := must[*tls.Certificate](t)(must[*pki.Server](t)(ca.Server(names, []netip.Addr{loopback[0], v6}, now)).Certificate(now))
			second := must[*tls.Certificate](t)(must[*pki.Server](t)(must[*pki.CA](t)(pki.LoadCA(dir)).Server(c.names, c.ips, c.at)).Certificate(c.at))
			if kept := first.Leaf.SerialNumber.Cmp(second.Leaf.SerialNumber) == 0; kept != c.kept {
				t.Errorf("kept %v, want %v", kept, c.kept)
			}
		})
	}
}

func TestARunningControllerReplacesItsCertificate(t *testing.T) {
	now := time.Now()
	ca := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), now))
	s := must[*pki.Server](t)(ca.Server([]string{"controller-0"}, loopback, now))
	first := must[*tls.Certificate](t)(s.Certificate(now.Add(pki.Lifetime / 2)))
	later := now.Add(pki.Lifetime*2/3 + time.Minute)
	second := must[*tls.Certificate](t)(s.Certificate(later))
	if first == second || !second.Leaf.NotAfter.After(later.Add(pki.Lifetime-time.Hour)) {
		t.Errorf("until %v, then %v", first.Leaf.NotAfter, second.Leaf.NotAfter)
	}
}

func TestADamagedControllersCertificateIsReplaced(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	ca := must[*pki.CA](t)(pki.CreateCA(dir, now))
	must[*pki.Server](t)(ca.Server([]string{"controller-0"}, loopback, now))
	if err := os.WriteFile(filepath.Join(dir, "controller.pem"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	must[*pki.Server](t)(ca.Server([]string{"controller-0"}, loopback, now))
}

func TestSignAgentRefuses(t *testing.T) {
	now := time.Now()
	ca := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), now))
	key := must[*ecdsa.PrivateKey](t)(pki.NewKey())
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	weak := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	request := func(name string, key any) []byte {
		return must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key))
	}
	good := request("compute-0", key)
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	for _, c := range []struct {
		name string
		host string
		csr  []byte
		kind problem.Kind
		want string
	}{
		{"another name", "compute-1", good, problem.Forbidden, `"compute-0", which is not compute-1`},
		{"a forged request", "compute-0", forged, problem.Invalid, "not signed by its own key"},
		{"another curve", "compute-0", request("compute-0", p384), problem.Invalid, "expected ECDSA P-256"},
		{"RSA", "compute-0", request("compute-0", weak), problem.Invalid, "expected ECDSA P-256"},
		{"rubbish", "compute-0", []byte("hello"), problem.Invalid, "cannot be read"},
		{"too much", "compute-0", make([]byte, 1<<20), problem.TooLarge, "at most 4096"},
		{"no name", "", request("", key), problem.Invalid, "not a host name"},
		{"a name that is a path", "../a", request("../a", key), problem.Invalid, "not a host name"},
		{"a name with capitals", "Compute", request("Compute", key), problem.Invalid, "not a host name"},
		{"a long name", strings.Repeat("a", 64), request(strings.Repeat("a", 64), key), problem.Invalid, "not a host name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ca.SignAgent(c.csr, c.host, now)
			wantProblem(t, err, c.kind, c.want)
		})
	}
	cert := must[*x509.Certificate](t)(ca.SignAgent(good, "compute-0", now))
	if diff := cmp.Diff([]any{cert.Subject.CommonName, pki.RoleOf(cert), cert.IsCA, cert.ExtKeyUsage},
		[]any{"compute-0", pki.AgentRole, false, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); diff != "" {
		t.Error(diff)
	}
}

// An agent asks for what it likes; it gets a client certificate for its host and no more.
func TestSignAgentIgnoresWhatElseIsAskedFor(t *testing.T) {
	ca := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), time.Now()))
	key := must[*ecdsa.PrivateKey](t)(pki.NewKey())
	csr := must[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "compute-0", OrganizationalUnit: []string{string(pki.ControllerRole)}},
		DNSNames:    []string{"controller-0"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, key))
	cert := must[*x509.Certificate](t)(ca.SignAgent(csr, "compute-0", time.Now()))
	if pki.RoleOf(cert) != pki.AgentRole || len(cert.IPAddresses) > 0 || !cmp.Equal(cert.DNSNames, []string{"compute-0"}) {
		t.Errorf("got role %s for %v %v", pki.RoleOf(cert), cert.DNSNames, cert.IPAddresses)
	}
}

// agent is an identity signed by ca.
func agent(t *testing.T, ca *pki.CA, name string) *pki.Identity {
	t.Helper()
	dir, now := t.TempDir(), time.Now()
	key := must[*ecdsa.PrivateKey](t)(pki.JoiningKey(dir))
	cert := must[*x509.Certificate](t)(ca.SignAgent(must[[]byte](t)(pki.Request(key, name)), name, now))
	return must[*pki.Identity](t)(pki.SaveIdentity(dir, name, "token", ca.Hash(), key, cert.Raw, ca.Certificate().Raw, now))
}

func TestTheJoiningKeyStaysUntilTheCertificateIsThere(t *testing.T) {
	ca := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), time.Now()))
	dir := t.TempDir()
	one := must[*ecdsa.PrivateKey](t)(pki.JoiningKey(dir))
	two := must[*ecdsa.PrivateKey](t)(pki.JoiningKey(dir))
	if !one.Equal(two) {
		t.Error("the key changed between two tries")
	}
	cert := must[*x509.Certificate](t)(ca.SignAgent(must[[]byte](t)(pki.Request(one, "compute-0")), "compute-0", time.Now()))
	_, err := pki.SaveIdentity(dir, "compute-1", "token", ca.Hash(), one, cert.Raw, ca.Certificate().Raw, time.Now())
	wantProblem(t, err, problem.Invalid, "for another key or host")
	_, err = pki.SaveIdentity(dir, "compute-0", "token", strings.Repeat("0", 64), one, cert.Raw, ca.Certificate().Raw, time.Now())
	if err != pki.ErrOtherCA {
		t.Errorf("another CA: %v", err)
	}
	_, err = pki.SaveIdentity(dir, "compute-0", "token", ca.Hash(), one, cert.Raw, ca.Certificate().Raw, time.Now().Add(-24*time.Hour))
	wantProblem(t, err, problem.Invalid, "compare the clocks")
	must[*pki.Identity](t)(pki.SaveIdentity(dir, "compute-0", "token", ca.Hash(), one, cert.Raw, ca.Certificate().Raw, time.Now()))
	var left []string
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(dir)) {
		left = append(left, e.Name())
	}
	if diff := cmp.Diff(left, []string{"agent.pem", "ca.pem", "joined-with"}); diff != "" {
		t.Error(diff)
	}
}

func TestHTTPSAdmitsAgentsOnly(t *testing.T) {
	now := time.Now()
	ca := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), now))
	s := must[*pki.Server](t)(ca.Server([]string{"controller-0"}, loopback, now))
	gone := agent(t, ca, "compute-1")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := pki.Agent(*r.TLS)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if _, err := io.WriteString(w, name); err != nil {
			t.Error(err)
		}
	}))
	// httptest would show a certificate of its own; a listener of ours does not.
	srv.Listener = tls.NewListener(srv.Listener, s.ServerTLS(tls.RequireAndVerifyClientCert, func(serial string) bool { return serial == pki.Serial(gone.Certificate()) }))
	srv.Config.ErrorLog = nil
	srv.Start()
	defer srv.Close()
	url := "https" + strings.TrimPrefix(srv.URL, "http")
	get := func(cfg *tls.Config) (string, error) {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		resp, err := c.Get(url)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	if got, err := get(agent(t, ca, "compute-0").ClientTLS("")); err != nil || got != "compute-0" {
		t.Errorf("an agent got %q, %v", got, err)
	}
	own := must[*tls.Certificate](t)(s.Certificate(now))
	if got, err := get(&tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{*own}}); err != nil || !strings.Contains(got, "not an agent's") {
		t.Errorf("a controller got %q, %v", got, err)
	}
	if got, err := get(gone.ClientTLS("")); err == nil {
		t.Errorf("a revoked agent got %q", got)
	}
	if got, err := get(&tls.Config{RootCAs: ca.Pool()}); err == nil {
		t.Errorf("nobody got %q", got)
	}
	other := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), now))
	if _, err := get(agent(t, other, "compute-0").ClientTLS("")); err == nil {
		t.Error("an agent trusted another CA")
	}
}

// No agent can pass for a controller: its certificate is not good for a server.
func TestAnAgentCannotServe(t *testing.T) {
	ca := must[*pki.CA](t)(pki.CreateCA(t.TempDir(), time.Now()))
	thief, victim := agent(t, ca, "controller-0"), agent(t, ca, "compute-0")
	for name, cfg := range map[string]*tls.Config{"joined": victim.ClientTLS("controller-0"), "joining": pki.Pinned(ca.Hash(), "controller-0")} {
		a, b := net.Pipe()
		chain := *thief.Pair()
		chain.Certificate = append(chain.Certificate, ca.Certificate().Raw)
		done := make(chan error, 1)
		go func() {
			done <- tls.Server(b, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{chain}}).Handshake()
		}()
		if err := tls.Client(a, cfg).Handshake(); err == nil || !strings.Contains(err.Error(), "incompatible key usage") {
			t.Errorf("%s: %v", name, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
