package dnf_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/installer/dnf"
	"github.com/starpatch/starpatch/internal/installer/installertest"
	"github.com/starpatch/starpatch/internal/process"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

var pkg = installertest.Package

func driver(t testing.TB, root string) *dnf.Driver {
	t.Helper()
	d, err := dnf.New(dnf.Config{Root: root, Dir: filepath.Join(t.TempDir(), "driver")})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func source(t testing.TB, base, updates string) installer.Source {
	return installer.Source{Release: installertest.Release, Base: installertest.Serve(t, base), Updates: installertest.Serve(t, updates)}
}

func builds(specs ...rpmmake.Spec) []rpm.NEVRA {
	var out []rpm.NEVRA
	for _, s := range specs {
		out = append(out, s.NEVRA())
	}
	return out
}

// installed lists the packages that a test put in, without the base of every root.
func installed(t testing.TB, d *dnf.Driver) []string {
	t.Helper()
	list, err := d.Installed(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range list {
		if !strings.HasPrefix(n.Name, "lab-") {
			out = append(out, n.Name+"-"+n.EVR.String())
		}
	}
	return out
}

func wantInstalled(t testing.TB, d *dnf.Driver, want ...string) {
	t.Helper()
	if diff := cmp.Diff(installed(t, d), want); diff != "" {
		t.Errorf("installed (-got +want):\n%s", diff)
	}
}

func post(script string) func(*rpmmake.Spec) {
	return func(s *rpmmake.Spec) { s.Scripts.Post = script }
}

func TestOneTransactionGoesUpAndDownAndBringsNewIn(t *testing.T) {
	t.Parallel()
	old := []rpmmake.Spec{pkg("up", "1-1"), pkg("down", "2-1"), pkg("epoch", "1:1-1")}
	root := installertest.Root(t, append(old, pkg("own", "1-1"))...)
	base := installertest.Repository(t, pkg("up", "1-1"), pkg("down", "1-1"), pkg("epoch", "5-1"), pkg("dep", "1-1"))
	updates := installertest.Repository(t, pkg("up", "2-1"), pkg("new", "1-1", func(s *rpmmake.Spec) { s.Requires = []string{"dep"} }))
	d := driver(t, root)
	res, err := d.Install(context.Background(), source(t, base, updates), builds(pkg("up", "2-1"), pkg("down", "1-1"), pkg("epoch", "5-1"), pkg("new", "1-1")), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, res.Output)
	}
	if res.Took <= 0 || !strings.Contains(string(res.Output), "Complete!") {
		t.Errorf("took %v, output %q", res.Took, res.Output)
	}
	wantInstalled(t, d, "dep-1-1", "down-1-1", "epoch-5-1", "new-1-1", "own-1-1", "up-2-1")
	if got := installertest.Read(t, root, "opt/down"); got != "1-1\n" {
		t.Errorf("file of the downgraded package holds %q", got)
	}
	kept, err := d.Kept()
	if err != nil || len(kept) != 5 {
		t.Errorf("kept %v, %v; want the five packages of the transaction", kept, err)
	}
	if err := d.Clean(); err != nil {
		t.Fatal(err)
	}
	if kept, err := d.Kept(); err != nil || len(kept) != 0 {
		t.Errorf("after Clean %v, %v", kept, err)
	}
	if out := installertest.RPM(t, root, "-V", "up", "down", "epoch", "new", "dep"); out != "" {
		t.Errorf("rpm -V:\n%s", out)
	}
}

func TestRemoveTakesNothingElse(t *testing.T) {
	t.Parallel()
	root := installertest.Root(t, pkg("lib", "1:1-1"), pkg("app", "1-1", func(s *rpmmake.Spec) { s.Requires = []string{"lib"} }))
	d := driver(t, root)
	if _, err := d.Remove(context.Background(), builds(pkg("lib", "1:1-1")), nil); err == nil || !strings.Contains(err.Error(), "is needed by") {
		t.Errorf("removing what another package requires: got %v", err)
	}
	wantInstalled(t, d, "app-1-1", "lib-1:1-1")
	if _, err := d.Remove(context.Background(), builds(pkg("lib", "1:1-1"), pkg("app", "1-1")), nil); err != nil {
		t.Fatal(err)
	}
	wantInstalled(t, d)
}

func TestFailuresAreSaid(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		package_ rpmmake.Spec
		says     string
		left     []string
	}{
		{"a failed %post, which no exit code tells", pkg("a", "2-1", post("echo 'not today'; exit 3")), "%post(a-2-1.noarch) scriptlet failed, exit status 3", []string{"a-2-1", "b-2-1"}},
		{"a failed %pre leaves a partial transaction", pkg("a", "2-1", func(s *rpmmake.Spec) { s.Scripts.Pre = "exit 4" }), "%prein(a-2-1.noarch) scriptlet failed, exit status 4", []string{"a-1-1", "b-2-1"}},
		{"a missing dependency", pkg("a", "2-1", func(s *rpmmake.Spec) { s.Requires = []string{"nowhere"} }), "nothing provides nowhere", []string{"a-1-1", "b-1-1"}},
		{"a file conflict", pkg("a", "2-1", func(s *rpmmake.Spec) {
			s.Files = append(s.Files, rpmmake.File{Path: "/etc/lab-release", Body: []byte("other")})
		}), "conflicts with file from package lab-release", []string{"a-1-1", "b-1-1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root := installertest.Root(t, pkg("a", "1-1"), pkg("b", "1-1"))
			d := driver(t, root)
			src := source(t, installertest.Repository(t), installertest.Repository(t, c.package_, pkg("b", "2-1")))
			res, err := d.Install(context.Background(), src, builds(c.package_, pkg("b", "2-1")), nil)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want it to say %q\n%s", err, c.says, res.Output)
			}
			wantInstalled(t, d, c.left...)
		})
	}
}

func TestUnreachableRepositoryIsAFailure(t *testing.T) {
	t.Parallel()
	d := driver(t, installertest.Root(t, pkg("a", "1-1")))
	if _, err := d.Install(context.Background(), source(t, t.TempDir(), t.TempDir()), builds(pkg("a", "2-1")), nil); err == nil {
		t.Error("an installation without repositories succeeded")
	}
	wantInstalled(t, d, "a-1-1")
}

func TestABrokenConnectionIsToldFromARefusal(t *testing.T) {
	t.Parallel()
	d := driver(t, installertest.Root(t, pkg("a", "1-1")))
	gone := httptest.NewServer(http.NotFoundHandler())
	src := installer.Source{Release: installertest.Release, Base: gone.URL, Updates: gone.URL}
	if _, err := d.Install(context.Background(), src, builds(pkg("a", "2-1")), nil); err == nil || errors.Is(err, installer.ErrUnreachable) {
		t.Errorf("a server without the files: %v", err)
	}
	gone.Close()
	if _, err := d.Install(context.Background(), src, builds(pkg("a", "2-1")), nil); !errors.Is(err, installer.ErrUnreachable) {
		t.Errorf("no server: %v", err)
	}
}

func TestScriptletsSeeACleanEnvironment(t *testing.T) {
	t.Setenv("STARPATCH_SECRET", "leaks")
	root := installertest.Root(t)
	d := driver(t, root)
	p := pkg("a", "1-1", post("env > /opt/env; umask > /opt/umask"))
	if _, err := d.Install(context.Background(), source(t, installertest.Repository(t), installertest.Repository(t, p)), builds(p), nil); err != nil {
		t.Fatal(err)
	}
	if env := installertest.Read(t, root, "opt/env"); strings.Contains(env, "SECRET") || !strings.Contains(env, "LANG=C.UTF-8") {
		t.Errorf("environment of a scriptlet:\n%s", env)
	}
	if got := installertest.Read(t, root, "opt/umask"); got != "0022\n" {
		t.Errorf("umask of a scriptlet: %q", got)
	}
}

// TestKilledTransactionIsRepaired kills rpm while a %post runs, which leaves packages in the database twice, and the file
// that unpacking would have left.
func TestKilledTransactionIsRepaired(t *testing.T) {
	t.Parallel()
	old := []rpmmake.Spec{pkg("a", "1-1"), pkg("b", "1-1"), pkg("c", "1-1")}
	root := installertest.Root(t, old...)
	gate := installertest.NewGate(t, root)
	d := driver(t, root)
	wait := post(installertest.GateScript)
	updates := []rpmmake.Spec{pkg("a", "2-1", wait), pkg("b", "2-1", wait), pkg("c", "2-1", wait)}
	ids := make(chan process.ID, 2)
	go func() { // kill dnf while a %post runs, then let that end
		id := <-ids
		gate.Reached()
		if err := syscall.Kill(id.PID, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		gate.Open()
	}()
	res, err := d.Install(context.Background(), source(t, installertest.Repository(t), installertest.Repository(t, updates...)), builds(updates...),
		func(id process.ID) error { ids <- id; return nil })
	if !errors.Is(err, installer.ErrInterrupted) {
		t.Fatalf("got %v, want killed\n%s", err, res.Output)
	}
	if got := installed(t, d); len(got) != 4 {
		t.Fatalf("after the kill: %v; want one package twice", got)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(root, "opt/b;6b03b3b4"), nil, 0o600), os.WriteFile(filepath.Join(root, "opt/own;6b03b3b4"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	kept, err := d.Kept()
	if err != nil || len(kept) != 3 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if n, err := d.Sweep(context.Background(), kept); n != 1 || err != nil {
		t.Errorf("swept %d, %v; want 1", n, err)
	}
	if _, err := os.Stat(filepath.Join(root, "opt/own;6b03b3b4")); err != nil {
		t.Errorf("a file that no package could have left is gone: %v", err)
	}
	if res, err := d.Repair(context.Background(), kept, nil); err != nil {
		t.Fatalf("%v\n%s", err, res.Output)
	}
	wantInstalled(t, d, "a-2-1", "b-2-1", "c-2-1")
	if out := installertest.RPM(t, root, "-Va"); out != "" {
		t.Errorf("rpm -Va:\n%s", out)
	}
}

func TestNothingIsListedInTheMiddleOfSomebodyElsesTransaction(t *testing.T) {
	t.Parallel()
	root := installertest.Root(t, pkg("a", "1-1"))
	gate := installertest.NewGate(t, root)
	d := driver(t, root)
	files := installertest.Files(t, pkg("a", "2-1", post(installertest.GateScript)))
	ended := make(chan error, 1)
	go func() {
		_, err := installertest.TryRPM(t, root, append([]string{"-U"}, files...)...)
		ended <- err
	}()
	gate.Reached()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if list, err := d.Installed(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, %v; want that it waits", list, err)
	}
	listed := make(chan error, 1)
	go func() {
		_, err := d.Installed(t.Context())
		listed <- err
	}()
	gate.Open()
	if err := errors.Join(<-ended, <-listed); err != nil {
		t.Error(err)
	}
	wantInstalled(t, d, "a-2-1")
}

func TestRepairRefusesWhatIsNoPackage(t *testing.T) {
	t.Parallel()
	d := driver(t, installertest.Root(t))
	file := filepath.Join(t.TempDir(), "x.rpm")
	if err := os.WriteFile(file, []byte("/etc/passwd\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Repair(context.Background(), []string{file}, nil); err == nil {
		t.Error("a text file was installed")
	}
}

func TestPackageToolsGetNoOptionsFromNames(t *testing.T) {
	t.Parallel()
	d := driver(t, installertest.Root(t))
	bad := []rpm.NEVRA{{Name: "--nodeps", EVR: rpm.EVR{Version: "1", Release: "1"}, Arch: "noarch"}}
	if _, err := d.Remove(context.Background(), bad, nil); err == nil || !strings.Contains(err.Error(), "not a package") {
		t.Errorf("got %v", err)
	}
	if _, err := d.Install(context.Background(), installer.Source{}, bad, nil); err == nil || !strings.Contains(err.Error(), "not a package") {
		t.Errorf("got %v", err)
	}
}

func TestProgramsThatAreMissingAreNamed(t *testing.T) {
	t.Parallel()
	_, err := dnf.New(dnf.Config{Root: "/", Dir: t.TempDir(), RPM: "/nonexistent/rpm"})
	if err == nil || !errors.Is(err, exec.ErrNotFound) && !strings.Contains(err.Error(), "/nonexistent/rpm") {
		t.Errorf("got %v", err)
	}
}
