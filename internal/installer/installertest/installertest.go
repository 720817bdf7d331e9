// Package installertest makes what tests of package transactions need: host roots that scriptlets run in, and package
// repositories.
package installertest

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/starpatch/starpatch/internal/rpmmake"
)

// Release is the release of every root.
const Release = "19.09"

// env is for the tools that the fixtures run themselves.
func env(home string) []string {
	return []string{"HOME=" + home, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
}

// Root makes a host's root folder with the base packages and specs installed.
func Root(t testing.TB, specs ...rpmmake.Spec) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("scriptlets run in a chroot, which needs root")
	}
	root := t.TempDir()
	base, err := rpmmake.Base(Release)
	if err != nil {
		t.Fatal(err)
	}
	RPM(t, root, append([]string{"-i"}, Files(t, append(base, specs...)...)...)...)
	return root
}

// RPM runs rpm on a root as an administrator would and returns what it wrote; a failure ends the test.
func RPM(t testing.TB, root string, args ...string) string {
	t.Helper()
	out, err := TryRPM(t, root, args...)
	if err != nil {
		t.Fatalf("rpm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryRPM is [RPM] for calls that may fail.
func TryRPM(t testing.TB, root string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("rpm", append([]string{"--root", root, "--dbpath", "/var/lib/rpm", "--force-debian"}, args...)...)
	cmd.Env, cmd.Dir = env(t.TempDir()), "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Files makes packages in a folder of their own and returns their paths.
func Files(t testing.TB, specs ...rpmmake.Spec) []string {
	t.Helper()
	dir := t.TempDir()
	var out []string
	for _, s := range specs {
		path, err := s.WriteTo(dir)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, path)
	}
	return out
}

// Repository makes a package repository and returns its folder.
func Repository(t testing.TB, specs ...rpmmake.Spec) string {
	t.Helper()
	dir := t.TempDir()
	FillRepository(t, dir, specs...)
	return dir
}

// Serve serves a folder over HTTP and returns its URL. Packages of file repositories are not kept after a transaction, so
// tests do not use those.
func Serve(t testing.TB, dir string) string {
	t.Helper()
	s := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(s.Close)
	return s.URL
}

// FillRepository makes a package repository of an existing folder: its packages, those given, and metadata.
func FillRepository(t testing.TB, dir string, specs ...rpmmake.Spec) {
	t.Helper()
	for _, s := range specs {
		if _, err := s.WriteTo(dir); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("createrepo_c", "--quiet", "--no-database", dir)
	cmd.Env = env(t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("createrepo_c: %v\n%s", err, out)
	}
}

// Read returns the text of a file of a root, or "" if it is not there.
func Read(t testing.TB, root, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// Gate is a place in a scriptlet or script where it waits for the test.
type Gate struct {
	t           testing.TB
	ready, open *os.File
	paths       [2]string
}

// GateScript is what waits at the gate of a root; without one it goes on.
const GateScript = "if [ -e /opt/gate ]; then echo > /opt/gate-ready; read x < /opt/gate; fi\n"

// NewGate makes the gate of a root.
func NewGate(t testing.TB, root string) *Gate {
	t.Helper()
	g := &Gate{t: t, paths: [2]string{filepath.Join(root, "opt/gate-ready"), filepath.Join(root, "opt/gate")}}
	if err := os.MkdirAll(filepath.Join(root, "opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, f := range []**os.File{&g.ready, &g.open} {
		if err := syscall.Mkfifo(g.paths[i], 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		if *f, err = os.OpenFile(g.paths[i], os.O_RDWR, 0); err != nil { // both ends, so that nobody waits to open it
			t.Fatal(err)
		}
		t.Cleanup(func() { (*f).Close() })
	}
	return g
}

// Reached returns when a script waits at the gate.
func (g *Gate) Reached() {
	g.t.Helper()
	if _, err := g.ready.Read(make([]byte, 1)); err != nil {
		g.t.Fatal(err)
	}
}

// Open takes the gate away and lets the script that waits go on.
func (g *Gate) Open() {
	g.t.Helper()
	for _, p := range g.paths {
		if err := os.Remove(p); err != nil {
			g.t.Fatal(err)
		}
	}
	if _, err := g.open.WriteString("\n"); err != nil {
		g.t.Fatal(err)
	}
}

// Package is a small package with one file /opt/<name> that holds its version.
func Package(name, evr string, change ...func(*rpmmake.Spec)) rpmmake.Spec {
	s := rpmmake.Spec{Name: name, EVR: rpmmake.EVR(evr), Files: []rpmmake.File{{Path: "/opt/" + name, Body: []byte(evr + "\n")}}}
	for _, f := range change {
		f(&s)
	}
	return s
}
