package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/internal/swpatch"
)

// bin is the folder of the program as it is shipped.
var bin string

func TestMain(m *testing.M) { os.Exit(withProgram(m)) }

// withProgram makes the program and runs the tests with it.
func withProgram(m *testing.M) int {
	var err error
	if bin, err = os.MkdirTemp("", "sw-patch"); err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(bin)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		log.Printf("%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// TestScripts runs testdata/script against the real controller, one for each script, which trusts the keys of the test
// vectors and has their base feed. Hosts are models on the real agent link.
//
// Besides testscript's own, these commands are known:
//
//	unprivileged [!] sw-patch ARGS...         run the command line as an ordinary user; ! expects it to fail
//	host NAME PERSONALITY                     a host joins and reports that it has what it should
//	host NAME differs PACKAGE HAVE WANTED     from its next report on it has another version than it should
//	host NAME silent                          it reports only when told to, or after an installation
//	host NAME report                          it reports now
//	host NAME fails|rejects|restarts          so ends its next installation
//	host NAME waits                           its next installation does not end by itself
//	host NAME begun                           waits until that has begun
//	host NAME ends                            ends it
//	host NAME leaves                          its agent ends
//	stop, restart                             of the controller
//	bigfile NAME MIB                          makes a file that long, of zeros
//	cmpsocket stdout|stderr FILE              cmp, with SOCKET in the file for the controller's socket
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"unprivileged": unprivileged,
			"host":         hostCommand,
			"stop":         func(ts *testscript.TestScript, _ bool, _ []string) { of(ts).stop() },
			"restart": func(ts *testscript.TestScript, _ bool, _ []string) {
				of(ts).stop()
				ts.Check(of(ts).start())
			},
			"cmpsocket": cmpSocket,
			"bigfile":   bigFile,
		},
	})
}

// key finds a script's system in its values.
type key struct{}

func of(ts *testscript.TestScript) *system { return ts.Value(key{}).(*system) }

func setUp(env *testscript.Env) error {
	vectors, err := filepath.Abs("../../patch/patchfile/testdata/vectors")
	if err != nil {
		return err
	}
	completion, err := filepath.Abs("completion.bash")
	if err != nil {
		return err
	}
	s, err := newSystem(env.T(), vectors)
	if err != nil {
		return err
	}
	env.Defer(s.close)
	env.Values[key{}] = s
	env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	env.Setenv("STARPATCH_SOCKET", s.socket)
	env.Setenv("COMPAT_URL", "http://"+s.compat)
	env.Setenv("PATCHES", filepath.Join(vectors, "patches"))
	env.Setenv("BAD", filepath.Join(vectors, "bad"))
	env.Setenv("COMPLETION", completion)
	return nil
}

func unprivileged(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) > 0 && args[0] == "!" {
		neg, args = true, args[1:]
	}
	if len(args) < 1 || args[0] != "sw-patch" {
		ts.Fatalf("usage: unprivileged [!] sw-patch ARGS...")
	}
	code := swpatch.Run(context.Background(), swpatch.Env{
		Args: args[1:], Stdout: ts.Stdout(), Stderr: ts.Stderr(), Getenv: ts.Getenv, UID: 65534,
		Width: cli.TextWidth(ts.Getenv), Uninterruptible: func() {},
	})
	if (code != 0) != neg {
		ts.Fatalf("exit code %d", code)
	}
}

func bigFile(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: bigfile NAME MIB")
	}
	mib, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(errors.Join(f.Truncate(mib<<20), f.Close()))
}

func cmpSocket(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: cmpsocket stdout|stderr FILE")
	}
	got := ts.ReadFile(args[0])
	want := strings.ReplaceAll(ts.ReadFile(args[1]), "SOCKET", of(ts).socket)
	if got != want {
		ts.Fatalf("got %q, want %q", got, want)
	}
}

// hostWait bounds how long a model waits for the controller; what it waits for takes milliseconds.
const hostWait = 30 * time.Second

func hostCommand(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: host NAME WHAT...")
	}
	s, name, what := of(ts), args[0], args[1]
	ctx, cancel := context.WithTimeout(s.ctx, hostWait)
	defer cancel()
	h := s.hosts[name]
	if personality, err := host.ParsePersonality(what); err == nil {
		h, err := s.join(ctx, name, personality)
		ts.Check(err)
		s.hosts[name] = h
		return
	}
	if h == nil {
		ts.Fatalf("host %s has not joined", name)
	}
	if what == "leaves" {
		h.stop()
		return
	}
	if what == "report" {
		ts.Check(h.tell(ctx))
		return
	}
	if what == "begun" {
		select {
		case <-h.began:
		case <-ctx.Done():
			ts.Fatalf("no installation has begun on %s: %v", name, context.Cause(ctx))
		}
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch what {
	case "ends":
		ts.Check(h.end(h.held))
	case "silent":
		h.silent = true
	case "fails", "rejects", "restarts", "waits":
		h.ending = what
	case "differs":
		if len(args) != 5 {
			ts.Fatalf("usage: host NAME differs PACKAGE HAVE WANTED")
		}
		d, err := difference(args[2], args[3], args[4])
		ts.Check(err)
		h.differs = append(h.differs, d)
	default:
		ts.Fatalf("a host does not know %s", what)
	}
}
